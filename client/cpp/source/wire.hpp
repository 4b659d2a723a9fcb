/// Plain data to contract messages and back.
#pragma once

#include <string>
#include <vector>

#include "stepwell/descriptions.hpp"
#include "stepwell/run.hpp"
#include "stepwell/spec.hpp"
#include "stepwell/v1/control.pb.h"
#include "stepwell/v1/data.pb.h"
#include "stepwell/v1/run.pb.h"
#include "stepwell/v1/values.pb.h"

namespace stepwell {

using ValueMap = google::protobuf::Map<std::string, v1::Value>;
using ScheduleMap = google::protobuf::Map<std::string, v1::Schedule>;

/// `betas`, a list, is taken for beta1 and beta2; throws Failure with invalid_value where both are given.
void encode_hyperparameters(const Values& values, ValueMap& messages);
/// Throws Failure with invalid_value for too deep nesting.
void encode_schedules(const Schedules& schedules, ScheduleMap& messages);
v1::Schedule encode_schedule(const Schedule& schedule, int depth = 1);

template <class M>
void encode_part(const Part& part, M& message);

/// The whole spec. Throws Failure with invalid_spec, invalid_name or invalid_value for what the contract cannot hold.
v1::Spec encode_spec(const std::vector<Parameter>& parameters, const Spec& spec);

/// What an update carries, but for its identity and indices.
v1::UpdateHeader encode_header(const UpdateOptions& options, const std::optional<double>& loss_scale);

/// An encoding of a run's description.
Part decode_part(const v1::Encoding& message);
Answer decode_answer(const v1::Answer& message);
Place decode_place(const v1::Place& message);
Checkpoint decode_checkpoint(const v1::Checkpoint& message);
RunDescription decode_run(const v1::Run& message);
ServerDescription decode_server(const v1::GetServerResponse& message, double round_trip_seconds);
OptimizerDescription decode_optimizer(const v1::Optimizer& message);
ScheduleDescription decode_schedule_description(const v1::ScheduleDescription& message);
std::vector<PartDescription> decode_parts(const google::protobuf::RepeatedPtrField<v1::PartDescription>& messages);

}  // namespace stepwell
