/** What the server tells about itself, its runs and its catalogue, as plain data. */

import type { DType } from "./arrays.js";
import { Internal } from "./errors.js";
import type * as control from "./generated/stepwell/v1/control_pb.js";
import {
    type Answer as AnswerMessage,
    type Norms as NormsMessage,
    Outcome as OutcomeCode,
} from "./generated/stepwell/v1/data_pb.js";
import { DType as DTypeCode } from "./generated/stepwell/v1/run_pb.js";
import type * as run from "./generated/stepwell/v1/run_pb.js";
import { type Argument as ArgumentMessage, ArgumentKind } from "./generated/stepwell/v1/values_pb.js";
import {
    decodeDType,
    decodeNonfinite,
    decodePart,
    decodeSchedule,
    decodeValue,
    decodeValues,
    type NonfiniteName,
    type Part,
    type Schedule,
    toNumber,
    type Value,
} from "./values.js";

/**
 * What became of an update.
 *
 * "rewound": the run went back to an older state and the update was dropped; only with onRewind: "continue".
 */
export type Outcome = "committed" | "skipped_nonfinite" | "dropped_late" | "folded" | "rewound";

/** The norms of all trained parameters, or of their gradients, as one vector: p = 1, 2 and infinity. */
export interface Norms {
    readonly l1: number;
    readonly l2: number;
    readonly maximum: number;
}

/** The answer to one update. A retry gets the same. */
export interface Answer {
    readonly outcome: Outcome;
    /** The version that holds the update; for one that was not applied, the version that it found. */
    readonly committedVersion: number;
    /** What to multiply the next loss by, where the run has the transform `unscale`. */
    readonly lossScale?: number | undefined;
    /** Of the combined gradient, unscaled, before other transforms; where the run was created with reportNorms. */
    readonly gradientNorms?: Norms | undefined;
    /** Of the parameters after the commit; likewise. */
    readonly parameterNorms?: Norms | undefined;
}

/** Who the server is, what its limits are, and how long the question took. */
export interface ServerDescription {
    readonly version: string;
    readonly contract: string;
    readonly messageBytesMax: number;
    readonly rangeBytes: number;
    readonly memoryBytesMax: number;
    readonly outstandingUpdatesMax: number;
    readonly wordSeconds: number;
    readonly roundTripSeconds: number;
}

/** The present values of one group: hyperparameters as the next commit will use them. */
export interface GroupDescription {
    readonly name: string;
    readonly dtype: DType;
    readonly optimizer: string;
    readonly flavor: string;
    readonly hyperparameters: Readonly<Record<string, Value>>;
    readonly schedules: Readonly<Record<string, Schedule>>;
    readonly slots: readonly string[];
    readonly scalars: readonly string[];
}

/**
 * The present values of one table of rows.
 *
 * rows: how many there are, at most rowsMax. created, evicted: how many rows came and went. refused: how often an id was
 * brought that admission did not let in yet. step: how many commits it has had.
 */
export interface TableDescription {
    readonly name: string;
    readonly width: number;
    readonly dtype: DType;
    readonly sparseMode: string;
    readonly rowsMax: number;
    readonly rows: number;
    readonly created: number;
    readonly refused: number;
    readonly evicted: number;
    readonly stateBytes: number;
    readonly step: number;
    readonly optimizer: string;
    readonly flavor: string;
    readonly hyperparameters: Readonly<Record<string, Value>>;
    readonly schedules: Readonly<Record<string, Schedule>>;
    readonly slots: readonly string[];
}

/**
 * What has become of updates, counted.
 *
 * commits, folded, skipped, dropped: answers of each outcome. refused: errors in place of an answer. withdrawn: gone with
 * their worker. duplicates: sent again. stalenessLast, stalenessMax: in versions, of those that had an effect;
 * stalenessCounts: how many of them had 0, 1, 2 to 3, 4 to 7, ... versions.
 */
export interface Tally {
    readonly commits: number;
    readonly folded: number;
    readonly skipped: number;
    readonly dropped: number;
    readonly refused: number;
    readonly withdrawn: number;
    readonly duplicates: number;
    readonly stalenessLast: number;
    readonly stalenessMax: number;
    readonly stalenessCounts: readonly number[];
}

