/** What can be asked of a server. */

import { create } from "@bufbuild/protobuf";

import { type ArrayLike, type ByName, type Elements, ITEM_BYTES } from "./arrays.js";
import { again, ask, end, log, Patience, type Progress, reporter, type Server, type Settings } from "./calls.js";
import { Connection, type Stream } from "./connection.js";
import {
    describeOptimizer,
    describePart,
    describeRun,
    describeSchedule,
    describeServer,
    type OptimizerDescription,
    type PartDescription,
    type RunDescription,
    type ScheduleDescription,
    type ServerDescription,
} from "./descriptions.js";
import { Internal, InvalidValue } from "./errors.js";
import * as control from "./generated/stepwell/v1/control_pb.js";
import type { Spec } from "./generated/stepwell/v1/run_pb.js";
import { type Layout, LayoutPieces } from "./layout.js";
import * as methods from "./methods.js";
import { pack, type Part } from "./packing.js";
import { sizeBytes, wholeRange } from "./payload.js";
import { Run } from "./run.js";
import { checkKeys, encodeSpec, parameterElements, type RunOptions, specRequests } from "./spec.js";
import { encodeSchedule, type Schedule, show } from "./values.js";
import { checkName } from "./worker.js";

/** How `connect` makes a client; every limit is in seconds. */
export interface ConnectOptions {
    /**
     * The name under which runs are joined; by default each run object has one of its own, of host and process. A second
     * join under the same name fences the first, so a name must be one worker's alone.
     */
    readonly worker?: string | undefined;
    /** How long the server may give no word before the connection is given up and made again; 30. */
    readonly silenceSeconds?: number;
    /** How long that goes on before a call throws ServerUnavailable or TimedOut; 120. */
    readonly patienceSeconds?: number;
    /** The longest pause before the second try, which doubles with each; 0.05. */
    readonly retrySeconds?: number;
    /** The bound of that; 2. */
    readonly retrySecondsMax?: number;
    /** When the run went back to an older state: "raise" RunRewound, once, or "continue" with the present parameters. */
    readonly onRewind?: "raise" | "continue";
    /** Hears of transfers of 16 MiB and more. */
    readonly progress?: Progress | undefined;
    /** After how long without a sign of life the server counts a worker as gone; the SDK gives three in it; 30. */
    readonly leaseSeconds?: number;
}

const ADDRESS_VARIABLE = "STEPWELL_ADDRESS";
const PREVIEW_STEPS_MAX = 100_000;

/**
 * A client of the server at an address. Nothing is sent before the first call.
 *
 * address: HOST:PORT or unix:/path; by default what STEPWELL_ADDRESS says. While the server gives word a call waits as
 * long as it takes, unless it was given a timeout. Throws InvalidValue and InvalidName.
 */
export function connect(address?: string, options: ConnectOptions = {}): Client {
    const settings = makeSettings(address, options);
    return new Client({ connection: new Connection(settings.address), settings });
}

/** A connection to a server; made by `connect`. It is opened at the first call, and again whenever it was lost. */
export class Client {
    readonly #server: Server;

    /** @internal */
    constructor(server: Server) {
        this.#server = server;
    }

    /** Where the server is. */
    get address(): string {
        return this.#server.settings.address;
    }

