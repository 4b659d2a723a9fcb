/** A worker's place in a run: its membership, the identity of its updates, and the stream that carries them. */

import { randomBytes } from "node:crypto";
import { hostname } from "node:os";

import { create } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";

import type { ByName } from "./arrays.js";
import type { ArrayLike } from "./arrays.js";
import {
    again,
    ask,
    collect,
    end,
    isFailure,
    log,
    Patience,
    reporter,
    say,
    type Server,
    type Settings,
} from "./calls.js";
import { type Connection, Lost, type Stream } from "./connection.js";
import { type Answer, describePlace, type Place } from "./descriptions.js";
import { EncodedUpdate, type Encoder } from "./encoding.js";
import * as errors from "./errors.js";
import { Exchange, type Wanted } from "./exchange.js";
import * as control from "./generated/stepwell/v1/control_pb.js";
import type { UpdateHeader, UpdateIdentity, WorkResponse } from "./generated/stepwell/v1/data_pb.js";
import { UpdateIdentitySchema } from "./generated/stepwell/v1/data_pb.js";
import { type Layout, LayoutPieces } from "./layout.js";
import * as methods from "./methods.js";
import { type Gradient, Gradients } from "./packing.js";
import type { OutgoingWork } from "./payload.js";
import { type RowGradients, UpdateRows } from "./rows.js";
import { show, toNumber } from "./values.js";

const NAME_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/;
const FINGERPRINT_BYTES = 16;
const HEARTBEATS_PER_LEASE = 3;
const TIMER_MS_MAX = 0x7fffffff;

/** Makes the selection, and what takes it, once the layout is known. */
export type Select = (layout: Layout) => Wanted;

/** What one update brings. grads: undefined where it is of rows alone. header: still without identity and names. */
export interface Contribution {
    readonly header: UpdateHeader;
    readonly grads: ByName<Gradient> | undefined;
    readonly inputs: ByName<ByName<ArrayLike>> | undefined;
    readonly rows: ByName<RowGradients> | undefined;
}

/**
 * What Join gave, the last sequence that was answered in this epoch, and how many barriers were passed in it.
 *
 * waiting: the barrier where this worker still waits, as the server sees it, after a call that ended without its word.
 */
interface Membership {
    readonly generation: bigint;
    readonly epoch: bigint;
    sequence: number;
    barriers: number;
    waiting?: string | undefined;
}

/**
 * One worker of one run.
 *
 * name: under which it joins. uid and layout: of the run, once known. version: the newest that it was told of.
 */
export class Worker {
    readonly run: string;
    readonly name: string;
    readonly encoder: Encoder | undefined;
    uid: Uint8Array;
    version: number;
    lastAnswer: Answer | undefined;
    lossScale: number | undefined;
    place: Place | undefined;
    #layout: Layout | undefined;
    #stream: Stream<OutgoingWork, WorkResponse> | undefined;
    #exchanges = 0;
    #membership: Membership | undefined;
    /** The last update with an answer under this name, as the last join told. */
    #lastAnswered = { epoch: 0n, sequence: 0n };
    /** Of the parameters that came last. */
    #baseVersion: number | undefined;
    /** Of the rows that came last. */
    #rowsVersion: number | undefined;
    #heartbeat: NodeJS.Timeout | undefined;
    readonly #server: Server;

    constructor(
        server: Server,
        run: { name: string; uid: Uint8Array; version: number },
        encoder: Encoder | undefined,
        lossScale: number | undefined,
    ) {
        this.#server = server;
        this.run = run.name;
        this.uid = run.uid;
        this.version = run.version;
        this.encoder = encoder;
        this.lossScale = lossScale;
        this.name = server.settings.worker ?? defaultName();
    }

