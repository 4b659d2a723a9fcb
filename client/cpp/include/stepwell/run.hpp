/// A run on the server, as seen by one worker or reader.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "stepwell/arrays.hpp"
#include "stepwell/descriptions.hpp"
#include "stepwell/errors.hpp"

namespace stepwell {

/// Gradients of some rows of a table: as many rows as ids, one after another, in the table's type or a narrower one.
/// Those of an id that occurs several times are summed.
struct RowGradients {
    std::string table;
    Span<const std::int64_t> ids;
    Elements gradients;
};

/// Rows of a table to return, in the order of the ids. A row that does not exist has what it would begin with, and is
/// not created. into: memory to write them to; by default fresh memory is used.
struct RowSelection {
    std::string table;
    Span<const std::int64_t> ids;
    std::optional<MutableElements> into = {};
};

/// What an update may carry beside its gradients.
struct UpdateOptions {
    /// How many samples the gradients were taken over; advances the clock of samples.
    double samples = 0;
    /// For optimizers that need it.
    std::optional<double> loss;
    /// New numbers, set for good with this update's commit: for every group that has them, and for single groups.
    std::map<std::string, double> hyperparameters;
    std::map<std::string, std::map<std::string, double>> group_hyperparameters;
    /// What else an optimizer takes, by its name: {"hessian", {{"w", hessian}}}.
    std::map<std::string, Gradients> inputs;
    /// What the loss was multiplied by, for transform unscale; by default Run::loss_scale.
    std::optional<double> loss_scale;
    /// For transform sparsity_lr with source "client".
    std::optional<double> sparsity_factor;
    /// Rows of tables that have gradients.
    std::vector<RowGradients> rows;
    /// The update brings rows and nothing else: give it no gradients; parameters and their steps stay.
    bool rows_only = false;

    /// For step alone: rows to return with the parameters, whether to return nothing but them, and memory to write
    /// parameters to: then only these are returned. After an error its content is undefined.
    std::vector<RowSelection> select_rows;
    bool select_rows_only = false;
    std::vector<Output> into;

    /// Seconds for all of it; by default it waits while the server gives word. After timed_out the update may have been
    /// applied or not; it cannot be any more once the next one has begun.
    std::optional<double> timeout_seconds;
};

/// What to pull.
struct PullOptions {
    /// All by default, or those of `into`.
    std::vector<std::string> names;
    /// Return nothing (Arrays::unchanged) if the run is not beyond this version.
    std::optional<std::uint64_t> if_newer_than;
    /// Which values: "parameters" (where gradients are taken), "evaluation", "average" or "lookahead".
    std::string of = "parameters";
    /// As the server has them, even where the run encodes what it sends.
    bool exact = false;
    /// Rows of tables to return at the same version, and whether to return nothing but them.
    std::vector<RowSelection> rows;
    bool rows_only = false;
    std::vector<Output> into;
    std::optional<double> timeout_seconds;
};

/// A live change of a run.
struct Change {
    /// New values; under a schedule, the value that it starts from.
    Values hyperparameters;
    /// New schedules by hyperparameter, counted from 0 at the change unless `keep_clock`.
    Schedules schedules;
    /// Hyperparameters whose schedule is taken away.
    std::vector<std::string> schedules_removed;
    bool keep_clock = false;
    /// Where; by default every group that has what changes.
    std::string group;
    /// The run must still be as the description with this etag said.
    std::string etag;
    std::optional<Part> policy;
};

/// An array of a run's state, float32 or float64: of 16-bit parameters the server keeps float32.
struct StateArray {
    Shape shape;
    DType dtype = DType::float32;
    /// The elements, little-endian.
    std::vector<std::byte> bytes;

