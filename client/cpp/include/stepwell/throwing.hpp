/// For those who want exceptions: `unwrap(client.get_run("mnist"))` gives the value, or throws the error.
///
///     std::runtime_error
///     └── StepwellError                 for a reason that this library does not know
///         ├── UnknownRun, RunDiffers, RunRewound, ServerUnavailable, ...   one class per ErrorReason
///
/// The library itself neither throws nor needs this header.
#pragma once

#include <stdexcept>
#include <utility>

#include "stepwell/errors.hpp"

namespace stepwell {

/// The base of all; what() is the error's message.
class StepwellError : public std::runtime_error {
public:
    explicit StepwellError(Error error) : std::runtime_error(error.message), error_(std::move(error)) {}

    const Error& error() const { return error_; }
    ErrorReason reason() const { return error_.reason; }

private:
    Error error_;
};

#define STEPWELL_EXCEPTION(enumerator, contract, type, number) \
    class type : public StepwellError {                        \
    public:                                                    \
        using StepwellError::StepwellError;                    \
    };
STEPWELL_ERROR_REASONS(STEPWELL_EXCEPTION)
#undef STEPWELL_EXCEPTION

/// Throw an error as the exception of its reason.
[[noreturn]] inline void raise(const Error& error) {
    switch (error.reason) {
#define STEPWELL_THROW(enumerator, contract, type, number) \
    case ErrorReason::enumerator:                          \
        throw type(error);
        STEPWELL_ERROR_REASONS(STEPWELL_THROW)
#undef STEPWELL_THROW
        case ErrorReason::unknown:
            break;
    }
    throw StepwellError(error);
}

/// The value of a result; throws its error.
template <class T>
T unwrap(Result<T>&& result) {
    if (!result.ok()) raise(result.error());
    return std::move(result).value();
}

/// Throws the error of a result, if it has one.
inline void unwrap(Result<void>&& result) {
    if (!result.ok()) raise(result.error());
}

}  // namespace stepwell
