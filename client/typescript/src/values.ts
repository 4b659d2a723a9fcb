/**
 * Values, schedules and parts: plain data to contract messages and back.
 *
 * A value is a number, a flag, a text, a list of numbers, or null. A schedule is an object:
 *
 *     { name: "cosine", t_max: 1000, eta_min: 1e-5, clock: "updates" }
 *     { name: "sequential", milestones: [100], schedules: [{ name: "warmup", ... }, { name: "cosine", ... }] }
 *
 * where `name`, `clock` and `schedules` are reserved and every other key is an argument, named as the catalogue has it.
 * What a name or a number means (NaN, ranges) is checked by the server alone, in one place.
 */

import { create } from "@bufbuild/protobuf";

import { byName, type DType } from "./arrays.js";
import { InvalidValue, Internal } from "./errors.js";
import { DType as DTypeCode, Nonfinite } from "./generated/stepwell/v1/run_pb.js";
import type { Schedule as ScheduleMessage, Value as ValueMessage } from "./generated/stepwell/v1/values_pb.js";
import { Clock, ScheduleSchema, ValueSchema } from "./generated/stepwell/v1/values_pb.js";

/** The value of a hyperparameter or argument; null switches off what it controls. */
export type Value = number | boolean | string | readonly number[] | null;

/** A schedule as plain data: its name, "clock" ("updates", "samples", "epochs"), "schedules", and its arguments. */
export interface Schedule {
    readonly name: string;
    readonly [argument: string]: Value | readonly Schedule[] | undefined;
}

/** A transform, wrapper, encoding or policy: its name and its arguments. */
export interface Part {
    readonly name: string;
    readonly [argument: string]: Value | undefined;
}

/** The most data that one message carries, in bytes. */
export const RANGE_BYTES = 1 << 20;

const SCHEDULE_DEPTH_MAX = 16;

export const CODE_BY_DTYPE: Readonly<Record<DType, DTypeCode>> = {
    float32: DTypeCode.FLOAT32,
    float64: DTypeCode.FLOAT64,
    float16: DTypeCode.FLOAT16,
    bfloat16: DTypeCode.BFLOAT16,
};
const CODE_BY_NONFINITE = { reject: Nonfinite.REJECT, skip: Nonfinite.SKIP, allow: Nonfinite.ALLOW };
const CODE_BY_CLOCK = { updates: Clock.UPDATES, samples: Clock.SAMPLES, epochs: Clock.EPOCHS };

/** What happens to gradients that are not finite. */
export type NonfiniteName = keyof typeof CODE_BY_NONFINITE;

/** Encode a number, flag, text, list of numbers or null; throws InvalidValue for others. what: begins the message. */
export function encodeValue(value: unknown, what: string): ValueMessage {
    if (value === null) {
        return create(ValueSchema, { kind: { case: "none", value: {} } });
    }
    if (typeof value === "boolean") {
        return create(ValueSchema, { kind: { case: "flag", value } });
    }
    if (typeof value === "string") {
        return create(ValueSchema, { kind: { case: "text", value } });
    }
    if (typeof value === "number") {
        return create(ValueSchema, { kind: { case: "number", value } });
    }
    const list = value instanceof Float32Array || value instanceof Float64Array ? Array.from(value) : value;
    if (Array.isArray(list)) {
        const numbers = list.map((item: unknown) => {
            if (typeof item !== "number") {
                throw new InvalidValue(
                    `${what}: got ${show(item)} in a list of numbers, expected a number; convert it`,
                );
            }
            return item;
        });
        return create(ValueSchema, { kind: { case: "numbers", value: { numbers } } });
    }
    throw new InvalidValue(
        `${what}: got a value of type ${typeof value}, expected a number, a flag, a text, a list of numbers or null; ` +
            "convert it to one of these",
    );
}

/** The value of a message. */
export function decodeValue(message: ValueMessage | undefined): Value {
    const kind = message?.kind;
    switch (kind?.case) {
        case "number":
        case "flag":
        case "text":
            return kind.value;
        case "numbers":
            return kind.value.numbers;
        case "none":
            return null;
        default:
            throw new Internal("got a value with no kind set, expected exactly one of its fields; upgrade stepwell");
    }
}

/** Encode a schedule given as plain data. Throws InvalidValue where a part has the wrong type. */
export function encodeSchedule(spec: unknown, what: string, depth = 1): ScheduleMessage {
    if (depth > SCHEDULE_DEPTH_MAX) {
        throw new InvalidValue(
            `${what}: got schedules nested deeper than ${SCHEDULE_DEPTH_MAX} levels, expected fewer; flatten them`,
        );
    }
    if (!hasName(spec)) {
        throw new InvalidValue(
            `${what}: got the schedule ${show(spec)}, expected an object with a "name", such as "cosine"; give it one`,
        );
    }
    const { name, clock, schedules, ...rest } = spec;
    if (schedules !== undefined && !Array.isArray(schedules)) {
        throw new InvalidValue(
            `${what}: got "schedules" ${show(schedules)}, expected a list of schedules; make it one`,
        );
    }
    const children = (schedules ?? []) as readonly unknown[];
    return create(ScheduleSchema, {
        name,
        clock:
            clock === undefined || clock === null ? Clock.UNSPECIFIED : named(CODE_BY_CLOCK, clock, `${what}: clock`),
        schedules: children.map((child) => encodeSchedule(child, what, depth + 1)),
        arguments: encodeValues(rest, what),
    });
}