    template <class T>
    Span<const T> as() const {
        if (detail::DTypeOf<T>::value != dtype) return {};
        return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
    }
};

/// Everything that training goes on from, all at one version. Maps are by parameter, then by slot or scalar.
struct State {
    std::map<std::string, StateArray> parameters;
    std::map<std::string, std::map<std::string, StateArray>> slots;
    std::map<std::string, std::map<std::string, double>> scalars;
    /// How many commits have touched each parameter.
    std::map<std::string, std::int64_t> steps;
    std::uint64_t version = 0;
    double samples = 0;
};

/// A run; made by Client::create_run and get_run. Moved, not copied; destroying it leaves the run as close() does.
///
/// A push or step makes the caller a worker of the run; whoever only reads never joins. Calls may come from several
/// threads; exchanges on one object follow one another, so workers that shall push at the same time need a client each.
///
/// Where a server went back to an older state, a call gives run_rewound once; the update was not applied and is never
/// sent again, and the next one goes to the run as it is now.
class Run {
public:
    Run(Run&&) noexcept;
    Run& operator=(Run&&) noexcept;
    ~Run();

    /// The run's name.
    const std::string& name() const;
    /// The name under which this object joins, or has joined.
    std::string worker() const;
    /// Whether the create_run that gave this object made the run.
    bool created() const;
    /// The newest version of the run that this object was told of.
    std::uint64_t version() const;
    /// What became of the last update that was answered.
    std::optional<Answer> last_answer() const;
    /// Where this worker stood when the server told last; unset before it has joined.
    std::optional<Place> place() const;
    /// What to multiply the next loss by, with transform unscale.
    std::optional<double> loss_scale() const;

    /// Push gradients and return the parameters after the update, at version().
    ///
    /// gradients: for every parameter that is not frozen its gradient, or no_gradient.
    /// Errors: invalid_gradient before anything is sent; nonfinite_gradient, incomplete_update and others, which leave
    /// the run as it was; run_rewound; server_unavailable and timed_out when the patience has run out. With
    /// OnRewind::go_on the update of a run that went back is dropped, the present parameters are returned, and
    /// last_answer() says Outcome::rewound.
    Result<Arrays> step(const Gradients& gradients, const UpdateOptions& options = {});
    /// Push gradients; returns the version that holds the update, or, where it was not applied, that it found.
    Result<std::uint64_t> push(const Gradients& gradients, const UpdateOptions& options = {});
    /// Return parameters, all at one version. Errors: unknown_parameter, unknown_point, run_rewound, ...
    Result<Arrays> pull(const PullOptions& options = {});

    /// Push gradients of rows alone: parameters and their steps stay as they are. Otherwise like push. Errors:
    /// unknown_table and invalid_rows before anything is sent, table_full, ...
    Result<std::uint64_t> push_rows(const std::vector<RowGradients>& rows, const UpdateOptions& options = {});
    /// Return rows alone, of one or more tables at one version; Arrays::find_rows has them. limit_exceeded for more
    /// than 393,216 ids.
    Result<Arrays> pull_rows(const std::vector<RowSelection>& rows, std::optional<double> timeout_seconds = {});

    /// The run as it is now.
    Result<RunDescription> refresh();
    /// Change the live run, from its next commit on. Errors: change_refused where a slot would come or go,
    /// etag_mismatch, policy_refused.
    Result<RunDescription> change(const Change& change);
    /// Report metrics, for schedules that wait for one. Not repeated if the connection breaks.
    Result<RunDescription> report(const std::map<std::string, double>& metrics);

    /// Which of so many samples are this worker's: even, contiguous shares by place. Joins the run.
    Result<Assignment> assignment(std::uint64_t samples_count);
    /// Wait until every live worker of the run waits at the barrier of this name. Joins the run.
    Result<void> barrier(const std::string& name = "barrier", std::optional<double> timeout_seconds = {});

    /// Store the run's state on the server. name: by default version-N.
    Result<Checkpoint> save_checkpoint(const std::string& name = "");
    /// Oldest first.
    Result<std::vector<Checkpoint>> list_checkpoints();
    /// Take the run back to a checkpoint. Other workers get run_rewound; this object joins anew by itself.
    Result<RunDescription> restore_checkpoint(const std::string& name);

    /// The whole state at one version.
    Result<State> get_state();
    /// Replace the whole state, all or nothing. expected_version: where the run must be, else version_mismatch.
    Result<RunDescription> set_state(const State& state, std::optional<std::uint64_t> expected_version = {});

    /// Leave the run, which goes on. Takes two seconds at most; nothing happens the second time.
    void close();

    struct Core;
    explicit Run(std::unique_ptr<Core> core);

private:
    friend struct Inside;
    std::unique_ptr<Core> core_;
};

}  // namespace stepwell
