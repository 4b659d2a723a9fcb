/** The arguments of createRun, change and step as the contract's messages. */

import { create } from "@bufbuild/protobuf";

import {
    type ArrayLike,
    type ByName,
    byName,
    countOf,
    type DType,
    type Elements,
    elementsOf,
    entriesOf,
    shown,
} from "./arrays.js";
import { InvalidSpec, InvalidValue } from "./errors.js";
import type { CreateRunRequest } from "./generated/stepwell/v1/control_pb.js";
import { CreateRunRequestSchema } from "./generated/stepwell/v1/control_pb.js";
import type { GroupHyperparameters } from "./generated/stepwell/v1/data_pb.js";
import { GroupHyperparametersSchema } from "./generated/stepwell/v1/data_pb.js";
import type { GroupSpec as GroupMessage, Spec, TableSpec as TableMessage } from "./generated/stepwell/v1/run_pb.js";
import { GroupSpecSchema, ParameterSpecSchema, SpecSchema, TableSpecSchema } from "./generated/stepwell/v1/run_pb.js";
import type { Policy, Schedule as ScheduleMessage, Value as ValueMessage } from "./generated/stepwell/v1/values_pb.js";
import { EncodingSchema, PolicySchema, TransformSchema, WrapperSchema } from "./generated/stepwell/v1/values_pb.js";
import {
    CODE_BY_DTYPE,
    encodeNonfinite,
    encodePart,
    encodeSchedule,
    encodeValues,
    type NonfiniteName,
    type Part,
    RANGE_BYTES,
    type Schedule,
    show,
    type Value,
} from "./values.js";

/** Values of hyperparameters by name. `betas: [b1, b2]` is taken for beta1 and beta2. */
export type Hyperparameters = Readonly<Record<string, Value>>;

/** Schedules by the hyperparameter that each one drives. */
export type Schedules = Readonly<Record<string, Schedule>>;

/** Parameters that share an optimizer. parameters: globs; the first group that matches wins, the rest is "default". */
export interface GroupSpec {
    readonly name: string;
    readonly parameters?: readonly string[];
    readonly optimizer?: string | undefined;
    readonly flavor?: string | undefined;
    readonly hyperparameters?: Hyperparameters | undefined;
    readonly schedules?: Schedules | undefined;
    readonly frozen?: boolean;
    readonly definition?: string | undefined;
}

/**
 * An embedding table: rows by 64-bit id, created when a gradient for them first comes.
 *
 * width: the elements of a row. dtype: float32 (the default) or float64. initializer: what rows begin with, "uniform",
 * "normal" or "constant", or an object with its arguments. optimizer: by default adagrad. sparseMode: "lazy", where a
 * commit touches only the rows that it brings, or "exact", as if each brought every row a gradient, of zero where none
 * came. admission: { touches: n }, a row is created by the n-th commit that brings its id. eviction: { by:
 * "least_recent" } where there is no more room, or { by: "age", age: n } after n commits without the row.
 */
export interface TableSpec {
    readonly name: string;
    readonly width: number;
    readonly dtype?: DType | undefined;
    readonly initializer?: string | Part | undefined;
    readonly seed?: number | bigint | undefined;
    readonly optimizer?: string | undefined;
    readonly flavor?: string | undefined;
    readonly hyperparameters?: Hyperparameters | undefined;
    readonly schedules?: Schedules | undefined;
    readonly sparseMode?: "lazy" | "exact" | undefined;
    readonly rowsMax?: number | undefined;
    readonly admission?: Readonly<Record<string, Value>> | undefined;
    readonly eviction?: Readonly<Record<string, Value>> | undefined;
}

