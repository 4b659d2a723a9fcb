// Linear regression by a server's Adam: this program computes gradients, the server keeps the parameters.
//
//     stepwell serve                 in another terminal
//     ./quickstart 127.0.0.1:50051   or set STEPWELL_ADDRESS
#include <cstdio>
#include <random>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <vector>

using stepwell::unwrap;

namespace {

constexpr int features = 4, batch = 32, steps = 500;
constexpr float truth[features] = {1.0F, -2.0F, 3.0F, 0.5F};

void fit(const char* address) {
    stepwell::Client client = unwrap(stepwell::connect(address));
    stepwell::Spec spec;
    spec.optimizer = "adam";
    spec.hyperparameters = {{"lr", 0.05}};
    spec.schedules = {{"lr", {"cosine", {{"t_max", steps}, {"eta_min", 1e-3}}}}};
    const std::vector<float> w(features), b(1);
    // Creates the run, or joins the one that exists with the same spec.
    stepwell::Run run = unwrap(client.create_run("quickstart", {{"w", {features, 1}, w}, {"b", {1}, b}}, spec));

    std::mt19937 random(std::random_device{}());
    std::uniform_real_distribution<float> uniform(-2.0F, 2.0F);
    stepwell::Arrays parameters = unwrap(run.pull());
    for (int step = 0; step < steps; ++step) {
        const stepwell::Span<float> weights = parameters.get<float>("w"), bias = parameters.get<float>("b");
        std::vector<float> weights_gradient(features), bias_gradient(1);
        for (int sample = 0; sample < batch; ++sample) {
            float x[features], error = bias[0] - 1.0F;
            for (int i = 0; i < features; ++i) {
                x[i] = uniform(random);
                error += x[i] * (weights[i] - truth[i]);
            }
            for (int i = 0; i < features; ++i) weights_gradient[i] += error * x[i] / batch;
            bias_gradient[0] += error / batch;
        }
        stepwell::UpdateOptions options;
        options.samples = batch;
        parameters = unwrap(run.step({{"w", weights_gradient}, {"b", bias_gradient}}, options));
    }

    const stepwell::Span<float> weights = parameters.get<float>("w");
    std::printf("version %llu: w %.3f %.3f %.3f %.3f, b %.3f\n", static_cast<unsigned long long>(run.version()),
                weights[0], weights[1], weights[2], weights[3], parameters.get<float>("b")[0]);
    run.close();  // leaves the run, which goes on
}

}  // namespace

int main(int count, char** arguments) {
    try {
        fit(count > 1 ? arguments[1] : "");
    } catch (const stepwell::StepwellError& error) {
        std::fprintf(stderr, "%s: %s\n", error.error().reason_name.c_str(), error.what());
        return 1;
    }
    return 0;
}
