// Two workers on one run: each computes gradients on its half of the data, and every round averages them.
//
//     stepwell serve                  in another terminal
//     ./two_workers 127.0.0.1:50051   or set STEPWELL_ADDRESS
#include <cstdio>
#include <exception>
#include <future>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <string>
#include <vector>

using stepwell::unwrap;

namespace {

constexpr std::uint64_t samples = 1000;

double x_of(std::uint64_t sample) { return static_cast<double>(sample) / samples; }
double y_of(std::uint64_t sample) { return 3 * x_of(sample) - 1; }

/// Returns the line: its slope, and where it starts.
std::vector<double> work(const std::string& address, const std::string& worker) {
    // Usually each worker is a process of its own, and more of them may come and go.
    stepwell::ConnectOptions options;
    options.worker = worker;
    stepwell::Client client = unwrap(stepwell::connect(address, options));
    stepwell::Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 0.5}};
    spec.policy = stepwell::Part("sync", {{"workers_min", 2}});
    const std::vector<double> zeros(2);
    stepwell::Run run = unwrap(client.create_run("two-workers", {{"line", {2}, zeros}}, spec));

    stepwell::Arrays parameters = unwrap(run.pull());
    stepwell::Assignment mine;
    for (int round = 0; round < 300; ++round) {
        mine = unwrap(run.assignment(samples));  // follows whoever joins and leaves
        const double count = static_cast<double>(mine.end - mine.begin);
        const stepwell::Span<double> line = parameters.get<double>("line");
        std::vector<double> gradient(2);
        for (std::uint64_t sample = mine.begin; sample < mine.end; ++sample) {
            const double error = line[0] * x_of(sample) + line[1] - y_of(sample);
            gradient[0] += error * x_of(sample) / count;
            gradient[1] += error / count;
        }
        stepwell::UpdateOptions update;
        update.samples = count;
        parameters = unwrap(run.step({{"line", gradient}}, update));  // waits for the other one
    }
    const stepwell::Span<double> line = parameters.get<double>("line");
    std::printf("%s had %llu to %llu; version %llu: %.3f x %+.3f\n", worker.c_str(),
                static_cast<unsigned long long>(mine.begin), static_cast<unsigned long long>(mine.end),
                static_cast<unsigned long long>(run.version()), line[0], line[1]);
    run.close();
    return {line[0], line[1]};
}

}  // namespace

int main(int count, char** arguments) {
    const std::string address = count > 1 ? arguments[1] : "";
    try {
        auto one = std::async(std::launch::async, work, address, "one");
        auto other = std::async(std::launch::async, work, address, "two");
        std::printf("%s\n", one.get() == other.get() ? "both have the same parameters" : "they differ");
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
