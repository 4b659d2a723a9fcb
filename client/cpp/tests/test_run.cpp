// One worker and one run, against a real server.
#include <doctest/doctest.h>

#include <cmath>
#include <stepwell/throwing.hpp>

#include "server.hpp"

using namespace stepwell;
using testing::new_name;
using testing::shared_server;

namespace {

Spec sgd(double lr) {
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", lr}};
    return spec;
}

template <class T>
std::vector<T> values(const Arrays& arrays, const char* name) {
    const Span<T> span = arrays.get<T>(name);
    return {span.begin(), span.end()};
}

const std::vector<float> w = {1, 2, 3, 4}, gw = {1, 1, -2, 0.5};
const std::vector<double> b = {10}, gb = {4};

}  // namespace

TEST_CASE("create, step, push, pull") {
    Client client = testing::connect(shared_server().address());
    const std::string name = new_name("basics");
    Run run = unwrap(client.create_run(name, {{"w", {2, 2}, w}, {"b", {}, b}}, sgd(0.5)));
    CHECK(run.created());
    CHECK(run.name() == name);
    CHECK(run.version() == 0);
    CHECK_FALSE(run.last_answer());

    UpdateOptions options;
    options.samples = 8;
    const Arrays stepped = unwrap(run.step({{"w", gw}, {"b", gb}}, options));
    CHECK(values<float>(stepped, "w") == std::vector<float>{0.5, 1.5, 4, 3.75});
    CHECK(values<double>(stepped, "b") == std::vector<double>{8});
    CHECK(stepped.find("w")->shape == Shape{2, 2});
    CHECK(run.version() == 1);
    CHECK(run.last_answer()->outcome == Outcome::committed);
    CHECK(unwrap(run.push({{"b", no_gradient}, {"w", {2, 2}, gw}})) == 2);

    const Arrays pulled = unwrap(run.pull());
    CHECK(values<float>(pulled, "w") == std::vector<float>{0, 1, 5, 3.5});
    CHECK(values<double>(pulled, "b") == std::vector<double>{8});

    const RunDescription now = unwrap(run.refresh());
    CHECK(now.version == 2);
    CHECK(now.samples == 8);
    CHECK(now.parameters_count == 2);
    CHECK(now.spec.optimizer == "sgd");
    CHECK(now.groups.size() == 2);
    CHECK(now.groups[0].hyperparameters.at("lr") == Value(0.5));
    CHECK(now.workers.at(0).name == run.worker());
    CHECK(now.policy.name == "async");
    CHECK(now.tally.commits == 2);

    Run again = unwrap(client.create_run(name, {{"w", {2, 2}, w}, {"b", {}, b}}, sgd(0.5)));
    CHECK_FALSE(again.created());
    CHECK(again.version() == 2);
}

TEST_CASE("what to pull") {
    Client client = testing::connect(shared_server().address());
    Spec spec = sgd(1.0);
    spec.wrappers = {{"ema", {{"decay", 0.5}}}};
    GroupSpec cold;
    cold.name = "cold";
    cold.parameters = {"cold"};
    cold.frozen = true;
    spec.groups = {cold};
    const std::string name = new_name("pulls");
    const std::vector<float> none_at_all;
    Run run = unwrap(
        client.create_run(name, {{"w", {4}, w}, {"b", {1}, b}, {"cold", {4}, w}, {"leer", {0, 2}, none_at_all}}, spec));
    const Gradients gradients = {{"w", gw}, {"b", gb}, {"leer", none_at_all}};
    static_cast<void>(unwrap(run.step(gradients)));

    Run reader = unwrap(client.get_run(name));
    PullOptions pull;
    pull.names = {"b", "cold"};
    const Arrays some = unwrap(reader.pull(pull));
    CHECK(some.size() == 2);
    CHECK(values<double>(some, "b") == std::vector<double>{6});
    CHECK(values<float>(some, "cold") == w);
    CHECK_FALSE(reader.place());  // whoever only reads never joins

    pull = {};
    pull.if_newer_than = reader.version();
    CHECK(unwrap(reader.pull(pull)).unchanged());
    static_cast<void>(unwrap(run.push(gradients)));
    CHECK_FALSE(unwrap(reader.pull(pull)).unchanged());
    CHECK(reader.version() == 2);

    pull = {};
    pull.of = "average";
    const Arrays average = unwrap(reader.pull(pull));
    CHECK(values<double>(average, "b")[0] != 2);
    CHECK(average.find("leer")->shape == Shape{0, 2});

    std::vector<float> mine(4);
    pull = {};
    pull.into = {{"w", mine}};
    const Arrays there = unwrap(reader.pull(pull));
    CHECK(there.size() == 1);
    CHECK(there.get<float>("w").data() == mine.data());
    CHECK(mine == std::vector<float>{-1, 0, 7, 3});
    UpdateOptions options;
    Arrays all = unwrap(run.pull());
    options.into = all.outputs();
    CHECK(unwrap(run.step(gradients, options)).size() == 4);
    CHECK(values<float>(all, "w")[2] == 9);
}

