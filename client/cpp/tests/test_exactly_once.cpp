// Every update is applied once, whatever happens to the connections.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <future>
#include <random>
#include <stepwell/throwing.hpp>

#include "core.hpp"
#include "methods.hpp"
#include "proxy.hpp"
#include "server.hpp"

using namespace stepwell;
using testing::new_name;
using testing::shared_server;

namespace {

constexpr int workers_count = 3, updates = 120;
// Whole numbers, so that sums are exact in any order; more than a message in all.
const std::vector<float> small(7), large(400'000);

/// The answer to an update that is sent again, to the letter, over a connection of its own.
v1::Answer send_again(Line& line, const std::vector<v1::WorkRequest>& requests) {
    Stream stream(line.connection.channel(), method::work);
    v1::WorkResponse response;
    v1::Answer answer;
    bool wanted = true;
    for (auto request = requests.begin(); request != requests.end() && wanted; ++request) {
        v1::WorkRequest copy = *request;
        copy.set_exchange(1);
        wanted = stream.send(copy, 30);
    }
    while (stream.receive(response, 30)) {
        if (response.has_error()) throw Failure{decode_error(response.error())};
        if (response.has_answer()) answer = response.answer();
        if (response.done()) return answer;
    }
    throw std::runtime_error("the stream ended");
}

struct Pushed {
    std::vector<std::uint64_t> versions;
    int repeated = 0, wrong = 0;
};

Pushed push(const std::string& proxy, const std::string& name, std::uint32_t seed, bool steps) {
    std::mt19937 random(seed);
    ConnectOptions options;
    options.worker = "w" + std::to_string(seed);
    Client client = testing::connect(proxy, options);
    Run run = unwrap(client.get_run(name));
    Line direct(make_settings(shared_server().address(), options));
    Pushed pushed;
    std::vector<std::uint64_t> told_again;  // by the answers to one update
    Inside::of(run).worker.before_answer = [&](const std::vector<v1::WorkRequest>& requests) {
        // The end of a large one may still be on its way, and this thread drives that, too: waiting here would hold it.
        if (random() % 8 || requests.size() > 1 || !requests.front().has_stage()) return;
        send_again(direct, requests);
        ++pushed.repeated;
    };
    Inside::of(run).worker.after_answer = [&](const std::vector<v1::WorkRequest>& requests) {
        if (random() % 8 || !requests.front().has_stage()) return;
        const v1::Answer answer = send_again(direct, requests);
        told_again.push_back(answer.committed_version());
        ++pushed.repeated;
    };
    for (int update = 0; update < updates; ++update) {
        const std::vector<float> one(small.size(), 1.0F), two(large.size(), 2.0F);
        Gradients named = {{"small", one}};
        named.push_back(update % 10 ? Gradient("large", no_gradient) : Gradient("large", two));
        if (steps) {
            static_cast<void>(unwrap(run.step(named)));
        } else {
            static_cast<void>(unwrap(run.push(named)));
        }
        pushed.versions.push_back(run.last_answer()->committed_version);
        for (const std::uint64_t version : told_again) pushed.wrong += version != pushed.versions.back();
        told_again.clear();
    }
    Inside::of(run).worker.before_answer = Inside::of(run).worker.after_answer = nullptr;
    return pushed;
}

}  // namespace

TEST_CASE("workers through a network that cuts, with every update that was sent sent again now and then") {
    const auto seed = static_cast<std::uint32_t>(std::random_device{}());
    CAPTURE(seed);
    Client client = testing::connect(shared_server().address());
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 1.0}};
    const std::string name = new_name("once");
    Run run = unwrap(client.create_run(name, {{"small", {7}, small}, {"large", {400'000}, large}}, spec));

    testing::Proxy proxy(shared_server().address(), seed, 5e6);
    std::vector<std::future<Pushed>> working;
    for (std::uint32_t number = 0; number < workers_count; ++number) {
        working.push_back(std::async(std::launch::async, push, proxy.address(), name, number, number % 2 == 0));
    }
    std::vector<std::uint64_t> versions;
    int repeated = 0;
    for (auto& worker : working) {
        const Pushed pushed = worker.get();
        CHECK(pushed.wrong == 0);
        repeated += pushed.repeated;
        versions.insert(versions.end(), pushed.versions.begin(), pushed.versions.end());
    }
    CHECK(proxy.cuts() > 3);
    CHECK(repeated > workers_count * updates / 20);
    // Each version was made by one update.
    std::sort(versions.begin(), versions.end());
    REQUIRE(versions.size() == workers_count * updates);
    for (std::size_t index = 0; index < versions.size(); ++index) REQUIRE(versions[index] == index + 1);

    const Arrays now = unwrap(run.pull());
    CHECK(run.version() == workers_count * updates);
    CHECK(now.get<float>("small")[6] == -1.0F * workers_count * updates);
    CHECK(now.get<float>("large")[399'999] == -2.0F * workers_count * updates / 10);
    CHECK(unwrap(run.refresh()).duplicates_count > 0);
}

TEST_CASE("with error feedback a retry sends the same bytes") {
    Client direct = testing::connect(shared_server().address());
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 1.0}};
    spec.gradient_encoding = Part("int8", {{"block", 64}});
    const std::string name = new_name("encoded-once");
    const std::size_t count = 600'000;
    const std::vector<float> zero(count);
    Run run = unwrap(direct.create_run(name, {{"w", {count}, zero}}, spec));
    testing::Proxy proxy(shared_server().address(), 7, 3e6);
    Client client = testing::connect(proxy.address());
    Run worker = unwrap(client.get_run(name));
    std::vector<float> gradient(count);
    for (std::size_t index = 0; index < count; ++index) gradient[index] = static_cast<float>(index % 89) / 89;
    constexpr int rounds = 30;
    for (int round = 0; round < rounds; ++round) static_cast<void>(unwrap(worker.push({{"w", gradient}})));
    CHECK(proxy.cuts() > 0);
    const Arrays now = unwrap(run.pull());
    const Span<float> w = now.get<float>("w");
    double worst = 0;
    for (std::size_t index = 0; index < count; ++index) {
        worst = std::max(worst, std::fabs(w[index] + static_cast<double>(rounds) * gradient[index]));
    }
    CHECK(worst < 0.02);  // one update's rounding, not thirty: the rest was owed and sent
    CHECK(run.version() == rounds);
}
