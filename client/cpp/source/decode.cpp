#include "failures.hpp"
#include "layout.hpp"
#include "wire.hpp"

namespace stepwell {

namespace {

std::vector<std::string> texts(const google::protobuf::RepeatedPtrField<std::string>& messages) {
    return {messages.begin(), messages.end()};
}

Value decode_value(const v1::Value& message) {
    switch (message.kind_case()) {
        case v1::Value::kNumber:
            return message.number();
        case v1::Value::kFlag:
            return message.flag();
        case v1::Value::kText:
            return message.text();
        case v1::Value::kNumbers:
            return std::vector<double>(message.numbers().numbers().begin(), message.numbers().numbers().end());
        default:
            return none;
    }
}

Values decode_values(const ValueMap& messages) {
    Values values;
    for (const auto& [name, message] : messages) values[name] = decode_value(message);
    return values;
}

Schedule decode_schedule(const v1::Schedule& message) {
    std::vector<Schedule> children;
    for (const auto& child : message.schedules()) children.push_back(decode_schedule(child));
    const auto clock = static_cast<Clock>(static_cast<int>(message.clock()));
    return {message.name(), decode_values(message.arguments()), std::move(children), clock};
}

Schedules decode_schedules(const ScheduleMap& messages) {
    Schedules schedules;
    for (const auto& [name, message] : messages) schedules[name] = decode_schedule(message);
    return schedules;
}

template <class M>
Part decode_any_part(const M& message) {
    return {message.name(), decode_values(message.arguments())};
}

Norms decode_norms(const v1::Norms& message) { return {message.l1(), message.l2(), message.maximum()}; }

Tally decode_tally(const v1::Tally& message) {
    return {message.commits(),       message.folded(),
            message.skipped(),       message.dropped(),
            message.refused(),       message.withdrawn(),
            message.duplicates(),    message.staleness_last(),
            message.staleness_max(), {message.staleness_counts().begin(), message.staleness_counts().end()}};
}

GroupDescription decode_group(const v1::GroupState& message) {
    return {message.name(),
            decode_dtype(message.dtype()),
            message.optimizer(),
            message.flavor(),
            decode_values(message.hyperparameters()),
            decode_schedules(message.schedules()),
            texts(message.slots()),
            texts(message.scalars())};
}

TableDescription decode_table(const v1::TableState& message) {
    return {message.name(),
            message.rows(),
            message.created(),
            message.refused(),
            message.evicted(),
            message.state_bytes(),
            message.step(),
            message.optimizer(),
            message.flavor(),
            decode_values(message.hyperparameters()),
            decode_schedules(message.schedules()),
            texts(message.slots())};
}

WorkerDescription decode_worker(const v1::Worker& message) {
    return {message.name(),          message.epoch(), message.last_sequence(),      message.index(),
            message.lease_seconds(), message.waits(), decode_tally(message.tally())};
}

GroupSpec decode_group_spec(const v1::GroupSpec& message) {
    return {message.name(),
            texts(message.parameters()),
            message.optimizer(),
            message.flavor(),
            decode_values(message.hyperparameters()),
            decode_schedules(message.schedules()),
            message.frozen(),
            message.definition()};
}

TableSpec decode_table_spec(const v1::TableSpec& message) {
    TableSpec table;
    table.name = message.name();
    table.width = message.width();
    if (message.dtype() != v1::D_TYPE_UNSPECIFIED) table.dtype = decode_dtype(message.dtype());
    Values initializer = decode_values(message.initializer());
    if (const auto name = initializer.find("name"); name != initializer.end() && name->second.text()) {
        Part part(*name->second.text());
        initializer.erase(name);
        part.arguments = std::move(initializer);
        table.initializer = std::move(part);
    }
    table.seed = message.seed();
    table.optimizer = message.optimizer();
    table.flavor = message.flavor();
    table.hyperparameters = decode_values(message.hyperparameters());
    table.schedules = decode_schedules(message.schedules());
    table.sparse_mode = message.sparse_mode();
    table.rows_max = message.rows_max();
    table.admission = decode_values(message.admission());
    table.eviction = decode_values(message.eviction());
    return table;
}

Spec decode_spec(const v1::Spec& message) {
    Spec spec;
    spec.optimizer = message.optimizer();
    spec.flavor = message.flavor();
    spec.hyperparameters = decode_values(message.hyperparameters());
    spec.schedules = decode_schedules(message.schedules());
    for (const auto& group : message.groups()) spec.groups.push_back(decode_group_spec(group));
    if (message.nonfinite() != v1::NONFINITE_UNSPECIFIED) {
        spec.nonfinite = static_cast<Nonfinite>(static_cast<int>(message.nonfinite()));
    }
    if (message.has_samples_per_epoch()) spec.samples_per_epoch = message.samples_per_epoch();
    spec.definition = message.definition();
    for (const auto& transform : message.transforms()) spec.transforms.push_back(decode_any_part(transform));
    for (const auto& wrapper : message.wrappers()) spec.wrappers.push_back(decode_any_part(wrapper));
    spec.report_norms = message.report_norms();
    if (message.has_gradient_encoding()) spec.gradient_encoding = decode_part(message.gradient_encoding());
    if (message.has_parameter_encoding()) spec.parameter_encoding = decode_part(message.parameter_encoding());
    if (message.has_policy()) spec.policy = decode_any_part(message.policy());
    for (const auto& table : message.tables()) spec.tables.push_back(decode_table_spec(table));
    return spec;
}

const char* kind_name(v1::ArgumentKind kind) {
    switch (kind) {
        case v1::ARGUMENT_KIND_NUMBER:
            return "number";
        case v1::ARGUMENT_KIND_INTEGER:
            return "integer";
        case v1::ARGUMENT_KIND_FLAG:
            return "flag";
        case v1::ARGUMENT_KIND_TEXT:
            return "text";
        case v1::ARGUMENT_KIND_NUMBERS:
            return "numbers";
        default:
            return "unknown";
    }
}

std::vector<Argument> decode_arguments(const google::protobuf::RepeatedPtrField<v1::Argument>& messages) {
    std::vector<Argument> arguments;
    for (const auto& message : messages) {
        Argument argument;
        argument.name = message.name();
        argument.kind = kind_name(message.kind());
        if (message.has_default_()) argument.default_value = decode_value(message.default_());
        argument.optional = message.optional();
        if (message.has_minimum()) argument.minimum = message.minimum();
        if (message.has_maximum()) argument.maximum = message.maximum();
        argument.minimum_open = message.minimum_open();
        argument.maximum_open = message.maximum_open();
        argument.choices = texts(message.choices());
        argument.infinite = message.infinite();
        arguments.push_back(std::move(argument));
    }
    return arguments;
}

}  // namespace

Part decode_part(const v1::Encoding& message) { return decode_any_part(message); }

Answer decode_answer(const v1::Answer& message) {
    const int outcome = message.outcome();
    if (outcome < v1::OUTCOME_COMMITTED || outcome > v1::OUTCOME_FOLDED) {
        fail(ErrorReason::internal,
             "got outcome " + std::to_string(outcome) + ", expected a known one; upgrade stepwell");
    }
    Answer answer{static_cast<Outcome>(outcome), message.committed_version(), {}, {}, {}};
    if (message.has_loss_scale()) answer.loss_scale = message.loss_scale();
    if (message.has_gradient_norms()) answer.gradient_norms = decode_norms(message.gradient_norms());
    if (message.has_parameter_norms()) answer.parameter_norms = decode_norms(message.parameter_norms());
    return answer;
}

Place decode_place(const v1::Place& message) { return {message.index(), message.count(), message.membership_number()}; }

Checkpoint decode_checkpoint(const v1::Checkpoint& message) {
    return {message.name(), message.version(), message.created_seconds(), message.size_bytes()};
}

RunDescription decode_run(const v1::Run& message) {
    RunDescription run;
    run.name = message.name();
    run.uid = message.uid();
    run.generation = message.generation();
    run.version = message.version();
    run.etag = message.etag();
    run.samples = message.samples();
    run.spec = decode_spec(message.spec());
    for (const auto& group : message.groups()) run.groups.push_back(decode_group(group));
    for (const auto& table : message.tables()) run.tables.push_back(decode_table(table));
    for (const auto& worker : message.workers()) run.workers.push_back(decode_worker(worker));
    run.parameters_count = message.parameters_count();
    run.state_bytes = message.state_bytes();
    run.skipped_count = message.skipped_count();
    run.duplicates_count = message.duplicates_count();
    if (message.has_loss_scale()) run.loss_scale = message.loss_scale();
    run.points = texts(message.points());
    run.metrics = {message.metrics().begin(), message.metrics().end()};
    run.policy = decode_any_part(message.policy());
    run.tally = decode_tally(message.tally());
    run.accumulated_count = message.accumulated_count();
    return run;
}

ServerDescription decode_server(const v1::GetServerResponse& message, double round_trip_seconds) {
    return {message.version(),      message.contract(),         message.message_bytes_max(),
            message.range_bytes(),  message.memory_bytes_max(), message.outstanding_updates_max(),
            message.word_seconds(), round_trip_seconds};
}

OptimizerDescription decode_optimizer(const v1::Optimizer& message) {
    OptimizerDescription optimizer{
        message.name(),          message.summary(),         message.reference(),    message.matches(), {},
        texts(message.inputs()), texts(message.required()), texts(message.points())};
    for (const auto& flavor : message.flavors()) {
        optimizer.flavors.push_back({flavor.name(), decode_arguments(flavor.arguments()), texts(flavor.slots()),
                                     texts(flavor.scalars()), flavor.step_per_parameter()});
    }
    return optimizer;
}

ScheduleDescription decode_schedule_description(const v1::ScheduleDescription& message) {
    return {message.name(),
            message.summary(),
            message.reference(),
            message.matches(),
            decode_arguments(message.arguments()),
            message.absolute(),
            message.children_min(),
            message.children_max()};
}

std::vector<PartDescription> decode_parts(const google::protobuf::RepeatedPtrField<v1::PartDescription>& messages) {
    std::vector<PartDescription> parts;
    for (const auto& message : messages) {
        parts.push_back({message.name(), message.summary(), message.reference(), message.matches(),
                         decode_arguments(message.arguments()), texts(message.points())});
    }
    return parts;
}

}  // namespace stepwell
