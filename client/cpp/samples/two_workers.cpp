// Two workers, each with half of the data, train one run in rounds: the mean of both in every commit.
//
//     stepwell serve                       in another terminal
//     ./two_workers 127.0.0.1:50051
#include <cstdio>
#include <exception>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <string>
#include <thread>
#include <vector>

using stepwell::unwrap;

namespace {

constexpr int samples = 64, steps = 200;

/// y = 3 x - 1, for x from -1 to 1.
float x_of(std::uint64_t sample) { return 2.0F * static_cast<float>(sample) / (samples - 1) - 1.0F; }
float y_of(std::uint64_t sample) { return 3.0F * x_of(sample) - 1.0F; }

/// A client each: exchanges of one run object follow one another.
stepwell::Run join(const std::string& address, const std::string& name) {
    stepwell::ConnectOptions options;
    options.worker = name;
    stepwell::Client client = unwrap(stepwell::connect(address, options));
    stepwell::Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 0.5}};
    spec.policy = stepwell::Part("sync");
    const std::vector<float> zero(1);
    return unwrap(client.create_run("two-workers", {{"w", {}, zero}, {"b", {}, zero}}, spec));
}

void work(stepwell::Run run) {
    const stepwell::Assignment mine = unwrap(run.assignment(samples));
    unwrap(run.barrier());  // who begins sooner waits, as it does in every round

    stepwell::Arrays parameters = unwrap(run.pull());
    for (int step = 0; step < steps; ++step) {
        std::vector<float> w(1), b(1);
        for (std::uint64_t sample = mine.begin; sample < mine.end; ++sample) {
            const float predicted = parameters.get<float>("w")[0] * x_of(sample) + parameters.get<float>("b")[0];
            const float error = (predicted - y_of(sample)) / static_cast<float>(mine.end - mine.begin);
            w[0] += error * x_of(sample);
            b[0] += error;
        }
        stepwell::UpdateOptions update;
        update.samples = static_cast<double>(mine.end - mine.begin);
        parameters = unwrap(run.step({{"w", w}, {"b", b}}, update));
    }
    std::printf("%s: samples %llu to %llu  version %llu  w %.3f  b %.3f\n", run.worker().c_str(),
                static_cast<unsigned long long>(mine.begin), static_cast<unsigned long long>(mine.end),
                static_cast<unsigned long long>(run.version()), parameters.get<float>("w")[0],
                parameters.get<float>("b")[0]);
}

}  // namespace

int main(int count, char** arguments) {
    const std::string address = count > 1 ? arguments[1] : "";
    std::exception_ptr failures[2];
    try {
        // Both join before either begins, so that the data has two shares.
        stepwell::Run runs[] = {join(address, "worker-0"), join(address, "worker-1")};
        std::thread workers[2];
        for (int number = 0; number < 2; ++number) {
            workers[number] = std::thread([run = std::move(runs[number]), &failure = failures[number]]() mutable {
                try {
                    work(std::move(run));
                } catch (...) {
                    failure = std::current_exception();
                }
            });
        }
        for (std::thread& worker : workers) worker.join();
        for (const std::exception_ptr& failure : failures) {
            if (failure) std::rethrow_exception(failure);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
