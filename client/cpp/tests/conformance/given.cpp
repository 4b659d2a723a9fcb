#include "given.hpp"

#include <utility>

namespace conformance {

using namespace stepwell;

namespace {

/// An enumerator by its name in cases; throws Unsayable for one that the client does not have.
template <class E>
E choice(const Json& name, const std::map<std::string, E>& choices) {
    const auto found = choices.find(text(name));
    if (found == choices.end()) throw Unsayable{text(name)};
    return found->second;
}

Value value_of(const Json& json) {
    if (const std::optional<double> number = as_number(json)) return *number;
    switch (json.kind_case()) {
        case Json::kBoolValue:
            return json.bool_value();
        case Json::kStringValue:
            return json.string_value();
        case Json::kListValue: {
            std::vector<double> numbers;
            for (const Json& each : elements(json)) numbers.push_back(number(each));
            return numbers;
        }
        case Json::kNullValue:
            return none;
        default:
            throw CaseFailed("got " + in_short(json) + ", expected a value: the case is wrong");
    }
}

Part part_of(const Json& json) {
    Arguments given(&json);
    std::string name = given.take_text("name");
    return {std::move(name), given.take_rest()};
}

GroupSpec group_of(const Json& json) {
    Arguments given(&json);
    GroupSpec group;
    group.name = given.take_text("name");
    group.parameters = given.take_texts("parameters");
    group.optimizer = given.take_text("optimizer");
    group.flavor = given.take_text("flavor");
    group.hyperparameters = given.take_values("hyperparameters");
    group.schedules = given.take_schedules("schedules");
    group.frozen = given.take_flag("frozen");
    group.definition = given.take_text("definition");
    given.end();
    return group;
}

TableSpec table_of(const Json& json) {
    Arguments given(&json);
    TableSpec table;
    table.name = given.take_text("name");
    table.width = static_cast<std::uint32_t>(given.take_number("width").value_or(0));
    if (const Json* dtype = given.take("dtype")) table.dtype = dtype_of(*dtype);
    table.initializer = given.take_part("initializer");
    table.seed = static_cast<std::int64_t>(given.take_number("seed").value_or(0));
    table.optimizer = given.take_text("optimizer");
    table.flavor = given.take_text("flavor");
    table.hyperparameters = given.take_values("hyperparameters");
    table.schedules = given.take_schedules("schedules");
    table.sparse_mode = given.take_text("sparse_mode");
    table.rows_max = static_cast<std::uint64_t>(given.take_number("rows_max").value_or(0));
    table.admission = given.take_values("admission");
    table.eviction = given.take_values("eviction");
    given.end();
    return table;
}

StateArray state_array(const Json& json) {
    OwnedArray array(json);
    return {std::move(array.shape), array.dtype, std::move(array.bytes)};
}

/// A map of what `make` makes of the fields of an object; empty for none.
template <class Make>
auto map_of(const Json* object, Make make) {
    std::map<std::string, decltype(make(*object))> made;
    if (!object) return made;
    for (const auto& [name, value] : fields(*object)) made.emplace(name, make(*value));
    return made;
}

template <class Make>
auto vector_of(const Json* list, Make make) {
    std::vector<decltype(make(*list))> made;
    if (!list) return made;
    for (const Json& each : elements(*list)) made.push_back(make(each));
    return made;
}

}  // namespace

Arguments::Arguments(const Json* object) {
    if (object) fields_ = fields(*object);
}

const Json* Arguments::take(const std::string& name) {
    const auto found = fields_.find(name);
    taken_.insert(name);
    return found == fields_.end() || is_null(*found->second) ? nullptr : found->second;
}

std::string Arguments::take_text(const std::string& name) {
    const Json* found = take(name);
    return found ? text(*found) : "";
}

std::optional<double> Arguments::take_number(const std::string& name) {
    const Json* found = take(name);
    return found ? std::optional<double>(number(*found)) : std::nullopt;
}

bool Arguments::take_flag(const std::string& name) {
    const Json* found = take(name);
    return found && flag(*found);
}

Values Arguments::take_values(const std::string& name) { return map_of(take(name), value_of); }

std::optional<Part> Arguments::take_part(const std::string& name) {
    const Json* found = take(name);
    return found ? std::optional<Part>(part_of(*found)) : std::nullopt;
}

Schedules Arguments::take_schedules(const std::string& name) { return map_of(take(name), schedule_of); }

std::vector<std::string> Arguments::take_texts(const std::string& name) {
    return vector_of(take(name), [](const Json& each) { return text(each); });
}

std::map<std::string, double> Arguments::take_numbers(const std::string& name) { return map_of(take(name), number); }

Values Arguments::take_rest() {
    Values rest;
    for (const auto& [name, value] : fields_) {
        if (taken_.insert(name).second) rest[name] = value_of(*value);
    }
    return rest;
}

void Arguments::end() const {
    for (const auto& [name, value] : fields_) {
        if (!taken_.count(name)) throw CaseFailed("got an argument '" + name + "', which this runner does not know");
    }
}

Span<const std::int64_t> Memory::ids(const Json& list) {
    std::vector<std::int64_t>& ids = ids_.emplace_back();
    for (const Json& each : elements(list)) ids.push_back(std::stoll(text(each)));
    return ids;
}

Gradients Memory::gradients(const Json* arrays) {
    Gradients gradients;
    if (!arrays) return gradients;
    for (const auto& [name, value] : fields(*arrays)) {
        if (is_null(*value)) {
            gradients.emplace_back(name, no_gradient);
        } else {
            const OwnedArray& array = keep(*value);
            gradients.emplace_back(name, array.shape, array.view());
        }
    }
    return gradients;
}

std::vector<RowGradients> Memory::row_gradients(const Json* rows) {
    std::vector<RowGradients> gradients;
    if (!rows) return gradients;
    for (const auto& [table, value] : fields(*rows)) {
        gradients.push_back({table, ids(at(*value, "ids")), keep(at(*value, "gradients")).view()});
    }
    return gradients;
}

std::vector<RowSelection> Memory::row_selections(const Json* rows) {
    std::vector<RowSelection> selections;
    if (!rows) return selections;
    for (const auto& [table, value] : fields(*rows)) selections.push_back({table, ids(at(*value, "ids"))});
    return selections;
}

std::vector<Parameter> Memory::parameters(const Json* arrays) {
    std::vector<Parameter> parameters;
    if (!arrays) return parameters;
    for (const auto& [name, value] : fields(*arrays)) {
        const OwnedArray& array = keep(*value);
        parameters.push_back({name, array.shape, array.view()});
    }
    return parameters;
}

Schedule schedule_of(const Json& json) {
    Arguments given(&json);
    Schedule schedule;
    schedule.name = given.take_text("name");
    if (const Json* clock = given.take("clock")) {
        schedule.clock = choice<Clock>(
            *clock, {{"updates", Clock::updates}, {"samples", Clock::samples}, {"epochs", Clock::epochs}});
    }
    schedule.schedules = vector_of(given.take("schedules"), schedule_of);
    schedule.arguments = given.take_rest();
    return schedule;
}

ConnectOptions connect_options(Arguments& with) {
    ConnectOptions options;
    options.worker = with.take_text("worker");
    options.patience_seconds = with.take_number("patience_seconds").value_or(30);
    options.lease_seconds = with.take_number("lease_seconds").value_or(options.lease_seconds);
    options.silence_seconds = 30;
    options.retry_seconds = 0.01;
    options.retry_seconds_max = 0.2;
    if (const Json* on_rewind = with.take("on_rewind")) {
        options.on_rewind = choice<OnRewind>(*on_rewind, {{"raise", OnRewind::fail}, {"continue", OnRewind::go_on}});
    }
    return options;
}

Spec spec_of(Arguments& with) {
    Spec spec;
    spec.optimizer = with.take_text("optimizer");
    spec.flavor = with.take_text("flavor");
    spec.hyperparameters = with.take_values("hyperparameters");
    spec.schedules = with.take_schedules("schedules");
    spec.groups = vector_of(with.take("groups"), group_of);
    if (const Json* nonfinite = with.take("nonfinite")) {
        spec.nonfinite = choice<Nonfinite>(
            *nonfinite, {{"reject", Nonfinite::reject}, {"skip", Nonfinite::skip}, {"allow", Nonfinite::allow}});
    }
    spec.samples_per_epoch = with.take_number("samples_per_epoch");
    spec.definition = with.take_text("definition");
    spec.transforms = vector_of(with.take("transforms"), part_of);
    spec.wrappers = vector_of(with.take("wrappers"), part_of);
    spec.report_norms = with.take_flag("report_norms");
    Arguments encodings(with.take("encodings"));
    spec.gradient_encoding = encodings.take_part("gradients");
    spec.parameter_encoding = encodings.take_part("parameters");
    encodings.end();
    spec.policy = with.take_part("policy");
    spec.tables = vector_of(with.take("tables"), table_of);
    return spec;
}

UpdateOptions update_options(Arguments& with, Memory& memory) {
    UpdateOptions options;
    options.samples = with.take_number("samples").value_or(0);
    options.loss = with.take_number("loss");
    if (const Json* numbers = with.take("hyperparameters")) {
        for (const auto& [name, value] : fields(*numbers)) {
            if (is_object(*value)) {
                options.group_hyperparameters[name] = map_of(value, number);
            } else {
                options.hyperparameters[name] = number(*value);
            }
        }
    }
    options.inputs = map_of(with.take("inputs"), [&](const Json& arrays) { return memory.gradients(&arrays); });
    options.loss_scale = with.take_number("loss_scale");
    options.rows = memory.row_gradients(with.take("rows"));
    options.timeout_seconds = with.take_number("timeout");
    return options;
}

Change change_of(Arguments& with) {
    Change change;
    change.hyperparameters = with.take_values("hyperparameters");
    if (const Json* schedules = with.take("schedules")) {
        for (const auto& [name, value] : fields(*schedules)) {
            if (is_null(*value)) {
                change.schedules_removed.push_back(name);
            } else {
                change.schedules[name] = schedule_of(*value);
            }
        }
    }
    change.keep_clock = with.take_flag("keep_clock");
    change.group = with.take_text("group");
    change.etag = with.take_text("etag");
    change.policy = with.take_part("policy");
    return change;
}

State state_of(const Json& json) {
    Arguments given(&json);
    State state;
    state.parameters = map_of(given.take("parameters"), state_array);
    state.slots = map_of(given.take("slots"), [](const Json& slots) { return map_of(&slots, state_array); });
    state.scalars = map_of(given.take("scalars"), [](const Json& scalars) { return map_of(&scalars, number); });
    state.steps =
        map_of(given.take("steps"), [](const Json& steps) { return static_cast<std::int64_t>(number(steps)); });
    state.version = static_cast<std::uint64_t>(given.take_number("version").value_or(0));
    state.samples = given.take_number("samples").value_or(0);
    given.end();
    return state;
}

}  // namespace conformance