    /** Carry out one update, and with `select` fetch parameters after it; joins where that is due. */
    async update(
        { header, grads, inputs, rows }: Contribution,
        select: Select | undefined,
        what: string,
        timeout: number | undefined,
    ): Promise<Exchange> {
        const patience = new Patience(this.#settings, what, timeout);
        const layout = await this.havePlace(timeout);
        const gradients = new Gradients(layout, grads, what, inputs);
        const updateRows = rows && new UpdateRows(layout, rows, what);
        header.withoutGradient = gradients.withoutGradient;
        header.inputs = [...gradients.inputs];
        header.rowsOnly = grads === undefined;
        header.rows = updateRows?.counts() ?? [];
        const versions = [grads && this.#baseVersion, rows && this.#rowsVersion].filter((known) => known !== undefined);
        if (versions.length > 0) {
            header.baseVersion = BigInt(Math.min(...versions));
        }
        const encoded = this.encoder && grads && new EncodedUpdate(this.encoder, layout);
        for (;;) {
            const membership = this.#membership as Membership;
            header.identity = this.#identity(membership);
            const exchange = new Exchange({ header, gradients, encoded, rows: updateRows }, select?.(layout));
            let answer: Answer | undefined;
            try {
                await this.#conclude(exchange, membership, patience);
                return exchange;
            } catch (error) {
                if (!(error instanceof errors.UnknownWorker)) {
                    throw error;
                }
                answer = await this.#comeBack(header.identity, patience, error);
            }
            if (answer !== undefined) {
                this.lastAnswer = exchange.answer = answer;
                if (select !== undefined) {
                    await this.#carryOut(exchange, patience);
                }
                return exchange;
            }
        }
    }

    /** Fetch parameters. A reader does this without ever joining. */
    async fetch(select: Select, what: string, timeout: number | undefined): Promise<Exchange> {
        const patience = new Patience(this.#settings, what, timeout);
        const exchange = new Exchange(undefined, select(await this.haveLayout()));
        await this.#carryOut(exchange, patience);
        if (exchange.version < this.version) {
            throw this.#wentBack(exchange.version);
        }
        this.version = exchange.version;
        if (exchange.received?.rows) {
            this.#rowsVersion = exchange.version;
        } else {
            this.#baseVersion = exchange.version;
        }
        return exchange;
    }

    /**
     * Become a worker of the run, in a new epoch.
     *
     * Throws RunRewound where the run is at an older version than this worker has been told of: what it is about to push
     * belongs to a state that is gone.
     */
    async join(timeout?: number): Promise<void> {
        const { leaseSeconds } = this.#settings;
        const request = create(control.JoinRequestSchema, { run: this.run, worker: this.name, leaseSeconds });
        const joined = await collect(
            this.#server,
            methods.JOIN,
            request,
            () => new JoinPieces(),
            this.#what("join"),
            timeout,
        );
        const { membership } = joined;
        this.#know(membership.runUid, joined.layout);
        const { generation, epoch } = membership;
        this.#membership = { generation, epoch, sequence: 0, barriers: 0 };
        this.#lastAnswered = { epoch: membership.lastEpoch, sequence: membership.lastSequence };
        this.place = describePlace(membership.place);
        this.#keepLease(epoch, membership.leaseSeconds);
        this.#connection.members.add(this);
        const version = toNumber(membership.version);
        if (version < this.version) {
            throw this.#wentBack(version, true);
        }
        this.version = version;
    }

    /** Where this worker stands now; joins where that is due. */
    async lookAround(): Promise<Place> {
        await this.havePlace();
        const { epoch } = this.#membership as Membership;
        const request = create(control.HeartbeatRequestSchema, { run: this.run, worker: this.name, epoch });
        try {
            const response = await ask(this.#server, methods.HEARTBEAT, request, this.#what("place"));
            this.place = describePlace(response.place);
        } catch (error) {
            if (!(error instanceof errors.UnknownWorker)) {
                throw error;
            }
            await this.join();
        }
        return this.place as Place;
    }

    /** Wait until all live workers wait at this barrier. */
    async barrier(name: string, timeout: number | undefined): Promise<void> {
        for (;;) {
            await this.havePlace(timeout);
            const membership = this.#membership as Membership;
            if (membership.waiting !== undefined && membership.waiting !== name) {
                this.#membership = undefined; // a new epoch takes back the old wait
                continue;
            }
            membership.waiting = name;
            const request = create(control.BarrierRequestSchema, {
                run: this.run,
                worker: this.name,
                epoch: membership.epoch,
                barrier: name,
                call: BigInt(membership.barriers + 1),
            });
            const what = this.#what(`barrier '${name}'`);
            try {
                await collect(this.#server, methods.BARRIER, request, () => new Released(), what, timeout);
            } catch (error) {
                if (!(error instanceof errors.UnknownWorker)) {
                    throw error;
                }
                this.#membership = undefined; // the lease has run out
                continue;
            }
            membership.barriers++;
            membership.waiting = undefined;
            return;
        }
    }

    /** The layout, as a worker that has joined. */
    async havePlace(timeout?: number): Promise<Layout> {
        if (this.#membership === undefined || this.#layout === undefined) {
            await this.join(timeout);
        }
        return this.#layout as unknown as Layout;
    }

    /** The layout, fetched when it is first needed. */
    async haveLayout(): Promise<Layout> {
        if (this.#layout === undefined) {
            const request = create(control.GetLayoutRequestSchema, { run: this.run });
            const what = this.#what("layout");
            const pieces = await collect(this.#server, methods.GET_LAYOUT, request, () => new GetLayoutPieces(), what);
            this.#know(pieces.uid, pieces.layout);
        }
        return this.#layout as unknown as Layout;
    }

    /** The run went back, by our own doing or not: join anew before the next update. */
    rewound(version: number): void {
        this.version = version;
        this.#membership = this.#baseVersion = this.#rowsVersion = undefined;
    }

    /** End the stream, and the place in the run. */
    async leave(): Promise<void> {
        const stream = this.#stream;
        const membership = this.#membership;
        this.#stream = this.#membership = undefined;
        this.#stopHeartbeat();
        this.#connection.members.delete(this);
        if (stream !== undefined) {
            await end(stream);
        }
        if (membership !== undefined) {
            const { epoch } = membership;
            const request = create(control.LeaveRequestSchema, { run: this.run, worker: this.name, epoch });
            await say(this.#server, methods.LEAVE, request); // without success the lease will run out
        }
    }

    get #settings(): Settings {
        return this.#server.settings;
    }

    get #connection(): Connection {
        return this.#server.connection;
    }

    /**
     * Join again, as the lease has run out; undefined where the update has had no effect, and can be sent again.
     *
     * A gradient that was computed before counts as what it is: the policy looks at the version that it was taken at.
     */
    async #comeBack(
        identity: UpdateIdentity,
        patience: Patience,
        error: errors.UnknownWorker,
    ): Promise<Answer | undefined> {
        patience.check();
        log("%s: joins again: %s", patience.what, error.message);
        await this.join();
        const { epoch, sequence } = this.#lastAnswered;
        if (epoch < identity.epoch || (epoch === identity.epoch && sequence < identity.sequence)) {
            return undefined;
        }
        return { outcome: "committed", committedVersion: this.version };
    }

    /** Do the work of an update's exchange, and draw the conclusions for this worker. */
    async #conclude(exchange: Exchange, membership: Membership, patience: Patience): Promise<void> {
        try {
            await this.#carryOut(exchange, patience);
        } catch (error) {
            if (error instanceof errors.RunRewound) {
                this.rewound(error.version);
                await this.#rejoin();
            } else if (
                error instanceof errors.UnknownWorker ||
                error instanceof errors.SequenceGap ||
                error instanceof errors.SequenceReused ||
                error instanceof errors.SequenceTooOld
            ) {
                this.#membership = undefined;
            }
            throw error;
        } finally {
            this.#settle(exchange, membership);
        }
        if (exchange.received !== undefined && exchange.version < this.version) {
            // The answer came, then the server went down and came back from an older snapshot.
            throw this.#wentBack(exchange.version);
        }
    }

    /** Try until the exchange is done, refused, or the patience has run out. */
    async #carryOut(exchange: Exchange, patience: Patience): Promise<void> {
        const report = reporter(this.#settings, exchange.totalBytes);
        for (;;) {
            if (this.#stream === undefined) {
                this.#stream = this.#connection.open(methods.WORK);
                this.#exchanges = 0;
            }
            const stream = this.#stream;
            try {
                await this.#try(exchange, stream, patience, report);
                return;
            } catch (error) {
                if (error instanceof errors.StepwellError) {
                    throw error; // the exchange is over, the stream goes on
                }
                this.#stream = undefined;
                await again(this.#connection, stream, patience, error);
            }
        }
    }

    async #try(
        exchange: Exchange,
        stream: Stream<OutgoingWork, WorkResponse>,
        patience: Patience,
        report: (doneBytes: number) => void,
    ): Promise<void> {
        this.#exchanges++;
        for (const request of exchange.requests(this.#exchanges)) {
            await this.#send(exchange, stream, request, patience);
            report(exchange.movedBytes);
            if (exchange.done) {
                return;
            }
            if (exchange.answer !== undefined && !request.message.last) {
                // A retry of what was committed already: the server needs no more of it.
                await this.#send(exchange, stream, exchange.closing(), patience);
                break;
            }
        }
        while (!exchange.done) {
            await this.#receive(exchange, stream, patience);
            report(exchange.movedBytes);
        }
    }

    /** Send a message, unless the exchange is done before it is gone. */
    async #send(
        exchange: Exchange,
        stream: Stream<OutgoingWork, WorkResponse>,
        request: OutgoingWork,
        patience: Patience,
    ): Promise<void> {
        while (!exchange.done && !(await stream.send(request, patience.seconds()))) {
            await this.#receive(exchange, stream, patience);
        }
    }

    async #receive(exchange: Exchange, stream: Stream<OutgoingWork, WorkResponse>, patience: Patience): Promise<void> {
        const response = await stream.receive(patience.seconds());
        if (response === undefined) {
            throw new Lost(status.UNAVAILABLE, "the server ended the stream");
        }
        patience.heard();
        exchange.take(response);
    }

    /** Note what became of an update, however it ended. */
    #settle(exchange: Exchange, membership: Membership): void {
        const { answer, update } = exchange;
        if (answer !== undefined) {
            this.lastAnswer = answer;
            this.lossScale = answer.lossScale;
            this.version = Math.max(this.version, answer.committedVersion, exchange.version);
            if (exchange.received !== undefined && exchange.version > 0) {
                this.#baseVersion = exchange.version;
            }
            membership.sequence++;
            if (answer.outcome === "committed" || answer.outcome === "folded") {
                update?.encoded?.settle();
            }
        } else if (!exchange.refused) {
            // Given up, so its fate is not known. A new epoch fences whatever of it is still on its way.
            this.#membership = undefined;
        }
    }

    /**
     * Take the place in the run as it is now, so that its going back again would be heard of, too.
     *
     * Without success it is left to the next update: what has happened is to be thrown, not this.
     */
    async #rejoin(): Promise<void> {
        try {
            await this.join(this.#settings.silenceSeconds);
        } catch (error) {
            if (!(error instanceof errors.StepwellError)) {
                throw error;
            }
        }
    }

    /** Give signs of life in the background until this worker leaves; what comes back tells its place. */
    #keepLease(epoch: bigint, leaseSeconds: number): void {
        this.#stopHeartbeat();
        if (leaseSeconds <= 0) {
            return;
        }
        const request = create(control.HeartbeatRequestSchema, { run: this.run, worker: this.name, epoch });
        const seconds = leaseSeconds / HEARTBEATS_PER_LEASE;
        let underWay = false;
        const beat = async (): Promise<void> => {
            const timer = this.#heartbeat;
            const stream = this.#connection.open(methods.HEARTBEAT, request);
            try {
                const response = await stream.receive(seconds);
                if (response !== undefined && timer === this.#heartbeat) {
                    this.place = describePlace(response.place);
                }
            } catch (failure) {
                if (!isFailure(failure)) {
                    throw failure;
                }
                stream.cancel(); // the next one may arrive; whoever pushes meanwhile hears what is wrong
            }
        };
        this.#heartbeat = setInterval(
            () => {
                if (this.#connection.closed) {
                    this.#stopHeartbeat();
                } else if (!underWay) {
                    underWay = true;
                    void beat().finally(() => (underWay = false));
                }
            },
            Math.min(TIMER_MS_MAX, seconds * 1000),
        );
        this.#heartbeat.unref(); // signs of life alone keep no program running
    }

    #stopHeartbeat(): void {
        clearInterval(this.#heartbeat);
        this.#heartbeat = undefined;
    }

    #identity(membership: Membership): UpdateIdentity {
        return create(UpdateIdentitySchema, {
            run: this.run,
            runUid: this.uid,
            generation: membership.generation,
            worker: this.name,
            epoch: membership.epoch,
            sequence: BigInt(membership.sequence + 1),
            fingerprint: randomBytes(FINGERPRINT_BYTES),
            acknowledgedVersion: BigInt(this.version),
        });
    }

    #know(uid: Uint8Array, pieces: LayoutPieces): void {
        if (this.uid.length > 0 && Buffer.compare(uid, this.uid) !== 0) {
            throw new errors.RunReplaced(
                `${this.#what("join")}: got a run with another uid, expected the one that this object was made for: it ` +
                    "was deleted and made anew; get it again with client.getRun",
                { run: this.run },
            );
        }
        if (this.#layout === undefined) {
            this.#layout = pieces.layout();
            this.uid = uid;
        }
    }

    #wentBack(version: number, joined = false): errors.RunRewound {
        const acknowledged = this.version;
        const membership = this.#membership;
        this.rewound(version);
        if (joined) {
            this.#membership = membership;
        }
        return new errors.RunRewound(
            `run '${this.run}': got version ${version}, expected ${acknowledged} or newer: the run went back to an older ` +
                "state; go on from its present parameters, pull() returns them",
            { acknowledged_version: String(acknowledged), version: String(version) },
        );
    }

    #what(call: string): string {
        return `run '${this.run}': ${call}`;
    }
}

