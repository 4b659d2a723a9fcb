// A worker that outlives its server: it goes on after a restart, from where the run is then.
//
//     stepwell serve --data-dir runs     in another terminal
//     ./resume 127.0.0.1:50051 [STEPS]
//
// Stop the server with Ctrl-C or kill it while this runs, and start it again. Or call this again with more steps.
// This sample takes errors as values, where the others throw them.
#include <cstdio>
#include <cstdlib>
#include <stepwell/stepwell.hpp>
#include <vector>

namespace {

int fail(const stepwell::Error& error) {
    std::fprintf(stderr, "%s: %s\n", error.reason_name.c_str(), error.message.c_str());
    return 1;
}

}  // namespace

int main(int count, char** arguments) {
    const unsigned long long steps = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1000;
    auto client = stepwell::connect(count > 1 ? arguments[1] : "");
    if (!client) return fail(client.error());

    // The first time this creates the run; later it finds it with its parameters, its optimizer's state and its clock.
    stepwell::Spec spec;
    spec.optimizer = "adam";
    spec.hyperparameters = {{"lr", 0.01}};
    const std::vector<float> start = {5.0F};
    auto run = client->create_run("resume", {{"x", {1}, start}}, spec);
    if (!run) return fail(run.error());
    if (run->created()) {
        std::printf("a new run\n");
    } else {
        std::printf("goes on at version %llu\n", static_cast<unsigned long long>(run->version()));
    }
    std::fflush(stdout);

    auto parameters = run->pull();
    while (parameters && run->version() < steps) {
        const std::vector<float> gradient = {2 * parameters->get<float>("x")[0]};  // of x squared
        // While the server is away this call tries again, for patience_seconds. The update is applied once.
        parameters = run->step({{"x", gradient}});
        if (!parameters && parameters.error().reason == stepwell::ErrorReason::run_rewound) {
            // A kill loses what was not stored yet. The update was dropped; go on from the present parameters.
            std::printf("went back from version %llu to %llu\n",
                        static_cast<unsigned long long>(parameters.error().acknowledged_version()),
                        static_cast<unsigned long long>(parameters.error().version()));
            parameters = run->pull();
        }
    }
    if (!parameters) return fail(parameters.error());

    std::printf("version %llu: x %.4f\n", static_cast<unsigned long long>(run->version()),
                parameters->get<float>("x")[0]);
    run->close();
    return 0;
}
