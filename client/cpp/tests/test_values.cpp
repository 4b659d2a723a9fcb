// Plain data into the contract's messages.
#include <doctest/doctest.h>

#include "layouts.hpp"
#include "wire.hpp"

using namespace stepwell;
using testing::reason_of;

TEST_CASE("values keep their kind") {
    CHECK(*Value(3).number() == 3.0);
    CHECK(*Value(true).flag());
    CHECK(Value(true).number() == nullptr);
    CHECK(*Value("text").text() == "text");
    CHECK(Value(none).is_none());
    CHECK(*Value(std::vector<double>{1, 2}).numbers() == std::vector<double>{1, 2});
    CHECK(Value(1) == Value(1.0));
    CHECK(Value(1) != Value(true));
}

TEST_CASE("a spec in full") {
    const std::vector<float> w(6);
    const std::vector<BFloat16> b(1);
    Spec spec;
    spec.optimizer = "adam";
    spec.hyperparameters = {{"betas", std::vector<double>{0.8, 0.9}}, {"lr", 0.1}, {"weight_decay", none}};
    spec.schedules = {{"lr", Schedule("sequential", {{"milestones", std::vector<double>{10}}},
                                      {{"warmup", {{"steps", 10}}}, {"cosine", {{"t_max", 90}}}}, Clock::samples)}};
    GroupSpec group;
    group.name = "no_decay";
    group.parameters = {"*.b"};
    group.frozen = true;
    spec.groups = {group};
    spec.transforms = {"centralize", {"clip_by_global_norm", {{"max_norm", 1.0}}}};
    spec.gradient_encoding = Part("int8", {{"block", 64}});
    spec.policy = "sync";
    TableSpec table;
    table.name = "t";
    table.width = 8;
    table.initializer = Part("constant", {{"value", 0.5}});
    spec.tables = {table};
    const v1::Spec message = encode_spec({{"w", {2, 3}, w}, {"b", {}, b}}, spec);
    CHECK(message.parameters(0).shape_size() == 2);
    CHECK(message.parameters(1).dtype() == v1::D_TYPE_BFLOAT16);
    CHECK(message.hyperparameters().at("beta2").number() == 0.9);
    CHECK(message.hyperparameters().count("betas") == 0);
    CHECK(message.hyperparameters().at("weight_decay").has_none());
    CHECK(message.schedules().at("lr").clock() == v1::CLOCK_SAMPLES);
    CHECK(message.schedules().at("lr").schedules(1).arguments().at("t_max").number() == 90);
    CHECK(message.groups(0).frozen());
    CHECK(message.transforms(1).arguments().at("max_norm").number() == 1.0);
    CHECK(message.gradient_encoding().name() == "int8");
    CHECK_FALSE(message.has_parameter_encoding());
    CHECK(message.policy().name() == "sync");
    CHECK(message.nonfinite() == v1::NONFINITE_REJECT);
    CHECK(message.tables(0).initializer().at("name").text() == "constant");
    CHECK(message.tables(0).initializer().at("value").number() == 0.5);

    v1::Run run;
    *run.mutable_spec() = message;
    const Spec again = decode_run(run).spec;  // and back
    CHECK(again.hyperparameters.at("beta1") == Value(0.8));
    CHECK(again.schedules.at("lr").schedules[0].name == "warmup");
    CHECK(again.tables[0].initializer->arguments.at("value") == Value(0.5));
    CHECK(again.tables[0].initializer->name == "constant");
    CHECK(again.policy->name == "sync");
}

TEST_CASE("what the contract cannot hold") {
    const std::vector<float> w(6);
    Spec spec;
    CHECK(reason_of([&] { encode_spec({{"w", {2, 2}, w}}, spec); }) == ErrorReason::invalid_spec);
    CHECK(reason_of([&] { encode_spec({{"w", {6}, w}, {"w", {6}, w}}, spec); }) == ErrorReason::invalid_spec);
    spec.hyperparameters = {{"betas", std::vector<double>{0.8}}, {"beta1", 0.8}};
    CHECK(reason_of([&] { encode_spec({}, spec); }) == ErrorReason::invalid_value);
    spec.hyperparameters = {{"betas", 0.8}};
    CHECK(reason_of([&] { encode_spec({}, spec); }) == ErrorReason::invalid_value);
    Schedule nested("chained");
    for (int depth = 0; depth < 20; ++depth) nested = Schedule("chained", {}, {nested});
    CHECK(reason_of([&] { encode_schedule(nested); }) == ErrorReason::invalid_value);
}

TEST_CASE("an update's header") {
    UpdateOptions options;
    options.samples = 32;
    options.hyperparameters = {{"lr", 0.1}};
    options.group_hyperparameters = {{"g", {{"lr", 0.2}}}};
    const v1::UpdateHeader header = encode_header(options, 512.0);
    CHECK(header.samples() == 32);
    CHECK(header.hyperparameters(0).group().empty());
    CHECK(header.hyperparameters(1).values().at("lr") == 0.2);
    CHECK(header.loss_scale() == 512.0);
    CHECK_FALSE(header.has_loss());
    options.loss_scale = 2.0;
    options.loss = 0.5;
    CHECK(encode_header(options, 512.0).loss_scale() == 2.0);
    CHECK(encode_header(options, {}).loss() == 0.5);
    CHECK_FALSE(encode_header({}, {}).has_loss_scale());
}
