/// What stands behind Client and Run.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "calls.hpp"
#include "encoding.hpp"
#include "heartbeats.hpp"
#include "stepwell/client.hpp"
#include "stepwell/v1/run.pb.h"
#include "worker.hpp"

namespace stepwell {

/// Shared by a client and its runs, so that neither has to outlive the other.
struct Client::Core {
    explicit Core(Settings settings) : line(std::move(settings)), heartbeats(std::make_unique<Heartbeats>(line)) {}
    ~Core() {
        // Its thread waits in the parent alone, and the memory that it waits on says that it still does.
        if (line.connection.forked()) static_cast<void>(heartbeats.release());
    }

    Line line;
    std::unique_ptr<Heartbeats> heartbeats;
};

struct Run::Core {
    Core(std::shared_ptr<Client::Core> client, const v1::Run& run, bool created);

    /// Throws Failure with invalid_value where the run is closed, or was made in the parent of this process.
    void check_open() const;
    std::string what(const std::string& call) const { return "run '" + worker.run() + "': " + call; }
    /// With OnRewind::go_on note that the update was dropped; else throw.
    void go_on(const Failure& failure);
    Arrays fetch(const PullOptions& options);

    std::shared_ptr<Client::Core> client;
    Worker worker;
    std::optional<Decoder> decoder;
    bool created;
    bool closed = false;
    /// Exchanges on a worker's stream must not interleave.
    std::mutex mutex;
};

/// Create a run, or find it. Returns it, and whether it was created.
std::pair<v1::Run, bool> create(Line& line, const std::string& name, const v1::Spec& spec,
                                const std::vector<Parameter>& parameters);

/// A run's whole state.
State get_state(Line& line, const std::string& run, const Layout& layout);
/// Replace it; returns the run.
v1::Run set_state(Line& line, const std::string& run, const Layout& layout, const State& state,
                  std::optional<std::uint64_t> expected_version);

/// For the library and its tests: what is inside of a run.
struct Inside {
    static Run::Core& of(Run& run) { return *run.core_; }
};

}  // namespace stepwell
