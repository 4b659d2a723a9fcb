#include "server.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <stepwell/throwing.hpp>
#include <thread>

#include "settings.hpp"

extern char** environ;

namespace testing {

namespace {

constexpr int start_seconds_max = 120, stop_seconds_max = 60;

struct Child {
    pid_t process;
    int output;
};

/// Start a command, whose standard output is a pipe. Its standard error is ours.
Child spawn(const std::vector<std::string>& command) {
    std::array<int, 2> ends{};
    if (pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("no pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (!std::getenv("STEPWELL_TEST_LOG")) {
        posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
    }
    std::vector<char*> arguments;
    for (const std::string& part : command) arguments.push_back(const_cast<char*>(part.c_str()));
    arguments.push_back(nullptr);
    pid_t process = 0;
    const int failed = posix_spawnp(&process, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (failed) throw std::runtime_error("cannot start " + command[0]);
    return {process, ends[0]};
}

/// What comes up to a newline, or the end, or the limit.
std::string read_line(int file, int seconds_max) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(seconds_max);
    std::string line;
    char next = 0;
    while (line.empty() || line.back() != '\n') {
        const auto left =
            std::chrono::duration_cast<std::chrono::milliseconds>(limit - std::chrono::steady_clock::now());
        pollfd readable{file, POLLIN, 0};
        if (left.count() <= 0 || poll(&readable, 1, static_cast<int>(left.count())) <= 0) break;
        if (read(file, &next, 1) != 1) break;
        line += next;
    }
    return line;
}

/// Ends with the process, so that no server outlives the tests.
std::unique_ptr<Server>& shared() {
    static std::unique_ptr<Server> server;
    return server;
}

}  // namespace

Server::Server(std::vector<std::string> options) : options_(std::move(options)) { start(); }

Server::~Server() {
    if (process_) stop();
}

void Server::start() {
    const char* server = std::getenv("STEPWELL_SERVER");
    if (!server) throw std::runtime_error("set STEPWELL_SERVER to the server's command, such as .venv/bin/stepwell");
    std::vector<std::string> command = {server, "serve", "--address", address_};
    command.insert(command.end(), options_.begin(), options_.end());
    const Child child = spawn(command);
    process_ = child.process;
    const std::string line = read_line(child.output, start_seconds_max);
    // What it says further on fits the pipe, or is of no use to anybody.
    const std::string listening = "listening on ";
    if (line.rfind(listening, 0) != 0 || line.back() != '\n') {
        close(child.output);
        ::kill(process_, SIGKILL);
        wait_for_end();
        throw std::runtime_error("the server did not start: " + line);
    }
    address_ = line.substr(listening.size(), line.size() - listening.size() - 1);
    read_line(child.output, start_seconds_max);  // how to join
    close(child.output);
}

bool Server::stop() {
    ::kill(process_, SIGTERM);
    const int status = wait_for_end();
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

void Server::kill() {
    ::kill(process_, SIGKILL);
    wait_for_end();
}

int Server::wait_for_end() {
    int status = 0;
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(stop_seconds_max);
    while (waitpid(process_, &status, WNOHANG) == 0) {
        if (std::chrono::steady_clock::now() > limit) ::kill(process_, SIGKILL);
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    process_ = 0;
    return status;
}

Server& shared_server() {
    if (!shared()) shared() = std::make_unique<Server>();
    return *shared();
}

std::string new_name(const std::string& prefix) { return stepwell::default_worker_name().substr(0, 40) + "-" + prefix; }

Directory::Directory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stepwell-cpp-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw std::runtime_error("no temporary directory");
    path_ = pattern;
}

Directory::~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

stepwell::Client connect(const std::string& address, stepwell::ConnectOptions options) {
    options.retry_seconds = 0.01;
    options.retry_seconds_max = 0.2;
    return stepwell::unwrap(stepwell::connect(address, std::move(options)));
}

int execute(const std::vector<std::string>& command, std::string& output) {
    const Child child = spawn(command);
    output.clear();
    for (std::string line; !(line = read_line(child.output, start_seconds_max)).empty();) output += line;
    close(child.output);
    int status = 0;
    waitpid(child.process, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace testing
