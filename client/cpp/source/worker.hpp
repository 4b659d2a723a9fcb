/// A worker's place in a run: its membership, the identity of its updates, and the stream that carries them.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "calls.hpp"
#include "encoding.hpp"
#include "exchange.hpp"
#include "heartbeats.hpp"
#include "layout.hpp"
#include "stream.hpp"

namespace stepwell {

/// What Join gave, the last sequence that was answered in this epoch, and how many barriers were passed in it.
struct Membership {
    std::uint64_t generation;
    std::uint64_t epoch;
    std::uint64_t sequence = 0;
    std::uint64_t barriers = 0;
};

/// What others may ask about while an exchange is under way.
class Told {
public:
    void set_answer(const Answer& answer);
    void set_loss_scale(std::optional<double> loss_scale);
    void set_place(Place place);
    std::optional<Answer> answer() const;
    std::optional<double> loss_scale() const;
    std::optional<Place> place() const;

private:
    mutable std::mutex mutex_;
    std::optional<Answer> answer_;
    std::optional<double> loss_scale_;
    std::optional<Place> place_;
};

/// One worker of one run. Not for several threads at once, but for `version` and `told`.
class Worker {
public:
    /// Makes a selection, and what receives it, once the layout is known.
    using Select = std::function<Selected(const Layout&)>;
    /// For tests of exactly-once: gets all messages of a try of an update in which all were sent, when the last one has
    /// been, and when the answer has come; a test may send them again over a second connection.
    using Hook = std::function<void(const std::vector<v1::WorkRequest>&)>;

    Worker(Line& line, Heartbeats& heartbeats, std::string run, std::string uid, std::uint64_t version);
    ~Worker();

    /// Carry out one update, and with `select` fetch parameters after it; joins where that is due. header: still
    /// without identity and indices. selected: what was fetched.
    Ended update(const Gradients& gradients, const UpdateOptions& options, v1::UpdateHeader header,
                 const Select& select, Selected& selected, const std::string& what);
    /// Fetch parameters. A reader does this without ever joining.
    Ended fetch(const Select& select, Selected& selected, const std::string& what,
                std::optional<double> timeout_seconds);
    /// Become a worker of the run, in a new epoch. Throws Failure with run_rewound where the run is at an older version
    /// than this worker has been told of: what it is about to push belongs to a state that is gone.
    void join(std::optional<double> timeout_seconds = {});
    /// Where this worker stands now; joins where that is due.
    Place look_around();
    /// Wait until all live workers wait at this barrier.
    void barrier(const std::string& name, std::optional<double> timeout_seconds);
    /// The layout, fetched when it is first needed.
    const Layout& have_layout();
    /// The run went back, by our own doing or not: join anew before the next update.
    void rewound(std::uint64_t present_version);
    /// End the stream, and the place in the run.
    void leave();

    const std::string& run() const { return run_; }
    const std::string& uid() const { return uid_; }
    const std::string& name() const { return name_; }

    /// The newest version that it was told of.
    std::atomic<std::uint64_t> version;
    std::shared_ptr<Told> told;
    std::unique_ptr<Encoder> encoder;
    Hook before_answer, after_answer;

private:
    /// Do an update's exchange, and draw the conclusions for this worker.
    void conclude(Exchange& exchange, Membership& membership, Patience& patience);
    /// Join again, as the lease has run out; unset where the update has had no effect, and can be sent again.
    std::optional<Answer> come_back(const v1::UpdateIdentity& identity, Patience& patience, const Error& error);
    /// Try until the exchange is done, refused, or the patience has run out.
    void carry_out(Exchange& exchange, Patience& patience);
    void try_once(Exchange& exchange, Patience& patience);
    /// Send a message, unless the exchange is done before it is gone.
    void send(Exchange& exchange, const v1::WorkRequest& request, Patience& patience);
    void receive(Exchange& exchange, Patience& patience);
    /// Note what became of an update, however it ended.
    void settle(Exchange& exchange, Membership& membership);
    void keep_lease(const v1::Membership& membership);
    void stop_heartbeat();
    v1::UpdateIdentity identity(const Membership& membership) const;
    void know(const std::string& uid, const v1::Layout& layout);
    Failure went_back(std::uint64_t present_version, bool joined = false);
    std::string what(const std::string& call) const { return "run '" + run_ + "': " + call; }

    Line& line_;
    Heartbeats& heartbeats_;
    std::string run_, uid_, name_;
    std::unique_ptr<Layout> layout_;
    std::shared_ptr<Membership> membership_;
    std::unique_ptr<Stream> stream_;
    std::uint64_t exchanges_ = 0;
    /// Of the parameters that came last.
    std::optional<std::uint64_t> base_version_;
    /// The last update with an answer under this name, as the last join told: its epoch and sequence.
    std::pair<std::uint64_t, std::uint64_t> last_answered_;
    std::shared_ptr<Heartbeats::Beat> beat_;
};

}  // namespace stepwell