/** What a run is, beside its parameters; see Client.createRun. */
export interface RunOptions {
    readonly optimizer?: string;
    readonly flavor?: string | undefined;
    readonly hyperparameters?: Hyperparameters | undefined;
    readonly schedules?: Schedules | undefined;
    readonly groups?: readonly GroupSpec[];
    readonly nonfinite?: NonfiniteName;
    readonly samplesPerEpoch?: number | undefined;
    readonly definition?: string | undefined;
    readonly transforms?: readonly (string | Part)[];
    readonly wrappers?: readonly (string | Part)[];
    readonly reportNorms?: boolean;
    readonly encodings?: { readonly gradients?: string | Part; readonly parameters?: string | Part } | undefined;
    readonly policy?: string | Part | undefined;
    readonly tables?: readonly TableSpec[];
}

const GROUP_KEYS = [
    "name",
    "parameters",
    "optimizer",
    "flavor",
    "hyperparameters",
    "schedules",
    "frozen",
    "definition",
];

const TABLE_KEYS = [
    "name",
    "width",
    "dtype",
    "initializer",
    "seed",
    "optimizer",
    "flavor",
    "hyperparameters",
    "schedules",
    "sparseMode",
    "rowsMax",
    "admission",
    "eviction",
];

const RUN_KEYS = [
    "optimizer",
    "flavor",
    "hyperparameters",
    "schedules",
    "groups",
    "nonfinite",
    "samplesPerEpoch",
    "definition",
    "transforms",
    "wrappers",
    "reportNorms",
    "encodings",
    "policy",
    "tables",
];

/** What one parameter takes in a spec beside its name and shape, generously. */
const PARAMETER_OVERHEAD_BYTES = 64;

/** The parameters' elements; throws InvalidSpec for what is no array of floats. */
export function parameterElements(parameters: ByName<ArrayLike>): Map<string, Elements> {
    const found = new Map<string, Elements>();
    for (const [name, value] of entriesOf(parameters)) {
        const elements = elementsOf(value);
        const details = { parameter: name };
        if (elements === undefined) {
            throw new InvalidSpec(
                `parameter '${name}': got ${show(value)}, expected a Float32Array, a Float64Array or a tensor of floats; ` +
                    "convert it",
                details,
            );
        }
        if (elements.shape && countOf(elements.shape) !== elements.count) {
            throw new InvalidSpec(
                `parameter '${name}': got ${elements.count} elements, expected ${countOf(elements.shape)} for shape ` +
                    `${shown(elements.shape)}; give as many`,
                details,
            );
        }
        found.set(name, elements);
    }
    return found;
}

/** The whole spec. What the contract cannot hold throws InvalidValue or InvalidSpec. */
export function encodeSpec(parameters: ReadonlyMap<string, Elements>, options: RunOptions): Spec {
    checkKeys("createRun", options, RUN_KEYS);
    const encodings = options.encodings ?? {};
    checkKeys("encodings", encodings, ["gradients", "parameters"]);
    return create(SpecSchema, {
        parameters: [...parameters].map(([name, { shape, count, dtype }]) =>
            create(ParameterSpecSchema, {
                name,
                shape: (shape ?? [count]).map((length) => whole(`parameter '${name}'`, "shape", length, 0n, 1n << 63n)),
                dtype: CODE_BY_DTYPE[dtype],
            }),
        ),
        optimizer: options.optimizer ?? "",
        flavor: options.flavor ?? "",
        hyperparameters: encodeHyperparameters(options.hyperparameters),
        schedules: encodeSchedules(options.schedules),
        groups: (options.groups ?? []).map(encodeGroup),
        nonfinite: encodeNonfinite(options.nonfinite ?? "reject"),
        ...(options.samplesPerEpoch !== undefined && { samplesPerEpoch: options.samplesPerEpoch }),
        definition: options.definition ?? "",
        transforms: (options.transforms ?? []).map((part) => create(TransformSchema, encodePart(part, "transform"))),
        wrappers: (options.wrappers ?? []).map((part) => create(WrapperSchema, encodePart(part, "wrapper"))),
        reportNorms: options.reportNorms ?? false,
        ...(encodings.gradients !== undefined && {
            gradientEncoding: create(EncodingSchema, encodePart(encodings.gradients, "encodings: gradients")),
        }),
        ...(encodings.parameters !== undefined && {
            parameterEncoding: create(EncodingSchema, encodePart(encodings.parameters, "encodings: parameters")),
        }),
        ...(options.policy !== undefined && { policy: encodePolicy(options.policy) }),
        tables: (options.tables ?? []).map(encodeTable),
    });
}

