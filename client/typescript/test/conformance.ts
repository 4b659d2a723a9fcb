/** Carries out the cases of tests/conformance with this client; the README there says what they mean. */

import { type ChildProcessByStdio, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { setTimeout as pause } from "node:timers/promises";
import { inspect } from "node:util";

import * as stepwell from "../src/index.js";
import { type Client, connect, type Run, type RunDescription, StepwellError, type Tensor } from "../src/index.js";
import { PACKAGE } from "./server.js";

/** What JSON has. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

type Fields = Readonly<Record<string, unknown>>;

interface ExpectedError {
    readonly reason: string;
    readonly message?: readonly string[];
    readonly details?: Readonly<Record<string, string>>;
}

interface Tolerance {
    readonly relative?: number;
    readonly absolute?: number;
}

export interface Step {
    readonly stand?: string;
    readonly client?: string;
    readonly do?: string;
    readonly run?: string;
    readonly with?: Fields;
    readonly expect?: Fields;
    readonly error?: ExpectedError;
    readonly until?: Fields;
    readonly begin?: string;
    readonly end?: string;
    readonly tolerance?: Tolerance;
    readonly [field: string]: unknown;
}

export interface Case {
    readonly title: string;
    readonly server?: { readonly arguments?: readonly string[]; readonly data?: boolean };
    readonly steps: readonly Step[];
}

const ROOT = join(PACKAGE, "../..");
const FOLDER = join(ROOT, "tests/conformance");
const END_SECONDS_MAX = 60;
const PAUSE_SECONDS = 0.02;
const CONNECT = { patienceSeconds: 30, retrySeconds: 0.01, retrySecondsMax: 0.2, silenceSeconds: 30 };
const NUMBERS = new Map([
    ["nan", NaN],
    ["inf", Infinity],
    ["-inf", -Infinity],
]);
/** Under which names an object may not have more fields than expected. */
const WHOLE = new Set(["parameters", "rows", "slots"]);

/** The contents of a folder's files, sorted by their names. */
export function load<T>(folder: "cases" | "bytes/messages" | "bytes/arrays"): [file: string, content: T][] {
    const files = readdirSync(join(FOLDER, folder)).filter((file) => file.endsWith(".json"));
    return files.sort().map((file) => [file, JSON.parse(readFileSync(join(FOLDER, folder, file), "utf8")) as T]);
}

/** All cases; those with the same server one after another, for the stand keeps it then. */
export function loadCases(): [file: string, content: Case][] {
    const server = (content: Case): string => JSON.stringify(content.server ?? {});
    return load<Case>("cases").sort(([, one], [, other]) => server(one).localeCompare(server(other)));
}

/** Something else came than a case expects. */
export class CaseFailed extends Error {}

/** The child process with the server; one command at a time. */
export class Stand {
    readonly #process: ChildProcessByStdio<Writable, Readable, null>;
    readonly #exit: Promise<unknown[]>;
    readonly #lines: AsyncIterator<string>;

    constructor() {
        const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("STEPWELL_")));
        this.#process = spawn(join(ROOT, ".venv/bin/python"), ["-m", "tests.conformance.stand"], {
            cwd: ROOT,
            env,
            stdio: ["pipe", "pipe", "inherit"],
        });
        this.#process.stdin.on("error", () => undefined); // a stand that has ended says so with its last line
        this.#exit = once(this.#process, "exit");
        this.#lines = createInterface(this.#process.stdout)[Symbol.asyncIterator]();
    }

    async do(command: Fields): Promise<Fields> {
        this.#process.stdin.write(`${JSON.stringify(command)}\n`);
        const line = await this.#lines.next();
        const answer = line.done ? { error: "it has ended" } : (JSON.parse(line.value) as Fields);
        if ("error" in answer) {
            throw new CaseFailed(`the stand: ${JSON.stringify(command)}: ${String(answer["error"])}`);
        }
        return answer;
    }

    /** It must end with 0. */
    async close(): Promise<void> {
        this.#process.stdin.end();
        const [code] = await this.#exit;
        if (code !== 0) {
            throw new Error(`the stand ended with ${String(code)}`);
        }
    }
}

/**
 * Carries out a case; throws CaseFailed with file, step, what was expected and what was got.
 *
 * secondsMax: how long the end of a step is waited for, and repeated what shall come of it in time.
 */
