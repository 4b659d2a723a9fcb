#include "stepwell/client.hpp"

#include <chrono>

#include "core.hpp"
#include "methods.hpp"
#include "stepwell/v1/control.pb.h"
#include "wire.hpp"

namespace stepwell {

namespace {

constexpr std::uint32_t preview_steps_max = 100'000;

v1::ListPartsResponse list_parts(Line& line, const std::string& what) {
    v1::ListPartsResponse response;
    ask(line, method::list_parts, v1::ListPartsRequest(), response, what);
    return response;
}

}  // namespace

Client::Client(std::shared_ptr<Core> core) : core_(std::move(core)) {}
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;
Client::~Client() = default;

Result<Client> connect(const std::string& address, ConnectOptions options) {
    return guarded<Client>(
        [&] { return Client(std::make_shared<Client::Core>(make_settings(address, std::move(options)))); });
}

Result<Run> Client::create_run(const std::string& name, const std::vector<Parameter>& parameters, const Spec& spec) {
    return guarded<Run>([&] {
        auto [run, created] = create(core_->line, name, encode_spec(parameters, spec), parameters);
        auto core = std::make_unique<Run::Core>(core_, run, created);
        core->worker.join();
        return Run(std::move(core));
    });
}

Result<Run> Client::get_run(const std::string& name) {
    return guarded<Run>([&] {
        v1::GetRunRequest request;
        request.set_run(name);
        v1::GetRunResponse response;
        ask(core_->line, method::get_run, request, response, "run '" + name + "': get_run");
        return Run(std::make_unique<Run::Core>(core_, response.run(), false));
    });
}

Result<std::vector<RunDescription>> Client::list_runs() {
    return guarded<std::vector<RunDescription>>([&] {
        std::vector<RunDescription> runs;
        v1::ListRunsRequest request;
        v1::ListRunsResponse page;
        do {
            page.Clear();
            ask(core_->line, method::list_runs, request, page, "list_runs");
            for (const auto& run : page.runs()) runs.push_back(decode_run(run));
            request.set_page_token(page.next_page_token());
        } while (!page.next_page_token().empty());
        return runs;
    });
}

Result<void> Client::delete_run(const std::string& name) {
    return guarded<void>([&] {
        v1::DeleteRunRequest request;
        request.set_run(name);
        v1::DeleteRunResponse response;
        ask(core_->line, method::delete_run, request, response, "run '" + name + "': delete_run", false);
    });
}

Result<ServerDescription> Client::ping() {
    return guarded<ServerDescription>([&] {
        const auto start = std::chrono::steady_clock::now();
        v1::GetServerResponse response;
        ask(core_->line, method::get_server, v1::GetServerRequest(), response, "ping");
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        return decode_server(response, seconds.count());
    });
}

Result<std::vector<OptimizerDescription>> Client::list_optimizers() {
    return guarded<std::vector<OptimizerDescription>>([&] {
        v1::ListOptimizersResponse response;
        ask(core_->line, method::list_optimizers, v1::ListOptimizersRequest(), response, "list_optimizers");
        std::vector<OptimizerDescription> optimizers;
        for (const auto& optimizer : response.optimizers()) optimizers.push_back(decode_optimizer(optimizer));
        return optimizers;
    });
}

Result<std::vector<ScheduleDescription>> Client::list_schedules() {
    return guarded<std::vector<ScheduleDescription>>([&] {
        v1::ListSchedulesResponse response;
        ask(core_->line, method::list_schedules, v1::ListSchedulesRequest(), response, "list_schedules");
        std::vector<ScheduleDescription> schedules;
        for (const auto& schedule : response.schedules()) schedules.push_back(decode_schedule_description(schedule));
        return schedules;
    });
}

Result<std::vector<PartDescription>> Client::list_transforms() {
    return guarded<std::vector<PartDescription>>(
        [&] { return decode_parts(list_parts(core_->line, "list_transforms").transforms()); });
}

Result<std::vector<PartDescription>> Client::list_wrappers() {
    return guarded<std::vector<PartDescription>>(
        [&] { return decode_parts(list_parts(core_->line, "list_wrappers").wrappers()); });
}

Result<std::vector<PartDescription>> Client::list_policies() {
    return guarded<std::vector<PartDescription>>(
        [&] { return decode_parts(list_parts(core_->line, "list_policies").policies()); });
}

Result<EncodingDescriptions> Client::list_encodings() {
    return guarded<EncodingDescriptions>([&]() -> EncodingDescriptions {
        const v1::ListPartsResponse response = list_parts(core_->line, "list_encodings");
        return {decode_parts(response.gradient_encodings()), decode_parts(response.parameter_encodings())};
    });
}

Result<std::vector<double>> Client::preview_schedule(const Schedule& schedule, double initial, std::uint32_t steps) {
    return guarded<std::vector<double>>([&] {
        if (steps > preview_steps_max) {
            fail(ErrorReason::invalid_value, "got steps " + std::to_string(steps) + ", expected 0 to " +
                                                 std::to_string(preview_steps_max) + "; ask for a part of them");
        }
        v1::PreviewScheduleRequest request;
        *request.mutable_schedule() = encode_schedule(schedule);
        request.set_initial(initial);
        request.set_steps(steps);
        v1::PreviewScheduleResponse response;
        ask(core_->line, method::preview_schedule, request, response, "preview_schedule");
        return std::vector<double>(response.values().begin(), response.values().end());
    });
}

void Client::close() {
    core_->heartbeats->stop();
    core_->line.connection.close();
}

}  // namespace stepwell
