/// What defines a run beside the values of its parameters.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "stepwell/arrays.hpp"
#include "stepwell/values.hpp"

namespace stepwell {

/// What happens to an update with a NaN or an infinity: refused, counted and skipped, or applied.
enum class Nonfinite : int { reject = 1, skip = 2, allow = 3 };

/// Parameters that share an optimizer, hyperparameters and schedules.
struct GroupSpec {
    std::string name;
    /// Globs over parameter names (*, ?, [...]); the first group that matches has the parameter.
    std::vector<std::string> parameters;
    /// Another one than the run's; then the run's hyperparameters and schedules do not apply.
    std::string optimizer;
    std::string flavor;
    Values hyperparameters;
    Schedules schedules;
    /// They stay as they are, and take no gradients.
    bool frozen = false;
    std::string definition;
};

/// An embedding table: rows by 64-bit id, created when they are first touched.
struct TableSpec {
    std::string name;
    /// How many elements a row has.
    std::uint32_t width = 0;
    /// float32 or float64.
    DType dtype = DType::float32;
    /// What rows begin with: Part{"uniform"}, "constant" or "normal", with arguments; uniform by default.
    std::optional<Part> initializer;
    std::int64_t seed = 0;
    /// adagrad by default.
    std::string optimizer;
    std::string flavor;
    Values hyperparameters;
    Schedules schedules;
    /// "lazy" (the default): a commit touches the rows that it brings; "exact": all end up as if each had a gradient.
    std::string sparse_mode;
    /// How many rows there may be; 0 means 2^31.
    std::uint64_t rows_max = 0;
    /// "touches", "bytes_max": an id gets a row with the commit that is the "touches"-th to bring it.
    Values admission;
    /// "by" "least_recent", or "by" "age" with "age".
    Values eviction;
};

/// A run's spec. What is left out takes its default.
struct Spec {
    /// The catalogue's name, such as adam; see Client::list_optimizers.
    std::string optimizer;
    /// Whose defaults and structural flags the name takes (torch, optax, keras, ...); by default the optimizer's first.
    std::string flavor;
    Values hyperparameters;
    /// By the hyperparameter that each one drives.
    Schedules schedules;
    /// The first match wins; the rest is in group "default".
    std::vector<GroupSpec> groups;
    Nonfinite nonfinite = Nonfinite::reject;
    /// For schedules on the clock of epochs.
    std::optional<double> samples_per_epoch;
    /// An optimizer as the text of a function, in place of a name; parsed and compiled, never evaluated.
    std::string definition;
    /// What happens to the combined gradient, in order.
    std::vector<Part> transforms;
    /// What runs around the optimizer, in order.
    std::vector<Part> wrappers;
    /// Whether answers tell the norms of gradients and parameters.
    bool report_norms = false;
    /// What gradients are made smaller with on their way; what that drops is owed and sent later.
    std::optional<Part> gradient_encoding;
    /// What parameters are made smaller with on their way back.
    std::optional<Part> parameter_encoding;
    /// How the updates of several workers become commits; async by default.
    std::optional<Part> policy;
    std::vector<TableSpec> tables;
};

}  // namespace stepwell
