// What bad input gets: the reason, and a message that says what was got, what was expected and what to do.
#include <doctest/doctest.h>

#include <cmath>
#include <functional>
#include <stepwell/throwing.hpp>

#include "server.hpp"

using namespace stepwell;
using testing::new_name;
using testing::shared_server;

namespace {

const std::vector<float> a = {1, 2, 3, 4, 5, 6}, g = {1, 1, 1, 1, 1, 1};

/// A run with some history, and what makes others beside it.
struct Scene {
    Client client = testing::connect(shared_server().address());
    std::string name = new_name("scene");
    Run run = create(name);

    static Spec spec() {
        Spec spec;
        spec.optimizer = "adam";
        spec.flavor = "torch";
        spec.hyperparameters = {{"lr", 0.01}};
        return spec;
    }

    Result<Run> try_create(const std::string& as, const std::function<void(Spec&)>& change = {}) {
        Spec spec = Scene::spec();
        if (change) change(spec);
        return client.create_run(as, {{"a", {2, 3}, a}}, spec);
    }
    Run create(const std::string& as) { return unwrap(try_create(as)); }

    Result<Run> differently(const std::function<void(Spec&)>& change) { return try_create(name + "-2", change); }

    Result<std::uint64_t> push(const std::function<void(UpdateOptions&)>& change) {
        UpdateOptions options;
        change(options);
        return run.push({{"a", g}}, options);
    }

    Result<RunDescription> change(const std::function<void(Change&)>& make) {
        Change change;
        make(change);
        return run.change(change);
    }
};

template <class T>
std::optional<Error> error_of(const Result<T>& result) {
    return result.ok() ? std::nullopt : std::optional<Error>(result.error());
}

struct Row {
    ErrorReason reason;
    std::function<std::optional<Error>(Scene&)> deed;
};

std::vector<Row> rows() {
    using R = ErrorReason;
    const double nan = std::nan("");
    return {
        {R::unknown_optimizer, [](Scene& s) { return error_of(s.differently([](Spec& x) { x.optimizer = "adm"; })); }},
        {R::unknown_flavor, [](Scene& s) { return error_of(s.differently([](Spec& x) { x.flavor = "nope"; })); }},
        {R::unknown_schedule,
         [](Scene& s) { return error_of(s.differently([](Spec& x) {
                            x.schedules = {{"lr", Schedule("cos")}};
                        })); }},
        {R::unknown_transform,
         [](Scene& s) { return error_of(s.differently([](Spec& x) { x.transforms = {"clip"}; })); }},
        {R::unknown_wrapper, [](Scene& s) { return error_of(s.differently([](Spec& x) { x.wrappers = {"em"}; })); }},
        {R::unknown_encoding,
         [](Scene& s) { return error_of(s.differently([](Spec& x) { x.gradient_encoding = "int7"; })); }},
        {R::unknown_policy, [](Scene& s) { return error_of(s.differently([](Spec& x) { x.policy = "later"; })); }},
        {R::unknown_argument,
         [](Scene& s) { return error_of(s.differently([](Spec& x) { x.hyperparameters["beta3"] = 0.5; })); }},
        {R::invalid_value,
         [](Scene& s) { return error_of(s.differently([](Spec& x) { x.hyperparameters["beta1"] = 1.0; })); }},
        {R::invalid_value,
         [](Scene& s) { return error_of(s.differently([](Spec& x) { x.hyperparameters["amsgrad"] = 1.0; })); }},
        {R::invalid_value,
         [nan](Scene& s) { return error_of(s.differently([nan](Spec& x) { x.hyperparameters["lr"] = nan; })); }},
        {R::invalid_spec,
         [](Scene& s) {
             return error_of(s.differently([](Spec& x) {
                 GroupSpec group;
                 group.name = "g";
                 group.parameters = {"x*"};
                 x.groups = {group};
             }));
         }},
        {R::invalid_spec, [](Scene& s) { return error_of(s.client.create_run(s.name + "-2", {}, Scene::spec())); }},
        {R::invalid_name, [](Scene& s) { return error_of(s.try_create("a run")); }},
        {R::invalid_name,
         [](Scene& s) {
             return error_of(s.client.create_run(s.name + "-2", {{"", {6}, a}}, Scene::spec()));
         }},
        {R::run_differs,
         [](Scene& s) { return error_of(s.try_create(s.name, [](Spec& x) { x.hyperparameters["lr"] = 0.02; })); }},
        {R::unknown_run, [](Scene& s) { return error_of(s.client.get_run(s.name + "-2")); }},
        {R::unknown_parameter,
         [](Scene& s) {
             PullOptions pull;
             pull.names = {"d"};
             return error_of(s.run.pull(pull));
         }},
        {R::unknown_point,
         [](Scene& s) {
             PullOptions pull;
             pull.of = "average";
             return error_of(s.run.pull(pull));
         }},
        {R::unknown_group,
         [](Scene& s) {
             return error_of(s.push([](UpdateOptions& x) { x.group_hyperparameters = {{"nope", {{"lr", 1.0}}}}; }));
         }},
        {R::unknown_argument,
         [](Scene& s) { return error_of(s.push([](UpdateOptions& x) {
                            x.hyperparameters = {{"momentun", 1.0}};
                        })); }},
        {R::invalid_value, [](Scene& s) { return error_of(s.push([](UpdateOptions& x) { x.samples = -1; })); }},
        {R::invalid_gradient, [](Scene& s) { return error_of(s.run.push({})); }},
        {R::invalid_gradient,
         [](Scene& s) {
             return error_of(s.run.push({{"a", {3, 2}, g}}));
         }},
        {R::nonfinite_gradient,
         [nan](Scene& s) {
             const std::vector<float> bad(6, static_cast<float>(nan));
             return error_of(s.run.push({{"a", bad}}));
         }},
        {R::change_refused,
         [](Scene& s) { return error_of(s.change([](Change& x) {
                            x.hyperparameters = {{"amsgrad", true}};
                        })); }},
        {R::etag_mismatch,
         [](Scene& s) {
             return error_of(s.change([](Change& x) {
                 x.hyperparameters = {{"lr", 1.0}};
                 x.etag = "0-99";
             }));
         }},
        {R::storage_disabled, [](Scene& s) { return error_of(s.run.save_checkpoint("c")); }},
        {R::storage_disabled, [](Scene& s) { return error_of(s.run.restore_checkpoint("c")); }},
        {R::invalid_name, [](Scene& s) { return error_of(s.run.barrier("a barrier")); }},
        {R::invalid_value,
         [](Scene& s) {
             return error_of(s.run.report({{"loss", std::nan("")}}));
         }},
    };
}

}  // namespace

