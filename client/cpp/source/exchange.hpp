/// One exchange on a worker's stream: an update, a selection of parameters, or both, and what comes back.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "encoding.hpp"
#include "packing.hpp"
#include "receiving.hpp"
#include "stepwell/descriptions.hpp"
#include "stepwell/v1/data.pb.h"

namespace stepwell {

/// An update on its way: its header, whose identity is kept over all tries, and its content, perhaps to be encoded.
struct OutgoingUpdate {
    v1::UpdateHeader header;
    Update content;
    std::optional<EncodedUpdate> encoded;
    /// The ranges that are still to be encoded; those before are kept in `encoded`.
    std::optional<std::vector<Packer>> rest;
};

/// A selection and what receives it.
struct Selected {
    v1::Selection selection;
    std::unique_ptr<Received> received;
};

/// What came of an exchange: what became of the update, the version of the parameters that came, and whether none came
/// because the run is not beyond the version that was asked about.
struct Ended {
    std::optional<Answer> answer;
    std::uint64_t version = 0;
    bool unchanged = false;
};

/// An exchange over all its tries.
class Exchange {
public:
    /// Either may be null; both outlive the exchange.
    Exchange(OutgoingUpdate* update, Selected* selected) : update_(update), selected_(selected) {}

    /// Begin a try under this number. An update that has been answered is not sent again.
    void begin(std::uint64_t number);
    /// The next message of the try; false when all are made.
    bool next(v1::WorkRequest& request);
    /// Whether only the last message is still to be sent: a retry's answer may come before the update has all gone.
    void close() { closing_ = true; }
    /// Take the server's word. Throws Failure if the exchange has failed, Break if the server stops.
    void take(const v1::WorkResponse& response);

    OutgoingUpdate* update() const { return update_; }
    bool selects() const { return selected_ != nullptr; }

    Ended ended() const { return {answer, version, unchanged}; }

    /// As in Ended, as far as it was told.
    std::optional<Answer> answer;
    std::uint64_t version = 0;
    bool unchanged = false;
    /// Whether the present try is over.
    bool done = false;
    /// Whether the server has refused the exchange, so that the update surely left no trace.
    bool refused = false;

private:
    /// The messages of an update, without what all exchanges have.
    class Messages;

    OutgoingUpdate* update_;
    Selected* selected_;
    std::uint64_t number_ = 0;
    bool staging_ = false;
    bool closing_ = false;
    bool over_ = false;
    std::shared_ptr<Messages> messages_;
};

}  // namespace stepwell
