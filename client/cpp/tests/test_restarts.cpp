// Servers that go and come back: what goes on, what went back, and checkpoints.
#include <doctest/doctest.h>

#include <stepwell/throwing.hpp>

#include "server.hpp"

using namespace stepwell;

namespace {

const std::vector<double> w = {0, 0}, g = {1, 2};

Spec momentum() {
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 1.0}, {"momentum", 0.5}};
    return spec;
}

Run create(Client& client) { return unwrap(client.create_run("run", {{"w", {2}, w}}, momentum())); }

double step(Run& run) { return unwrap(run.step({{"w", g}})).get<double>("w")[0]; }

}  // namespace

TEST_CASE("a clean stop loses nothing, and the worker goes on") {
    const testing::Directory directory;
    testing::Server server({"--data-dir", directory.path()});
    Client client = testing::connect(server.address());
    Run run = create(client);
    CHECK(step(run) == -1.0);
    CHECK(step(run) == -2.5);
    CHECK(server.stop());
    server.start();
    CHECK(step(run) == -4.25);  // momentum and all
    CHECK(run.version() == 3);
    Run again = create(client);
    CHECK_FALSE(again.created());
    CHECK(unwrap(again.pull()).get<double>("w")[1] == -8.5);
}

TEST_CASE("kill -9 takes the run back; it is told once, and training goes on") {
    const testing::Directory directory;
    testing::Server server({"--data-dir", directory.path(), "--snapshot-seconds", "0"});
    Client client = testing::connect(server.address());
    Run run = create(client);
    CHECK(step(run) == -1.0);
    CHECK(server.stop());  // writes a snapshot at version 1
    server.start();
    CHECK(step(run) == -2.5);
    CHECK(step(run) == -4.25);
    server.kill();
    server.start();
    const Result<Arrays> rewound = run.step({{"w", g}});
    REQUIRE_FALSE(rewound.ok());
    CHECK(rewound.error().reason == ErrorReason::run_rewound);
    CHECK(rewound.error().acknowledged_version() == 3);
    CHECK(rewound.error().version() == 1);
    CHECK(unwrap(run.pull()).get<double>("w")[0] == -1.0);
    CHECK(step(run) == -2.5);
    CHECK(run.version() == 2);
    CHECK(unwrap(run.refresh()).generation == 1);
    server.kill();
    server.start();
    CHECK(run.pull().error().reason == ErrorReason::run_rewound);  // a reader is told, too
    CHECK(unwrap(run.pull()).get<double>("w")[0] == -1.0);
}

TEST_CASE("whoever asked to go on is not told") {
    const testing::Directory directory;
    testing::Server server({"--data-dir", directory.path(), "--snapshot-seconds", "0"});
    ConnectOptions options;
    options.on_rewind = OnRewind::go_on;
    Client client = testing::connect(server.address(), options);
    Run run = create(client);
    CHECK(step(run) == -1.0);
    CHECK(server.stop());
    server.start();
    CHECK(step(run) == -2.5);
    server.kill();
    server.start();
    CHECK(step(run) == -1.0);  // the update was dropped, the present parameters came
    CHECK(run.last_answer()->outcome == Outcome::rewound);
    CHECK(step(run) == -2.5);
    CHECK(run.last_answer()->outcome == Outcome::committed);
    server.kill();
    server.start();
    CHECK(unwrap(run.push({{"w", g}})) == 1);
    CHECK(run.last_answer()->outcome == Outcome::rewound);
}

TEST_CASE("checkpoints") {
    const testing::Directory directory;
    testing::Server server({"--data-dir", directory.path()});
    Client client = testing::connect(server.address());
    Run run = create(client);
    ConnectOptions options;
    options.worker = "other";
    Client second_client = testing::connect(server.address(), options);
    Run other = create(second_client);
    CHECK(step(run) == -1.0);
    const Checkpoint saved = unwrap(run.save_checkpoint("first"));
    CHECK(saved.version == 1);
    CHECK(saved.size_bytes > 0);
    CHECK(run.save_checkpoint("first").error().reason == ErrorReason::checkpoint_exists);
    CHECK(step(other) == -2.5);
    CHECK(unwrap(run.save_checkpoint()).name == "version-2");
    const auto checkpoints = unwrap(run.list_checkpoints());
    REQUIRE(checkpoints.size() == 2);
    CHECK(checkpoints[0].name == "first");

    CHECK(run.restore_checkpoint("nope").error().reason == ErrorReason::unknown_checkpoint);
    CHECK(unwrap(run.restore_checkpoint("first")).version == 1);
    CHECK(step(run) == -2.5);  // it joined anew by itself
    CHECK(other.push({{"w", g}}).error().reason == ErrorReason::run_rewound);
    CHECK(step(other) == -4.25);
}
