/// The child process that runs the server: tests/conformance/stand.py.
#pragma once

#include <sys/types.h>

#include <cstdio>
#include <string>

#include "json.hpp"

namespace conformance {

/// One command at a time.
class Stand {
public:
    /// repository: its root, which has the stand and the Python that runs it. Throws std::runtime_error.
    explicit Stand(const std::string& repository);
    ~Stand();
    Stand(const Stand&) = delete;
    Stand& operator=(const Stand&) = delete;

    /// The answer to a command; throws CaseFailed where it failed.
    Json command(const Json& command);
    /// End it; whether it ended well.
    bool end();

private:
    pid_t process_ = 0;
    std::FILE* to_ = nullptr;
    std::FILE* from_ = nullptr;
};

}  // namespace conformance
