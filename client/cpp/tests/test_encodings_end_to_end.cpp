// Encoded gradients and parameters, against what a real server makes of them.
#include <doctest/doctest.h>

#include <cmath>
#include <stepwell/throwing.hpp>

#include "server.hpp"

using namespace stepwell;
using testing::new_name;
using testing::shared_server;

namespace {

Run create(Client& client, const std::string& name, const std::vector<Parameter>& parameters,
           const std::optional<Part>& gradients, const std::optional<Part>& values) {
    Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 1.0}};
    spec.gradient_encoding = gradients;
    spec.parameter_encoding = values;
    return unwrap(client.create_run(new_name(name), parameters, spec));
}

/// Minus what came of gradients for parameters that began at zero.
template <class T>
std::vector<double> applied(Run& run) {
    const Arrays now = unwrap(run.pull());
    std::vector<double> values;
    for (const T value : now.get<T>("w")) values.push_back(-static_cast<double>(value));
    return values;
}

const std::vector<float> zeros(8);
const std::vector<float> gradient = {127, -3.25F, 0.4F, 2.5F, 1, -9, 2, 0};

}  // namespace

TEST_CASE("what each encoding makes of a gradient, by hand, without feedback") {
    struct Row {
        Part encoding;
        std::vector<double> expected;
    };
    const std::vector<Row> rows = {
        {Part("int8", {{"block", 8}, {"error_feedback", false}}), {127, -3, 0, 2, 1, -9, 2, 0}},
        {Part("sign", {{"block", 8}, {"error_feedback", false}}),
         {18.14375, -18.14375, 18.14375, 18.14375, 18.14375, -18.14375, 18.14375, 18.14375}},
        {Part("top_k", {{"density", 0.25}, {"error_feedback", false}}), {127, 0, 0, 0, 0, -9, 0, 0}},
        {Part("bfloat16", {{"error_feedback", false}}), {127, -3.25, 0.400390625, 2.5, 1, -9, 2, 0}},
        {Part("float16", {{"scale", 1024.0}, {"error_feedback", false}}),
         {63.9688, -3.25, 0.4, 2.5, 1, -9, 2, 0}},  // 65504 / 1024
    };
    Client client = testing::connect(shared_server().address());
    for (const Row& row : rows) {
        CAPTURE(row.encoding.name);
        Run run = create(client, row.encoding.name, {{"w", {8}, zeros}}, row.encoding, {});
        static_cast<void>(unwrap(run.push({{"w", gradient}})));
        const std::vector<double> got = applied<float>(run);
        for (std::size_t index = 0; index < got.size(); ++index) {
            CAPTURE(index);
            CHECK(got[index] == doctest::Approx(row.expected[index]).epsilon(1e-3));
        }
    }
}

TEST_CASE("with feedback all of a gradient arrives in the end") {
    Client client = testing::connect(shared_server().address());
    const std::vector<Part> encodings = {
        Part("int8", {{"block", 8}, {"error_feedback", true}}), Part("sign", {{"block", 8}, {"error_feedback", true}}),
        Part("top_k", {{"density", 0.25}, {"error_feedback", true}}), Part("bfloat16", {{"error_feedback", true}})};
    for (const Part& encoding : encodings) {
        CAPTURE(encoding.name);
        Run run = create(client, encoding.name + "-owed", {{"w", {8}, zeros}}, encoding, {});
        static_cast<void>(unwrap(run.push({{"w", gradient}})));
        // A refused update settles nothing.
        std::vector<float> bad = gradient;
        bad[0] = std::nanf("");
        CHECK(run.push({{"w", bad}}).error().reason == ErrorReason::nonfinite_gradient);
        for (int push = 0; push < 60; ++push) static_cast<void>(unwrap(run.push({{"w", zeros}})));
        const std::vector<double> got = applied<float>(run);
        for (std::size_t index = 0; index < got.size(); ++index) {
            CAPTURE(index);
            CHECK(std::fabs(got[index] - gradient[index]) < 0.05);
        }
    }
}

TEST_CASE("float64 gradients are cast, 16-bit ones are widened where that is smaller, large ones are cut") {
    Client client = testing::connect(shared_server().address());
    const std::size_t count = 700'001;
    std::vector<double> wide(count), start(count);
    for (std::size_t index = 0; index < count; ++index) wide[index] = static_cast<double>(index % 255) - 127;
    for (const std::string name : {"float32", "bfloat16", "int8", "top_k"}) {
        CAPTURE(name);
        Part encoding(name);
        if (encoding.name == "int8") encoding.arguments = {{"block", 255}};
        if (encoding.name == "top_k") encoding.arguments = {{"density", 1.0}};
        // The last block of a piece is not whole, and has a scale of its own.
        const double tolerance = encoding.name == "int8" ? 0.5 : 0;
        Run run = create(client, encoding.name + "-wide", {{"w", {count}, start}}, encoding, {});
        static_cast<void>(unwrap(run.step({{"w", wide}})));
        const std::vector<double> got = applied<double>(run);
        std::size_t wrong = 0;
        for (std::size_t index = 0; index < count; ++index)
            wrong += !(std::fabs(got[index] - wide[index]) <= tolerance);
        CHECK(wrong == 0);
    }
    const std::vector<Half> halves(8, Half(2.0F)), zero_halves(8);
    Run run = create(client, "halves", {{"w", {8}, zero_halves}}, Part("int8", {{"block", 8}}), {});
    static_cast<void>(unwrap(run.push({{"w", halves}})));
    CHECK(static_cast<float>(unwrap(run.pull()).get<Half>("w")[7]) == -2.0F);
}

TEST_CASE("parameters come encoded unless they shall be exact") {
    Client client = testing::connect(shared_server().address());
    const std::vector<float> fine = {1.0009765625F, -3, 0.1F};
    const std::vector<double> doubles = {1.0 / 3};
    for (const std::string name : {"bfloat16", "float32", "int8"}) {
        CAPTURE(name);
        Part encoding(name);
        if (encoding.name == "int8") encoding.arguments = {{"block", 8}};
        Run run = create(client, encoding.name + "-values", {{"w", {3}, fine}, {"v", {1}, doubles}}, {}, encoding);
        const Arrays rounded = unwrap(run.pull());
        PullOptions pull;
        pull.exact = true;
        const Arrays exact = unwrap(run.pull(pull));
        for (std::size_t index = 0; index < fine.size(); ++index) {
            CHECK(exact.get<float>("w")[index] == fine[index]);
            CHECK(std::fabs(rounded.get<float>("w")[index] - fine[index]) < 0.02);
        }
        CHECK(exact.get<double>("v")[0] == doubles[0]);
        CHECK(rounded.get<double>("v")[0] == doctest::Approx(doubles[0]).epsilon(0.01));
        if (encoding.name == "bfloat16") CHECK(rounded.get<float>("w")[0] == 1.0F);
        const std::vector<float> zero(3);
        const std::vector<double> zero_doubles(1);
        CHECK(std::fabs(unwrap(run.step({{"w", zero}, {"v", zero_doubles}})).get<float>("w")[1] + 3) < 0.02);
    }
}