TEST_CASE("every type, and more than a message") {
    Client client = testing::connect(shared_server().address());
    constexpr std::size_t count = 1'500'000;
    std::vector<float> large(count), gradient(count);
    for (std::size_t index = 0; index < count; ++index) {
        large[index] = static_cast<float>(index % 1000);
        gradient[index] = static_cast<float>(index % 7);
    }
    const std::vector<Half> halves(3, Half(1.0F)), half_gradient(3, Half(0.25F));
    const std::vector<BFloat16> brains(5, BFloat16(2.0F)), brain_gradient(5, BFloat16(0.5F));
    Run run = unwrap(client.create_run(
        new_name("types"),
        {{"large", {1000, 1500}, large}, {"half", {3}, halves}, {"brain", {5}, brains}, {"double", {1}, b}}, sgd(1.0)));
    const Arrays stepped = unwrap(run.step(
        {{"large", gradient}, {"half", half_gradient}, {"brain", brain_gradient}, {"double", std::vector<float>{4}}}));
    const Span<float> got = stepped.get<float>("large");
    REQUIRE(got.size() == count);
    std::size_t wrong = 0;
    for (std::size_t index = 0; index < count; ++index) wrong += got[index] != large[index] - gradient[index];
    CHECK(wrong == 0);
    CHECK(static_cast<float>(stepped.get<Half>("half")[2]) == 0.75F);
    CHECK(static_cast<float>(stepped.get<BFloat16>("brain")[4]) == 1.5F);
    CHECK(values<double>(stepped, "double") == std::vector<double>{6});
}

TEST_CASE("many small parameters") {
    Client client = testing::connect(shared_server().address());
    std::vector<Parameter> parameters;
    Gradients gradients;
    const std::vector<float> one = {1, 1, 1};
    for (int number = 0; number < 3000; ++number) {
        const std::string name = "layer/" + std::to_string(number) + ".weight";
        parameters.push_back({name, {3}, one});
        gradients.push_back(number % 3 ? Gradient(name, one) : Gradient(name, no_gradient));
    }
    Run run = unwrap(client.create_run(new_name("many"), parameters, sgd(0.25)));
    const Arrays stepped = unwrap(run.step(gradients));
    REQUIRE(stepped.size() == 3000);
    CHECK(values<float>(stepped, "layer/0.weight") == one);
    CHECK(values<float>(stepped, "layer/2999.weight") == std::vector<float>{0.75, 0.75, 0.75});
}

TEST_CASE("changes, reports, hyperparameters that travel with an update") {
    Client client = testing::connect(shared_server().address());
    Spec spec = sgd(1.0);
    spec.report_norms = true;
    Run run = unwrap(client.create_run(new_name("changes"), {{"w", {4}, w}}, spec));
    UpdateOptions options;
    options.hyperparameters = {{"lr", 0.5}};
    CHECK(values<float>(unwrap(run.step({{"w", gw}}, options)), "w")[0] == 0.5F);
    CHECK(run.last_answer()->gradient_norms->maximum == 2.0);
    CHECK(run.last_answer()->gradient_norms->l1 == 4.5);

    const std::string etag = unwrap(run.refresh()).etag;
    Change change;
    change.hyperparameters = {{"lr", 0.25}};
    change.etag = etag;
    const RunDescription changed = unwrap(run.change(change));
    CHECK(changed.groups[0].hyperparameters.at("lr") == Value(0.25));
    CHECK(changed.etag != etag);
    CHECK(run.change(change).error().reason == ErrorReason::etag_mismatch);
    change = {};
    change.schedules = {{"lr", Schedule("step", {{"step_size", 1}, {"gamma", 0.5}})}};
    CHECK(unwrap(run.change(change)).groups[0].schedules.at("lr").name == "step");
    static_cast<void>(unwrap(run.push({{"w", gw}})));
    CHECK(*unwrap(run.refresh()).groups[0].hyperparameters.at("lr").number() == doctest::Approx(0.125));
    change = {};
    change.schedules_removed = {"lr"};
    CHECK(unwrap(run.change(change)).groups[0].schedules.empty());
    CHECK(unwrap(run.report({{"val_loss", 0.3}})).metrics.at("val_loss") == 0.3);
}

