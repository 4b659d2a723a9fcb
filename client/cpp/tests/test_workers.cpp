// Several workers of one run: policies, places, leases.
#include <doctest/doctest.h>

#include <chrono>
#include <functional>
#include <future>
#include <stepwell/throwing.hpp>
#include <thread>

#include "core.hpp"
#include "methods.hpp"
#include "server.hpp"
#include "stepwell/v1/control.pb.h"

using namespace stepwell;
using testing::new_name;
using testing::shared_server;

namespace {

constexpr std::size_t count = 5;
const std::vector<double> zeros(count);

std::vector<double> filled(double value) { return std::vector<double>(count, value); }

/// A worker with a client of its own. sgd with rate 1, from zero.
Run join(const std::string& name, const std::string& worker, const std::optional<Part>& policy = {},
         double lease_seconds = 1000) {
    ConnectOptions options;
    options.worker = worker;
    options.lease_seconds = lease_seconds;
    Client client = testing::connect(shared_server().address(), options);
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 1.0}};
    spec.policy = policy;
    return unwrap(client.create_run(name, {{"w", {count}, zeros}}, spec));
}

double step(Run& run, double value, double samples = 0) {
    UpdateOptions options;
    options.samples = samples;
    options.timeout_seconds = 60;
    return unwrap(run.step({{"w", filled(value)}}, options)).get<double>("w")[0];
}

/// The same in another thread.
std::future<double> begin_step(Run& run, double value, double samples = 0) {
    return std::async(std::launch::async, [&run, value, samples] { return step(run, value, samples); });
}

/// Wait until what the server tells of the run is as it should be; a minute at most.
bool until(Run& run, const std::function<bool(const RunDescription&)>& holds) {
    for (int tries = 0; tries < 3000; ++tries) {
        if (holds(unwrap(run.refresh()))) return true;
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
}

bool until_waiting(Run& run, const std::string& name) {
    return until(run, [&name](const RunDescription& now) {
        for (const WorkerDescription& worker : now.workers) {
            if (worker.name == name) return worker.waits;
        }
        return false;
    });
}

/// Take a worker's place away behind its back, as the end of its lease does.
void take_place(Run& run) {
    std::uint64_t epoch = 0;
    for (const WorkerDescription& worker : unwrap(run.refresh()).workers) {
        if (worker.name == run.worker()) epoch = worker.epoch;
    }
    v1::LeaveRequest request;
    request.set_run(run.name());
    request.set_worker(run.worker());
    request.set_epoch(epoch);
    v1::LeaveResponse response;
    ask(Inside::of(run).client->line, method::leave, request, response, "leave");
}

}  // namespace

TEST_CASE("two workers, each update as it comes") {
    const std::string name = new_name("async");
    Run first = join(name, "w0"), second = join(name, "w1");
    CHECK(first.created());
    CHECK_FALSE(second.created());
    constexpr int steps = 50;
    const auto work = [](Run& run) {
        for (int each = 0; each < steps; ++each) step(run, 1.0, 2.0);
    };
    auto other = std::async(std::launch::async, [&] { work(second); });
    work(first);
    other.get();
    const RunDescription now = unwrap(first.refresh());
    CHECK(now.version == 2 * steps);
    CHECK(now.samples == 4 * steps);
    CHECK(unwrap(second.pull()).get<double>("w")[count - 1] == -2.0 * steps);
    CHECK(now.workers.size() == 2);
}

TEST_CASE("sync: a round is the mean of all, weighed by samples") {
    const std::string name = new_name("sync");
    Run first = join(name, "w0", "sync"), second = join(name, "w1", "sync");
    for (int round = 1; round <= 20; ++round) {
        auto other = begin_step(second, 4.0, 3.0);
        const double own = step(first, 2.0, 1.0);
        CHECK(own == doctest::Approx(-3.5 * round).epsilon(1e-12));
        CHECK(other.get() == own);
        CHECK(first.version() == static_cast<std::uint64_t>(round));
    }
    // Whoever leaves is not waited for.
    auto last = begin_step(first, 1.0);
    REQUIRE(until_waiting(second, "w0"));
    second.close();
    CHECK(last.get() == doctest::Approx(-71.0).epsilon(1e-12));
}

TEST_CASE("sync: waiting has the limit that the caller sets") {
    const std::string name = new_name("alone");
    Run first = join(name, "w0", "sync"), second = join(name, "w1", "sync");
    UpdateOptions options;
    options.timeout_seconds = 2.0;
    const Result<Arrays> waited = first.step({{"w", filled(5.0)}}, options);
    REQUIRE_FALSE(waited.ok());
    CHECK(waited.error().reason == ErrorReason::timed_out);
    CHECK(waited.error().details.at("timeout_seconds") == "2");
    // It was folded into the round, and counts there.
    REQUIRE(until_waiting(second, "w0"));
    CHECK(step(second, 1.0) == -3.0);
}

TEST_CASE("bounded: nobody runs far ahead") {
    const std::string name = new_name("bounded");
    const Part policy("bounded", {{"lead_max", 2}});
    Run fast = join(name, "fast", policy), slow = join(name, "slow", policy);
    step(fast, 1.0);
    step(fast, 1.0);
    auto third = begin_step(fast, 1.0);
    REQUIRE(until_waiting(slow, "fast"));
    CHECK(unwrap(slow.refresh()).version == 2);
    step(slow, 1.0);
    third.get();
    CHECK(fast.version() == 4);
}

