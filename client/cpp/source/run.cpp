#include "stepwell/run.hpp"

#include <algorithm>

#include "core.hpp"
#include "methods.hpp"
#include "stepwell/v1/control.pb.h"
#include "wire.hpp"

namespace stepwell {

namespace {

using Lock = std::lock_guard<std::mutex>;

/// How many ids one message has room for, with what else is in it.
constexpr std::size_t pulled_ids_max = (3U << 20) / sizeof(std::int64_t);

void select_rows(const Layout& layout, const std::vector<RowSelection>& rows, v1::Selection& selection) {
    std::size_t ids = 0;
    for (const RowSelection& each : rows) ids += each.ids.size();
    if (ids > pulled_ids_max) {
        fail(ErrorReason::limit_exceeded, "got " + std::to_string(ids) + " ids of rows, expected at most " +
                                              std::to_string(pulled_ids_max) + " in one pull; ask for a part of them");
    }
    for (const RowSelection& each : rows) {
        v1::Rows& message = *selection.add_rows();
        message.set_table(layout.get_table(each.table).index);
        message.set_ids(reinterpret_cast<const char*>(each.ids.data()), each.ids.size_bytes());
    }
}

std::vector<const LayoutParameter*> choose(const Layout& layout, const PullOptions& options) {
    std::vector<const LayoutParameter*> chosen;
    if (options.rows_only) return chosen;
    std::vector<std::string> names = options.names;
    for (const Output& output : options.into) {
        if (options.names.empty()) names.push_back(output.name);
    }
    if (names.empty()) {
        for (const LayoutParameter& parameter : layout.parameters()) chosen.push_back(&parameter);
    }
    for (const std::string& name : names) {
        const LayoutParameter* parameter = &layout.get(name);
        if (std::find(chosen.begin(), chosen.end(), parameter) == chosen.end()) chosen.push_back(parameter);
    }
    return chosen;
}

/// Makes the selection of some options, and what receives it, once the layout is known.
Worker::Select selecting(const Run::Core& core, const PullOptions& options) {
    return [&core, &options](const Layout& layout) {
        std::vector<const LayoutParameter*> chosen = choose(layout, options);
        Selected selected;
        v1::Selection& selection = selected.selection;
        selection.set_run(core.worker.run());
        if (chosen.size() != layout.parameters().size()) {
            std::vector<std::uint32_t> indices;
            for (const LayoutParameter* parameter : chosen) indices.push_back(parameter->index);
            std::sort(indices.begin(), indices.end());
            selection.mutable_parameters()->Add(indices.begin(), indices.end());
        }
        if (options.if_newer_than) selection.set_if_newer_than(*options.if_newer_than);
        selection.set_run_uid(core.worker.uid());
        selection.set_point(options.of);
        select_rows(layout, options.rows, selection);
        selection.set_rows_only(options.rows_only);
        const Decoder* decoder = options.exact || !core.decoder ? nullptr : &*core.decoder;
        selection.set_encoded(decoder != nullptr);
        selected.received = std::make_unique<Received>(layout, std::move(chosen), options.into, options.rows, decoder);
        return selected;
    };
}

/// What a step fetches after its update.
PullOptions after_update(const UpdateOptions& options) {
    PullOptions pull;
    pull.rows = options.select_rows;
    pull.rows_only = options.select_rows_only;
    pull.into = options.into;
    pull.timeout_seconds = options.timeout_seconds;
    return pull;
}

}  // namespace

Run::Core::Core(std::shared_ptr<Client::Core> given, const v1::Run& run, bool created)
    : client(std::move(given)),
      worker(client->line, *client->heartbeats, run.name(), run.uid(), run.version()),
      created(created) {
    if (run.spec().has_gradient_encoding()) {
        worker.encoder = std::make_unique<Encoder>(decode_part(run.spec().gradient_encoding()));
    }
    if (run.spec().has_parameter_encoding()) decoder.emplace(decode_part(run.spec().parameter_encoding()));
    if (run.has_loss_scale()) worker.told->set_loss_scale(run.loss_scale());
}

void Run::Core::check_open() const {
    client->line.connection.check_process();
    if (!closed) return;
    fail(ErrorReason::invalid_value,
         what("got a call on a closed run, expected an open one; get it again with get_run"));
}

void Run::Core::go_on(const Failure& failure) {
    const bool rewound = failure.error.reason == ErrorReason::run_rewound;
    if (!rewound || client->line.settings.options.on_rewind == OnRewind::fail) throw failure;
    worker.told->set_answer({Outcome::rewound, failure.error.version(), {}, {}, {}});
}

Arrays Run::Core::fetch(const PullOptions& options) {
    Selected selected;
    const Ended ended = worker.fetch(selecting(*this, options), selected, what("pull"), options.timeout_seconds);
    return selected.received->arrays(ended.unchanged);
}

Run::Run(std::unique_ptr<Core> core) : core_(std::move(core)) {}
Run::Run(Run&&) noexcept = default;

Run& Run::operator=(Run&& other) noexcept {
    if (this != &other) {
        if (core_) close();
        core_ = std::move(other.core_);
    }
    return *this;
}

Run::~Run() {
    if (core_) close();
}

const std::string& Run::name() const { return core_->worker.run(); }
std::string Run::worker() const { return core_->worker.name(); }
bool Run::created() const { return core_->created; }
std::uint64_t Run::version() const { return core_->worker.version; }
std::optional<Answer> Run::last_answer() const { return core_->worker.told->answer(); }
std::optional<Place> Run::place() const { return core_->worker.told->place(); }
std::optional<double> Run::loss_scale() const { return core_->worker.told->loss_scale(); }

Result<Arrays> Run::step(const Gradients& gradients, const UpdateOptions& options) {
    return guarded<Arrays>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        const PullOptions pull = after_update(options);
        Selected selected;
        try {
            core_->worker.update(gradients, options, encode_header(options, loss_scale()), selecting(*core_, pull),
                                 selected, core_->what("step"));
        } catch (const Failure& failure) {
            core_->go_on(failure);
            return core_->fetch(pull);
        }
        return selected.received->arrays(false);
    });
}

