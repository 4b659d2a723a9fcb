/// What can go wrong, as data: one reason per ErrorReason of the contract. Nothing here throws; throwing.hpp does.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>

namespace stepwell {

// Each reason as the enumerator, as the contract has it, as the class of throwing.hpp, and its number.
#define STEPWELL_ERROR_REASONS(X)                                                        \
    X(contract_mismatch, CONTRACT_MISMATCH, ContractMismatch, 1)                         \
    X(malformed_request, MALFORMED_REQUEST, MalformedRequest, 2)                         \
    X(invalid_name, INVALID_NAME, InvalidName, 3)                                        \
    X(unknown_optimizer, UNKNOWN_OPTIMIZER, UnknownOptimizer, 4)                         \
    X(unknown_flavor, UNKNOWN_FLAVOR, UnknownFlavor, 5)                                  \
    X(unknown_schedule, UNKNOWN_SCHEDULE, UnknownSchedule, 6)                            \
    X(unknown_argument, UNKNOWN_ARGUMENT, UnknownArgument, 7)                            \
    X(unknown_run, UNKNOWN_RUN, UnknownRun, 8)                                           \
    X(unknown_group, UNKNOWN_GROUP, UnknownGroup, 9)                                     \
    X(unknown_parameter, UNKNOWN_PARAMETER, UnknownParameter, 10)                        \
    X(unknown_worker, UNKNOWN_WORKER, UnknownWorker, 11)                                 \
    X(unknown_checkpoint, UNKNOWN_CHECKPOINT, UnknownCheckpoint, 12)                     \
    X(invalid_value, INVALID_VALUE, InvalidValue, 13)                                    \
    X(invalid_spec, INVALID_SPEC, InvalidSpec, 14)                                       \
    X(run_differs, RUN_DIFFERS, RunDiffers, 15)                                          \
    X(run_replaced, RUN_REPLACED, RunReplaced, 16)                                       \
    X(invalid_gradient, INVALID_GRADIENT, InvalidGradient, 17)                           \
    X(invalid_range, INVALID_RANGE, InvalidRange, 18)                                    \
    X(incomplete_update, INCOMPLETE_UPDATE, IncompleteUpdate, 19)                        \
    X(gradient_required, GRADIENT_REQUIRED, GradientRequired, 20)                        \
    X(nonfinite_gradient, NONFINITE_GRADIENT, NonfiniteGradient, 21)                     \
    X(sequence_reused, SEQUENCE_REUSED, SequenceReused, 22)                              \
    X(sequence_too_old, SEQUENCE_TOO_OLD, SequenceTooOld, 23)                            \
    X(sequence_gap, SEQUENCE_GAP, SequenceGap, 24)                                       \
    X(worker_fenced, WORKER_FENCED, WorkerFenced, 25)                                    \
    X(run_rewound, RUN_REWOUND, RunRewound, 26)                                          \
    X(change_refused, CHANGE_REFUSED, ChangeRefused, 27)                                 \
    X(etag_mismatch, ETAG_MISMATCH, EtagMismatch, 28)                                    \
    X(version_mismatch, VERSION_MISMATCH, VersionMismatch, 29)                           \
    X(memory_exhausted, MEMORY_EXHAUSTED, MemoryExhausted, 30)                           \
    X(limit_exceeded, LIMIT_EXCEEDED, LimitExceeded, 31)                                 \
    X(storage_disabled, STORAGE_DISABLED, StorageDisabled, 32)                           \
    X(storage_failed, STORAGE_FAILED, StorageFailed, 33)                                 \
    X(checkpoint_exists, CHECKPOINT_EXISTS, CheckpointExists, 34)                        \
    X(checkpoint_damaged, CHECKPOINT_DAMAGED, CheckpointDamaged, 35)                     \
    X(server_stopping, SERVER_STOPPING, ServerStopping, 36)                              \
    X(server_unavailable, SERVER_UNAVAILABLE, ServerUnavailable, 37)                     \
    X(timed_out, TIMED_OUT, TimedOut, 38)                                                \
    X(internal, INTERNAL, Internal, 39)                                                  \
    X(unknown_transform, UNKNOWN_TRANSFORM, UnknownTransform, 40)                        \
    X(unknown_wrapper, UNKNOWN_WRAPPER, UnknownWrapper, 41)                              \
    X(unknown_point, UNKNOWN_POINT, UnknownPoint, 42)                                    \
    X(input_required, INPUT_REQUIRED, InputRequired, 43)                                 \
    X(shared_memory_unavailable, SHARED_MEMORY_UNAVAILABLE, SharedMemoryUnavailable, 44) \
    X(unknown_encoding, UNKNOWN_ENCODING, UnknownEncoding, 45)                           \
    X(encoding_not_allowed, ENCODING_NOT_ALLOWED, EncodingNotAllowed, 46)                \
    X(invalid_encoding, INVALID_ENCODING, InvalidEncoding, 47)                           \
    X(unknown_policy, UNKNOWN_POLICY, UnknownPolicy, 48)                                 \
    X(stale_update, STALE_UPDATE, StaleUpdate, 49)                                       \
    X(policy_refused, POLICY_REFUSED, PolicyRefused, 50)                                 \
    X(unknown_table, UNKNOWN_TABLE, UnknownTable, 51)                                    \
    X(invalid_rows, INVALID_ROWS, InvalidRows, 52)                                       \
    X(rows_not_supported, ROWS_NOT_SUPPORTED, RowsNotSupported, 53)                      \
    X(table_full, TABLE_FULL, TableFull, 54)                                             \
    X(tables_unavailable, TABLES_UNAVAILABLE, TablesUnavailable, 55)

/// Why a call was refused, with the contract's numbers.
enum class ErrorReason : int {
    /// A reason that a newer server has and this library does not know; Error::reason_name says which.
    unknown = 0,
#define STEPWELL_ENUMERATOR(enumerator, contract, type, number) enumerator = number,
    STEPWELL_ERROR_REASONS(STEPWELL_ENUMERATOR)
#undef STEPWELL_ENUMERATOR
};

/// The name of a reason in the contract without its prefix, such as "UNKNOWN_RUN"; empty for `unknown`.
const char* name_of(ErrorReason reason);

/// An error: which one, what was got, what was expected and what to do, for people, and the same facts for programs.
struct Error {
    ErrorReason reason = ErrorReason::unknown;
    std::string message;
    /// Short names to short texts.
    std::map<std::string, std::string> details;
    /// As in the contract without its prefix; also where `reason` is unknown.
    std::string reason_name;

