#include "operations.hpp"

#include <algorithm>

namespace conformance {

using namespace stepwell;

namespace {

// What came, as JSON.

Json tell_texts(std::vector<std::string> texts) {
    std::sort(texts.begin(), texts.end());
    return list_of(texts, json<std::string>);
}

template <class C>
Json tell_names(const C& described) {
    return list_of(described, [](const auto& each) { return json(each.name); });
}

Json tell_value(const Value& value) {
    if (const double* number = value.number()) return json(*number);
    if (const bool* flag = value.flag()) return json(*flag);
    if (const std::string* text = value.text()) return json(*text);
    if (const std::vector<double>* numbers = value.numbers()) return list_of(*numbers, json<double>);
    return json(nullptr);
}

Json tell_norms(const std::optional<Norms>& norms) {
    if (!norms) return json(nullptr);
    return object({{"l1", json(norms->l1)}, {"l2", json(norms->l2)}, {"maximum", json(norms->maximum)}});
}

const char* name_of(Outcome outcome) {
    switch (outcome) {
        case Outcome::committed:
            return "committed";
        case Outcome::skipped_nonfinite:
            return "skipped_nonfinite";
        case Outcome::dropped_late:
            return "dropped_late";
        case Outcome::folded:
            return "folded";
        case Outcome::rewound:
            return "rewound";
    }
    return "unknown";
}

Json tell_array(const Array& array) { return json_of({array.dtype, array.data, array.size}, array.shape); }

Json tell_arrays(const Arrays& arrays) {
    std::map<std::string, Json> told;
    for (const Array& array : arrays) told[array.name] = tell_array(array);
    return object(std::move(told));
}

Json tell_tally(const Tally& tally) {
    return object({{"commits", json(tally.commits)},
                   {"folded", json(tally.folded)},
                   {"skipped", json(tally.skipped)},
                   {"dropped", json(tally.dropped)},
                   {"refused", json(tally.refused)},
                   {"duplicates", json(tally.duplicates)}});
}

Json tell_part(const Part& part) {
    std::map<std::string, Json> told;
    for (const auto& [name, value] : part.arguments) told[name] = tell_value(value);
    told["name"] = json(part.name);
    return object(std::move(told));
}

Json tell_table(const TableDescription& table) {
    return object({{"rows", json(table.rows)},
                   {"created", json(table.created)},
                   {"refused", json(table.refused)},
                   {"evicted", json(table.evicted)},
                   {"step", json(table.step)}});
}

Json tell_description(const RunDescription& run) {
    std::map<std::string, Json> groups, tables;
    std::vector<std::string> workers, waiting;
    for (const GroupDescription& group : run.groups) groups[group.name] = object_of(group.hyperparameters, tell_value);
    for (const TableDescription& table : run.tables) tables[table.name] = tell_table(table);
    for (const WorkerDescription& worker : run.workers) {
        workers.push_back(worker.name);
        if (worker.waits) waiting.push_back(worker.name);
    }
    return object({{"version", json(run.version)},
                   {"generation", json(run.generation)},
                   {"etag", json(run.etag)},
                   {"samples", json(run.samples)},
                   {"hyperparameters", object(std::move(groups))},
                   {"policy", tell_part(run.policy)},
                   {"workers", tell_texts(std::move(workers))},
                   {"waiting", tell_texts(std::move(waiting))},
                   {"skipped_count", json(run.skipped_count)},
                   {"duplicates_count", json(run.duplicates_count)},
                   {"accumulated_count", json(run.accumulated_count)},
                   {"points", tell_texts(run.points)},
                   {"metrics", object_of(run.metrics, json<double>)},
                   {"loss_scale", json_or_null(run.loss_scale)},
                   {"tally", tell_tally(run.tally)},
                   {"tables", object(std::move(tables))}});
}

Json tell_checkpoint(const Checkpoint& checkpoint) {
    return object({{"name", json(checkpoint.name)}, {"version", json(checkpoint.version)}});
}

Json tell_state_array(const StateArray& array) {
    return json_of({array.dtype, array.bytes.data(), array.bytes.size() / element_bytes(array.dtype)}, array.shape);
}

Json tell_state(const State& state) {
    return object(
        {{"version", json(state.version)},
         {"samples", json(state.samples)},
         {"parameters", object_of(state.parameters, tell_state_array)},
         {"slots", object_of(state.slots, [](const auto& slots) { return object_of(slots, tell_state_array); })},
         {"scalars", object_of(state.scalars, [](const auto& scalars) { return object_of(scalars, json<double>); })},
         {"steps", object_of(state.steps, json<std::int64_t>)}});
}

/// What the last update's answer says, with a field beside it.
Json tell_answer(const Run& run, const char* name, Json value) {
    const std::optional<Answer> answer = run.last_answer();
    if (!answer) throw CaseFailed("the client has no answer of its last update");
    return object({{"outcome", json(name_of(answer->outcome))},
                   {"committed_version", json(answer->committed_version)},
                   {"loss_scale", json_or_null(answer->loss_scale)},
                   {"gradient_norms", tell_norms(answer->gradient_norms)},
                   {"parameter_norms", tell_norms(answer->parameter_norms)},
                   {"version", json(run.version())},
                   {name, std::move(value)}});
}

// Operations of a client.

Told ping(Client& client, Arguments&) {
    return told(client.ping(), [](const ServerDescription& server) {
        return object({{"contract", json(server.contract)}});
    });
}

Told list(Client& client, Arguments& with) {
    const std::string what = with.take_text("what");
    const auto names = [](const auto& described) { return object({{"names", tell_names(described)}}); };
    if (what == "optimizers") return told(client.list_optimizers(), names);
    if (what == "schedules") return told(client.list_schedules(), names);
    if (what == "transforms") return told(client.list_transforms(), names);
    if (what == "wrappers") return told(client.list_wrappers(), names);
    if (what == "policies") return told(client.list_policies(), names);
    return told(client.list_encodings(), [&](const EncodingDescriptions& encodings) {
        if (what == "gradient_encodings") return names(encodings.gradients);
        if (what == "parameter_encodings") return names(encodings.parameters);
        throw CaseFailed("there is no list of '" + what + "': the case is wrong");
    });
}

Told list_runs(Client& client, Arguments&) {
    return told(client.list_runs(), [](const auto& runs) { return object({{"names", tell_names(runs)}}); });
}

Told preview_schedule(Client& client, Arguments& with) {
    const Json* schedule = with.take("schedule");
    if (!schedule) throw CaseFailed("there is no schedule: the case is wrong");
    const auto steps = static_cast<std::uint32_t>(with.take_number("steps").value_or(0));
    return told(client.preview_schedule(schedule_of(*schedule), with.take_number("initial").value_or(0), steps),
                [](const auto& values) {
                    return object({{"values", list_of(values, json<double>)}});
                });
}

// Operations on a run.

Told step(Run& run, Arguments& with) {
    Memory memory;
    const Gradients gradients = memory.gradients(with.take("gradients"));
    const UpdateOptions options = update_options(with, memory);
    return told(run.step(gradients, options),
                [&](const Arrays& arrays) { return tell_answer(run, "parameters", tell_arrays(arrays)); });
}

Told push(Run& run, Arguments& with) {
    Memory memory;
    const Gradients gradients = memory.gradients(with.take("gradients"));
    const UpdateOptions options = update_options(with, memory);
    return told(run.push(gradients, options),
                [&](std::uint64_t version) { return tell_answer(run, "returned", json(version)); });
}

Told push_rows(Run& run, Arguments& with) {
    Memory memory;
    const std::vector<RowGradients> rows = memory.row_gradients(with.take("rows"));
    const UpdateOptions options = update_options(with, memory);
    return told(run.push_rows(rows, options),
                [&](std::uint64_t version) { return tell_answer(run, "returned", json(version)); });
}

Told pull(Run& run, Arguments& with) {
    PullOptions options;
    options.names = with.take_texts("names");
    if (const auto version = with.take_number("if_newer_than")) {
        options.if_newer_than = static_cast<std::uint64_t>(*version);
    }
    if (const Json* of = with.take("of")) options.of = text(*of);
    options.exact = with.take_flag("exact");
    options.timeout_seconds = with.take_number("timeout");
    return told(run.pull(options), [&](const Arrays& arrays) {
        std::map<std::string, Json> fields = {{"unchanged", json(arrays.unchanged())},
                                              {"version", json(run.version())}};
        if (!arrays.unchanged()) fields["parameters"] = tell_arrays(arrays);
        return object(std::move(fields));
    });
}

Told pull_rows(Run& run, Arguments& with) {
    Memory memory;
    const std::vector<RowSelection> rows = memory.row_selections(with.take("rows"));
    const std::optional<double> timeout_seconds = with.take_number("timeout");
    return told(run.pull_rows(rows, timeout_seconds), [&](const Arrays& arrays) {
        std::map<std::string, Json> tables;
        for (const RowSelection& selection : rows) {
            const RowValues* values = arrays.find_rows(selection.table);
            tables[selection.table] = values ? tell_array(values->values) : json(nullptr);
        }
        return object({{"version", json(run.version())}, {"rows", object(std::move(tables))}});
    });
}

Told refresh(Run& run, Arguments&) { return told(run.refresh(), tell_description); }

Told change(Run& run, Arguments& with) {
    const Change change = change_of(with);
    return told(run.change(change), tell_description);
}

Told report(Run& run, Arguments& with) { return told(run.report(with.take_numbers("metrics")), tell_description); }

Told save_checkpoint(Run& run, Arguments& with) {
    return told(run.save_checkpoint(with.take_text("name")), tell_checkpoint);
}

Told list_checkpoints(Run& run, Arguments&) {
    return told(run.list_checkpoints(), [](const auto& stored) {
        return object({{"checkpoints", list_of(stored, tell_checkpoint)}});
    });
}

Told restore_checkpoint(Run& run, Arguments& with) {
    return told(run.restore_checkpoint(with.take_text("name")), tell_description);
}

Told get_state(Run& run, Arguments&) { return told(run.get_state(), tell_state); }

Told set_state(Run& run, Arguments& with) {
    const Json* state = with.take("state");
    if (!state) throw CaseFailed("there is no state: the case is wrong");
    std::optional<std::uint64_t> expected_version;
    if (const auto version = with.take_number("expected_version")) {
        expected_version = static_cast<std::uint64_t>(*version);
    }
    return told(run.set_state(state_of(*state), expected_version), tell_description);
}

Told assignment(Run& run, Arguments& with) {
    return told(run.assignment(static_cast<std::uint64_t>(with.take_number("samples_count").value_or(0))),
                [](const Assignment& samples) {
                    return object({{"begin", json(samples.begin)}, {"end", json(samples.end)}});
                });
}

Told barrier(Run& run, Arguments& with) {
    const Json* name = with.take("name");
    const Result<void> done = run.barrier(name ? text(*name) : "barrier", with.take_number("timeout"));
    if (!done.ok()) return done.error();
    return object({});
}

const std::map<std::string, ClientOperation> client_operations = {
    {"ping", ping}, {"list", list}, {"list_runs", list_runs}, {"preview_schedule", preview_schedule}};

const std::map<std::string, RunOperation> run_operations = {{"step", step},
                                                            {"push", push},
                                                            {"push_rows", push_rows},
                                                            {"pull", pull},
                                                            {"pull_rows", pull_rows},
                                                            {"refresh", refresh},
                                                            {"change", change},
                                                            {"report", report},
                                                            {"save_checkpoint", save_checkpoint},
                                                            {"list_checkpoints", list_checkpoints},
                                                            {"restore_checkpoint", restore_checkpoint},
                                                            {"get_state", get_state},
                                                            {"set_state", set_state},
                                                            {"assignment", assignment},
                                                            {"barrier", barrier}};

template <class O>
O find_operation(const std::map<std::string, O>& operations, const std::string& name) {
    const auto found = operations.find(name);
    return found == operations.end() ? nullptr : found->second;
}

}  // namespace

ClientOperation find_client_operation(const std::string& name) { return find_operation(client_operations, name); }
RunOperation find_run_operation(const std::string& name) { return find_operation(run_operations, name); }

}  // namespace conformance