export async function carryOut(stand: Stand, file: string, content: Case, secondsMax = END_SECONDS_MAX): Promise<void> {
    const { arguments: serverArguments = [], data = true } = content.server ?? {};
    const { address } = await stand.do({ do: "start", arguments: serverArguments, data });
    const running = new Running(stand, String(address), secondsMax);
    try {
        for (const [index, step] of content.steps.entries()) {
            try {
                await running.step(step);
            } catch (failure) {
                const told = failure instanceof CaseFailed ? failure.message : inspect(failure);
                const said = JSON.stringify(step).slice(0, 300);
                throw new CaseFailed(`${file}: step ${index + 1}: ${said}\n${told}`, { cause: failure });
            }
        }
    } finally {
        await running.end();
    }
}

/** One case while it is carried out. */
class Running {
    readonly #stand: Stand;
    readonly #address: string;
    readonly #secondsMax: number;
    readonly #suffix = `-${randomBytes(4).toString("hex")}`;
    readonly #opened: Client[] = [];
    readonly #clients = new Map<string, Client>();
    readonly #runs = new Map<string, Map<string, Run>>(); // by client, then by run
    readonly #etags = new Map<string, string>();
    readonly #begun = new Map<string, Promise<unknown>>();

    constructor(stand: Stand, address: string, secondsMax: number) {
        this.#stand = stand;
        this.#address = address;
        this.#secondsMax = secondsMax;
    }

    async step(step: Step): Promise<void> {
        if (step.stand !== undefined) {
            const { stand, expect = {}, ...command } = step;
            const named = typeof step.run === "string" ? { run: step.run + this.#suffix } : {};
            compare(await this.#stand.do({ do: stand, ...command, ...named }), expect);
        } else if (step.until !== undefined) {
            await this.#repeat(step, step.until);
        } else if (step.begin !== undefined) {
            const begun = this.#operate(step);
            begun.catch(() => undefined); // heard of at its end
            this.#begun.set(step.begin, begun);
        } else if (step.end !== undefined) {
            const begun = this.#begun.get(step.end);
            if (begun === undefined) {
                throw new CaseFailed(`nothing was begun as '${step.end}': the case is wrong`);
            }
            this.#begun.delete(step.end);
            await this.#check(step, begun, this.#secondsMax);
        } else {
            await this.#check(step, this.#operate(step));
        }
    }

    /** Closes all clients, and waits for what was begun. */
    async end(): Promise<void> {
        for (const client of this.#opened) {
            await within(client.close()).catch(() => undefined);
        }
        for (const begun of this.#begun.values()) {
            await within(begun).catch(() => undefined);
        }
    }

    async #check(step: Step, operation: Promise<unknown>, secondsMax?: number): Promise<void> {
        let got: unknown;
        try {
            got = await within(operation, secondsMax);
        } catch (error) {
            if (error instanceof CaseFailed) {
                throw error;
            }
            if (step.error === undefined) {
                throw new CaseFailed(`expected ${show(step.expect ?? "no error")}\ngot ${show(error)}`);
            }
            compareError(error, step.error);
            return;
        }
        if (step.error !== undefined) {
            throw new CaseFailed(`expected the error ${show(step.error)}\ngot ${show(got)}`);
        }
        compare(got, step.expect ?? {}, step.tolerance);
    }

    async #repeat(step: Step, expect: Fields): Promise<void> {
        const deadline = performance.now() + this.#secondsMax * 1000;
        for (;;) {
            try {
                await this.#check({ ...step, expect }, this.#operate(step));
                return;
            } catch (failure) {
                if (performance.now() > deadline) {
                    throw failure;
                }
            }
            await pause(PAUSE_SECONDS * 1000);
        }
    }

