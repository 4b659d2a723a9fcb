/// How a call waits, and how it is tried again.
///
/// Two limits hold for every call. silence_seconds: how long the server may say nothing; then the connection is given
/// up and the call is made again over a new one. patience_seconds: how long that goes on without any word from the
/// server; then server_unavailable or timed_out is the error. While the server gives word a call waits as long as it
/// takes, unless the caller set a limit.
#pragma once

#include <google/protobuf/message_lite.h>

#include <chrono>
#include <functional>
#include <optional>
#include <string>

#include "connection.hpp"
#include "failures.hpp"
#include "settings.hpp"
#include "stream.hpp"

namespace stepwell {

/// How long a farewell may take.
inline constexpr double end_seconds = 1.0;

/// The limits of one call over all its tries.
class Patience {
public:
    /// what: the call in words, for messages. timeout_seconds: how long it may take in all.
    Patience(const Settings& settings, std::string what, std::optional<double> timeout_seconds = {});

    const std::string& what() const { return what_; }
    /// How long to wait for the next word.
    double seconds() const;
    /// The server gave word.
    void heard();
    /// Throws Failure with timed_out if the call has taken longer than it may.
    void check() const;
    /// Back off before the next try, or throw the Failure that there is none.
    void wait(const Break& broken);

private:
    using Clock = std::chrono::steady_clock;

    double remaining() const;

    const Settings& settings_;
    std::string what_;
    std::optional<double> timeout_seconds_;
    Clock::time_point deadline_{};
    std::optional<Clock::time_point> failing_since_;
    int tries_ = 0;
};

/// Where calls go, and how.
struct Line {
    Settings settings;
    Connection connection;

    explicit Line(Settings given) : settings(std::move(given)), connection(settings.address) {}
};

/// Make a call with one request and one response. repeat: whether it may be made twice.
void ask(Line& line, const char* method, const google::protobuf::MessageLite& request,
         google::protobuf::MessageLite& response, const std::string& what, bool repeat = true);

/// Make a call with a streamed response. start: begins each try anew; add: takes each message, which is in `response`.
void collect(Line& line, const char* method, const google::protobuf::MessageLite& request,
             google::protobuf::MessageLite& response, const std::function<void()>& start,
             const std::function<void()>& add, const std::string& what, std::optional<double> timeout_seconds = {});

/// Make a call with streamed requests and one response, once unless the server surely did nothing. next: makes the next
/// request, or says that there is none; start: begins each try anew.
void deliver(Line& line, const char* method, const std::function<void()>& start,
             const std::function<const google::protobuf::MessageLite*()>& next, google::protobuf::MessageLite& response,
             const std::string& what);

/// After a failed try: wait for the next, or throw where there shall be none.
void again(Line& line, const Stream& stream, Patience& patience, const Break& broken, bool repeat = true);

/// Say that nothing follows and let the server end the call; after a second, cut it off.
void end_politely(Stream& stream);

}  // namespace stepwell