/** The spec in pieces that fit a message: 100,000 names do not fit one. */
export function* specRequests(run: string, spec: Spec): Generator<CreateRunRequest> {
    const { parameters, ...rest } = spec;
    let piece = create(SpecSchema, { ...rest, parameters: [] });
    let request = create(CreateRunRequestSchema, { run, spec: piece });
    let size = 0;
    for (const parameter of parameters) {
        if (size >= RANGE_BYTES) {
            yield request;
            piece = create(SpecSchema);
            request = create(CreateRunRequestSchema, { spec: piece });
            size = 0;
        }
        piece.parameters.push(parameter);
        size += Buffer.byteLength(parameter.name) + 10 * parameter.shape.length + PARAMETER_OVERHEAD_BYTES;
    }
    request.specComplete = true;
    yield request;
}

/** A policy by its name or as an object; throws InvalidValue for what is none. */
export function encodePolicy(policy: string | Part): Policy {
    return create(PolicySchema, encodePart(policy, "policy"));
}

/** Values by name; throws InvalidValue for what is no value. */
export function encodeHyperparameters(hyperparameters: Hyperparameters | undefined): Record<string, ValueMessage> {
    return encodeValues(withoutAliases(hyperparameters ?? {}), "hyperparameter");
}

/** Schedules by hyperparameter; throws InvalidValue for what is no schedule. */
export function encodeSchedules(
    schedules: Readonly<Record<string, unknown>> | undefined,
): Record<string, ScheduleMessage> {
    return byName(
        Object.entries(schedules ?? {}).map(
            ([name, schedule]) => [name, encodeSchedule(schedule, `schedule of '${name}'`)] as const,
        ),
    );
}

/** What an update carries: { lr: 0.1 } for every group that has it, { no_decay: { lr: 0.1 } } for one group. */
export function encodeUpdateHyperparameters(
    hyperparameters: Readonly<Record<string, number | Readonly<Record<string, number>>>> = {},
): GroupHyperparameters[] {
    const everywhere: Record<string, unknown> = {};
    const groups: [string, Record<string, unknown>][] = [];
    for (const [name, value] of Object.entries(hyperparameters)) {
        if (typeof value === "object" && !Array.isArray(value) && (value as unknown) !== null) {
            groups.push([name, value]);
        } else {
            everywhere[name] = value;
        }
    }
    if (Object.keys(everywhere).length > 0) {
        groups.unshift(["", everywhere]);
    }
    return groups.map(([group, values]) => {
        const numbers = Object.entries(withoutAliases(values)).map(([name, value]) => {
            if (typeof value !== "number") {
                throw new InvalidValue(
                    `hyperparameter '${name}': got ${show(value)}, expected a number: an update carries nothing else; use ` +
                        "run.change for other values",
                    { argument: name },
                );
            }
            return [name, value] as const;
        });
        return create(GroupHyperparametersSchema, { group, values: byName(numbers) });
    });
}

/** Throw InvalidValue for options that there are not: JavaScript would not mind a misspelled one. */
export function checkKeys(what: string, options: object, known: readonly string[]): void {
    const unknown = Object.keys(options).filter((key) => !known.includes(key));
    if (unknown.length > 0) {
        throw new InvalidValue(
            `${what}: got the option ${show(unknown[0])}, expected some of ${known.join(", ")}; leave it out`,
            { got: unknown[0] },
        );
    }
}