TEST_CASE("bad input gets its own error, and the run is what it was") {
    Scene scene;
    unwrap(scene.run.push({{"a", g}}));
    const RunDescription before = unwrap(scene.run.refresh());
    int number = 0;
    for (const Row& row : rows()) {
        ++number;
        CAPTURE(number);
        const std::optional<Error> error = row.deed(scene);
        REQUIRE(error);
        CAPTURE(error->message);
        CHECK(std::string(name_of(error->reason)) == std::string(name_of(row.reason)));
        CHECK(error->reason_name == name_of(row.reason));
        const bool says_what =
            error->message.find("expected") != std::string::npos || row.reason == ErrorReason::run_differs;
        CHECK(says_what);
    }
    const RunDescription after = unwrap(scene.run.refresh());
    CHECK(after.version == before.version);
    CHECK(after.etag == before.etag);
    CHECK(scene.client.get_run(scene.name + "-2").error().reason == ErrorReason::unknown_run);
    CHECK(unwrap(scene.run.push({{"a", g}})) == before.version + 1);
}

TEST_CASE("a run that was deleted and made anew") {
    Scene scene;
    unwrap(scene.client.delete_run(scene.name));
    Run other = scene.create(scene.name);
    CHECK(other.created());
    CHECK(scene.run.refresh().error().reason == ErrorReason::run_replaced);
    CHECK(scene.run.push({{"a", g}}).error().reason == ErrorReason::run_replaced);
}

TEST_CASE("too little memory") {
    testing::Server server({"--max-memory", "1MiB"});
    Client client = testing::connect(server.address());
    const std::vector<float> large(1 << 20);
    CHECK(client.create_run("large", {{"w", {1 << 20}, large}}, Scene::spec()).error().reason ==
          ErrorReason::memory_exhausted);
    CHECK(server.stop());
}
