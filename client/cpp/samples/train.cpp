// A two-layer perceptron, its gradients written by hand, tells two interleaved spirals apart. No framework needed.
//
//     stepwell serve                       in another terminal
//     ./train 127.0.0.1:50051
#include <cmath>
#include <cstdio>
#include <random>
#include <stepwell/stepwell.hpp>
#include <stepwell/throwing.hpp>
#include <vector>

using stepwell::unwrap;

namespace {

constexpr int inputs = 2, hidden = 32, points = 400, batch = 64, steps = 2000;

struct Point {
    float x[inputs];
    float label;  // 0 or 1
};

std::vector<Point> spirals() {
    std::mt19937 random(1);
    std::normal_distribution<float> noise(0.0F, 0.02F);
    std::vector<Point> data;
    for (int number = 0; number < points; ++number) {
        const float along = static_cast<float>(number / 2) / (points / 2), side = number % 2 ? 3.14159265F : 0.0F;
        const float angle = 5.0F * along + side, radius = 0.1F + 0.9F * along;
        data.push_back({{radius * std::cos(angle) + noise(random), radius * std::sin(angle) + noise(random)},
                        static_cast<float>(number % 2)});
    }
    return data;
}

using View = stepwell::Span<const float>;

/// p = sigmoid(w2 . tanh(w1 x + b1) + b2); activations: of the hidden layer, `hidden` elements.
float predict(View w1, View b1, View w2, View b2, const Point& point, float* activations) {
    float sum = b2[0];
    for (int unit = 0; unit < hidden; ++unit) {
        float input = b1[unit];
        for (int i = 0; i < inputs; ++i) input += w1[unit * inputs + i] * point.x[i];
        activations[unit] = std::tanh(input);
        sum += w2[unit] * activations[unit];
    }
    return 1.0F / (1.0F + std::exp(-sum));
}

double accuracy(const stepwell::Arrays& parameters, const std::vector<Point>& data) {
    int right = 0;
    float activations[hidden];
    for (const Point& point : data) {
        const float p = predict(parameters.get<float>("w1"), parameters.get<float>("b1"), parameters.get<float>("w2"),
                                parameters.get<float>("b2"), point, activations);
        right += (p > 0.5F) == (point.label > 0.5F);
    }
    return static_cast<double>(right) / static_cast<double>(data.size());
}

void train(const char* address) {
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    std::vector<float> w1(hidden * inputs), b1(hidden), w2(hidden), b2(1);
    for (float& weight : w1) weight = 2.0F * normal(random);
    for (float& weight : w2) weight = 0.2F * normal(random);

    stepwell::Client client = unwrap(stepwell::connect(address));
    stepwell::Spec spec;
    spec.optimizer = "adamw";
    spec.flavor = "torch";
    spec.hyperparameters = {{"lr", 0.02}, {"weight_decay", 1e-3}};
    spec.schedules = {{"lr", {"cosine", {{"t_max", steps}}}}};
    // The biases do not decay.
    stepwell::GroupSpec biases;
    biases.name = "biases";
    biases.parameters = {"b*"};
    biases.hyperparameters = {{"weight_decay", 0.0}};
    spec.groups = {biases};
    spec.transforms = {{"clip_by_global_norm", {{"max_norm", 1.0}}}};
    stepwell::Run run = unwrap(client.create_run(
        "spirals", {{"w1", {hidden, inputs}, w1}, {"b1", {hidden}, b1}, {"w2", {1, hidden}, w2}, {"b2", {1}, b2}},
        spec));

    const std::vector<Point> data = spirals();
    stepwell::Arrays parameters = unwrap(run.pull());
    for (int step = 0; step < steps; ++step) {
        const View p1 = parameters.get<float>("w1"), q1 = parameters.get<float>("b1");
        const View p2 = parameters.get<float>("w2"), q2 = parameters.get<float>("b2");
        std::vector<float> g1(w1.size()), h1(hidden), g2(hidden), h2(1);
        double loss = 0;
        for (int sample = 0; sample < batch; ++sample) {
            const Point& point = data[random() % data.size()];
            float activations[hidden];
            const float p = predict(p1, q1, p2, q2, point, activations);
            loss -= std::log(std::fmax(1e-7F, point.label > 0.5F ? p : 1.0F - p)) / batch;
            const float error = (p - point.label) / batch;
            h2[0] += error;
            for (int unit = 0; unit < hidden; ++unit) {
                g2[unit] += error * activations[unit];
                const float back = error * p2[unit] * (1.0F - activations[unit] * activations[unit]);
                h1[unit] += back;
                for (int i = 0; i < inputs; ++i) g1[unit * inputs + i] += back * point.x[i];
            }
        }
        stepwell::UpdateOptions options;
        options.samples = batch;
        options.into = parameters.outputs();  // the same memory again
        unwrap(run.step({{"w1", g1}, {"b1", h1}, {"w2", g2}, {"b2", h2}}, options));
        if (step % 500 == 499) {
            std::printf("step %d  loss %.4f  accuracy %.3f\n", step + 1, loss, accuracy(parameters, data));
        }
    }
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
