// Servers that are not there, not a Stepwell server, or silent: errors in time, and never a hang.
#include <doctest/doctest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <stepwell/throwing.hpp>

#include "proxy.hpp"
#include "server.hpp"

using namespace stepwell;
using testing::new_name;
using testing::shared_server;

namespace {

const std::vector<float> w = {1, 2}, g = {1, 1};

Run create(Client& client, const std::string& name) {
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 1.0}};
    return unwrap(client.create_run(name, {{"w", {2}, w}}, spec));
}

ConnectOptions impatient(double silence_seconds, double patience_seconds) {
    ConnectOptions options;
    options.silence_seconds = silence_seconds;
    options.patience_seconds = patience_seconds;
    return options;
}

double seconds_of(const std::function<void()>& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// A server's address, where no server is any more.
std::string deserted_address() {
    testing::Server server;
    return server.address();
}

}  // namespace

TEST_CASE("no server at all") {
    Client client = testing::connect(deserted_address(), impatient(30, 0.5));
    const double seconds = seconds_of([&client] {
        const auto ping = client.ping();
        REQUIRE_FALSE(ping.ok());
        CHECK(ping.error().reason == ErrorReason::server_unavailable);
        CHECK(ping.error().details.at("patience_seconds") == "0.5");
        CHECK(client.get_run("any").error().reason == ErrorReason::server_unavailable);
    });
    CHECK(seconds >= 1.0);
    CHECK(seconds < 30.0);
    CHECK(client.delete_run("any").error().reason == ErrorReason::server_unavailable);
}

TEST_CASE("a server that dies under a run") {
    testing::Server server;
    std::vector<std::string> lines;
    ConnectOptions options = impatient(30, 0.5);
    options.log = [&lines](std::string_view line) { lines.emplace_back(line); };
    Client client = testing::connect(server.address(), options);
    Run run = create(client, "dies");
    static_cast<void>(unwrap(run.push({{"w", g}})));
    server.kill();
    CHECK(run.push({{"w", g}}).error().reason == ErrorReason::server_unavailable);
    CHECK(run.pull().error().reason == ErrorReason::server_unavailable);
    CHECK_FALSE(lines.empty());
    CHECK(seconds_of([&run] { run.close(); }) < 20);
}

TEST_CASE("a connection that says nothing is given up, and the update goes over another") {
    testing::Proxy proxy(shared_server().address());
    Client client = testing::connect(proxy.address(), impatient(0.5, 60));
    Run run = create(client, new_name("mute"));
    static_cast<void>(unwrap(run.push({{"w", g}})));
    proxy.mute();
    const Arrays stepped = unwrap(run.step({{"w", g}}));
    CHECK(stepped.get<float>("w")[0] == -1.0F);
    CHECK(run.version() == 2);
    CHECK(proxy.connections() > 1);
}

TEST_CASE("a server that says nothing at all") {
    testing::Proxy proxy(shared_server().address());
    Client client = testing::connect(proxy.address(), impatient(1, 4));
    Run run = create(client, new_name("silent"));
    proxy.mute_all();
    // Silence on the connection that there was, or no new one: whichever came last.
    const auto gave_up = [](const Error& error) {
        return error.reason == ErrorReason::timed_out || error.reason == ErrorReason::server_unavailable;
    };
    const double seconds = seconds_of([&] {
        CHECK(gave_up(run.push({{"w", g}}).error()));
        CHECK(gave_up(client.list_runs().error()));
        CHECK(gave_up(run.save_checkpoint().error()));
        run.close();
    });
    CHECK(seconds < 60);
}

TEST_CASE("a call has the limit that its caller sets") {
    testing::Proxy proxy(shared_server().address());
    Client client = testing::connect(proxy.address(), impatient(30, 60));
    Run run = create(client, new_name("limit"));
    proxy.mute_all();
    PullOptions pull;
    pull.timeout_seconds = 0.3;
    CHECK(seconds_of([&] { CHECK(run.pull(pull).error().reason == ErrorReason::timed_out); }) < 20);
}

TEST_CASE("a child of the process that connected is told so") {
    Client client = testing::connect(shared_server().address());
    Run run = create(client, new_name("fork"));
    static_cast<void>(unwrap(run.push({{"w", g}})));
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        const bool refused = client.ping().error().reason == ErrorReason::invalid_value &&
                             run.push({{"w", g}}).error().reason == ErrorReason::invalid_value &&
                             run.pull().error().reason == ErrorReason::invalid_value;
        run.close();
        {
            const Run gone = std::move(run);  // destroyed without waiting for anybody
            const Client gone_too = std::move(client);
        }
        _exit(refused ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
    CHECK(unwrap(run.push({{"w", g}})) == 2);
}
