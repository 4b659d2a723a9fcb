/// The calls of the contract that the library makes, by their paths.
#pragma once

namespace stepwell::method {

inline constexpr const char* get_server = "/stepwell.v1.ControlService/GetServer";
inline constexpr const char* create_run = "/stepwell.v1.ControlService/CreateRun";
inline constexpr const char* join = "/stepwell.v1.ControlService/Join";
inline constexpr const char* heartbeat = "/stepwell.v1.ControlService/Heartbeat";
inline constexpr const char* leave = "/stepwell.v1.ControlService/Leave";
inline constexpr const char* barrier = "/stepwell.v1.ControlService/Barrier";
inline constexpr const char* get_layout = "/stepwell.v1.ControlService/GetLayout";
inline constexpr const char* get_run = "/stepwell.v1.ControlService/GetRun";
inline constexpr const char* list_runs = "/stepwell.v1.ControlService/ListRuns";
inline constexpr const char* update_run = "/stepwell.v1.ControlService/UpdateRun";
inline constexpr const char* report = "/stepwell.v1.ControlService/Report";
inline constexpr const char* delete_run = "/stepwell.v1.ControlService/DeleteRun";
inline constexpr const char* list_optimizers = "/stepwell.v1.ControlService/ListOptimizers";
inline constexpr const char* list_schedules = "/stepwell.v1.ControlService/ListSchedules";
inline constexpr const char* list_parts = "/stepwell.v1.ControlService/ListParts";
inline constexpr const char* preview_schedule = "/stepwell.v1.ControlService/PreviewSchedule";
inline constexpr const char* get_state = "/stepwell.v1.ControlService/GetState";
inline constexpr const char* set_state = "/stepwell.v1.ControlService/SetState";
inline constexpr const char* save_checkpoint = "/stepwell.v1.ControlService/SaveCheckpoint";
inline constexpr const char* list_checkpoints = "/stepwell.v1.ControlService/ListCheckpoints";
inline constexpr const char* restore_checkpoint = "/stepwell.v1.ControlService/RestoreCheckpoint";
// Push, Pull and Step are the same exchanges as Work carries, one per call; this library holds a Work stream instead.
inline constexpr const char* work = "/stepwell.v1.DataService/Work";

}  // namespace stepwell::method
