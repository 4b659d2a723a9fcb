/// What `connect` was given, checked.
#pragma once

#include <string>

#include "stepwell/client.hpp"

namespace stepwell {

struct Settings {
    std::string address;
    ConnectOptions options;

    void log(const std::string& line) const {
        if (options.log) options.log(line);
    }
};

/// Check them; throws Failure with invalid_value or invalid_name.
Settings make_settings(const std::string& address, ConnectOptions options);

/// A worker's name that no other has, of host and process.
std::string default_worker_name();

/// So many random bytes.
std::string random_bytes(std::size_t count);

}  // namespace stepwell
