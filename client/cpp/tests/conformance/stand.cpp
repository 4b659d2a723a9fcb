#include "stand.hpp"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <stdexcept>

extern char** environ;

namespace conformance {

Stand::Stand(const std::string& repository) {
    // Where it has ended, writing to it is an error, not our end.
    signal(SIGPIPE, SIG_IGN);
    std::array<int, 2> commands{}, answers{};
    if (pipe2(commands.data(), O_CLOEXEC) != 0 || pipe2(answers.data(), O_CLOEXEC) != 0) {
        throw std::runtime_error("no pipe");
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, commands[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, answers[1], STDOUT_FILENO);
    posix_spawn_file_actions_addchdir_np(&actions, repository.c_str());
    std::array<std::string, 3> command = {repository + "/.venv/bin/python", "-m", "tests.conformance.stand"};
    std::array<char*, 4> arguments = {command[0].data(), command[1].data(), command[2].data(), nullptr};
    const int failed = posix_spawn(&process_, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(commands[0]);
    close(answers[1]);
    to_ = fdopen(commands[1], "w");
    from_ = fdopen(answers[0], "r");
    if (failed || !to_ || !from_) throw std::runtime_error("cannot start the stand with " + command[0]);
}

Stand::~Stand() { end(); }

Json Stand::command(const Json& command) {
    const std::string line = text_of(command) + "\n";
    if (!to_) throw CaseFailed("the stand has ended");
    std::fputs(line.c_str(), to_);
    std::fflush(to_);
    std::string answer;
    for (int next = 0; answer.empty() || answer.back() != '\n'; answer += static_cast<char>(next)) {
        next = std::fgetc(from_);
        if (next == EOF) throw CaseFailed("the stand has ended, at: " + line);
    }
    Json told = parse(answer);
    if (const Json* error = find(told, "error")) throw CaseFailed("the stand: " + line + text(*error));
    return told;
}

bool Stand::end() {
    if (!to_) return false;
    std::fclose(to_);
    std::fclose(from_);
    to_ = from_ = nullptr;
    int status = 0;
    waitpid(process_, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace conformance
