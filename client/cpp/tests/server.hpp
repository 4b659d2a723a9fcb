/// The real server in a process of its own, and connections to it.
#pragma once

#include <sys/types.h>
#include <stepwell/stepwell.hpp>
#include <string>
#include <vector>

namespace testing {

/// A server process. `start` again after `stop` or `kill` listens on the same port. options: of `stepwell serve`.
class Server {
public:
    explicit Server(std::vector<std::string> options = {});
    ~Server();
    Server(const Server&) = delete;
    Server& operator=(const Server&) = delete;

    /// Start and wait until it listens; throws std::runtime_error where it does not.
    void start();
    /// SIGTERM, and wait for the end; whether it ended with 0.
    bool stop();
    /// SIGKILL: no farewell.
    void kill();

    const std::string& address() const { return address_; }

private:
    int wait_for_end();

    std::vector<std::string> options_;
    std::string address_ = "127.0.0.1:0";
    pid_t process_ = 0;
};

/// One with default options, which all tests share; their runs have names of their own.
Server& shared_server();

/// A name that no other run has.
std::string new_name(const std::string& prefix);

/// A fresh directory, removed at the end.
class Directory {
public:
    Directory();
    ~Directory();
    const std::string& path() const { return path_; }

private:
    std::string path_;
};

/// A client with short pauses between tries.
stepwell::Client connect(const std::string& address, stepwell::ConnectOptions options = {});

/// The exit status of a command; its standard output goes to `output`.
int execute(const std::vector<std::string>& command, std::string& output);

}  // namespace testing
