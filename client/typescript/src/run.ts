/** What can be done with a run. */

import { create } from "@bufbuild/protobuf";

import { type ArrayLike, type Arrays, byName, type ByName, type DType, type FloatArray, newArray } from "./arrays.js";
import { ask, collect, deliver, reporter, type Server } from "./calls.js";
import {
    type Answer,
    type Checkpoint,
    describeCheckpoint,
    describeRun,
    type Place,
    type RunDescription,
} from "./descriptions.js";
import { Decoder, Encoder } from "./encoding.js";
import { Internal, InvalidRows, InvalidValue, RunReplaced, RunRewound } from "./errors.js";
import type { Exchange } from "./exchange.js";
import * as control from "./generated/stepwell/v1/control_pb.js";
import type { UpdateHeader } from "./generated/stepwell/v1/data_pb.js";
import { SelectionSchema, UpdateHeaderSchema } from "./generated/stepwell/v1/data_pb.js";
import type { Run as RunMessage } from "./generated/stepwell/v1/run_pb.js";
import * as methods from "./methods.js";
import type { Gradient } from "./packing.js";
import { Received } from "./receiving.js";
import { type Ids, type RowGradients, SelectedRows } from "./rows.js";
import {
    checkKeys,
    encodeHyperparameters,
    encodePolicy,
    encodeSchedules,
    encodeUpdateHyperparameters,
    type Hyperparameters,
} from "./spec.js";
import { type FoundState, type State, stateBytes, StatePieces, stateRequests } from "./state.js";
import { type Part, type Schedule, show, toNumber } from "./values.js";
import { type Select, Worker } from "./worker.js";

/** New numbers of hyperparameters, for every group that has one, or by group. */
export type UpdateHyperparameters = Readonly<Record<string, number | Readonly<Record<string, number>>>>;

/** What an update may carry beside its gradients; see Run.step. */
export interface UpdateOptions {
    /** Over how many samples the gradients were taken; advances the clock of samples. */
    readonly samples?: number | undefined;
    /** For optimizers that need it (polyak_sgd, momo). */
    readonly loss?: number | undefined;
    /** New numbers, set for good with this update's commit: { lr: 0.1 }, or { no_decay: { lr: 0.1 } } for one group. */
    readonly hyperparameters?: UpdateHyperparameters | undefined;
    /** What else an optimizer takes, as { hessian: { w: array } }; see listOptimizers. */
    readonly inputs?: ByName<ByName<ArrayLike>> | undefined;
    /** What the loss was multiplied by, for the transform unscale; by default run.lossScale. */
    readonly lossScale?: number | undefined;
    /** For the transform sparsity_lr with source "client". */
    readonly sparsityFactor?: number | undefined;
    /** Gradients of rows that go with the same commit, as { user: [ids, gradients] }; see Run.pushRows. */
    readonly rows?: ByName<RowGradients> | undefined;
    /** Seconds for all of it; by default it waits while the server gives word. */
    readonly timeout?: number | undefined;
}

export interface StepOptions extends UpdateOptions {
    /** Arrays to fill in place; only these parameters are returned. After an error their content is undefined. */
    readonly out?: Arrays | undefined;
}

export interface PullOptions {
    /** Which parameters; all by default, or those of `out`. */
    readonly names?: Iterable<string> | undefined;
    /** Return undefined if the run is not beyond this version. */
    readonly ifNewerThan?: number | undefined;
    /** Which point: "parameters" (where gradients are taken), "evaluation", "average" or "lookahead". */
    readonly of?: string | undefined;
    /** As the server has them, even where the run encodes what it sends. */
    readonly exact?: boolean | undefined;
    /** Arrays to fill in place. */
    readonly out?: Arrays | undefined;
    /** Seconds for all of it. */
    readonly timeout?: number | undefined;
}