/**
 * Where a worker stands among the live ones, in the order in which they joined.
 *
 * index: from 0 on. membershipNumber: grows whenever somebody joins or leaves.
 */
export interface Place {
    readonly index: number;
    readonly count: number;
    readonly membershipNumber: number;
}

/**
 * A live worker.
 *
 * epoch: the number of its latest join. lastSequence: the last that it committed in it. index: its place among the live
 * ones. leaseSeconds: in how long its lease runs out. waits: whether an update of it waits for others. tally: over all
 * its joins.
 */
export interface WorkerDescription {
    readonly name: string;
    readonly epoch: number;
    readonly lastSequence: number;
    readonly index: number;
    readonly leaseSeconds: number;
    readonly waits: boolean;
    readonly tally: Tally;
}

/** A run as it was when the server was asked. */
export interface RunDescription {
    readonly name: string;
    /** 16 bytes. */
    readonly uid: Uint8Array;
    readonly generation: number;
    readonly version: number;
    readonly etag: string;
    readonly samples: number;
    readonly optimizer: string;
    readonly flavor: string;
    readonly nonfinite: NonfiniteName;
    readonly samplesPerEpoch: number | undefined;
    readonly groups: readonly GroupDescription[];
    readonly tables: readonly TableDescription[];
    readonly workers: readonly WorkerDescription[];
    readonly parametersCount: number;
    readonly stateBytes: number;
    readonly skippedCount: number;
    readonly duplicatesCount: number;
    readonly lossScale: number | undefined;
    readonly points: readonly string[];
    readonly metrics: Readonly<Record<string, number>>;
    readonly transforms: readonly Part[];
    readonly wrappers: readonly Part[];
    /** What gradients and parameters are encoded with where they travel. */
    readonly encodings: { readonly gradients?: Part; readonly parameters?: Part };
    readonly policy: Part;
    readonly tally: Tally;
    /** How many commits are folded into the next version already, where the policy accumulates several. */
    readonly accumulatedCount: number;
}

/** A stored state of a run; createdSeconds since 1970-01-01 UTC. */
export interface Checkpoint {
    readonly name: string;
    readonly version: number;
    readonly createdSeconds: number;
    readonly sizeBytes: number;
}

/** One argument of an optimizer, schedule or part. required: whether it has no default. */
export interface Argument {
    readonly name: string;
    readonly kind: "number" | "integer" | "flag" | "text" | "numbers" | "unknown";
    readonly default: Value;
    readonly required: boolean;
    readonly optional: boolean;
    readonly minimum: number | undefined;
    readonly maximum: number | undefined;
    readonly minimumOpen: boolean;
    readonly maximumOpen: boolean;
    readonly choices: readonly string[];
    readonly infinite: boolean;
}

/** An optimizer as one framework has it: arguments with their defaults, in order, and what it keeps. */
export interface FlavorDescription {
    readonly name: string;
    readonly arguments: readonly Argument[];
    readonly slots: readonly string[];
    readonly scalars: readonly string[];
    readonly stepPerParameter: boolean;
}

/** One optimizer; its first flavor is the default. */
export interface OptimizerDescription {
    readonly name: string;
    readonly summary: string;
    readonly reference: string;
    readonly matches: string;
    readonly flavors: readonly FlavorDescription[];
    /** What an update may carry for it beside gradients, as `inputs`. */
    readonly inputs: readonly string[];
    /** Without which of them, and of numbers such as the loss, an update is refused. */
    readonly required: readonly string[];
    /** What can be pulled beside the parameters. */
    readonly points: readonly string[];
}

/** A gradient transform, a wrapper, an encoding or a policy. points: what it makes available to pull. */
export interface PartDescription {
    readonly name: string;
    readonly summary: string;
    readonly reference: string;
    readonly matches: string;
    readonly arguments: readonly Argument[];
    readonly points: readonly string[];
}

/** One schedule. absolute: whether it sets values rather than start from the hyperparameter's own. */
export interface ScheduleDescription {
    readonly name: string;
    readonly summary: string;
    readonly reference: string;
    readonly matches: string;
    readonly arguments: readonly Argument[];
    readonly absolute: boolean;
    readonly childrenMin: number;
    readonly childrenMax: number;
}