TEST_CASE("gradients that are not finite") {
    Client client = testing::connect(shared_server().address());
    const std::vector<float> bad = {1, std::nanf(""), 0, 0};
    Run rejecting = unwrap(client.create_run(new_name("reject"), {{"w", {4}, w}}, sgd(1.0)));
    CHECK(rejecting.push({{"w", bad}}).error().reason == ErrorReason::nonfinite_gradient);
    CHECK(values<float>(unwrap(rejecting.pull()), "w") == w);
    CHECK(unwrap(rejecting.push({{"w", gw}})) == 1);  // the sequence was not used up

    Spec spec = sgd(1.0);
    spec.nonfinite = Nonfinite::skip;
    Run skipping = unwrap(client.create_run(new_name("skip"), {{"w", {4}, w}}, spec));
    CHECK(unwrap(skipping.push({{"w", bad}})) == 0);
    CHECK(skipping.last_answer()->outcome == Outcome::skipped_nonfinite);
    CHECK(unwrap(skipping.refresh()).skipped_count == 1);
    CHECK(unwrap(skipping.push({{"w", gw}})) == 1);
}

TEST_CASE("losses, inputs and loss scales") {
    Client client = testing::connect(shared_server().address());
    Spec spec;
    spec.optimizer = "polyak_sgd";
    Run polyak = unwrap(client.create_run(new_name("polyak"), {{"w", {4}, w}}, spec));
    CHECK(polyak.push({{"w", gw}}).error().reason == ErrorReason::input_required);
    UpdateOptions options;
    options.loss = 0.5;
    CHECK(unwrap(polyak.push({{"w", gw}}, options)) == 1);

    spec = sgd(1.0);
    spec.transforms = {"unscale"};
    const std::vector<Half> halves(4, Half(1.0F));
    Run scaled = unwrap(client.create_run(new_name("scaled"), {{"w", {4}, halves}}, spec));
    REQUIRE(scaled.loss_scale());
    const double scale = *scaled.loss_scale();
    const std::vector<float> gradient(4, static_cast<float>(0.5 * scale));
    CHECK(static_cast<float>(unwrap(scaled.step({{"w", gradient}})).get<Half>("w")[0]) == 0.5F);
}

