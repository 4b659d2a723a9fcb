// Embeddings: a table of rows by 64-bit id, created when they are first touched, trained beside a parameter.
//
//     stepwell serve                       in another terminal
//     ./table 127.0.0.1:50051
//
// Every user has a taste, and rates with it times a common scale. The rows of the users at hand travel, and no others.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <vector>

using stepwell::unwrap;

namespace {

constexpr int users = 1000, batch = 32, steps = 400;
constexpr std::uint32_t width = 2;

/// Ids may be any 64-bit numbers, hashes say.
std::int64_t id_of(int user) { return static_cast<std::int64_t>(0x9E3779B97F4A7C15ULL * (user + 1U)); }

float taste_of(int user, std::uint32_t element) { return element == 0 ? std::sin(0.1F * user) : std::cos(0.1F * user); }

void train(const char* address) {
    stepwell::Client client = unwrap(stepwell::connect(address));
    stepwell::TableSpec table;
    table.name = "users";
    table.width = width;
    table.optimizer = "adagrad";
    table.hyperparameters = {{"lr", 0.5}};
    table.initializer = stepwell::Part("uniform", {{"minimum", -0.1}, {"maximum", 0.1}});
    stepwell::Spec spec;
    spec.optimizer = "sgd";
    spec.hyperparameters = {{"lr", 0.05}};
    spec.tables = {table};
    const std::vector<float> one = {1.0F};
    stepwell::Run run = unwrap(client.create_run("table", {{"scale", {}, one}}, spec));

    std::mt19937 random(0);
    double loss = 0;
    for (int step = 0; step < steps; ++step) {
        std::vector<int> chosen(batch);
        std::vector<std::int64_t> ids(batch);
        for (int place = 0; place < batch; ++place) {
            chosen[place] = static_cast<int>(random() % 100);  // of 1,000 users these 100 ever rate
            ids[place] = id_of(chosen[place]);
        }
        stepwell::PullOptions pull;
        pull.rows = {{"users", ids}};
        stepwell::Arrays present = unwrap(run.pull(pull));
        const float scale = present.get<float>("scale")[0];
        const stepwell::RowValues& rows = *present.find_rows("users");

        std::vector<float> scale_gradient(1), rows_gradient(batch * width);
        loss = 0;
        for (int place = 0; place < batch; ++place) {
            const stepwell::Span<float> row = rows.row<float>(place);
            for (std::uint32_t element = 0; element < width; ++element) {
                const float error = scale * row[element] - 2 * taste_of(chosen[place], element);
                loss += error * error / batch;
                scale_gradient[0] += 2 * error * row[element] / batch;
                rows_gradient[place * width + element] = 2 * error * scale / batch;  // of one id several times: summed
            }
        }
        stepwell::UpdateOptions update;
        update.rows = {{"users", ids, rows_gradient}};
        unwrap(run.push({{"scale", scale_gradient}}, update));
    }
    const stepwell::RunDescription now = unwrap(run.refresh());
    std::printf("version %llu  loss %.4f  rows %llu of %d users\n", static_cast<unsigned long long>(now.version), loss,
                static_cast<unsigned long long>(now.tables.at(0).rows), users);
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