const OUTCOMES: Readonly<Partial<Record<OutcomeCode, Outcome>>> = {
    [OutcomeCode.COMMITTED]: "committed",
    [OutcomeCode.SKIPPED_NONFINITE]: "skipped_nonfinite",
    [OutcomeCode.DROPPED_LATE]: "dropped_late",
    [OutcomeCode.FOLDED]: "folded",
};

const KINDS: Readonly<Partial<Record<ArgumentKind, Argument["kind"]>>> = {
    [ArgumentKind.NUMBER]: "number",
    [ArgumentKind.INTEGER]: "integer",
    [ArgumentKind.FLAG]: "flag",
    [ArgumentKind.TEXT]: "text",
    [ArgumentKind.NUMBERS]: "numbers",
};

/** How many rows a table may have where its spec does not say. */
const TABLE_ROWS_MAX = 2 ** 31;

export function describeServer(server: control.GetServerResponse, roundTripSeconds: number): ServerDescription {
    return {
        version: server.version,
        contract: server.contract,
        messageBytesMax: toNumber(server.messageBytesMax),
        rangeBytes: toNumber(server.rangeBytes),
        memoryBytesMax: toNumber(server.memoryBytesMax),
        outstandingUpdatesMax: server.outstandingUpdatesMax,
        wordSeconds: server.wordSeconds,
        roundTripSeconds,
    };
}

export function describeRun(run: run.Run | undefined): RunDescription {
    const spec = run?.spec;
    if (run === undefined || spec === undefined) {
        throw new Internal("got no run or no spec, expected both; report this");
    }
    return {
        name: run.name,
        uid: Uint8Array.from(run.uid),
        generation: toNumber(run.generation),
        version: toNumber(run.version),
        etag: run.etag,
        samples: run.samples,
        optimizer: spec.optimizer,
        flavor: spec.flavor,
        nonfinite: decodeNonfinite(spec.nonfinite),
        samplesPerEpoch: spec.samplesPerEpoch,
        groups: run.groups.map((group) => ({
            name: group.name,
            dtype: decodeDType(group.dtype),
            ...describeSettings(group),
            scalars: group.scalars,
        })),
        tables: run.tables.map((table, index) => describeTable(spec.tables.at(index), table)),
        workers: run.workers.map((worker) => ({
            name: worker.name,
            epoch: toNumber(worker.epoch),
            lastSequence: toNumber(worker.lastSequence),
            index: toNumber(worker.index),
            leaseSeconds: worker.leaseSeconds,
            waits: worker.waits,
            tally: describeTally(worker.tally),
        })),
        parametersCount: toNumber(run.parametersCount),
        stateBytes: toNumber(run.stateBytes),
        skippedCount: toNumber(run.skippedCount),
        duplicatesCount: toNumber(run.duplicatesCount),
        lossScale: run.lossScale,
        points: run.points,
        metrics: run.metrics,
        transforms: spec.transforms.map(decodePart),
        wrappers: spec.wrappers.map(decodePart),
        encodings: {
            ...(spec.gradientEncoding && { gradients: decodePart(spec.gradientEncoding) }),
            ...(spec.parameterEncoding && { parameters: decodePart(spec.parameterEncoding) }),
        },
        policy: run.policy ? decodePart(run.policy) : { name: "async" },
        tally: describeTally(run.tally),
        accumulatedCount: toNumber(run.accumulatedCount),
    };
}

export function describePlace(place: control.Place | undefined): Place {
    return {
        index: toNumber(place?.index ?? 0n),
        count: toNumber(place?.count ?? 0n),
        membershipNumber: toNumber(place?.membershipNumber ?? 0n),
    };
}

export function describeAnswer(answer: AnswerMessage): Answer {
    const outcome = OUTCOMES[answer.outcome];
    if (outcome === undefined) {
        throw new Internal(`got outcome ${answer.outcome}, expected a known one; upgrade stepwell`);
    }
    return {
        outcome,
        committedVersion: toNumber(answer.committedVersion),
        lossScale: answer.lossScale,
        gradientNorms: describeNorms(answer.gradientNorms),
        parameterNorms: describeNorms(answer.parameterNorms),
    };
}

