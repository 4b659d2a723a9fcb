#include <set>

#include "failures.hpp"
#include "layout.hpp"
#include "wire.hpp"

namespace stepwell {

namespace {

/// How deep schedules may be nested. Protobuf itself refuses 100 levels, with an error that does not say why.
constexpr int schedule_depth_max = 16;

v1::Value encode_value(const Value& value) {
    v1::Value message;
    if (const double* number = value.number()) {
        message.set_number(*number);
    } else if (const bool* flag = value.flag()) {
        message.set_flag(*flag);
    } else if (const std::string* text = value.text()) {
        message.set_text(*text);
    } else if (const std::vector<double>* numbers = value.numbers()) {
        auto& list = *message.mutable_numbers()->mutable_numbers();
        list.Add(numbers->begin(), numbers->end());
    } else {
        message.mutable_none();
    }
    return message;
}

void encode_values(const Values& values, ValueMap& messages) {
    for (const auto& [name, value] : values) messages[name] = encode_value(value);
}

/// `betas`, as PyTorch writes it, as beta1 and beta2.
Values without_aliases(const Values& values) {
    Values plain = values;
    const auto found = plain.find("betas");
    if (found == plain.end()) return plain;
    const std::vector<double>* betas = found->second.numbers();
    if (!betas) {
        fail(ErrorReason::invalid_value,
             "got betas that are no list, expected a list of numbers; give beta1 and beta2 instead");
    }
    std::size_t number = 0;
    for (const double beta : std::vector<double>(*betas)) {
        const std::string name = "beta" + std::to_string(++number);
        if (!plain.emplace(name, beta).second) {
            fail(ErrorReason::invalid_value, "got both betas and " + name + ", expected one of them; leave one out");
        }
    }
    plain.erase("betas");
    return plain;
}

void encode_parameter(const Parameter& parameter, v1::ParameterSpec& message) {
    std::uint64_t elements = 1;
    for (const std::uint64_t length : parameter.shape) elements *= length;
    if (elements != parameter.values.size()) {
        fail(ErrorReason::invalid_spec,
             "parameter '" + parameter.name + "': got " + std::to_string(parameter.values.size()) +
                 " values, expected " + std::to_string(elements) + " for the shape " + in_words(parameter.shape) +
                 "; give one value for each element",
             {{"parameter", parameter.name}});
    }
    message.set_name(parameter.name);
    message.mutable_shape()->Add(parameter.shape.begin(), parameter.shape.end());
    message.set_dtype(static_cast<v1::DType>(static_cast<int>(parameter.values.dtype())));
}

void encode_group(const GroupSpec& group, v1::GroupSpec& message) {
    message.set_name(group.name);
    for (const std::string& glob : group.parameters) message.add_parameters(glob);
    message.set_optimizer(group.optimizer);
    message.set_flavor(group.flavor);
    encode_hyperparameters(group.hyperparameters, *message.mutable_hyperparameters());
    encode_schedules(group.schedules, *message.mutable_schedules());
    message.set_frozen(group.frozen);
    message.set_definition(group.definition);
}

void encode_table(const TableSpec& table, v1::TableSpec& message) {
    message.set_name(table.name);
    message.set_width(table.width);
    message.set_dtype(static_cast<v1::DType>(static_cast<int>(table.dtype)));
    if (table.initializer) {
        encode_values(table.initializer->arguments, *message.mutable_initializer());
        (*message.mutable_initializer())["name"] = encode_value(table.initializer->name);
    }
    message.set_seed(table.seed);
    message.set_optimizer(table.optimizer);
    message.set_flavor(table.flavor);
    encode_hyperparameters(table.hyperparameters, *message.mutable_hyperparameters());
    encode_schedules(table.schedules, *message.mutable_schedules());
    message.set_sparse_mode(table.sparse_mode);
    message.set_rows_max(table.rows_max);
    encode_values(table.admission, *message.mutable_admission());
    encode_values(table.eviction, *message.mutable_eviction());
}

void encode_numbers(const std::string& group, const std::map<std::string, double>& numbers, v1::UpdateHeader& header) {
    if (numbers.empty()) return;
    v1::GroupHyperparameters& message = *header.add_hyperparameters();
    message.set_group(group);
    for (const auto& [name, number] : numbers) (*message.mutable_values())[name] = number;
}

}  // namespace

void encode_hyperparameters(const Values& values, ValueMap& messages) {
    encode_values(without_aliases(values), messages);
}

void encode_schedules(const Schedules& schedules, ScheduleMap& messages) {
    for (const auto& [name, schedule] : schedules) messages[name] = encode_schedule(schedule);
}

v1::Schedule encode_schedule(const Schedule& schedule, int depth) {
    if (depth > schedule_depth_max) {
        fail(ErrorReason::invalid_value, "got schedules nested deeper than " + std::to_string(schedule_depth_max) +
                                             " levels; expected fewer, flatten them");
    }
    v1::Schedule message;
    message.set_name(schedule.name);
    encode_values(schedule.arguments, *message.mutable_arguments());
    message.set_clock(static_cast<v1::Clock>(static_cast<int>(schedule.clock)));
    for (const Schedule& child : schedule.schedules) *message.add_schedules() = encode_schedule(child, depth + 1);
    return message;
}

template <class M>
void encode_part(const Part& part, M& message) {
    message.set_name(part.name);
    encode_values(part.arguments, *message.mutable_arguments());
}

template void encode_part(const Part&, v1::Policy&);

v1::Spec encode_spec(const std::vector<Parameter>& parameters, const Spec& spec) {
    v1::Spec message;
    std::set<std::string> names;
    for (const Parameter& parameter : parameters) {
        if (!names.insert(parameter.name).second) {
            fail(ErrorReason::invalid_spec,
                 "got two parameters named '" + parameter.name + "', expected one; rename one of them",
                 {{"parameter", parameter.name}});
        }
        encode_parameter(parameter, *message.add_parameters());
    }
    message.set_optimizer(spec.optimizer);
    message.set_flavor(spec.flavor);
    encode_hyperparameters(spec.hyperparameters, *message.mutable_hyperparameters());
    encode_schedules(spec.schedules, *message.mutable_schedules());
    for (const GroupSpec& group : spec.groups) encode_group(group, *message.add_groups());
    message.set_nonfinite(static_cast<v1::Nonfinite>(static_cast<int>(spec.nonfinite)));
    if (spec.samples_per_epoch) message.set_samples_per_epoch(*spec.samples_per_epoch);
    message.set_definition(spec.definition);
    for (const Part& transform : spec.transforms) encode_part(transform, *message.add_transforms());
    for (const Part& wrapper : spec.wrappers) encode_part(wrapper, *message.add_wrappers());
    message.set_report_norms(spec.report_norms);
    if (spec.gradient_encoding) encode_part(*spec.gradient_encoding, *message.mutable_gradient_encoding());
    if (spec.parameter_encoding) encode_part(*spec.parameter_encoding, *message.mutable_parameter_encoding());
    if (spec.policy) encode_part(*spec.policy, *message.mutable_policy());
    for (const TableSpec& table : spec.tables) encode_table(table, *message.add_tables());
    return message;
}

v1::UpdateHeader encode_header(const UpdateOptions& options, const std::optional<double>& loss_scale) {
    v1::UpdateHeader header;
    header.set_samples(options.samples);
    encode_numbers("", options.hyperparameters, header);
    for (const auto& [group, numbers] : options.group_hyperparameters) encode_numbers(group, numbers, header);
    if (options.loss) header.set_loss(*options.loss);
    if (const auto& scale = options.loss_scale ? options.loss_scale : loss_scale) header.set_loss_scale(*scale);
    if (options.sparsity_factor) header.set_sparsity_factor(*options.sparsity_factor);
    header.set_rows_only(options.rows_only);
    return header;
}

}  // namespace stepwell
