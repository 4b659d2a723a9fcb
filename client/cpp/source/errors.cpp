#include "stepwell/errors.hpp"

#include <cstdio>
#include <cstdlib>

namespace stepwell {

namespace {

std::uint64_t number_of(const std::map<std::string, std::string>& details, const char* name) {
    const auto found = details.find(name);
    return found == details.end() ? 0 : std::strtoull(found->second.c_str(), nullptr, 10);
}

}  // namespace

const char* name_of(ErrorReason reason) {
    switch (reason) {
#define STEPWELL_NAME(enumerator, contract, type, number) \
    case ErrorReason::enumerator:                         \
        return #contract;
        STEPWELL_ERROR_REASONS(STEPWELL_NAME)
#undef STEPWELL_NAME
        case ErrorReason::unknown:
            break;
    }
    return "";
}

Error::Error(ErrorReason reason, std::string message, std::map<std::string, std::string> details)
    : reason(reason), message(std::move(message)), details(std::move(details)), reason_name(name_of(reason)) {}

std::uint64_t Error::acknowledged_version() const { return number_of(details, "acknowledged_version"); }

std::uint64_t Error::version() const { return number_of(details, "version"); }

void detail::misused(const char* what, const std::string& message) {
    std::fprintf(stderr, "stepwell: %s; ask ok() first%s%s\n", what, message.empty() ? "" : ": ", message.c_str());
    std::abort();
}

}  // namespace stepwell