    /**
     * Create a run, or find it where it exists with the same spec, and join it as a worker.
     *
     * parameters: arrays of floats by name: a Float32Array or Float64Array has one dimension, `tensor(data, shape, dtype)`
     * any, and dtype "float16" or "bfloat16" makes parameters of 16 bits, beside which the server keeps float32 copies.
     * The first creator's values win; `run.created` tells. (Where the connection broke after the creation and before the
     * word of it came, it says false.)
     * optimizer, flavor, hyperparameters, schedules: by the catalogue's names, see listOptimizers and listSchedules. null
     * switches off what a hyperparameter controls. groups: the first whose glob matches wins, the rest is "default".
     * nonfinite: what happens to gradients with a NaN or an infinity: "reject" (an error), "skip" (counted), "allow".
     * samplesPerEpoch: for schedules on the clock of epochs. definition: an optimizer of your own, as the text of a
     * function; parsed and compiled, never evaluated.
     * transforms: what happens to the combined gradient, in order: [{ name: "clip_by_global_norm", max_norm: 1 }]; see
     * listTransforms. wrappers: what runs around the optimizer: [{ name: "ema", decay: 0.999 }]; see listWrappers.
     * reportNorms: whether run.lastAnswer tells the norms of gradients and parameters.
     * encodings: what makes them smaller where they travel, as { gradients: "int8", parameters: "bfloat16" } or with
     * arguments, { gradients: { name: "top_k", density: 0.05 } }; see listEncodings. What an update drops of a gradient is
     * owed and sent later. policy: how the updates of several workers become commits: "async" (the default), { name:
     * "bounded", lead_max: 3 }, { name: "sync", quorum: 3 }; see listPolicies. tables: embedding tables; see TableSpec.
     *
     * Throws RunDiffers if a run of this name exists with another spec; Unknown... and Invalid... for what the server does
     * not know or take; MemoryExhausted.
     */
    async createRun(name: string, parameters: ByName<ArrayLike>, options: RunOptions = {}): Promise<Run> {
        const elements = parameterElements(parameters);
        const response = await this.#create(name, encodeSpec(elements, options), elements);
        const created = response.creation === control.Creation.CREATED;
        const run = new Run(this.#server, response.run, created);
        await run.join();
        return run;
    }

    /** A run that exists; joined only at the first push. Throws UnknownRun. */
    async getRun(name: string): Promise<Run> {
        const request = create(control.GetRunRequestSchema, { run: name });
        const { run } = await ask(this.#server, methods.GET_RUN, request, `run '${name}': getRun`);
        return new Run(this.#server, run, false);
    }

    /** All runs by name, as they are now. */
    async listRuns(): Promise<RunDescription[]> {
        const runs: RunDescription[] = [];
        let pageToken = "";
        do {
            const request = create(control.ListRunsRequestSchema, { pageToken });
            const page = await ask(this.#server, methods.LIST_RUNS, request, "listRuns");
            runs.push(...page.runs.map(describeRun));
            pageToken = page.nextPageToken;
        } while (pageToken !== "");
        return runs;
    }

    /** Delete a run with its snapshots and checkpoints. Throws UnknownRun. */
    async deleteRun(name: string): Promise<void> {
        const request = create(control.DeleteRunRequestSchema, { run: name });
        await ask(this.#server, methods.DELETE_RUN, request, `run '${name}': deleteRun`, { repeat: false });
    }

    /** Who the server is, what its limits are, and how long the question took. */
    async ping(): Promise<ServerDescription> {
        const start = performance.now();
        const response = await ask(this.#server, methods.GET_SERVER, create(control.GetServerRequestSchema), "ping");
        return describeServer(response, (performance.now() - start) / 1000);
    }

    /** Every optimizer with its flavors, arguments, defaults and slots. */
    async listOptimizers(): Promise<OptimizerDescription[]> {
        const request = create(control.ListOptimizersRequestSchema);
        const { optimizers } = await ask(this.#server, methods.LIST_OPTIMIZERS, request, "listOptimizers");
        return optimizers.map(describeOptimizer);
    }

    /** Every schedule with its arguments. */
    async listSchedules(): Promise<ScheduleDescription[]> {
        const request = create(control.ListSchedulesRequestSchema);
        const { schedules } = await ask(this.#server, methods.LIST_SCHEDULES, request, "listSchedules");
        return schedules.map(describeSchedule);
    }

    /** Every gradient transform with its arguments. */
    async listTransforms(): Promise<PartDescription[]> {
        return (await this.#parts("listTransforms")).transforms.map(describePart);
    }

    /** Every wrapper with its arguments and the points that it offers. */
    async listWrappers(): Promise<PartDescription[]> {
        return (await this.#parts("listWrappers")).wrappers.map(describePart);
    }

    /** Every policy with its arguments. */
    async listPolicies(): Promise<PartDescription[]> {
        return (await this.#parts("listPolicies")).policies.map(describePart);
    }

    /** Every encoding with its arguments, for gradients and for parameters. */
    async listEncodings(): Promise<{ gradients: PartDescription[]; parameters: PartDescription[] }> {
        const { gradientEncodings, parameterEncodings } = await this.#parts("listEncodings");
        return { gradients: gradientEncodings.map(describePart), parameters: parameterEncodings.map(describePart) };
    }

    /**
     * A schedule's values at clock 0, 1, ..., steps - 1; at most 100,000.
     *
     * initial: the hyperparameter's own value, from which the schedule starts unless it sets absolute values.
     */
    async previewSchedule(
        spec: Schedule,
        { initial, steps }: { readonly initial: number; readonly steps: number },
    ): Promise<Float64Array> {
        if (!Number.isInteger(steps) || steps < 0 || steps > PREVIEW_STEPS_MAX) {
            throw new InvalidValue(
                `got steps ${show(steps)}, expected 0 to ${PREVIEW_STEPS_MAX}; ask for a part of them`,
            );
        }
        const schedule = encodeSchedule(spec, "previewSchedule");
        const request = create(control.PreviewScheduleRequestSchema, { schedule, initial, steps });
        const { values } = await ask(this.#server, methods.PREVIEW_SCHEDULE, request, "previewSchedule");
        return Float64Array.from(values);
    }

    /** Leave every run that came from this client, cut off what is under way, and close the connection. */
    async close(): Promise<void> {
        const { connection } = this.#server;
        if (!connection.closed) {
            await connection.close();
        }
    }

    async [Symbol.asyncDispose](): Promise<void> {
        await this.close();
    }

    #parts(call: string): Promise<control.ListPartsResponse> {
        return ask(this.#server, methods.LIST_PARTS, create(control.ListPartsRequestSchema), call);
    }

    async #create(
        name: string,
        spec: Spec,
        elements: ReadonlyMap<string, Elements>,
    ): Promise<control.CreateRunResponse> {
        const { connection, settings } = this.#server;
        const patience = new Patience(settings, `run '${name}': createRun`);
        const totalBytes = [...elements.values()].reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
        const report = reporter(settings, totalBytes);
        for (;;) {
            const stream = connection.open(methods.CREATE_RUN);
            try {
                const response = await new Creation(name, spec, elements, patience, report).carryOut(stream);
                await end(stream);
                return response;
            } catch (failure) {
                await again(connection, stream, patience, failure);
            }
        }
    }
}

type CreationStream = Stream<control.CreateRunRequest, control.CreateRunResponse>;

/** One try to create a run: the spec, then, if the server asks for them, the values. */
class Creation {
    readonly #name: string;
    readonly #spec: Spec;
    readonly #elements: ReadonlyMap<string, Elements>;
    readonly #patience: Patience;
    readonly #report: (doneBytes: number) => void;
    readonly #layout = new LayoutPieces();
    #end: control.CreateRunResponse | undefined;

    constructor(
        name: string,
        spec: Spec,
        elements: ReadonlyMap<string, Elements>,
        patience: Patience,
        report: (doneBytes: number) => void,
    ) {
        this.#name = name;
        this.#spec = spec;
        this.#elements = elements;
        this.#patience = patience;
        this.#report = report;
    }

    /** Returns the last response: the run exists, or was created. */
    async carryOut(stream: CreationStream): Promise<control.CreateRunResponse> {
        await this.#send(stream, specRequests(this.#name, this.#spec));
        let sent = false;
        while (this.#end === undefined) {
            await this.#receive(stream);
            if (this.#layout.complete && !sent) {
                sent = true;
                await this.#send(stream, this.#values(this.#layout.layout()));
            }
        }
        return this.#end;
    }

    async #send(stream: CreationStream, requests: Iterable<control.CreateRunRequest>): Promise<void> {
        for (const request of requests) {
            while (this.#end === undefined && !(await stream.send(request, this.#patience.seconds()))) {
                await this.#receive(stream);
            }
        }
    }

    async #receive(stream: CreationStream): Promise<void> {
        const response = await stream.receive(this.#patience.seconds());
        if (response === undefined) {
            throw new Internal(
                `run '${this.#name}': got no end of the creation from the server, expected one; see its log`,
            );
        }
        this.#patience.heard();
        if (response.layout) {
            this.#layout.add(response.layout);
        }
        const { Creation: Word } = control;
        if (response.creation === Word.EXISTS || response.creation === Word.CREATED) {
            this.#end = response;
        }
    }

    *#values(layout: Layout): Generator<control.CreateRunRequest> {
        let request: control.CreateRunRequest | undefined;
        let doneBytes = 0;
        for (const pieces of pack(this.#parts(layout))) {
            if (request !== undefined) {
                yield request;
            }
            request = create(control.CreateRunRequestSchema);
            for (const piece of pieces) {
                request.values.push(wholeRange(piece));
                doneBytes += sizeBytes(piece);
            }
            this.#report(doneBytes);
        }
        request ??= create(control.CreateRunRequestSchema);
        request.valuesComplete = true;
        yield request;
    }

    *#parts(layout: Layout): Generator<Part> {
        for (const [group, members] of layout.byGroup.entries()) {
            for (const { name, dtype, offsetBytes } of members) {
                const bytes = this.#elements.get(name)?.bytes;
                if (bytes === undefined) {
                    throw new Internal(
                        `got a layout with parameter '${name}', expected those of the spec; report this`,
                    );
                }
                const itemBytes = ITEM_BYTES[dtype];
                yield { group, offsetBytes, bytes, itemBytes, groupItemBytes: itemBytes };
            }
        }
    }
}

/** Check what `connect` was given. */
function makeSettings(given: string | undefined, options: ConnectOptions): Settings {
    const address = given ?? process.env[ADDRESS_VARIABLE] ?? "";
    checkKeys("connect", options, [
        "worker",
        "silenceSeconds",
        "patienceSeconds",
        "retrySeconds",
        "retrySecondsMax",
        "onRewind",
        "progress",
        "leaseSeconds",
    ]);
    if (address === "") {
        throw new InvalidValue(
            `got no address, expected HOST:PORT or unix:/path; give it to connect or set ${ADDRESS_VARIABLE}`,
        );
    }
    if (!address.startsWith("unix:") && !/:\d+$/.test(address)) {
        throw new InvalidValue(`got the address ${show(address)}, expected HOST:PORT or unix:/path; add the port`);
    }
    const { onRewind = "raise", worker } = options;
    if (!["raise", "continue"].includes(onRewind)) {
        throw new InvalidValue(`got onRewind ${show(onRewind)}, expected 'raise' or 'continue'; choose one of them`);
    }
    const limits = {
        silenceSeconds: options.silenceSeconds ?? 30,
        patienceSeconds: options.patienceSeconds ?? 120,
        retrySeconds: options.retrySeconds ?? 0.05,
        retrySecondsMax: options.retrySecondsMax ?? 2,
        leaseSeconds: options.leaseSeconds ?? 30,
    };
    for (const [name, seconds] of Object.entries(limits)) {
        if (!(seconds > 0)) {
            throw new InvalidValue(
                `got ${name} ${show(seconds)}, expected more than 0 seconds; leave it out for the default`,
            );
        }
    }
    log("talks to %s", address);
    return {
        address,
        worker: worker === undefined ? undefined : checkName(worker),
        onRewind,
        progress: options.progress,
        ...limits,
    };
}
