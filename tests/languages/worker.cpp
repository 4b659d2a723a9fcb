// worker.py in C++, which says what it does.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <vector>

using stepwell::unwrap;

namespace {

constexpr int features_count = 3;

std::array<double, features_count> features(int sample) {
    std::array<double, features_count> x{};
    for (int feature = 0; feature < features_count; ++feature) x[feature] = (sample * (7 + 4 * feature) % 17 - 8) / 8.0;
    return x;
}

double target(int sample) {
    const auto x = features(sample);
    return 2 * x[0] - 3 * x[1] + 0.5 * x[2] + 1 + (sample % 5 - 2) / 8.0;
}

void train(char** arguments) {
    const int begin = std::atoi(arguments[4]), end = std::atoi(arguments[5]), rounds = std::atoi(arguments[6]);
    stepwell::ConnectOptions options;
    options.worker = arguments[3];
    stepwell::Client client = unwrap(stepwell::connect(arguments[1], options));
    stepwell::Spec spec;
    spec.optimizer = "adam";
    spec.hyperparameters = {{"lr", 0.1}};
    spec.schedules = {{"lr", {"exponential", {{"gamma", 0.99}}}}};
    spec.policy = stepwell::Part("sync", {{"workers_min", 3}});
    const std::vector<double> zeros(features_count), zero(1);
    stepwell::Run run =
        unwrap(client.create_run(arguments[2], {{"w", {features_count}, zeros}, {"b", {}, zero}}, spec));

    stepwell::Arrays parameters = unwrap(run.pull());
    for (int round = 0; round < rounds; ++round) {
        const stepwell::Span<double> w = parameters.get<double>("w");
        std::vector<double> w_gradient(features_count), b_gradient(1);
        for (int sample = begin; sample < end; ++sample) {
            const auto x = features(sample);
            double error = parameters.get<double>("b")[0] - target(sample);
            for (int feature = 0; feature < features_count; ++feature) error += w[feature] * x[feature];
            for (int feature = 0; feature < features_count; ++feature) w_gradient[feature] += error * x[feature];
            b_gradient[0] += error;
        }
        for (double& sum : w_gradient) sum /= end - begin;
        b_gradient[0] /= end - begin;
        stepwell::UpdateOptions update;
        update.samples = end - begin;
        parameters = unwrap(run.step({{"w", w_gradient}, {"b", b_gradient}}, update));
    }
    const stepwell::Span<double> w = parameters.get<double>("w");
    std::printf("{\"version\": %llu, \"w\": [%.17g, %.17g, %.17g], \"b\": %.17g}\n",
                static_cast<unsigned long long>(run.version()), w[0], w[1], w[2], parameters.get<double>("b")[0]);
    run.close();
}

}  // namespace

int main(int count, char** arguments) {
    if (count != 7) return 2;
    try {
        train(arguments);
    } catch (const stepwell::StepwellError& error) {
        std::fprintf(stderr, "%s: %s\n", error.error().reason_name.c_str(), error.what());
        return 1;
    }
    return 0;
}
