/// What the server tells about itself, its runs and its catalogue, as plain data.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stepwell/spec.hpp"

namespace stepwell {

/// What became of an update.
enum class Outcome : int {
    committed = 1,
    /// It held a NaN or an infinity, and was counted.
    skipped_nonfinite = 2,
    /// It came too late for its round.
    dropped_late = 3,
    /// It is part of the next version, for which more are awaited.
    folded = 4,
    /// The run went back to an older state, and the update was dropped; only with OnRewind::go_on.
    rewound = 100,
};

/// Of all trained parameters as one vector: p = 1, 2 and infinity.
struct Norms {
    double l1 = 0, l2 = 0, maximum = 0;
};

/// The answer to one update. A retry gets the same.
struct Answer {
    Outcome outcome = Outcome::committed;
    /// The version that holds the update; for one that was not applied, the version that it found.
    std::uint64_t committed_version = 0;
    /// What to multiply the next loss by, where the run has the transform `unscale`.
    std::optional<double> loss_scale;
    /// Where the run reports them: of the combined gradient, and of the parameters after the commit.
    std::optional<Norms> gradient_norms, parameter_norms;
};

/// Where a worker stands among the live ones, in the order in which they joined.
struct Place {
    /// From 0 on.
    std::uint64_t index = 0;
    std::uint64_t count = 0;
    /// Grows whenever somebody joins or leaves.
    std::uint64_t membership_number = 0;
};

/// A worker's part of the data: samples begin, ..., end - 1.
struct Assignment {
    std::uint64_t begin = 0, end = 0;
};

/// Who the server is, and what its limits are.
struct ServerDescription {
    std::string version, contract;
    std::uint64_t message_bytes_max = 0, range_bytes = 0, memory_bytes_max = 0;
    std::uint32_t outstanding_updates_max = 0;
    double word_seconds = 0;
    /// How long the question took.
    double round_trip_seconds = 0;
};

/// What has become of updates, counted; staleness in versions, its counts those of 0, 1, 2 to 3, 4 to 7, ... versions.
struct Tally {
    std::uint64_t commits = 0, folded = 0, skipped = 0, dropped = 0, refused = 0, withdrawn = 0, duplicates = 0;
    std::uint64_t staleness_last = 0, staleness_max = 0;
    std::vector<std::uint64_t> staleness_counts;
};

/// The present values of one group: hyperparameters as the next commit will use them.
struct GroupDescription {
    std::string name;
    DType dtype = DType::float32;
    /// Empty if frozen.
    std::string optimizer;
    std::string flavor;
    Values hyperparameters;
    Schedules schedules;
    std::vector<std::string> slots, scalars;
};

/// The present values of one table.
struct TableDescription {
    std::string name;
    std::uint64_t rows = 0, created = 0, refused = 0, evicted = 0;
    std::uint64_t state_bytes = 0;
    /// How many commits it has had.
    std::uint64_t step = 0;
    std::string optimizer, flavor;
    Values hyperparameters;
    Schedules schedules;
    std::vector<std::string> slots;
};

/// A live worker.
struct WorkerDescription {
    std::string name;
    /// The number of its latest join, and the last sequence that it committed in it.
    std::uint64_t epoch = 0, last_sequence = 0;
    /// Its place among the live ones.
    std::uint64_t index = 0;
    /// In how many seconds its lease runs out.
    double lease_seconds = 0;
    /// Whether an update of it waits for others.
    bool waits = false;
    Tally tally;
};

/// A run as it was when the server was asked.
struct RunDescription {
    std::string name, uid;
    std::uint64_t generation = 0, version = 0;
    std::string etag;
    double samples = 0;
    /// As it was created, without its parameters.
    Spec spec;
    std::vector<GroupDescription> groups;
    std::vector<TableDescription> tables;
    std::vector<WorkerDescription> workers;
    std::uint64_t parameters_count = 0, state_bytes = 0, skipped_count = 0, duplicates_count = 0;
    std::optional<double> loss_scale;
    /// What can be pulled.
    std::vector<std::string> points;
    std::map<std::string, double> metrics;
    /// In force, with all arguments.
    Part policy;
    Tally tally;
    /// How many commits are folded into the next version already.
    std::uint64_t accumulated_count = 0;
};

/// A stored state of a run.
struct Checkpoint {
    std::string name;
    std::uint64_t version = 0;
    /// Since 1970-01-01 UTC.
    double created_seconds = 0;
    std::uint64_t size_bytes = 0;
};

/// One argument of an optimizer, schedule or part.
struct Argument {
    std::string name;
    /// "number", "integer", "flag", "text" or "numbers".
    std::string kind;
    /// The value when absent; unset where it must be given.
    std::optional<Value> default_value;
    /// Whether none is taken.
    bool optional = false;
    std::optional<double> minimum, maximum;
    bool minimum_open = false, maximum_open = false;
    std::vector<std::string> choices;
    /// Whether infinity is taken.
    bool infinite = false;
};

/// An optimizer as one framework has it.
struct FlavorDescription {
    std::string name;
    std::vector<Argument> arguments;
    std::vector<std::string> slots, scalars;
    /// Whether each parameter counts its own steps; if not, every parameter needs a gradient.
    bool step_per_parameter = false;
};

struct OptimizerDescription {
    std::string name, summary, reference, matches;
    /// The first is the default.
    std::vector<FlavorDescription> flavors;
    /// What updates may carry beside gradients, what they must, and what can be pulled beside the parameters.
    std::vector<std::string> inputs, required, points;
};

struct ScheduleDescription {
    std::string name, summary, reference, matches;
    std::vector<Argument> arguments;
    /// Whether it sets values rather than start from the hyperparameter's own.
    bool absolute = false;
    std::uint32_t children_min = 0, children_max = 0;
};

/// A transform, wrapper, encoding or policy.
struct PartDescription {
    std::string name, summary, reference, matches;
    std::vector<Argument> arguments;
    std::vector<std::string> points;
};

struct EncodingDescriptions {
    std::vector<PartDescription> gradients, parameters;
};

}  // namespace stepwell
