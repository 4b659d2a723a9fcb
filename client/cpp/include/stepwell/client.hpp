/// A connection to a server.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "stepwell/run.hpp"

namespace stepwell {

/// What happens where a run went back to an older state: the call gives run_rewound, or it goes on without the update.
enum class OnRewind { fail, go_on };

struct ConnectOptions {
    /// The worker's name, [A-Za-z0-9][A-Za-z0-9._-]{0,127}; by default host-process-random.
    std::string worker;
    /// How long the server may say nothing before a call is made again over a new connection.
    double silence_seconds = 30;
    /// How long that goes on without any word from the server before server_unavailable or timed_out.
    double patience_seconds = 120;
    /// The first pause between two tries is at most so long; pauses double up to retry_seconds_max.
    double retry_seconds = 0.05;
    double retry_seconds_max = 2;
    /// How long a worker may give no sign of life before the others go on without it. One thread of the client gives
    /// signs of life for all its runs.
    double lease_seconds = 30;
    OnRewind on_rewind = OnRewind::fail;
    /// Gets a line for whatever is worth a warning; from any thread, and it may not throw.
    std::function<void(std::string_view)> log;
};

/// A connection. It is made at the first call, and again whenever it was lost. May be used from several threads; in a
/// forked child it is of no use: there every call gives invalid_value.
///
/// Calls are repeated over new connections as long as the patience lasts; those that change something else than an
/// update does (delete_run, change, report, checkpoints, set_state) only if the server surely did nothing.
class Client {
public:
    Client(Client&&) noexcept;
    Client& operator=(Client&&) noexcept;
    ~Client();

    /// Create a run, or find it where it exists with the same spec, and join it as a worker. The first creator's values
    /// win; Run::created tells. Errors: run_differs, unknown_..., invalid_..., memory_exhausted.
    Result<Run> create_run(const std::string& name, const std::vector<Parameter>& parameters, const Spec& spec);
    /// A run that exists; joined only at the first push. Errors: unknown_run.
    Result<Run> get_run(const std::string& name);
    /// All runs by name.
    Result<std::vector<RunDescription>> list_runs();
    /// Delete a run with its snapshots and checkpoints.
    Result<void> delete_run(const std::string& name);

    /// Who the server is.
    Result<ServerDescription> ping();
    Result<std::vector<OptimizerDescription>> list_optimizers();
    Result<std::vector<ScheduleDescription>> list_schedules();
    Result<std::vector<PartDescription>> list_transforms();
    Result<std::vector<PartDescription>> list_wrappers();
    Result<std::vector<PartDescription>> list_policies();
    Result<EncodingDescriptions> list_encodings();
    /// A schedule's values at clock 0, 1, ..., steps - 1, at most 100,000. initial: the hyperparameter's own value.
    Result<std::vector<double>> preview_schedule(const Schedule& schedule, double initial, std::uint32_t steps);

    /// Close the connection: its runs give errors from now on. Close them first, so that they leave.
    void close();

    struct Core;
    explicit Client(std::shared_ptr<Core> core);

private:
    std::shared_ptr<Core> core_;
};

/// A client of the server at HOST:PORT or unix:/path; by default at the environment's STEPWELL_ADDRESS. Connects at the
/// first call. Errors: invalid_value, invalid_name.
Result<Client> connect(const std::string& address = "", ConnectOptions options = {});

}  // namespace stepwell