function encodeGroup(group: GroupSpec): GroupMessage {
    const unknown = Object.keys(group).filter((key) => !GROUP_KEYS.includes(key));
    if (unknown.length > 0 || typeof group.name !== "string") {
        const got = unknown.length > 0 ? `the key ${show(unknown[0])}` : "no 'name'";
        throw new InvalidSpec(`group ${show(group)}: got ${got}, expected some of ${GROUP_KEYS.join(", ")}; mend it`);
    }
    const patterns: unknown = group.parameters ?? [];
    if (!Array.isArray(patterns)) {
        throw new InvalidSpec(`group '${group.name}': got 'parameters' ${show(patterns)}, expected a list of globs`);
    }
    return create(GroupSpecSchema, {
        name: group.name,
        parameters: patterns as string[],
        optimizer: group.optimizer ?? "",
        flavor: group.flavor ?? "",
        hyperparameters: encodeHyperparameters(group.hyperparameters),
        schedules: encodeSchedules(group.schedules),
        frozen: group.frozen ?? false,
        definition: group.definition ?? "",
    });
}

function encodeTable(table: TableSpec): TableMessage {
    const unknown = Object.keys(table).filter((key) => !TABLE_KEYS.includes(key));
    if (unknown.length > 0 || typeof table.name !== "string" || (table.width as unknown) === undefined) {
        const got = unknown.length > 0 ? `the key ${show(unknown[0])}` : "no 'name' or no 'width'";
        throw new InvalidSpec(
            `table ${show(table.name)}: got ${got}, expected name, width and some of ${TABLE_KEYS.join(", ")}; mend it`,
        );
    }
    const owner = `table '${table.name}'`;
    const { initializer = {}, dtype } = table;
    if (dtype !== undefined && !Object.hasOwn(CODE_BY_DTYPE, dtype)) {
        throw new InvalidValue(`${owner}: got dtype ${show(dtype)}, expected float32 or float64; choose one of them`);
    }
    return create(TableSpecSchema, {
        name: table.name,
        width: Number(whole(owner, "width", table.width, 1n, (1n << 32n) - 1n)),
        ...(dtype && { dtype: CODE_BY_DTYPE[dtype] }),
        initializer: encodeValues(
            typeof initializer === "string" ? { name: initializer } : initializer,
            `${owner}: initializer`,
        ),
        seed: whole(owner, "seed", table.seed ?? 0, -(1n << 63n), (1n << 63n) - 1n),
        optimizer: table.optimizer ?? "",
        flavor: table.flavor ?? "",
        hyperparameters: encodeHyperparameters(table.hyperparameters),
        schedules: encodeSchedules(table.schedules),
        sparseMode: table.sparseMode ?? "",
        rowsMax: table.rowsMax === undefined ? 0n : whole(owner, "rowsMax", table.rowsMax, 1n, (1n << 64n) - 1n),
        admission: encodeValues(table.admission ?? {}, `${owner}: admission`),
        eviction: encodeValues(table.eviction ?? {}, `${owner}: eviction`),
    });
}

/** A whole number in bounds; throws InvalidValue. */
function whole(owner: string, name: string, value: unknown, least: bigint, most: bigint): bigint {
    const integer = typeof value === "bigint" ? value : Number.isInteger(value) ? BigInt(value as number) : undefined;
    if (integer === undefined || integer < least || integer > most) {
        throw new InvalidValue(
            `${owner}: ${name} is ${show(value)}, expected a whole number from ${least} to ${most}; give such a value`,
            { argument: name },
        );
    }
    return integer;
}

/** `betas: [b1, b2]`, as PyTorch writes it, is beta1 and beta2. */
function withoutAliases(hyperparameters: Readonly<Record<string, unknown>>): Record<string, unknown> {
    const { betas, ...rest } = hyperparameters;
    const plain: Record<string, unknown> = rest;
    if (betas === undefined) {
        return plain;
    }
    if (!Array.isArray(betas)) {
        throw new InvalidValue(`got betas ${show(betas)}, expected a list of numbers; give beta1 and beta2 instead`);
    }
    for (const [index, beta] of betas.entries()) {
        const name = `beta${index + 1}`;
        if (name in plain) {
            throw new InvalidValue(`got both betas and ${name}, expected one of them; leave one out`);
        }
        plain[name] = beta as unknown;
    }
    return plain;
}