export function describeCheckpoint(checkpoint: control.Checkpoint | undefined): Checkpoint {
    return {
        name: checkpoint?.name ?? "",
        version: toNumber(checkpoint?.version ?? 0n),
        createdSeconds: checkpoint?.createdSeconds ?? 0,
        sizeBytes: toNumber(checkpoint?.sizeBytes ?? 0n),
    };
}

export function describeOptimizer(optimizer: control.Optimizer): OptimizerDescription {
    const { name, summary, reference, matches, inputs, required, points } = optimizer;
    const flavors = optimizer.flavors.map((flavor) => ({
        name: flavor.name,
        arguments: flavor.arguments.map(describeArgument),
        slots: flavor.slots,
        scalars: flavor.scalars,
        stepPerParameter: flavor.stepPerParameter,
    }));
    return { name, summary, reference, matches, flavors, inputs, required, points };
}

export function describeSchedule(schedule: control.ScheduleDescription): ScheduleDescription {
    const { name, summary, reference, matches, absolute, childrenMin, childrenMax } = schedule;
    const described = schedule.arguments.map(describeArgument);
    return { name, summary, reference, matches, arguments: described, absolute, childrenMin, childrenMax };
}

export function describePart(part: control.PartDescription): PartDescription {
    const { name, summary, reference, matches, points } = part;
    return { name, summary, reference, matches, arguments: part.arguments.map(describeArgument), points };
}

function describeTable(spec: run.TableSpec | undefined, table: run.TableState): TableDescription {
    return {
        name: table.name,
        width: spec?.width ?? 0,
        dtype: decodeDType(spec?.dtype || DTypeCode.FLOAT32),
        sparseMode: spec?.sparseMode || "lazy",
        rowsMax: toNumber(spec?.rowsMax ?? 0n) || TABLE_ROWS_MAX,
        rows: toNumber(table.rows),
        created: toNumber(table.created),
        refused: toNumber(table.refused),
        evicted: toNumber(table.evicted),
        stateBytes: toNumber(table.stateBytes),
        step: toNumber(table.step),
        ...describeSettings(table),
    };
}

/** What groups and tables have in common. */
function describeSettings(
    state: run.GroupState | run.TableState,
): Pick<GroupDescription, "optimizer" | "flavor" | "hyperparameters" | "schedules" | "slots"> {
    const names = Object.keys(state.schedules).sort();
    return {
        optimizer: state.optimizer,
        flavor: state.flavor,
        hyperparameters: decodeValues(state.hyperparameters),
        schedules: Object.fromEntries(names.map((name) => [name, decodeSchedule(state.schedules[name])])),
        slots: state.slots,
    };
}

function describeTally(tally: run.Tally | undefined): Tally {
    return {
        commits: toNumber(tally?.commits ?? 0n),
        folded: toNumber(tally?.folded ?? 0n),
        skipped: toNumber(tally?.skipped ?? 0n),
        dropped: toNumber(tally?.dropped ?? 0n),
        refused: toNumber(tally?.refused ?? 0n),
        withdrawn: toNumber(tally?.withdrawn ?? 0n),
        duplicates: toNumber(tally?.duplicates ?? 0n),
        stalenessLast: toNumber(tally?.stalenessLast ?? 0n),
        stalenessMax: toNumber(tally?.stalenessMax ?? 0n),
        stalenessCounts: (tally?.stalenessCounts ?? []).map(toNumber),
    };
}

function describeNorms(norms: NormsMessage | undefined): Norms | undefined {
    return norms && { l1: norms.l1, l2: norms.l2, maximum: norms.maximum };
}

function describeArgument(argument: ArgumentMessage): Argument {
    return {
        name: argument.name,
        kind: KINDS[argument.kind] ?? "unknown",
        default: argument.default ? decodeValue(argument.default) : null,
        required: argument.default === undefined,
        optional: argument.optional,
        minimum: argument.minimum,
        maximum: argument.maximum,
        minimumOpen: argument.minimumOpen,
        maximumOpen: argument.maximumOpen,
        choices: argument.choices,
        infinite: argument.infinite,
    };
}
