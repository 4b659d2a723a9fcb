#include "failures.hpp"

#include <algorithm>
#include <array>

#include "status.pb.h"

namespace stepwell {

namespace {

constexpr const char* error_domain = "stepwell";
constexpr const char* error_info_type = "google.rpc.ErrorInfo";
const std::string reason_prefix = "ERROR_REASON_";

template <class Details>
Error make_error(const std::string& reason, const std::string& message, const Details& details) {
    Error error;
    error.reason_name = reason.rfind(reason_prefix, 0) == 0 ? reason.substr(reason_prefix.size()) : reason;
    v1::ErrorReason code;
    if (v1::ErrorReason_Parse(reason_prefix + error.reason_name, &code)) {
        // A reason may be younger than the list in errors.hpp.
        const auto known = static_cast<ErrorReason>(code);
        error.reason = *name_of(known) ? known : ErrorReason::unknown;
    }
    error.message = message;
    for (const auto& [name, text] : details) error.details[name] = text;
    return error;
}

const char* status_name(grpc::StatusCode code) {
    static constexpr std::array<const char*, 17> names = {
        "OK",        "CANCELLED",       "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
        "NOT_FOUND", "ALREADY_EXISTS",  "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
        "ABORTED",   "OUT_OF_RANGE",    "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
        "DATA_LOSS", "UNAUTHENTICATED",
    };
    const auto number = static_cast<std::size_t>(code);
    return number < names.size() ? names[number] : "UNKNOWN";
}

}  // namespace

Break Break::of(const grpc::Status& status) {
    Break broken{false, status.error_code(), status.error_message(), {}};
    client::Status rich;
    if (!status.error_details().empty() && rich.ParseFromString(status.error_details())) {
        for (const auto& packed : rich.details()) {
            client::ErrorInfo info;
            const std::string& url = packed.type_url();
            if (url.substr(url.rfind('/') + 1) != error_info_type || !info.ParseFromString(packed.value())) continue;
            if (info.domain() != error_domain) continue;
            const std::string& message = rich.message().empty() ? status.error_message() : rich.message();
            broken.error = make_error(info.reason(), message, info.metadata());
            break;
        }
    }
    return broken;
}

bool Break::passing() const {
    if (silent) return true;
    if (error) return error->reason == ErrorReason::server_stopping;
    if (code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::CANCELLED) return true;
    // What a connection cut at an unlucky moment looks like.
    static constexpr std::array<const char*, 4> unlucky = {"RST_STREAM", "GOAWAY", "Stream removed",
                                                           "Internal error from Core"};
    return std::any_of(unlucky.begin(), unlucky.end(),
                       [this](const char* part) { return text.find(part) != std::string::npos; });
}

bool Break::never_executed() const {
    if (silent) return false;
    if (error) return error->reason == ErrorReason::server_stopping;
    return code == grpc::StatusCode::UNAVAILABLE && text.find("failed to connect") != std::string::npos;
}

std::string Break::said() const { return silent ? "no word" : std::string(status_name(code)) + ": " + text; }

Error Break::as_error() const {
    if (error) return *error;
    ErrorReason reason = ErrorReason::internal;
    const char* remedy = "see the server's log";
    switch (code) {
        case grpc::StatusCode::UNAVAILABLE:
        case grpc::StatusCode::CANCELLED:
            reason = ErrorReason::server_unavailable;
            remedy = "see that the server runs at this address";
            break;
        case grpc::StatusCode::DEADLINE_EXCEEDED:
            reason = ErrorReason::timed_out;
            remedy = "try again with a longer limit";
            break;
        case grpc::StatusCode::RESOURCE_EXHAUSTED:
            reason = ErrorReason::limit_exceeded;
            remedy = "see the server's limits";
            break;
        case grpc::StatusCode::UNIMPLEMENTED:
            reason = ErrorReason::contract_mismatch;
            remedy = "see that a Stepwell server of 1.x listens there";
            break;
        default:
            break;
    }
    return Error(reason, std::string("got ") + status_name(code) + " (" + text +
                             ") from the server, expected an answer; " + remedy);
}

Error decode_error(const v1::Error& message) {
    const bool known = v1::ErrorReason_IsValid(message.reason());
    const std::string name =
        known ? v1::ErrorReason_Name(message.reason()) : std::to_string(static_cast<int>(message.reason()));
    return make_error(name, message.message(), message.details());
}

}  // namespace stepwell