Result<std::uint64_t> Run::push(const Gradients& gradients, const UpdateOptions& options) {
    return guarded<std::uint64_t>([&]() -> std::uint64_t {
        const Lock lock(core_->mutex);
        core_->check_open();
        Selected selected;
        try {
            const Ended ended = core_->worker.update(gradients, options, encode_header(options, loss_scale()), nullptr,
                                                     selected, core_->what("push"));
            if (ended.answer) return ended.answer->committed_version;
            fail(ErrorReason::internal, core_->what("push: got no answer, expected one; report this"));
        } catch (const Failure& failure) {
            core_->go_on(failure);
            return core_->worker.version;
        }
    });
}

Result<Arrays> Run::pull(const PullOptions& options) {
    return guarded<Arrays>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        try {
            return core_->fetch(options);
        } catch (const Failure& failure) {
            core_->go_on(failure);
        }
        PullOptions present = options;
        present.if_newer_than.reset();
        return core_->fetch(present);
    });
}

Result<std::uint64_t> Run::push_rows(const std::vector<RowGradients>& rows, const UpdateOptions& options) {
    UpdateOptions with_rows = options;
    with_rows.rows = rows;
    with_rows.rows_only = true;
    return push({}, with_rows);
}

Result<Arrays> Run::pull_rows(const std::vector<RowSelection>& rows, std::optional<double> timeout_seconds) {
    PullOptions options;
    options.rows = rows;
    options.rows_only = true;
    options.timeout_seconds = timeout_seconds;
    return pull(options);
}

Result<RunDescription> Run::refresh() {
    return guarded<RunDescription>([&] {
        core_->check_open();
        v1::GetRunRequest request;
        request.set_run(name());
        v1::GetRunResponse response;
        ask(core_->client->line, method::get_run, request, response, core_->what("refresh"));
        if (core_->worker.uid() != response.run().uid()) {
            fail(ErrorReason::run_replaced,
                 core_->what("refresh: got a run with another uid, expected the one that this object was made for: it "
                             "was deleted and made anew; get it again with get_run"),
                 {{"run", name()}});
        }
        std::uint64_t told = core_->worker.version;
        while (told < response.run().version() &&
               !core_->worker.version.compare_exchange_weak(told, response.run().version())) {
        }
        return decode_run(response.run());
    });
}

