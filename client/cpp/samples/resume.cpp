// Training that goes on where it stopped: call this again and again, with restarts of the server between.
//
//     stepwell serve --data-dir runs       in another terminal; stop it with Ctrl-C, start it again
//     ./resume 127.0.0.1:50051
//
// A clean stop loses nothing. After kill -9 the run is back at its last snapshot, or a checkpoint is restored: a call
// then says run_rewound once, and training goes on from the parameters that there are.
#include <cstdio>
#include <stepwell/stepwell.hpp>
#include <string>
#include <vector>

namespace {

constexpr int steps = 50;

int fail(const stepwell::Error& error) {
    std::fprintf(stderr, "%s: %s\n", error.reason_name.c_str(), error.message.c_str());
    return 1;
}

}  // namespace

int main(int count, char** arguments) {
    auto client = stepwell::connect(count > 1 ? arguments[1] : "");
    if (!client) return fail(client.error());
    stepwell::Spec spec;
    spec.optimizer = "adam";
    spec.hyperparameters = {{"lr", 0.1}};
    const std::vector<double> start = {5.0, -5.0};
    auto run = client->create_run("resume", {{"x", {2}, start}}, spec);
    if (!run) return fail(run.error());
    std::printf("%s at version %llu\n", run->created() ? "created" : "resumed",
                static_cast<unsigned long long>(run->version()));

    auto parameters = run->pull();
    for (int step = 0; step < steps; ++step) {
        if (!parameters && parameters.error().reason == stepwell::ErrorReason::run_rewound) {
            std::printf("went back from version %llu to %llu\n",
                        static_cast<unsigned long long>(parameters.error().acknowledged_version()),
                        static_cast<unsigned long long>(parameters.error().version()));
            parameters = run->pull();
        }
        if (!parameters) return fail(parameters.error());
        const auto x = parameters->get<double>("x");
        const std::vector<double> gradient = {2 * (x[0] - 1), 2 * (x[1] - 2)};  // of (x0 - 1)^2 + (x1 - 2)^2
        parameters = run->step({{"x", gradient}});
    }
    if (!parameters) return fail(parameters.error());
    std::printf("version %llu  x %.6f %.6f\n", static_cast<unsigned long long>(run->version()),
                parameters->get<double>("x")[0], parameters->get<double>("x")[1]);
    return 0;
}