/** Takes Barrier's word: the call ends when all have arrived. */
class Released {
    add(): void {
        // Nothing to keep.
    }
}

/** Takes what Join sends. */
class JoinPieces {
    membership = create(control.MembershipSchema);
    readonly layout = new LayoutPieces();

    add(message: control.JoinResponse): void {
        this.membership = message.membership ?? this.membership;
        if (message.layout) {
            this.layout.add(message.layout);
        }
    }
}

/** Takes what GetLayout sends. */
class GetLayoutPieces {
    uid: Uint8Array = new Uint8Array(0);
    readonly layout = new LayoutPieces();

    add(message: control.GetLayoutResponse): void {
        this.uid = this.uid.length > 0 ? this.uid : message.runUid;
        if (message.layout) {
            this.layout.add(message.layout);
        }
    }
}

/** A worker's name as it is; throws InvalidName. */
export function checkName(worker: string): string {
    if (!NAME_PATTERN.test(worker)) {
        throw new errors.InvalidName(
            `got the worker name ${show(worker)}, expected ${NAME_PATTERN.source}; choose another`,
        );
    }
    return worker;
}

/** A name that no other worker has, of host and process. */
function defaultName(): string {
    const place =
        hostname()
            .replace(/[^A-Za-z0-9._-]/g, "-")
            .replace(/^[._-]+/, "") || "worker";
    return `${place.slice(0, 80)}-${process.pid}-${randomBytes(4).toString("hex")}`;
}
