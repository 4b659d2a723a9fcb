/// How failures travel inside of the library, which throws; at its boundary they become Results.
///
///     Failure    the error that the caller gets
///     Break      a try of a call ended, by the status of the call or by silence; another try may succeed
#pragma once

#include <grpcpp/support/status.h>

#include <exception>
#include <new>
#include <optional>
#include <string>
#include <utility>

#include "stepwell/errors.hpp"
#include "stepwell/v1/errors.pb.h"

namespace stepwell {

struct Failure {
    Error error;
};

[[noreturn]] inline void fail(ErrorReason reason, std::string message,
                              std::map<std::string, std::string> details = {}) {
    throw Failure{Error(reason, std::move(message), std::move(details))};
}

struct Break {
    /// No word came; nothing else is set then.
    bool silent = false;
    grpc::StatusCode code = grpc::StatusCode::OK;
    std::string text;
    /// What the server said; unset where the connection broke, or what answered is no Stepwell.
    std::optional<Error> error;

    static Break silence() { return {true, grpc::StatusCode::OK, {}, {}}; }
    /// The server ended a stream that should go on.
    static Break ended(std::string text) { return {false, grpc::StatusCode::UNAVAILABLE, std::move(text), {}}; }
    static Break of(const grpc::Status& status);

    /// Whether the same call may succeed a little later, or over another connection.
    bool passing() const;
    /// Whether the server surely did nothing: it was not reached, or refused because it stops.
    bool never_executed() const;
    /// "no word", or the status.
    std::string said() const;
    /// The error for a call that is not tried again.
    Error as_error() const;
};

/// The error of an exchange on a worker's stream.
Error decode_error(const v1::Error& message);

/// Do some work; what it throws becomes the result's error.
template <class T, class Work>
Result<T> guarded(Work&& work) {
    try {
        if constexpr (std::is_void_v<T>) {
            work();
            return {};
        } else {
            return work();
        }
    } catch (const Failure& failure) {
        return failure.error;
    } catch (const std::bad_alloc&) {
        return Error(ErrorReason::memory_exhausted, "got no memory in this process, expected some; free what you can");
    } catch (const std::exception& error) {
        return Error(ErrorReason::internal, std::string("the client failed: ") + error.what() + "; report this");
    }
}

}  // namespace stepwell
