#include "calls.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <thread>

#include "methods.hpp"
#include "stepwell/v1/control.pb.h"

namespace stepwell {

using google::protobuf::MessageLite;

namespace {

double seconds_between(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
    return std::chrono::duration<double>(to - from).count();
}

std::chrono::steady_clock::duration duration_of(double seconds) {
    return std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
}

double uniform(double most) {
    thread_local std::minstd_rand random{std::random_device{}()};
    return std::uniform_real_distribution<double>(0.0, most)(random);
}

std::string in_words(double seconds) {
    std::ostringstream words;
    words << seconds;
    return words.str();
}

/// Ask who the server is, over the connection of a call that waits: a server that is only slow still answers.
void ping(const Stream& stream, Patience& patience) {
    Stream question(stream.channel(), method::get_server);
    v1::GetServerResponse response;
    try {
        if (question.send(v1::GetServerRequest(), patience.seconds())) question.finish(patience.seconds());
        question.receive(response, patience.seconds());
    } catch (const Break&) {
        throw Break::silence();  // the call that waits may still be at work, so this must not speak for it
    }
    patience.heard();
}

/// Wait for the one response of a call that gives no word on the way.
void receive_answer(Stream& stream, MessageLite& response, Patience& patience) {
    for (;;) {
        try {
            if (!stream.receive(response, patience.seconds())) throw Break::ended("the call ended without an answer");
            return;
        } catch (const Break& broken) {
            if (!broken.silent) throw;
        }
        patience.check();
        ping(stream, patience);
    }
}

void send_only(Stream& stream, const MessageLite& request, const Patience& patience) {
    if (stream.send(request, patience.seconds())) stream.finish(patience.seconds());
}

}  // namespace

Patience::Patience(const Settings& settings, std::string what, std::optional<double> timeout_seconds)
    : settings_(settings), what_(std::move(what)), timeout_seconds_(timeout_seconds) {
    if (timeout_seconds_) {
        // Beyond a few years a limit is none, and the clock would overflow.
        deadline_ = Clock::now() + duration_of(std::clamp(*timeout_seconds_, 0.0, 1e8));
    }
}

double Patience::remaining() const { return seconds_between(Clock::now(), deadline_); }

double Patience::seconds() const {
    const double silence = std::fmin(settings_.options.silence_seconds, 1e8);
    return timeout_seconds_ ? std::clamp(remaining(), 0.0, silence) : silence;
}

void Patience::heard() {
    failing_since_.reset();
    tries_ = 0;
}

void Patience::check() const {
    if (!timeout_seconds_ || remaining() > 0) return;
    const std::string limit = in_words(*timeout_seconds_);
    fail(ErrorReason::timed_out,
         what_ + ": got no end within " + limit +
             " s, expected one; allow more with timeout_seconds, or leave it out "
             "for no limit",
         {{"timeout_seconds", limit}});
}

void Patience::wait(const Break& broken) {
    if (!broken.passing()) throw Failure{broken.as_error()};
    check();
    const ConnectOptions& options = settings_.options;
    const std::string patience = in_words(options.patience_seconds);
    const auto now = Clock::now();
    if (!failing_since_) {
        failing_since_ = broken.silent ? now - duration_of(std::fmin(options.silence_seconds, 1e8)) : now;
        settings_.log(what_ + ": " + broken.said() + " from " + settings_.address + "; trying again for " + patience +
                      " s");
    }
    const double failing_seconds = seconds_between(*failing_since_, now);
    if (failing_seconds >= options.patience_seconds) {
        fail(broken.silent ? ErrorReason::timed_out : ErrorReason::server_unavailable,
             what_ + ": got " + broken.said() + " from " + settings_.address + " for " + patience +
                 " s, expected an answer; see that the server runs at this address, or raise patience_seconds",
             {{"address", settings_.address}, {"patience_seconds", patience}});
    }
    // Full jitter: workers that lost the same server do not come back in step.
    const double longest = std::fmin(options.retry_seconds_max, options.retry_seconds * std::exp2(tries_++));
    double pause = std::fmin(uniform(longest), options.patience_seconds - failing_seconds);
    if (timeout_seconds_) pause = std::fmin(pause, remaining());
    std::this_thread::sleep_for(duration_of(std::fmax(0.0, pause)));
}

void ask(Line& line, const char* method, const MessageLite& request, MessageLite& response, const std::string& what,
         bool repeat) {
    Patience patience(line.settings, what);
    for (;;) {
        Stream stream(line.connection.channel(), method);
        try {
            send_only(stream, request, patience);
            receive_answer(stream, response, patience);
            return;
        } catch (const Break& broken) {
            again(line, stream, patience, broken, repeat);
        }
    }
}

void collect(Line& line, const char* method, const MessageLite& request, MessageLite& response,
             const std::function<void()>& start, const std::function<void()>& add, const std::string& what,
             std::optional<double> timeout_seconds) {
    Patience patience(line.settings, what, timeout_seconds);
    for (;;) {
        start();
        Stream stream(line.connection.channel(), method);
        try {
            send_only(stream, request, patience);
            while (stream.receive(response, patience.seconds())) {
                patience.heard();
                add();
            }
            return;
        } catch (const Break& broken) {
            again(line, stream, patience, broken);
        }
    }
}

void deliver(Line& line, const char* method, const std::function<void()>& start,
             const std::function<const MessageLite*()>& next, MessageLite& response, const std::string& what) {
    Patience patience(line.settings, what);
    for (;;) {
        start();
        Stream stream(line.connection.channel(), method);
        try {
            bool wanted = true;  // until the server has an answer, or an error, before it has everything
            while (wanted) {
                const MessageLite* request = next();
                if (request == nullptr) break;
                wanted = stream.send(*request, patience.seconds());
            }
            if (wanted) stream.finish(patience.seconds());
            receive_answer(stream, response, patience);
            return;
        } catch (const Break& broken) {
            again(line, stream, patience, broken, false);
        }
    }
}

void again(Line& line, const Stream& stream, Patience& patience, const Break& broken, bool repeat) {
    if (!repeat && broken.passing() && !broken.never_executed()) {
        fail(broken.silent ? ErrorReason::timed_out : ErrorReason::server_unavailable,
             patience.what() + ": got " + broken.said() +
                 " before the answer, expected an answer; it may have been "
                 "done or not: look before you call it again");
    }
    patience.wait(broken);
    if (broken.silent) line.connection.drop(stream.channel());
}

void end_politely(Stream& stream) {
    try {
        stream.finish(end_seconds);
        v1::GetServerResponse ignored;  // no response is expected; what would come has unknown fields
        while (stream.receive(ignored, end_seconds)) {
        }
    } catch (const Break&) {
        stream.cancel();
    }
}

}  // namespace stepwell