export interface ChangeOptions {
    /** New values; under a schedule, the value that it starts from. */
    readonly hyperparameters?: Hyperparameters | undefined;
    /** New schedules by hyperparameter, counted from 0 at the change unless keepClock; null takes one away. */
    readonly schedules?: Readonly<Record<string, Schedule | null>> | undefined;
    readonly keepClock?: boolean | undefined;
    /** Where; by default every group that has what changes. */
    readonly group?: string | undefined;
    /** The run must still be as this description of it said, else EtagMismatch. */
    readonly etag?: string | undefined;
    /** Another policy, as for createRun; updates that wait are handed to it. */
    readonly policy?: string | Part | undefined;
}

/** What a parameter is; arrays here are flat, so this is where its shape is found. */
export interface ParameterDescription {
    readonly name: string;
    readonly shape: readonly number[];
    readonly dtype: DType;
    readonly group: string;
    readonly frozen: boolean;
}

const UPDATE_KEYS = [
    "samples",
    "loss",
    "hyperparameters",
    "inputs",
    "lossScale",
    "sparsityFactor",
    "rows",
    "timeout",
] as const satisfies readonly (keyof UpdateOptions)[];
const PULL_KEYS = [
    "names",
    "ifNewerThan",
    "of",
    "exact",
    "out",
    "timeout",
] as const satisfies readonly (keyof PullOptions)[];
const CHANGE_KEYS = [
    "hyperparameters",
    "schedules",
    "keepClock",
    "group",
    "etag",
    "policy",
] as const satisfies readonly (keyof ChangeOptions)[];

/**
 * A run on the server, as seen by one worker or reader; made by createRun and getRun.
 *
 * A push or step makes the caller a worker of the run; whoever only reads never joins. Operations on one object follow one
 * another in the order in which they were called, so a call need not be awaited before the next one is made: `const next =
 * run.step(grads)` goes on while the program computes. Arrays that are given must stay as they are until the promise is
 * settled. Workers that shall push at the same time need a client each.
 */
export class Run {
    /** Whether the createRun that gave this object made the run; false where it existed. */
    readonly created: boolean;
    readonly #server: Server;
    readonly #worker: Worker;
    readonly #decoder: Decoder | undefined;
    #queue: Promise<unknown> = Promise.resolve();
    #lastAnswer: Answer | undefined;
    #closed = false;

    /** @internal */
    constructor(server: Server, run: RunMessage | undefined, created: boolean) {
        const spec = run?.spec;
        if (run === undefined || spec === undefined) {
            throw new Internal("got no run or no spec, expected both; report this");
        }
        const encoder = spec.gradientEncoding && new Encoder(spec.gradientEncoding);
        const known = { name: run.name, uid: run.uid, version: toNumber(run.version) };
        this.#server = server;
        this.#worker = new Worker(server, known, encoder, run.lossScale);
        this.#decoder = spec.parameterEncoding && new Decoder(spec.parameterEncoding);
        this.created = created;
    }

    /** The run's name. */
    get name(): string {
        return this.#worker.run;
    }

    /** The name under which this object joins, or has joined. */
    get worker(): string {
        return this.#worker.name;
    }

    /** The newest version of the run that this object was told of. */
    get version(): number {
        return this.#worker.version;
    }

    /** What became of the last update that was answered: committed or skipped, and at which version. */
    get lastAnswer(): Answer | undefined {
        return this.#lastAnswer ?? this.#worker.lastAnswer;
    }

    /** Where this worker stands among the live ones, as the server told last; undefined before it has joined. */
    get place(): Place | undefined {
        return this.#worker.place;
    }

    /** What to multiply the next loss by, as the last answer told; undefined without the transform `unscale`. */
    get lossScale(): number | undefined {
        return this.#worker.lossScale;
    }

    /** Become a worker of the run now rather than with the first push. */
    join(): Promise<void> {
        return this.#exclusive(() => this.#worker.join());
    }

