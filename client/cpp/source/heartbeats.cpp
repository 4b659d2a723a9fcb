#include "heartbeats.hpp"

#include <algorithm>
#include <cmath>

#include "methods.hpp"

namespace stepwell {

using Steady = std::chrono::steady_clock;

namespace {

Steady::time_point in_seconds(double seconds) {
    return Steady::now() + std::chrono::duration_cast<Steady::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

Heartbeats::~Heartbeats() { stop(); }

std::shared_ptr<Heartbeats::Beat> Heartbeats::start(v1::HeartbeatRequest request, double seconds, Heard heard) {
    auto beat = std::make_shared<Beat>(std::move(request), std::fmin(seconds, 1e8), std::move(heard));
    beat->due = in_seconds(beat->seconds);
    const std::lock_guard lock(mutex_);
    beats_.push_back(beat);
    if (!thread_.joinable() && !stopped_) thread_ = std::thread([this] { run(); });
    changed_.notify_all();
    return beat;
}

void Heartbeats::stop() {
    if (line_.connection.forked()) return;
    {
        const std::lock_guard lock(mutex_);
        stopped_ = true;
        changed_.notify_all();
    }
    if (thread_.joinable()) thread_.join();
}

void Heartbeats::run() {
    std::unique_lock lock(mutex_);
    while (!stopped_) {
        std::shared_ptr<Beat> first;
        for (auto each = beats_.begin(); each != beats_.end();) {
            std::shared_ptr<Beat> beat = each->lock();
            each = beat ? std::next(each) : beats_.erase(each);
            if (beat && (!first || beat->due < first->due)) first = std::move(beat);
        }
        if (!first) {
            changed_.wait(lock);
        } else if (Steady::now() < first->due) {
            const auto due = first->due;
            first.reset();  // so that it ends when its worker wants it to
            changed_.wait_until(lock, due);
        } else {
            first->due = in_seconds(first->seconds);
            lock.unlock();
            give_sign(*first);
            first.reset();
            lock.lock();
        }
    }
}

void Heartbeats::give_sign(Beat& beat) {
    // Stops within a second, whatever the server does.
    const double limit_seconds = std::min(beat.seconds, 1.0);
    try {
        Stream stream(line_.connection.channel(), method::heartbeat);
        v1::HeartbeatResponse response;
        if (stream.send(beat.request, limit_seconds)) stream.finish(limit_seconds);
        if (stream.receive(response, limit_seconds)) beat.hear(response.place());
    } catch (const Break&) {
        // The next one may get through; if none does, the lease runs out, and the worker joins again.
    } catch (const Failure&) {
        // The client is closed.
    }
}

}  // namespace stepwell