TEST_CASE("runs, catalogue, and who the server is") {
    Client client = testing::connect(shared_server().address());
    const std::string name = new_name("listed");
    Run run = unwrap(client.create_run(name, {{"w", {4}, w}}, sgd(1.0)));
    const auto lists = [&client, &name] {
        bool found = false;
        for (const RunDescription& each : unwrap(client.list_runs())) found = found || each.name == name;
        return found;
    };
    CHECK(lists());
    unwrap(client.delete_run(name));
    CHECK_FALSE(lists());
    CHECK(client.get_run(name).error().reason == ErrorReason::unknown_run);
    CHECK(client.delete_run(name).error().reason == ErrorReason::unknown_run);
    CHECK_FALSE(run.push({{"w", gw}}).ok());

    const ServerDescription server = unwrap(client.ping());
    CHECK(server.contract.substr(0, 2) == "1.");
    CHECK(server.range_bytes == 1 << 20);
    CHECK(server.round_trip_seconds > 0);
    const auto has = [](const auto& descriptions, const std::string& wanted) {
        for (const auto& each : descriptions) {
            if (each.name == wanted) return true;
        }
        return false;
    };
    const auto optimizers = unwrap(client.list_optimizers());
    CHECK(has(optimizers, "adam"));
    for (const OptimizerDescription& optimizer : optimizers) {
        CHECK_FALSE(optimizer.flavors.empty());
        if (optimizer.name != "adam") continue;
        CHECK(has(optimizer.flavors, "keras"));
        CHECK(has(optimizer.flavors[0].arguments, "beta1"));
        CHECK(has(std::vector<Argument>(optimizer.flavors[0].arguments), "lr"));
    }
    CHECK(has(unwrap(client.list_schedules()), "cosine"));
    CHECK(has(unwrap(client.list_transforms()), "clip_by_global_norm"));
    CHECK(has(unwrap(client.list_wrappers()), "ema"));
    CHECK(has(unwrap(client.list_policies()), "sync"));
    CHECK(has(unwrap(client.list_encodings()).gradients, "top_k"));
    CHECK(has(unwrap(client.list_encodings()).parameters, "bfloat16"));
    const Schedule step("step", {{"step_size", 2}, {"gamma", 0.5}});
    CHECK(unwrap(client.preview_schedule(step, 1.0, 5)) == std::vector<double>{1, 1, 0.5, 0.5, 0.25});
    CHECK(client.preview_schedule(step, 1.0, 200'000).error().reason == ErrorReason::invalid_value);
}

TEST_CASE("a whole state, there and back") {
    Client client = testing::connect(shared_server().address());
    Spec spec;
    spec.optimizer = "nadam";  // it keeps a scalar per parameter, too
    const std::vector<Half> halves(3, Half(1.0F));
    const std::vector<float> none_at_all;
    const std::vector<Parameter> parameters = {
        {"w", {2, 2}, w}, {"h", {3}, halves}, {"b", {}, b}, {"leer", {0}, none_at_all}};
    Run run = unwrap(client.create_run(new_name("state"), parameters, spec));
    const Gradients gradients = {{"w", gw}, {"h", halves}, {"b", gb}, {"leer", none_at_all}};
    for (int step = 0; step < 3; ++step) static_cast<void>(unwrap(run.push(gradients)));
    const State state = unwrap(run.get_state());
    CHECK(state.version == 3);
    CHECK(state.steps.at("w") == 3);
    CHECK(state.parameters.at("h").dtype == DType::float32);
    CHECK(state.parameters.at("w").shape == Shape{2, 2});
    CHECK(state.slots.at("w").count("exp_avg") == 1);
    CHECK(state.parameters.at("leer").bytes.empty());

    const Arrays further = unwrap(run.step(gradients));
    CHECK(run.set_state(state, 17).error().reason == ErrorReason::version_mismatch);
    CHECK(unwrap(run.set_state(state, 4)).version == 3);
    const Arrays repeated = unwrap(run.step(gradients));
    CHECK(values<float>(repeated, "w") == values<float>(further, "w"));
    CHECK(values<double>(repeated, "b") == values<double>(further, "b"));
    CHECK(run.version() == 4);
    State broken = state;
    broken.parameters.erase("w");
    CHECK(run.set_state(broken).error().reason == ErrorReason::invalid_value);
    broken = state;
    broken.slots.at("w").erase("exp_avg");
    CHECK_FALSE(run.set_state(broken).ok());
}

TEST_CASE("a closed run, a closed client, a moved one") {
    Client client = testing::connect(shared_server().address());
    const std::string name = new_name("closing");
    Run run = unwrap(client.create_run(name, {{"w", {4}, w}}, sgd(1.0)));
    Run moved = std::move(run);
    CHECK(unwrap(moved.push({{"w", gw}})) == 1);
    moved.close();
    moved.close();
    CHECK(moved.push({{"w", gw}}).error().reason == ErrorReason::invalid_value);
    CHECK(unwrap(unwrap(client.get_run(name)).refresh()).workers.empty());  // it has left
    {
        Run left = unwrap(client.create_run(name, {{"w", {4}, w}}, sgd(1.0)));
        CHECK(unwrap(left.refresh()).workers.size() == 1);
    }
    Run reader = unwrap(client.get_run(name));
    CHECK(unwrap(reader.refresh()).workers.empty());
    client.close();
    CHECK(reader.pull().error().reason == ErrorReason::invalid_value);
    CHECK(client.ping().error().reason == ErrorReason::invalid_value);
}