TEST_CASE("several updates in one commit, what is stale, and another policy") {
    const std::string name = new_name("accumulate");
    Run run = join(name, "w0", Part("async", {{"accumulate", 3}}));
    const std::vector<double> values = {3.0, 6.0, 9.0};
    for (const double value : values) {
        static_cast<void>(unwrap(run.push({{"w", filled(value)}})));
        CHECK(run.last_answer()->outcome == (value == 9.0 ? Outcome::committed : Outcome::folded));
    }
    CHECK(run.version() == 1);
    CHECK(unwrap(run.pull()).get<double>("w")[0] == doctest::Approx(-6.0));
    static_cast<void>(unwrap(run.push({{"w", filled(1.0)}})));
    CHECK(unwrap(run.refresh()).accumulated_count == 1);
    Change change;
    change.policy = Part("sync", {{"workers_min", 5}});
    const Result<RunDescription> refused = run.change(change);
    CHECK(refused.ok());  // nobody waits yet

    const std::string stale = new_name("stale");
    const Part policy("async", {{"staleness_max", 1}});
    Run slow = join(stale, "slow", policy), fast = join(stale, "fast", policy);
    static_cast<void>(unwrap(slow.pull()));
    for (int each = 0; each < 3; ++each) step(fast, 1.0);
    const Result<std::uint64_t> late = slow.push({{"w", filled(1.0)}});
    REQUIRE_FALSE(late.ok());
    CHECK(late.error().reason == ErrorReason::stale_update);
    CHECK(late.error().version() == 3);
    static_cast<void>(unwrap(slow.pull()));
    CHECK(unwrap(slow.push({{"w", filled(1.0)}})) == 4);
}

TEST_CASE("a policy under which workers would wait for ever is refused") {
    const std::string name = new_name("for-ever");
    Run first = join(name, "w0", "sync"), second = join(name, "w1", "sync");
    auto waiting = begin_step(first, 1.0);
    REQUIRE(until_waiting(second, "w0"));
    Change change;
    change.policy = Part("sync", {{"workers_min", 5}});
    CHECK(second.change(change).error().reason == ErrorReason::policy_refused);
    change.policy = "async";
    CHECK(unwrap(second.change(change)).policy.name == "async");
    waiting.get();
}

TEST_CASE("places, shares and barriers") {
    const std::string name = new_name("places");
    Run first = join(name, "w0");
    CHECK(unwrap(first.assignment(10)).end == 10);
    Run second = join(name, "w1"), third = join(name, "w2");
    const Assignment shares[] = {unwrap(first.assignment(10)), unwrap(second.assignment(10)),
                                 unwrap(third.assignment(10))};
    CHECK(shares[0].begin == 0);
    CHECK(shares[0].end == 3);
    CHECK(shares[1].begin == 3);
    CHECK(shares[1].end == 6);
    CHECK(shares[2].end == 10);
    CHECK(unwrap(third.assignment(~std::uint64_t{0})).end == ~std::uint64_t{0});
    CHECK(third.place()->index == 2);
    third.close();
    CHECK(unwrap(second.assignment(10)).begin == 5);
    CHECK(second.place()->count == 2);

    CHECK(first.barrier("here", 0.2).error().reason == ErrorReason::timed_out);
    auto other = std::async(std::launch::async, [&second] { unwrap(second.barrier("here")); });
    unwrap(first.barrier("here"));
    other.get();
}

TEST_CASE("signs of life keep a worker that computes, for all runs of a client") {
    ConnectOptions options;
    options.worker = "busy";
    options.lease_seconds = 10;  // longer than any stall
    Client client = testing::connect(shared_server().address(), options);
    Spec spec;
    spec.optimizer = "sgd";
    std::vector<Run> runs;
    std::vector<std::string> names;
    for (int number = 0; number < 3; ++number) {
        names.push_back(new_name("busy-" + std::to_string(number)));
        runs.push_back(unwrap(client.create_run(names.back(), {{"w", {count}, zeros}}, spec)));
    }
    Client other = testing::connect(shared_server().address());
    Run watching = unwrap(other.get_run(names[0]));
    const auto place = unwrap(watching.refresh()).workers.at(0);
    // Longer than a lease.
    for (int look = 0; look < 120; ++look) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        const RunDescription now = unwrap(watching.refresh());
        REQUIRE(now.workers.size() == 1);
        REQUIRE(now.workers[0].epoch == place.epoch);
    }
    for (const std::string& name : names) CHECK(unwrap(unwrap(other.get_run(name)).refresh()).workers.size() == 1);
}

TEST_CASE("whoever comes back after its lease joins again, and its update counts once") {
    const std::string name = new_name("lease");
    Run run = join(name, "sleeper");
    CHECK(step(run, 1.0) == -1.0);
    take_place(run);
    CHECK(step(run, 1.0) == -2.0);
    CHECK(run.version() == 2);
    take_place(run);
    CHECK(unwrap(run.push({{"w", filled(1.0)}})) == 3);
    take_place(run);
    unwrap(run.barrier());
    take_place(run);
    CHECK(unwrap(run.assignment(4)).end == 4);
    const RunDescription now = unwrap(run.refresh());
    CHECK(now.workers.at(0).epoch == 5);
    CHECK(now.tally.commits == 3);
}

TEST_CASE("a newer join under the same name takes over") {
    const std::string name = new_name("fenced");
    Run old = join(name, "w0");
    step(old, 1.0);
    Run present = join(name, "w0");
    CHECK(old.push({{"w", filled(1.0)}}).error().reason == ErrorReason::worker_fenced);
    CHECK(step(present, 1.0) == -2.0);
}