    Error() = default;
    Error(ErrorReason reason, std::string message, std::map<std::string, std::string> details = {});

    /// Of run_rewound: the newest version that this worker had been told of. 0 for other errors.
    std::uint64_t acknowledged_version() const;
    /// Of run_rewound and stale_update: the version that the run is at now. 0 where the details have none.
    std::uint64_t version() const;
};

namespace detail {

/// Say on stderr what was misused, and abort.
[[noreturn]] void misused(const char* what, const std::string& message);

}  // namespace detail

/// A value, or the error that there is in its place. To take the one where there is the other is a mistake in the
/// calling program, and ends it.
template <class T>
class [[nodiscard]] Result {
public:
    Result(T value) : held_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : held_(std::in_place_index<1>, std::move(error)) {}

    bool ok() const { return held_.index() == 0; }
    explicit operator bool() const { return ok(); }

    /// The value. Only where ok() is true.
    T& value() & { return *checked(); }
    const T& value() const& { return *const_cast<Result*>(this)->checked(); }
    T&& value() && { return std::move(*checked()); }
    T& operator*() & { return *checked(); }
    T&& operator*() && { return std::move(*checked()); }
    T* operator->() { return checked(); }

    /// The error. Only where ok() is false.
    const Error& error() const {
        if (ok()) detail::misused("error() of a result that has a value", "");
        return *std::get_if<1>(&held_);
    }

private:
    T* checked() {
        if (!ok()) detail::misused("value() of a result that has an error", error().message);
        return std::get_if<0>(&held_);
    }

    std::variant<T, Error> held_;
};

/// Nothing, or the error that there is in its place.
template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}

    bool ok() const { return !error_; }
    explicit operator bool() const { return ok(); }
    const Error& error() const {
        if (ok()) detail::misused("error() of a result that has a value", "");
        return *error_;
    }

private:
    std::optional<Error> error_;
};

}  // namespace stepwell