Result<RunDescription> Run::change(const Change& change) {
    return guarded<RunDescription>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        v1::UpdateRunRequest request;
        request.set_run(name());
        request.set_group(change.group);
        encode_hyperparameters(change.hyperparameters, *request.mutable_hyperparameters());
        encode_schedules(change.schedules, *request.mutable_schedules());
        for (const std::string& removed : change.schedules_removed) request.add_schedules_removed(removed);
        request.set_keep_clock(change.keep_clock);
        request.set_etag(change.etag);
        if (change.policy) encode_part(*change.policy, *request.mutable_policy());
        v1::UpdateRunResponse response;
        ask(core_->client->line, method::update_run, request, response, core_->what("change"), false);
        return decode_run(response.run());
    });
}

Result<RunDescription> Run::report(const std::map<std::string, double>& metrics) {
    return guarded<RunDescription>([&] {
        core_->check_open();
        v1::ReportRequest request;
        request.set_run(name());
        request.mutable_metrics()->insert(metrics.begin(), metrics.end());
        v1::ReportResponse response;
        ask(core_->client->line, method::report, request, response, core_->what("report"), false);
        return decode_run(response.run());
    });
}

Result<Assignment> Run::assignment(std::uint64_t samples_count) {
    return guarded<Assignment>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        const Place place = core_->worker.look_around();
        if (place.index >= place.count) {
            fail(ErrorReason::internal, core_->what("got a place beyond the last, expected one among the live workers; "
                                                    "report this"));
        }
        // samples_count * index / count without overflow.
        const std::uint64_t whole = samples_count / place.count, rest = samples_count % place.count;
        const auto share = [&](std::uint64_t index) { return whole * index + rest * index / place.count; };
        return Assignment{share(place.index), share(place.index + 1)};
    });
}

Result<void> Run::barrier(const std::string& name, std::optional<double> timeout_seconds) {
    return guarded<void>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        core_->worker.barrier(name, timeout_seconds);
    });
}

Result<Checkpoint> Run::save_checkpoint(const std::string& checkpoint) {
    return guarded<Checkpoint>([&] {
        core_->check_open();
        v1::SaveCheckpointRequest request;
        request.set_run(name());
        request.set_checkpoint(checkpoint);
        v1::SaveCheckpointResponse response;
        ask(core_->client->line, method::save_checkpoint, request, response, core_->what("save_checkpoint"), false);
        return decode_checkpoint(response.checkpoint());
    });
}

Result<std::vector<Checkpoint>> Run::list_checkpoints() {
    return guarded<std::vector<Checkpoint>>([&] {
        core_->check_open();
        std::vector<Checkpoint> checkpoints;
        v1::ListCheckpointsRequest request;
        request.set_run(name());
        v1::ListCheckpointsResponse page;
        do {
            page.Clear();
            ask(core_->client->line, method::list_checkpoints, request, page, core_->what("list_checkpoints"));
            for (const auto& checkpoint : page.checkpoints()) checkpoints.push_back(decode_checkpoint(checkpoint));
            request.set_page_token(page.next_page_token());
        } while (!page.next_page_token().empty());
        return checkpoints;
    });
}

Result<RunDescription> Run::restore_checkpoint(const std::string& checkpoint) {
    return guarded<RunDescription>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        v1::RestoreCheckpointRequest request;
        request.set_run(name());
        request.set_checkpoint(checkpoint);
        v1::RestoreCheckpointResponse response;
        ask(core_->client->line, method::restore_checkpoint, request, response, core_->what("restore_checkpoint"),
            false);
        core_->worker.rewound(response.run().version());
        return decode_run(response.run());
    });
}

Result<State> Run::get_state() {
    return guarded<State>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        return stepwell::get_state(core_->client->line, name(), core_->worker.have_layout());
    });
}

Result<RunDescription> Run::set_state(const State& state, std::optional<std::uint64_t> expected_version) {
    return guarded<RunDescription>([&] {
        const Lock lock(core_->mutex);
        core_->check_open();
        const v1::Run run =
            stepwell::set_state(core_->client->line, name(), core_->worker.have_layout(), state, expected_version);
        core_->worker.rewound(run.version());
        return decode_run(run);
    });
}

void Run::close() {
    // What leaving throws is for nobody: the lease will run out.
    static_cast<void>(guarded<void>([&] {
        const Lock lock(core_->mutex);
        core_->closed = true;
        core_->worker.leave();
    }));
}

}  // namespace stepwell