    /**
     * Push gradients and return the parameters after the update.
     *
     * grads: for every parameter that is not frozen a flat array of its elements in C order, or a tensor of its shape, or
     * null where it has no gradient in this update; such a parameter, its slots and its step stay as they are. The dtype is
     * the parameter's, or one that the server's state holds exactly: a Float32Array for a float64 parameter is widened
     * there, and 16-bit parameters take a Float32Array as it is.
     *
     * The arrays belong to the caller. They have the version `run.version`: the update's own or a newer one. After TimedOut
     * the update may have been applied or not; the next push takes back what was not, unless an open round has it already.
     * Throws InvalidGradient before anything is sent; NonfiniteGradient and others, which leave the run as it was;
     * RunRewound, see there. With onRewind: "continue" the update of a run that went back is dropped instead, the present
     * parameters are returned, and lastAnswer says "rewound".
     */
    step(grads: ByName<Gradient>, options: StepOptions = {}): Promise<Arrays> {
        return this.#exclusive(async () => {
            checkKeys("step", options, [...UPDATE_KEYS, "out"]);
            const { out, timeout } = options;
            const select = this.#selecting("step", { out });
            try {
                const exchange = await this.#update(grads, options, select, "step");
                return received(exchange);
            } catch (error) {
                this.#goOn(error);
                return received(
                    await this.#worker.fetch(this.#selecting("step", { out }), this.#what("step"), timeout),
                );
            }
        });
    }

    /**
     * Push gradients, return no parameters. The arguments are step's.
     *
     * Returns the version that holds the update; where it was skipped, the version that it found (see lastAnswer). With
     * onRewind: "continue", and an update dropped because the run went back, the present version.
     */
    push(grads: ByName<Gradient>, options: UpdateOptions = {}): Promise<number> {
        return this.#exclusive(() => {
            checkKeys("push", options, UPDATE_KEYS);
            return this.#push(grads, options, "push");
        });
    }

    /**
     * Return parameters, all at one version: `run.version`. The arrays belong to the caller.
     *
     * Throws UnknownParameter, UnknownPoint; and RunRewound, once, where the run is at an older version than this object
     * has been told of. With onRewind: "continue" the older parameters are returned.
     */
    pull(options?: Omit<PullOptions, "ifNewerThan"> & { readonly ifNewerThan?: undefined }): Promise<Arrays>;
    pull(options: PullOptions): Promise<Arrays | undefined>;
    pull(options: PullOptions = {}): Promise<Arrays | undefined> {
        return this.#exclusive(async () => {
            checkKeys("pull", options, PULL_KEYS);
            const names = options.names && [...options.names];
            const fetch = async (ifNewerThan: number | undefined): Promise<Arrays | undefined> => {
                const select = this.#selecting("pull", { ...options, names, ifNewerThan });
                const exchange = await this.#worker.fetch(select, this.#what("pull"), options.timeout);
                return exchange.unchanged ? undefined : received(exchange);
            };
            try {
                return await fetch(options.ifNewerThan);
            } catch (error) {
                this.#goOn(error);
                return fetch(undefined);
            }
        });
    }

    /** The present parameters, as a worker: joins the run. Give them to step as `out` to have them filled in place. */
    parameters(): Promise<Arrays> {
        return this.#exclusive(async () => {
            const fetch = async (): Promise<Arrays> => {
                await this.#worker.havePlace();
                return received(
                    await this.#worker.fetch(this.#selecting("parameters", {}), this.#what("parameters"), undefined),
                );
            };
            try {
                return await fetch();
            } catch (error) {
                this.#goOn(error);
                return fetch();
            }
        });
    }

    /** Arrays of zeros to write the next gradients to, for every parameter that is not frozen; joins the run. */
    gradients(): Promise<Arrays> {
        return this.#exclusive(async () => {
            const layout = await this.#worker.havePlace();
            return byName(layout.trained.map(({ name, dtype, count }) => [name, newArray(dtype, count)]));
        });
    }

    /** What the parameters are, in the layout's order: their shapes and dtypes. */
    describeParameters(): Promise<ParameterDescription[]> {
        return this.#exclusive(async () => {
            const { parameters, groups } = await this.#worker.haveLayout();
            return parameters.map(({ name, shape, dtype, group, frozen }) => {
                return { name, shape, dtype, group: groups[group].name, frozen };
            });
        });
    }

    /**
     * Push gradients of rows alone: parameters, their slots and their steps stay as they are.
     *
     *     await run.pushRows("user", ids, grads);
     *     await run.pushRows({ user: [ids, grads], item: [otherIds, otherGrads] }); // in one update
     *
     * ids: integers of 64 bits; an id may come several times, and its gradients are summed. grads: ids.length * width
     * elements, row after row, in the table's dtype. Returns the version that holds the update. Throws UnknownTable, and
     * InvalidRows, before anything is sent; TableFull, NonfiniteGradient, RunRewound and others.
     */
    pushRows(table: string, ids: Ids, grads: ArrayLike, options?: RowOptions): Promise<number>;
    pushRows(rows: ByName<RowGradients>, options?: RowOptions): Promise<number>;
    pushRows(
        table: string | ByName<RowGradients>,
        idsOrOptions?: Ids | RowOptions,
        grads?: ArrayLike,
        more: RowOptions = {},
    ): Promise<number> {
        return this.#exclusive(() => {
            const alone = typeof table === "string";
            const rows = alone ? { [table]: [idsOrOptions, grads] as unknown as RowGradients } : table;
            const options = alone ? more : ((idsOrOptions ?? {}) as RowOptions);
            checkKeys("pushRows", options, ["samples", "hyperparameters", "timeout"]);
            checkTables("pushRows", rows);
            return this.#push(undefined, { ...options, rows }, "pushRows");
        });
    }

    /**
     * Return the values of rows, all at one version: `run.version`.
     *
     *     await run.pullRows("user", ids); // ids.length * width elements, row after row
     *     await run.pullRows({ user: ids, item: otherIds }); // an array for each table, at one version
     *
     * A row that does not exist has what it would begin with, and is not created. Throws UnknownTable, InvalidRows;
     * LimitExceeded for more than 393,216 ids; RunRewound, see pull.
     */
    pullRows(table: string, ids: Ids, options?: { readonly timeout?: number | undefined }): Promise<FloatArray>;
    pullRows(ids: ByName<Ids>, options?: { readonly timeout?: number | undefined }): Promise<Arrays>;
    pullRows(
        table: string | ByName<Ids>,
        idsOrOptions?: Ids | { readonly timeout?: number | undefined },
        more: { readonly timeout?: number | undefined } = {},
    ): Promise<FloatArray | Arrays> {
        return this.#exclusive(async () => {
            const alone = typeof table === "string";
            const ids = alone ? { [table]: idsOrOptions as Ids } : table;
            const options = alone ? more : ((idsOrOptions ?? {}) as { readonly timeout?: number | undefined });
            checkKeys("pullRows", options, ["timeout"]);
            checkTables("pullRows", ids);
            const what = this.#what("pullRows");
            const select: Select = (layout) => {
                const rows = new SelectedRows(layout, ids, what);
                const selection = create(SelectionSchema, {
                    run: this.name,
                    runUid: this.#worker.uid,
                    rowsOnly: true,
                    rows: rows.messages(what),
                });
                return { selection, received: new Received(layout, [], undefined, undefined, rows) };
            };
            let exchange: Exchange;
            try {
                exchange = await this.#worker.fetch(select, what, options.timeout);
            } catch (error) {
                this.#goOn(error);
                exchange = await this.#worker.fetch(select, what, options.timeout);
            }
            const found = exchange.received?.rows?.arrays() ?? [];
            return alone ? found[0][1] : byName(found);
        });
    }

    /** Ask for the run as it is now: its version, etag, hyperparameters, schedules, workers. */
    async refresh(): Promise<RunDescription> {
        this.#checkOpen();
        const request = create(control.GetRunRequestSchema, { run: this.name });
        const { run } = await ask(this.#server, methods.GET_RUN, request, this.#what("refresh"));
        const description = describeRun(run);
        if (Buffer.compare(this.#worker.uid, description.uid) !== 0) {
            throw new RunReplaced(
                `${this.#what("refresh")}: got a run with another uid, expected the one that this object was made for: it ` +
                    "was deleted and made anew; get it again with client.getRun",
                { run: this.name },
            );
        }
        this.#worker.version = Math.max(this.#worker.version, description.version);
        return description;
    }

    /**
     * Change the live run, from its next commit on; slots are kept.
     *
     * Throws ChangeRefused where a slot would come or go, PolicyRefused where workers would wait for ever.
     */
    change(options: ChangeOptions): Promise<RunDescription> {
        return this.#exclusive(async () => {
            checkKeys("change", options, CHANGE_KEYS);
            const schedules = Object.entries(options.schedules ?? {});
            const request = create(control.UpdateRunRequestSchema, {
                run: this.name,
                group: options.group ?? "",
                hyperparameters: encodeHyperparameters(options.hyperparameters),
                schedules: encodeSchedules(Object.fromEntries(schedules.filter(([, schedule]) => schedule !== null))),
                schedulesRemoved: schedules.filter(([, schedule]) => schedule === null).map(([name]) => name),
                keepClock: options.keepClock ?? false,
                etag: options.etag ?? "",
                ...(options.policy !== undefined && { policy: encodePolicy(options.policy) }),
            });
            const once = { repeat: false };
            const { run } = await ask(this.#server, methods.UPDATE_RUN, request, this.#what("change"), once);
            return describeRun(run);
        });
    }

    /**
     * Which of so many samples are this worker's, from `begin` to before `end`: even, contiguous shares in the order of the
     * live workers' places.
     *
     * Ask again after place.membershipNumber has changed: the shares follow whoever joins or leaves. Joins the run.
     */
    assignment(samplesCount: number): Promise<{ begin: number; end: number }> {
        return this.#exclusive(async () => {
            if (!Number.isSafeInteger(samplesCount) || samplesCount < 0) {
                throw new InvalidValue(
                    `assignment: got ${show(samplesCount)} samples, expected a whole number; give one`,
                );
            }
            const { index, count } = await this.#worker.lookAround();
            const share = (place: number): number => Number((BigInt(samplesCount) * BigInt(place)) / BigInt(count));
            return { begin: share(index), end: share(index + 1) };
        });
    }

    /**
     * Wait until every live worker of the run waits at the barrier of this name; joins the run.
     *
     * Workers that join meanwhile must come, too; those that leave, or whose lease runs out, count no longer.
     * timeout: in seconds; then TimedOut is thrown. By default it waits while the server gives word.
     */
    barrier(name = "barrier", { timeout }: { readonly timeout?: number | undefined } = {}): Promise<void> {
        return this.#exclusive(() => this.#worker.barrier(name, timeout));
    }

    /**
     * Report metrics, such as { val_loss: 0.3 }: schedules that wait for one (plateau) follow from the next commit.
     *
     * Not repeated if the connection breaks: the report may then have been taken or not.
     */
    async report(metrics: Readonly<Record<string, number>>): Promise<RunDescription> {
        this.#checkOpen();
        const request = create(control.ReportRequestSchema, {
            run: this.name,
            metrics: byName(Object.entries(metrics)),
        });
        const { run } = await ask(this.#server, methods.REPORT, request, this.#what("report"), { repeat: false });
        return describeRun(run);
    }

    /** Store the run's state on the server while training goes on. name: by default version-N. */
    async saveCheckpoint(name = ""): Promise<Checkpoint> {
        this.#checkOpen();
        const request = create(control.SaveCheckpointRequestSchema, { run: this.name, checkpoint: name });
        const what = this.#what("saveCheckpoint");
        const { checkpoint } = await ask(this.#server, methods.SAVE_CHECKPOINT, request, what, { repeat: false });
        return describeCheckpoint(checkpoint);
    }

    /** The run's checkpoints, oldest first. */
    async listCheckpoints(): Promise<Checkpoint[]> {
        this.#checkOpen();
        const checkpoints: Checkpoint[] = [];
        let pageToken = "";
        do {
            const request = create(control.ListCheckpointsRequestSchema, { run: this.name, pageToken });
            const page = await ask(this.#server, methods.LIST_CHECKPOINTS, request, this.#what("listCheckpoints"));
            checkpoints.push(...page.checkpoints.map(describeCheckpoint));
            pageToken = page.nextPageToken;
        } while (pageToken !== "");
        return checkpoints;
    }

    /** Take the run back to a checkpoint. Other workers get RunRewound; this object joins anew by itself. */
    restoreCheckpoint(name: string): Promise<RunDescription> {
        return this.#exclusive(async () => {
            const request = create(control.RestoreCheckpointRequestSchema, { run: this.name, checkpoint: name });
            const what = this.#what("restoreCheckpoint");
            const { run } = await ask(this.#server, methods.RESTORE_CHECKPOINT, request, what, { repeat: false });
            return this.#rewound(describeRun(run));
        });
    }

    /** The run's whole state at one version, but no rows of tables. The arrays belong to the caller. */
    async getState(): Promise<FoundState> {
        this.#checkOpen();
        const layout = await this.#worker.haveLayout();
        const request = create(control.GetStateRequestSchema, { run: this.name });
        const what = this.#what("getState");
        const pieces = await collect(this.#server, methods.GET_STATE, request, () => new StatePieces(layout), what);
        return pieces.state();
    }

    /** What the optimizer keeps beside each parameter: arrays by parameter and slot. */
    async slots(): Promise<Record<string, Arrays>> {
        return (await this.getState()).slots;
    }

    /**
     * Replace the run's whole state, all or nothing; the run takes the state's version and samples.
     *
     * state: as getState gives it, also of another run with the same parameters and optimizer. expectedVersion: where the
     * run must be, else VersionMismatch. Other workers get RunRewound; this object joins anew by itself.
     */
    setState(state: State, { expectedVersion }: { readonly expectedVersion?: number } = {}): Promise<RunDescription> {
        return this.#exclusive(async () => {
            const layout = await this.#worker.haveLayout();
            const report = reporter(this.#server.settings, stateBytes(state));
            const requests = function* (name: string): Generator<control.SetStateRequest> {
                let doneBytes = 0;
                for (const request of stateRequests(name, state, layout, expectedVersion)) {
                    yield request;
                    doneBytes += request.ranges.reduce((sum, { range }) => sum + (range?.data.byteLength ?? 0), 0);
                    report(doneBytes);
                }
            };
            const what = this.#what("setState");
            const { run } = await deliver(this.#server, methods.SET_STATE, () => requests(this.name), what);
            return this.#rewound(describeRun(run));
        });
    }

    /** Leave the run, once what is under way has ended. The run itself goes on; nothing happens the second time. */
    async close(): Promise<void> {
        if (!this.#closed) {
            this.#closed = true;
            await this.#after(() => this.#worker.leave());
        }
    }

    async [Symbol.asyncDispose](): Promise<void> {
        await this.close();
    }

    async #push(grads: ByName<Gradient> | undefined, options: UpdateOptions, call: string): Promise<number> {
        try {
            const { answer } = await this.#update(grads, options, undefined, call);
            return answer?.committedVersion ?? this.version;
        } catch (error) {
            this.#goOn(error);
            return this.version;
        }
    }

    async #update(
        grads: ByName<Gradient> | undefined,
        options: UpdateOptions,
        select: Select | undefined,
        call: string,
    ): Promise<Exchange> {
        this.#lastAnswer = undefined;
        const { inputs, rows, timeout } = options;
        const contribution = { header: this.#header(options), grads, inputs, rows };
        return this.#worker.update(contribution, select, this.#what(call), timeout);
    }

    /** What an update carries, but for its identity and names. */
    #header(options: UpdateOptions): UpdateHeader {
        const lossScale = options.lossScale ?? this.lossScale;
        return create(UpdateHeaderSchema, {
            samples: options.samples ?? 0,
            hyperparameters: encodeUpdateHyperparameters(options.hyperparameters),
            ...(options.loss !== undefined && { loss: options.loss }),
            ...(lossScale !== undefined && { lossScale }),
            ...(options.sparsityFactor !== undefined && { sparsityFactor: options.sparsityFactor }),
        });
    }

    /** Makes the selection, and what takes it, once the layout is known. */
    #selecting(
        call: string,
        { names, out, ifNewerThan, of = "parameters", exact = false }: PullOptions & { names?: string[] | undefined },
    ): Select {
        return (layout) => {
            const wanted = names ?? (out && Object.keys(out));
            const parameters = wanted === undefined ? layout.parameters : layout.select(wanted);
            if (parameters.length === 0 && layout.parameters.length > 0) {
                throw new InvalidValue(
                    `${call}: got an empty choice of parameters, expected names; leave it out for all`,
                );
            }
            const everything = parameters.length === layout.parameters.length;
            const decoder = exact ? undefined : this.#decoder;
            const indices = everything ? [] : parameters.map(({ index }) => index).sort((one, other) => one - other);
            const selection = create(SelectionSchema, {
                run: this.name,
                parameters: indices,
                ...(ifNewerThan !== undefined && { ifNewerThan: version(ifNewerThan) }),
                runUid: this.#worker.uid,
                point: of,
                encoded: decoder !== undefined,
            });
            return { selection, received: new Received(layout, parameters, out, decoder) };
        };
    }

    #rewound(description: RunDescription): RunDescription {
        this.#worker.rewound(description.version);
        return description;
    }

    /** With onRewind: "continue" note that the update was dropped; else throw. */
    #goOn(error: unknown): void {
        if (!(error instanceof RunRewound) || this.#server.settings.onRewind === "raise") {
            throw error;
        }
        this.#lastAnswer = { outcome: "rewound", committedVersion: error.version };
    }

    /** Do something when everything that was asked for before has ended. */
    async #exclusive<T>(work: () => Promise<T>): Promise<T> {
        this.#checkOpen();
        return this.#after(work);
    }

    #after<T>(work: () => Promise<T>): Promise<T> {
        const result = this.#queue.then(work);
        this.#queue = result.catch(() => undefined);
        return result;
    }

    #checkOpen(): void {
        if (this.#closed) {
            throw new Error(`run '${this.name}': got a call on a closed run; get it again with client.getRun`);
        }
    }

    #what(call: string): string {
        return `run '${this.name}': ${call}`;
    }
}

/** Options of pushRows; see step. { user: { lr: 0.1 } } as hyperparameters is for one table. */
export type RowOptions = Pick<UpdateOptions, "samples" | "hyperparameters" | "timeout">;

function received(exchange: Exchange): Arrays {
    if (exchange.received === undefined) {
        throw new Internal("got no parameters, expected them; report this");
    }
    return exchange.received.arrays();
}

function version(number: number): bigint {
    if (!Number.isSafeInteger(number) || number < 0) {
        throw new InvalidValue(`got the version ${show(number)}, expected a whole number; give one that the run told`);
    }
    return BigInt(number);
}

function checkTables(call: string, rows: unknown): void {
    const empty =
        typeof rows !== "object" || rows === null || (rows instanceof Map ? rows.size : Object.keys(rows).length) === 0;
    if (empty) {
        throw new InvalidRows(
            `${call}: got no table, expected one or more; name the tables, with no ids where there are none`,
        );
    }
}
