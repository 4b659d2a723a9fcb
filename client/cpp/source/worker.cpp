#include "worker.hpp"

#include <algorithm>

#include "methods.hpp"
#include "stepwell/v1/control.pb.h"
#include "wire.hpp"

namespace stepwell {

namespace {

constexpr std::size_t fingerprint_bytes = 16;
constexpr double heartbeats_per_lease = 3;

}  // namespace

void Told::set_answer(const Answer& answer) {
    const std::lock_guard lock(mutex_);
    answer_ = answer;
}

void Told::set_loss_scale(std::optional<double> loss_scale) {
    const std::lock_guard lock(mutex_);
    loss_scale_ = loss_scale;
}

void Told::set_place(Place place) {
    const std::lock_guard lock(mutex_);
    place_ = place;
}

std::optional<Answer> Told::answer() const {
    const std::lock_guard lock(mutex_);
    return answer_;
}

std::optional<double> Told::loss_scale() const {
    const std::lock_guard lock(mutex_);
    return loss_scale_;
}

std::optional<Place> Told::place() const {
    const std::lock_guard lock(mutex_);
    return place_;
}

Worker::Worker(Line& line, Heartbeats& heartbeats, std::string run, std::string uid, std::uint64_t version)
    : version(version),
      told(std::make_shared<Told>()),
      line_(line),
      heartbeats_(heartbeats),
      run_(std::move(run)),
      uid_(std::move(uid)),
      name_(line.settings.options.worker.empty() ? default_worker_name() : line.settings.options.worker) {}

Worker::~Worker() {
    stop_heartbeat();
    if (line_.connection.forked()) static_cast<void>(stream_.release());  // it can be neither used nor ended here
}

Ended Worker::update(const Gradients& gradients, const UpdateOptions& options, v1::UpdateHeader header,
                     const Select& select, Selected& selected, const std::string& what) {
    Patience patience(line_.settings, what, options.timeout_seconds);
    if (!membership_ || !layout_) join(options.timeout_seconds);
    OutgoingUpdate update{std::move(header), Update(*layout_, gradients, options, what), {}, {}};
    if (encoder && !options.rows_only) update.encoded.emplace(*encoder, *layout_);
    const std::vector<std::uint32_t>& without = update.content.without_gradient();
    update.header.mutable_without_gradient()->Add(without.begin(), without.end());
    for (const std::string& name : update.content.inputs()) update.header.add_inputs(name);
    for (const RowsPart& rows : update.content.rows()) {
        v1::RowsCount& count = *update.header.add_rows();
        count.set_table(rows.table);
        count.set_count(rows.ids.size());
    }
    if (base_version_) update.header.set_base_version(*base_version_);
    for (;;) {
        const std::shared_ptr<Membership> membership = membership_;
        if (select) selected = select(*layout_);
        *update.header.mutable_identity() = identity(*membership);
        Exchange exchange(&update, select ? &selected : nullptr);
        Error lapsed;
        try {
            conclude(exchange, *membership, patience);
            return exchange.ended();
        } catch (const Failure& failure) {
            if (failure.error.reason != ErrorReason::unknown_worker) throw;
            lapsed = failure.error;
        }
        exchange.answer = come_back(update.header.identity(), patience, lapsed);
        if (!exchange.answer) continue;
        told->set_answer(*exchange.answer);
        if (select) carry_out(exchange, patience);
        return exchange.ended();
    }
}

std::optional<Answer> Worker::come_back(const v1::UpdateIdentity& identity, Patience& patience, const Error& error) {
    // A gradient that was computed before counts as what it is: the policy looks at the version that it was taken at.
    patience.check();
    line_.settings.log(patience.what() + ": joins again: " + error.message);
    join();
    if (last_answered_ < std::make_pair(identity.epoch(), identity.sequence())) return {};
    return Answer{Outcome::committed, version, {}, {}, {}};
}

void Worker::conclude(Exchange& exchange, Membership& membership, Patience& patience) {
    try {
        carry_out(exchange, patience);
    } catch (const Failure& failure) {
        switch (failure.error.reason) {
            case ErrorReason::run_rewound:
                rewound(failure.error.version());
                try {
                    // Take the place in the run as it is now, so that its going back again would be heard of, too.
                    join(line_.settings.options.silence_seconds);
                } catch (const Failure&) {
                    // Left to the next update: what has happened is to be told, not this.
                }
                break;
            case ErrorReason::unknown_worker:
            case ErrorReason::sequence_gap:
            case ErrorReason::sequence_reused:
            case ErrorReason::sequence_too_old:
                membership_.reset();  // the server and this worker do not mean the same epoch: begin another
                break;
            default:
                break;
        }
        settle(exchange, membership);
        throw;
    } catch (...) {
        settle(exchange, membership);
        throw;
    }
    settle(exchange, membership);
    if (exchange.selects() && exchange.version < version) {
        // The answer came, then the server went down and came back from an older snapshot.
        throw went_back(exchange.version);
    }
}

Ended Worker::fetch(const Select& select, Selected& selected, const std::string& what,
                    std::optional<double> timeout_seconds) {
    Patience patience(line_.settings, what, timeout_seconds);
    selected = select(have_layout());
    Exchange exchange(nullptr, &selected);
    carry_out(exchange, patience);
    if (exchange.version < version) throw went_back(exchange.version);
    version = exchange.version;
    base_version_ = exchange.version;
    return exchange.ended();
}

void Worker::join(std::optional<double> timeout_seconds) {
    v1::JoinRequest request;
    request.set_run(run_);
    request.set_worker(name_);
    request.set_lease_seconds(line_.settings.options.lease_seconds);
    v1::JoinResponse response;
    v1::Membership joined;
    v1::Layout layout;
    collect(
        line_, method::join, request, response,
        [&] {
            joined.Clear();
            layout.Clear();
        },
        [&] {
            if (response.has_membership()) joined = response.membership();
            layout.MergeFrom(response.layout());
        },
        what("join"), timeout_seconds);
    know(joined.run_uid(), layout);
    membership_ = std::make_shared<Membership>(Membership{joined.generation(), joined.epoch(), 0, 0});
    last_answered_ = {joined.last_epoch(), joined.last_sequence()};
    told->set_place(decode_place(joined.place()));
    keep_lease(joined);
    if (joined.version() < version) throw went_back(joined.version(), true);
    version = joined.version();
}

void Worker::keep_lease(const v1::Membership& membership) {
    stop_heartbeat();
    if (!(membership.lease_seconds() > 0)) return;
    v1::HeartbeatRequest request;
    request.set_run(run_);
    request.set_worker(name_);
    request.set_epoch(membership.epoch());
    beat_ = heartbeats_.start(std::move(request), membership.lease_seconds() / heartbeats_per_lease,
                              [told = told](const v1::Place& place) { told->set_place(decode_place(place)); });
}

Place Worker::look_around() {
    if (!membership_) join();
    v1::HeartbeatRequest request;
    request.set_run(run_);
    request.set_worker(name_);
    request.set_epoch(membership_->epoch);
    v1::HeartbeatResponse response;
    try {
        ask(line_, method::heartbeat, request, response, what("place"));
        told->set_place(decode_place(response.place()));
    } catch (const Failure& failure) {
        if (failure.error.reason != ErrorReason::unknown_worker) throw;
        join();
    }
    return *told->place();
}

void Worker::barrier(const std::string& name, std::optional<double> timeout_seconds) {
    for (;;) {
        if (!membership_) join(timeout_seconds);
        const std::shared_ptr<Membership> membership = membership_;
        v1::BarrierRequest request;
        request.set_run(run_);
        request.set_worker(name_);
        request.set_epoch(membership->epoch);
        request.set_barrier(name);
        request.set_call(membership->barriers + 1);
        v1::BarrierResponse response;
        try {
            // The call ends when all have arrived.
            collect(
                line_, method::barrier, request, response, [] {}, [] {}, what("barrier '" + name + "'"),
                timeout_seconds);
        } catch (const Failure& failure) {
            if (failure.error.reason != ErrorReason::unknown_worker) throw;
            membership_.reset();  // the lease has run out
            continue;
        }
        ++membership->barriers;
        return;
    }
}

const Layout& Worker::have_layout() {
    if (layout_) return *layout_;
    v1::GetLayoutRequest request;
    request.set_run(run_);
    v1::GetLayoutResponse response;
    std::string uid;
    v1::Layout layout;
    collect(
        line_, method::get_layout, request, response,
        [&] {
            uid.clear();
            layout.Clear();
        },
        [&] {
            if (uid.empty()) uid = response.run_uid();
            layout.MergeFrom(response.layout());
        },
        what("layout"));
    know(uid, layout);
    return *layout_;
}

void Worker::rewound(std::uint64_t present_version) {
    version = present_version;
    membership_.reset();
    base_version_.reset();
}

void Worker::leave() {
    stop_heartbeat();
    if (line_.connection.forked()) return;
    if (stream_) end_politely(*stream_);
    stream_.reset();
    const std::shared_ptr<Membership> membership = std::exchange(membership_, nullptr);
    if (!membership) return;
    v1::LeaveRequest request;
    request.set_run(run_);
    request.set_worker(name_);
    request.set_epoch(membership->epoch);
    try {
        Stream leaving(line_.connection.channel(), method::leave);
        v1::LeaveResponse response;
        if (leaving.send(request, end_seconds)) leaving.finish(end_seconds);
        leaving.receive(response, end_seconds);
    } catch (const Break&) {
        // The lease will run out.
    } catch (const Failure&) {
        // The client was closed first.
    }
}

void Worker::carry_out(Exchange& exchange, Patience& patience) {
    for (;;) {
        if (!stream_) {
            stream_ = std::make_unique<Stream>(line_.connection.channel(), method::work);
            exchanges_ = 0;
        }
        try {
            try_once(exchange, patience);
            return;
        } catch (const Break& broken) {
            const std::unique_ptr<Stream> stream = std::move(stream_);
            again(line_, *stream, patience, broken);
        } catch (const Failure&) {
            // The exchange is over and the stream goes on, unless it was this side that gave up in the middle of it.
            if (!exchange.refused) stream_.reset();
            throw;
        } catch (...) {
            stream_.reset();
            throw;
        }
    }
}

void Worker::try_once(Exchange& exchange, Patience& patience) {
    const bool hooked = exchange.update() != nullptr && (before_answer || after_answer);
    std::vector<v1::WorkRequest> sent;
    exchange.begin(++exchanges_);
    v1::WorkRequest request;
    bool whole = true;
    while (!exchange.done && exchange.next(request)) {
        send(exchange, request, patience);
        if (hooked) sent.push_back(request);
        if (!exchange.answer || request.last()) continue;
        exchange.close();  // a retry of what was committed already: the server needs no more of it
        whole = false;
    }
    whole = whole && !sent.empty() && sent.back().last();
    if (hooked && whole && before_answer) before_answer(sent);
    while (!exchange.done) receive(exchange, patience);
    if (hooked && whole && after_answer) after_answer(sent);
}

void Worker::send(Exchange& exchange, const v1::WorkRequest& request, Patience& patience) {
    while (!exchange.done && !stream_->send(request, patience.seconds())) receive(exchange, patience);
}

void Worker::receive(Exchange& exchange, Patience& patience) {
    v1::WorkResponse response;
    if (!stream_->receive(response, patience.seconds())) throw Break::ended("the server ended the stream");
    patience.heard();
    exchange.take(response);
}

void Worker::settle(Exchange& exchange, Membership& membership) {
    if (exchange.answer) {
        const Answer& answer = *exchange.answer;
        told->set_answer(answer);
        told->set_loss_scale(answer.loss_scale);
        version = std::max({version.load(), answer.committed_version, exchange.version});
        if (exchange.selects() && exchange.version) base_version_ = exchange.version;
        ++membership.sequence;
        const bool applied = answer.outcome == Outcome::committed || answer.outcome == Outcome::folded;
        if (exchange.update() && exchange.update()->encoded && applied) exchange.update()->encoded->settle();
    } else if (!exchange.refused) {
        // Given up, so its fate is not known. A new epoch fences whatever of it is still on its way.
        membership_.reset();
    }
}

void Worker::stop_heartbeat() {
    if (beat_) beat_->stop();
    beat_.reset();
}

v1::UpdateIdentity Worker::identity(const Membership& membership) const {
    v1::UpdateIdentity identity;
    identity.set_run(run_);
    identity.set_run_uid(uid_);
    identity.set_generation(membership.generation);
    identity.set_worker(name_);
    identity.set_epoch(membership.epoch);
    identity.set_sequence(membership.sequence + 1);
    identity.set_fingerprint(random_bytes(fingerprint_bytes));
    identity.set_acknowledged_version(version);
    return identity;
}

void Worker::know(const std::string& uid, const v1::Layout& layout) {
    if (!uid_.empty() && uid != uid_) {
        fail(ErrorReason::run_replaced,
             what("join") +
                 ": got a run with another uid, expected the one that this object was made for: it was "
                 "deleted and made anew; get it again with get_run",
             {{"run", run_}});
    }
    if (layout_) return;
    layout_ = std::make_unique<Layout>(layout);
    uid_ = uid;
}

Failure Worker::went_back(std::uint64_t present_version, bool joined) {
    const std::uint64_t acknowledged_version = version;
    const std::shared_ptr<Membership> membership = membership_;
    rewound(present_version);
    if (joined) membership_ = membership;
    const std::string present = std::to_string(present_version), acknowledged = std::to_string(acknowledged_version);
    return {Error(ErrorReason::run_rewound,
                  "run '" + run_ + "': got version " + present + ", expected " + acknowledged +
                      " or newer: the run went back to an older state; go on from its present parameters, pull() "
                      "returns them",
                  {{"acknowledged_version", acknowledged}, {"version", present}})};
}

}  // namespace stepwell