    /** Does an operation; gives what is compared. */
    async #operate(step: Step): Promise<unknown> {
        const { client: label = "a", run: runLabel = "run", do: operation = "" } = step;
        const { exact_name: exact = false, ...options } = given(step.with ?? {}) as Fields;
        if (operation === "connect") {
            this.#connect(label, options);
            return {};
        }
        const client = this.#clients.get(label) ?? this.#connect(label);
        const runs = this.#runs.get(label) ?? new Map<string, Run>();
        const name = exact === true ? runLabel : runLabel + this.#suffix;
        if (operation === "create" || operation === "get") {
            await runs.get(runLabel)?.close();
            runs.delete(runLabel);
            const run = await (operation === "get" ? client.getRun(name) : createRun(client, name, options));
            runs.set(runLabel, run);
            return { created: run.created, version: run.version };
        }
        if (operation === "delete") {
            await client.deleteRun(name);
            return {};
        }
        if (operation === "list_runs") {
            const found = (await client.listRuns()).filter((run) => run.name.endsWith(this.#suffix));
            return { names: found.map((run) => run.name.slice(0, -this.#suffix.length)).sort() };
        }
        if (operation in ON_CLIENT) {
            return ON_CLIENT[operation](client, options);
        }
        const run = runs.get(runLabel);
        if (run === undefined) {
            throw new CaseFailed(`client '${label}' has no run '${runLabel}': the case is wrong`);
        }
        if (operation === "close") {
            runs.delete(runLabel);
        }
        const key = JSON.stringify([label, runLabel]);
        if (operation in DESCRIBING) {
            const last = options["etag"] === "last" ? { etag: this.#etags.get(key) } : {};
            const description = await DESCRIBING[operation](run, { ...options, ...last });
            this.#etags.set(key, description.etag);
            return described(description);
        }
        if (operation in ON_RUN) {
            return ON_RUN[operation](run, options);
        }
        throw new CaseFailed(`there is no operation '${operation}': the case is wrong`);
    }

    #connect(label: string, options: Fields = {}): Client {
        const client = connect(this.#address, { worker: label, ...CONNECT, ...camel(options) });
        this.#opened.push(client);
        this.#clients.set(label, client);
        this.#runs.set(label, new Map());
        return client;
    }
}

/** What comes of an operation, or CaseFailed if nothing does. */
async function within<T>(operation: Promise<T>, secondsMax = END_SECONDS_MAX): Promise<T> {
    const stop = new AbortController();
    const late = pause(secondsMax * 1000, undefined, { signal: stop.signal }).then(() => {
        throw new CaseFailed(`expected its end\ngot nothing in ${secondsMax} s`);
    });
    try {
        return await Promise.race([operation, late]);
    } finally {
        late.catch(() => undefined);
        stop.abort();
    }
}

const LISTS: Readonly<Record<string, (client: Client) => Promise<readonly { readonly name: string }[]>>> = {
    optimizers: (client) => client.listOptimizers(),
    schedules: (client) => client.listSchedules(),
    transforms: (client) => client.listTransforms(),
    wrappers: (client) => client.listWrappers(),
    policies: (client) => client.listPolicies(),
    gradient_encodings: async (client) => (await client.listEncodings()).gradients,
    parameter_encodings: async (client) => (await client.listEncodings()).parameters,
};

const ON_CLIENT: Readonly<Record<string, (client: Client, options: Fields) => Promise<unknown>>> = {
    ping: async (client) => ({ contract: (await client.ping()).contract }),
    list: async (client, { what }) => {
        const found = await LISTS[String(what)](client);
        return { names: new Set(found.map(({ name }) => name)) };
    },
    preview_schedule: async (client, { schedule, ...options }) => {
        const values = client.previewSchedule(
            schedule as stepwell.Schedule,
            options as { initial: number; steps: number },
        );
        return { values: [...(await values)] };
    },
};

const ON_RUN: Readonly<Record<string, (run: Run, options: Fields) => Promise<unknown>>> = {
    step: async (run, { gradients, ...options }) => {
        const parameters = await run.step(gradients as Gradients, updateOptions(options));
        return { ...answered(run), parameters };
    },
    push: async (run, { gradients, ...options }) => {
        const returned = await run.push(gradients as Gradients, updateOptions(options));
        return { ...answered(run), returned };
    },
    push_rows: async (run, options) => {
        const { rows = {}, ...others } = updateOptions(options);
        const returned = await run.pushRows(rows, others);
        return { ...answered(run), returned };
    },
    pull: async (run, options) => {
        const parameters = await run.pull(camel(options) as stepwell.PullOptions);
        const got = { unchanged: parameters === undefined, version: run.version };
        return parameters === undefined ? got : { ...got, parameters };
    },
    pull_rows: async (run, { rows, ...options }) => {
        const ids = mapped(rows as Rows, (table) => idsOf(table.ids));
        const got = await run.pullRows(ids, camel(options));
        return { version: run.version, rows: got };
    },
    save_checkpoint: (run, { name }) => run.saveCheckpoint(name as string | undefined),
    list_checkpoints: async (run) => ({ checkpoints: await run.listCheckpoints() }),
    get_state: (run) => run.getState(),
    assignment: (run, options) => run.assignment(Number(options["samples_count"])),
    barrier: async (run, { name, ...options }) => {
        await run.barrier(name as string | undefined, camel(options));
        return {};
    },
    close: async (run) => {
        await run.close();
        return {};
    },
};

const DESCRIBING: Readonly<Record<string, (run: Run, options: Fields) => Promise<RunDescription>>> = {
    refresh: (run) => run.refresh(),
    change: (run, options) => run.change(camel(options) as stepwell.ChangeOptions),
    report: (run, { metrics }) => run.report(metrics as Record<string, number>),
    restore_checkpoint: (run, { name }) => run.restoreCheckpoint(name as string),
    set_state: (run, { state, ...options }) => {
        const { parameters, slots, ...others } = state as {
            parameters: Record<string, Tensor>;
            slots: Record<string, Record<string, Tensor>>;
        };
        const flat = {
            ...(others as unknown as stepwell.State),
            parameters: mapped(parameters, elements),
            slots: mapped(slots, (each) => mapped(each, elements)),
        };
        return run.setState(flat, camel(options) as { expectedVersion?: number });
    },
};

type Gradients = stepwell.ByName<stepwell.Gradient>;
type Rows = Readonly<Record<string, { readonly ids: readonly string[]; readonly gradients?: Tensor }>>;

function createRun(client: Client, name: string, { parameters, tables, ...options }: Fields): Promise<Run> {
    const spec = camel({ ...options, tables: tables === undefined ? null : (tables as Fields[]).map(camel) });
    return client.createRun(name, parameters as Record<string, Tensor>, spec as stepwell.RunOptions);
}

function updateOptions({ rows, ...options }: Fields): stepwell.UpdateOptions {
    const pairs = mapped(
        (rows ?? {}) as Rows,
        ({ ids, gradients }) => [idsOf(ids), gradients] as [BigInt64Array, Tensor],
    );
    return { ...camel(options), ...(rows !== undefined && { rows: pairs }) };
}

/** Arguments in this language's case; what is none is left out. */
function camel(options: Fields): Fields {
    return Object.fromEntries(
        Object.entries(options)
            .filter(([, value]) => value !== null)
            .map(([name, value]) => [name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()), value]),
    );
}

function mapped<T, R>(things: Readonly<Record<string, T>>, make: (thing: T) => R): Record<string, R> {
    return Object.fromEntries(Object.entries(things).map(([name, thing]) => [name, make(thing)]));
}

function elements({ data }: Tensor): stepwell.FloatArray {
    return data as stepwell.FloatArray;
}

function idsOf(ids: readonly string[]): BigInt64Array {
    return BigInt64Array.from(ids, BigInt);
}

function answered(run: Run): Fields {
    const last = run.lastAnswer;
    return {
        outcome: last?.outcome,
        committed_version: last?.committedVersion,
        loss_scale: last?.lossScale,
        gradient_norms: last?.gradientNorms,
        parameter_norms: last?.parameterNorms,
        version: run.version,
    };
}

function described(run: RunDescription): Fields {
    return {
        version: run.version,
        generation: run.generation,
        samples: run.samples,
        hyperparameters: Object.fromEntries(run.groups.map(({ name, hyperparameters }) => [name, hyperparameters])),
        policy: run.policy,
        workers: run.workers.map(({ name }) => name).sort(),
        waiting: run.workers
            .filter(({ waits }) => waits)
            .map(({ name }) => name)
            .sort(),
        skipped_count: run.skippedCount,
        duplicates_count: run.duplicatesCount,
        accumulated_count: run.accumulatedCount,
        points: [...run.points].sort(),
        metrics: run.metrics,
        loss_scale: run.lossScale,
        tally: run.tally,
        tables: Object.fromEntries(run.tables.map((table) => [table.name, table])),
    };
}

/** An argument of a case as this client takes it: arrays, and numbers that JSON lacks. */
export function given(value: unknown): unknown {
    if (isArray(value)) {
        return stepwell.tensor(arrayOf(value), value.shape, value.dtype);
    }
    if (Array.isArray(value)) {
        return value.map(given);
    }
    if (typeof value === "object" && value !== null) {
        return mapped(value as Record<string, unknown>, given);
    }
    return typeof value === "string" ? (NUMBERS.get(value) ?? value) : value;
}

/** An array as cases have it. */
export interface JsonArray {
    readonly dtype: stepwell.DType;
    readonly shape: readonly number[];
    readonly values?: readonly (number | string)[];
    readonly fill?: number | string;
}

function isArray(value: unknown): value is JsonArray {
    return typeof value === "object" && value !== null && "dtype" in value && "shape" in value;
}

/** Its elements, rounded to its type; those of 16 bits as this client has them. */
export function arrayOf({ dtype, shape, values, fill }: JsonArray): stepwell.FloatArray {
    const kind = dtype === "float64" ? Float64Array : Float32Array;
    if (fill !== undefined) {
        const count = shape.reduce((product, length) => product * length, 1);
        return new kind(count).fill(rounded(Number(given(fill)), dtype));
    }
    return new kind((values ?? []).map((value) => rounded(Number(given(value)), dtype)));
}

/** A number rounded to a type, ties to even. */
export function rounded(value: number, dtype: stepwell.DType): number {
    switch (dtype) {
        case "float64":
            return value;
        case "float32":
            return Math.fround(value);
        case "float16":
            return nearest(value, 11, -14, 65504);
        case "bfloat16":
            return nearest(value, 8, -126, 0xff * 2 ** 120);
    }
}

/** The nearest number with so many binary digits; below the least exponent there are fewer. */
function nearest(value: number, digits: number, exponentMin: number, largest: number): number {
    if (value === 0 || !Number.isFinite(value)) {
        return value;
    }
    const size = Math.abs(value);
    let exponent = exponentMin;
    while (2 ** (exponent + 1) <= size) {
        exponent++;
    }
    const unit = 2 ** (exponent - digits + 1);
    const whole = Math.floor(size / unit);
    const rest = size / unit - whole;
    const up = rest > 0.5 || (rest === 0.5 && whole % 2 === 1);
    const result = (whole + (up ? 1 : 0)) * unit;
    return Math.sign(value) * (result > largest ? Infinity : result);
}

/** Throws CaseFailed with the place, what was expected, and what was got. */
export function compare(
    got: unknown,
    expected: unknown,
    tolerance: Tolerance = {},
    place: readonly string[] = [],
): void {
    const check = (holds: boolean, where = ""): void => {
        if (!holds) {
            const at = `${place.join(".") || "the answer"}${where}`;
            throw new CaseFailed(`at ${at}:\nexpected ${show(expected)}\ngot ${show(got)}`);
        }
    };

    if (isArray(expected)) {
        const wanted = arrayOf(expected);
        check(ArrayBuffer.isView(got) && got.constructor === wanted.constructor);
        const array = got as stepwell.FloatArray;
        check(array.length === wanted.length);
        for (let index = 0; index < wanted.length; index++) {
            check(close(array[index], wanted[index], tolerance), `[${index}]`);
        }
    } else if (got instanceof Set) {
        check(Array.isArray(expected) && expected.every((name) => got.has(name)));
    } else if (Array.isArray(expected)) {
        check(Array.isArray(got) && got.length === expected.length);
        for (const [index, value] of (expected as unknown[]).entries()) {
            compare((got as unknown[])[index], value, tolerance, [...place, String(index)]);
        }
    } else if (typeof expected === "object" && expected !== null) {
        check(typeof got === "object" && got !== null && !Array.isArray(got));
        const [fields, names] = [got as Fields, Object.keys(expected)];
        check(names.every((name) => Object.hasOwn(fields, name)));
        check(!WHOLE.has(place.at(-1) ?? "") || Object.keys(fields).length === names.length);
        for (const [name, value] of Object.entries(expected)) {
            compare(fields[name], value, tolerance, [...place, name]);
        }
    } else if (expected === null) {
        check(got === null || got === undefined);
    } else {
        const wanted = given(expected);
        check(typeof wanted === "number" ? typeof got === "number" && close(got, wanted, tolerance) : got === wanted);
    }
}

function close(got: number, expected: number, { relative = 0, absolute = 0 }: Tolerance): boolean {
    return Object.is(got, expected) || Math.abs(got - expected) <= absolute + relative * Math.abs(expected);
}

/** Throws CaseFailed unless it is this client's typed error, and says what is expected. */
export function compareError(error: unknown, { reason, message = [], details = {} }: ExpectedError): void {
    const name = reason.toLowerCase().replace(/(?:^|_)([a-z])/g, (_, letter: string) => letter.toUpperCase());
    const typed = (stepwell as Readonly<Record<string, unknown>>)[name];
    const holds =
        error instanceof StepwellError &&
        error.constructor === typed &&
        error.reason === reason &&
        message.every((piece) => error.message.includes(piece)) &&
        Object.entries(details).every(([name, text]) => error.details[name] === text);
    if (!holds) {
        const got =
            error instanceof StepwellError
                ? { reason: error.reason, message: error.message, details: error.details }
                : error;
        throw new CaseFailed(`expected the error ${show({ reason, message, details })}\ngot ${show(got)}`);
    }
}

function show(value: unknown): string {
    return inspect(value, { depth: 6, breakLength: Infinity, maxArrayLength: 20 }).slice(0, 800);
}