/** The schedule as plain data. */
export function decodeSchedule(message: ScheduleMessage): Schedule {
    return {
        name: message.name,
        ...decodeValues(message.arguments),
        ...(message.clock && { clock: nameOf(CODE_BY_CLOCK, message.clock, "clock") }),
        ...(message.schedules.length > 0 && { schedules: message.schedules.map(decodeSchedule) }),
    };
}

/** A transform, wrapper, encoding or policy, given by its name or as an object, as the fields of its message. */
export function encodePart(spec: unknown, what: string): { name: string; arguments: Record<string, ValueMessage> } {
    const part = typeof spec === "string" ? { name: spec } : spec;
    if (!hasName(part)) {
        throw new InvalidValue(
            `${what}: got ${show(spec)}, expected an object with a "name", such as "ema"; give it one`,
        );
    }
    const { name, ...rest } = part;
    return { name, arguments: encodeValues(rest, what) };
}

/** A transform, wrapper, encoding or policy as plain data. */
export function decodePart(message: { name: string; arguments: Record<string, ValueMessage> }): Part {
    return { name: message.name, ...decodeValues(message.arguments) };
}

/** Values by name; what is undefined is left out. Throws InvalidValue for what is no value. */
export function encodeValues(values: Readonly<Record<string, unknown>>, what: string): Record<string, ValueMessage> {
    return byName(
        Object.entries(values)
            .filter(([, value]) => value !== undefined)
            .map(([name, value]) => [name, encodeValue(value, `${what} '${name}'`)] as const),
    );
}

/** Values by name, in the order of their names: a map of protobuf has none of its own. */
export function decodeValues(values: Readonly<Record<string, ValueMessage>>): Record<string, Value> {
    return Object.fromEntries(
        Object.keys(values)
            .sort()
            .map((name) => [name, decodeValue(values[name])]),
    );
}

/** The dtype of a code. */
export function decodeDType(code: DTypeCode): DType {
    return nameOf(CODE_BY_DTYPE, code, "dtype");
}

/** The code of "reject", "skip" or "allow". */
export function encodeNonfinite(name: unknown): Nonfinite {
    return named(CODE_BY_NONFINITE, name, "nonfinite");
}

/** The name of a code; unset means "reject". */
export function decodeNonfinite(code: Nonfinite): NonfiniteName {
    return nameOf(CODE_BY_NONFINITE, code || Nonfinite.REJECT, "nonfinite");
}

/** An integer of 64 bits as a number. Versions, counts and sizes stay below 2^53; Internal says where one does not. */
export function toNumber(integer: bigint): number {
    const number = Number(integer);
    if (!Number.isSafeInteger(number)) {
        throw new Internal(`got the integer ${integer}, expected one below 2^53; report this`);
    }
    return number;
}

/** Anything in a message, cut short. */
export function show(value: unknown): string {
    try {
        const text = typeof value === "string" ? `'${value}'` : (JSON.stringify(value) as string | undefined);
        return (text ?? String(value)).slice(0, 200);
    } catch {
        return typeof value; // a bigint, a cycle
    }
}

/** Names for a message, the first few. */
export function listed(names: Iterable<string>, most = 10): string {
    const all = [...names];
    const more = all.length > most ? `, ... (${all.length - most} more)` : "";
    return all.length > 0
        ? all
              .slice(0, most)
              .map((name) => `'${name}'`)
              .join(", ") + more
        : "(none)";
}

function hasName(spec: unknown): spec is Record<string, unknown> & { name: string } {
    return typeof spec === "object" && spec !== null && typeof (spec as { name?: unknown }).name === "string";
}

function named<N extends string, C>(codes: Readonly<Record<N, C>>, name: unknown, what: string): C {
    if (typeof name === "string" && Object.hasOwn(codes, name)) {
        return codes[name as N];
    }
    throw new InvalidValue(
        `got ${what} ${show(name)}, expected one of ${Object.keys(codes).join(", ")}; choose one of them`,
    );
}

function nameOf<N extends string, C>(codes: Readonly<Record<N, C>>, code: C, what: string): N {
    for (const [name, known] of Object.entries(codes)) {
        if (known === code) {
            return name as N;
        }
    }
    throw new Internal(`got ${what} code ${String(code)}, expected a known one; upgrade stepwell`);
}
