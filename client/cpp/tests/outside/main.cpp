// Asks a server that is not there, and expects to hear so.
#include <cstdio>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>

int main() {
    stepwell::ConnectOptions options;
    options.patience_seconds = 0.1;
    auto client = stepwell::connect("127.0.0.1:1", options);
    const auto server = client->ping();
    if (server.ok() || server.error().reason != stepwell::ErrorReason::server_unavailable) return 1;
    try {
        stepwell::unwrap(client->get_run("any"));
    } catch (const stepwell::ServerUnavailable& error) {
        std::puts(error.what());
        return 0;
    }
    return 1;
}
