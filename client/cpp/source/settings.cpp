#include "settings.hpp"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <random>

#include "failures.hpp"

namespace stepwell {

namespace {

constexpr const char* address_variable = "STEPWELL_ADDRESS";
constexpr const char* name_pattern = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}";

bool alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

bool in_names(char c) { return alphanumeric(c) || c == '.' || c == '_' || c == '-'; }

void check_worker_name(const std::string& name) {
    if (alphanumeric(name[0]) && name.size() <= 128 && std::all_of(name.begin(), name.end(), in_names)) return;
    fail(ErrorReason::invalid_name,
         "got the worker name '" + name.substr(0, 200) + "', expected " + name_pattern + "; choose another");
}

bool has_port(const std::string& address) {
    const auto colon = address.rfind(':');
    return colon != std::string::npos && colon + 1 < address.size() &&
           address.find_first_not_of("0123456789", colon + 1) == std::string::npos;
}

}  // namespace

Settings make_settings(const std::string& given, ConnectOptions options) {
    const char* variable = std::getenv(address_variable);
    const std::string address = given.empty() && variable ? variable : given;
    if (address.empty()) {
        fail(ErrorReason::invalid_value, std::string("got no address, expected HOST:PORT or unix:/path; give it to "
                                                     "connect or set ") +
                                             address_variable);
    }
    if (address.rfind("unix:", 0) != 0 && !has_port(address)) {
        fail(ErrorReason::invalid_value,
             "got the address '" + address.substr(0, 200) + "', expected HOST:PORT or unix:/path; add the port");
    }
    const std::array<std::pair<const char*, double>, 5> limits = {{
        {"silence_seconds", options.silence_seconds},
        {"patience_seconds", options.patience_seconds},
        {"retry_seconds", options.retry_seconds},
        {"retry_seconds_max", options.retry_seconds_max},
        {"lease_seconds", options.lease_seconds},
    }};
    for (const auto& [name, seconds] : limits) {
        if (seconds > 0) continue;
        fail(ErrorReason::invalid_value, std::string("got ") + name + " " + std::to_string(seconds) +
                                             ", expected more than 0 seconds; leave it out for the default");
    }
    if (!options.worker.empty()) check_worker_name(options.worker);
    return {address, std::move(options)};
}

std::string default_worker_name() {
    std::array<char, 256> host{};
    gethostname(host.data(), host.size() - 1);
    std::string place(host.data());
    std::replace_if(
        place.begin(), place.end(), [](char c) { return !in_names(c); }, '-');
    place.erase(0, std::min(place.find_first_not_of("._-"), place.size()));
    if (place.empty()) place = "worker";
    std::string name = place.substr(0, 80) + "-" + std::to_string(getpid()) + "-";
    for (const char byte : random_bytes(4)) {
        static constexpr char digits[] = "0123456789abcdef";
        name += digits[static_cast<unsigned char>(byte) >> 4];
        name += digits[static_cast<unsigned char>(byte) & 15];
    }
    return name;
}

std::string random_bytes(std::size_t count) {
    std::random_device device;  // the system's own source
    std::string bytes(count, '\0');
    for (char& byte : bytes) byte = static_cast<char>(device());
    return bytes;
}

}  // namespace stepwell
