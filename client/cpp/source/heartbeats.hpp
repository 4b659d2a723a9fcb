/// Signs of life of a client's workers.
#pragma once

#include <condition_variable>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <thread>

#include "calls.hpp"
#include "stepwell/v1/control.pb.h"

namespace stepwell {

/// One thread for all workers of a client; it lives from the first join to the end of the client. Not to be destroyed
/// in a forked child.
class Heartbeats {
public:
    explicit Heartbeats(Line& line) : line_(line) {}
    ~Heartbeats();

    /// Gives signs of life until it is destroyed. A handle outlives no Heartbeats.
    class Beat;
    using Heard = std::function<void(const v1::Place&)>;

    /// Make the call every so many seconds, whatever becomes of it. heard: gets each answer, in the thread; it is not
    /// called any more once the Beat is gone.
    std::shared_ptr<Beat> start(v1::HeartbeatRequest request, double seconds, Heard heard);
    /// End the thread, if there is one in this process.
    void stop();

private:
    void run();
    void give_sign(Beat& beat);

    Line& line_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::list<std::weak_ptr<Beat>> beats_;
    std::thread thread_;
    bool stopped_ = false;
};

class Heartbeats::Beat {
public:
    Beat(v1::HeartbeatRequest request, double seconds, Heard heard)
        : request(std::move(request)), seconds(seconds), heard_(std::move(heard)) {}

    void hear(const v1::Place& place) {
        const std::lock_guard lock(mutex_);
        if (heard_) heard_(place);
    }
    /// Whoever made it hears nothing from now on.
    void stop() {
        const std::lock_guard lock(mutex_);
        heard_ = nullptr;
    }

    const v1::HeartbeatRequest request;
    const double seconds;
    std::chrono::steady_clock::time_point due;

private:
    std::mutex mutex_;
    Heard heard_;
};

}  // namespace stepwell
