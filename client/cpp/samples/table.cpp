// An embedding table: rows by 64-bit id, created when they are first touched, beside dense parameters.
//
//     stepwell serve            in another terminal
//     ./table 127.0.0.1:50051   or set STEPWELL_ADDRESS
#include <cstdint>
#include <cstdio>
#include <random>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <vector>

using stepwell::unwrap;

namespace {

constexpr int batch = 32, steps = 200;
constexpr std::uint32_t width = 4;
constexpr std::int64_t first_user = 1'000'000'000'000'000;

/// Each user likes what their number's last digit says; the score is the sum of the user's row, and a bias.
float likes(std::int64_t user) { return static_cast<float>(user % 10) / 10; }

float score(const stepwell::Span<float>& row, float bias) {
    for (const float element : row) bias += element;
    return bias;
}

void train(const char* address) {
    stepwell::Client client = unwrap(stepwell::connect(address));
    stepwell::TableSpec table;
    table.name = "user";
    table.width = width;
    table.optimizer = "adagrad";
    table.hyperparameters = {{"lr", 0.5}};
    stepwell::Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 0.1}};
    spec.tables = {table};
    const std::vector<float> zero(1);
    stepwell::Run run = unwrap(client.create_run("table", {{"bias", {1}, zero}}, spec));

    std::mt19937 random(std::random_device{}());
    float bias = unwrap(run.pull()).get<float>("bias")[0];
    for (int step = 0; step < steps; ++step) {
        std::vector<std::int64_t> users(batch);
        for (std::int64_t& user : users) user = first_user + static_cast<std::int64_t>(random() % 100);
        const stepwell::Arrays present = unwrap(run.pull_rows({{"user", users}}));
        const stepwell::RowValues& rows = *present.find_rows("user");  // who is new has what a row begins with
        std::vector<float> gradients, bias_gradient(1);
        for (int place = 0; place < batch; ++place) {
            const float error = score(rows.row<float>(place), bias) - likes(users[place]);
            gradients.insert(gradients.end(), width, error / batch);
            bias_gradient[0] += error / batch;
        }
        // One update: the rows and the bias change together. Who occurs twice has both gradients summed.
        stepwell::UpdateOptions update;
        update.rows = {{"user", users, gradients}};
        bias = unwrap(run.step({{"bias", bias_gradient}}, update)).get<float>("bias")[0];
    }

    const stepwell::RunDescription now = unwrap(run.refresh());
    const std::vector<std::int64_t> user = {first_user + 7};
    const stepwell::Arrays found = unwrap(run.pull_rows({{"user", user}}));
    std::printf("version %llu: %llu rows; a user who likes 0.7 scores %.2f\n",
                static_cast<unsigned long long>(now.version), static_cast<unsigned long long>(now.tables.at(0).rows),
                score(found.find_rows("user")->row<float>(0), bias));
    run.close();
}

}  // namespace

int main(int count, char** arguments) {
    try {
        train(count > 1 ? arguments[1] : "");
    } catch (const stepwell::StepwellError& error) {
        std::fprintf(stderr, "%s: %s\n", error.error().reason_name.c_str(), error.what());
        return 1;
    }
    return 0;
}
