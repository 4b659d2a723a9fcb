/** A run's whole state as data: what getState returns and setState takes. */

import { create } from "@bufbuild/protobuf";

import {
    type Arrays,
    arrayOf,
    byName,
    type ByName,
    bytesOf,
    countOf,
    type DType,
    elementsOf,
    entriesOf,
    type FloatArray,
    ITEM_BYTES,
    is16,
    viewOf,
} from "./arrays.js";
import { Internal, InvalidValue } from "./errors.js";
import type { GetStateResponse, SetStateRequest } from "./generated/stepwell/v1/control_pb.js";
import {
    SetStateRequestSchema,
    StateHeaderSchema,
    StateKind,
    StateRangeSchema,
} from "./generated/stepwell/v1/control_pb.js";
import type { Layout, Parameter } from "./layout.js";
import { pack, type Part } from "./packing.js";
import { wholeRange } from "./payload.js";
import { listed, show, toNumber } from "./values.js";

/**
 * Everything that training goes on from, all at one version.
 *
 * parameters: flat arrays by name. slots: by parameter, then by slot; most have the parameter's shape, slotShapes has
 * those that do not. Parameters of 16 bits and their slots are float32 here, as the server keeps them. scalars: the
 * float64 numbers that some optimizers keep per parameter. steps: how many commits have touched each parameter.
 */
export interface State {
    readonly parameters: ByName<FloatArray>;
    readonly slots: ByName<ByName<FloatArray>>;
    readonly slotShapes?: ByName<ByName<readonly number[]>>;
    readonly scalars: ByName<ByName<number>>;
    readonly steps: ByName<number>;
    readonly version: number;
    readonly samples: number;
}

/** A state as the SDK gives it. */
export interface FoundState extends State {
    readonly parameters: Arrays;
    readonly slots: Record<string, Arrays>;
    readonly slotShapes: Record<string, Record<string, readonly number[]>>;
    readonly scalars: Record<string, Record<string, number>>;
    readonly steps: Record<string, number>;
}

/** One array of a state on its way in. */
interface Filling {
    readonly group: number;
    readonly kind: StateKind;
    readonly name: string;
    readonly bytes: Uint8Array;
    filledBytes: number;
}

const NUMBER_BYTES = 8;

/** Puts a state together from its pieces. */
export class StatePieces {
    readonly #layout: Layout;
    readonly #arrays = new Map<string, Filling>();
    readonly #shapes = new Map<string, number[][]>();
    #header = create(StateHeaderSchema);

    constructor(layout: Layout) {
        this.#layout = layout;
    }

    add(message: GetStateResponse): void {
        this.#header = message.header ?? this.#header;
        for (const { group, name, shapes } of message.slotShapes) {
            this.#shapes.set(
                `${group} ${name}`,
                shapes.map(({ lengths }) => lengths.map(toNumber)),
            );
        }
        for (const { kind, name, range } of message.ranges) {
            if (range === undefined) {
                throw new Internal("got a part of a state without a range, expected one; report this");
            }
            const array = this.#array(range.group, kind, name);
            const start = toNumber(range.packedOffsetBytes);
            if (start + range.data.byteLength > array.bytes.byteLength) {
                throw new Internal(
                    `got bytes to ${start + range.data.byteLength} of a state's array, expected ` +
                        `${array.bytes.byteLength}; report this`,
                );
            }
            array.bytes.set(range.data, start);
            array.filledBytes += range.data.byteLength;
        }
    }

    /** The state, once all has come. */
    state(): FoundState {
        const { parameters, groups } = this.#layout;
        const state = {
            parameters: byName<FloatArray>(),
            slots: perParameter<FloatArray>(parameters),
            slotShapes: perParameter<readonly number[]>(parameters),
            scalars: perParameter<number>(parameters),
            steps: byName<number>(),
            version: toNumber(this.#header.version),
            samples: this.#header.samples,
        };
        for (const group of groups.keys()) {
            this.#array(group, StateKind.PARAMETERS, ""); // groups without elements send nothing
        }
        for (const { group, kind, name, bytes, filledBytes } of this.#arrays.values()) {
            if (filledBytes !== bytes.byteLength) {
                throw new Internal(
                    `got ${filledBytes} bytes of a state's array, expected ${bytes.byteLength}; report this`,
                );
            }
            const members = this.#layout.byGroup[group];
            const dtype = stateDType(groups[group].dtype);
            if (kind === StateKind.PARAMETERS || kind === StateKind.SLOT) {
                const shapes = this.#shapesOf(group, name);
                let begin = 0;
                for (const [index, parameter] of members.entries()) {
                    const end = begin + countOf(shapes[index]) * ITEM_BYTES[dtype];
                    const array = arrayOf(dtype, bytes.slice(begin, end));
                    begin = end;
                    if (kind === StateKind.PARAMETERS) {
                        state.parameters[parameter.name] = array;
                    } else {
                        state.slots[parameter.name][name] = array;
                        if (this.#shapes.has(`${group} ${name}`)) {
                            state.slotShapes[parameter.name][name] = shapes[index];
                        }
                    }
                }
            } else if (kind === StateKind.SCALAR) {
                const numbers = viewOf(Float64Array, bytes);
                members.forEach((parameter, index) => (state.scalars[parameter.name][name] = numbers[index]));
            } else if (kind === StateKind.STEPS) {
                const counts = viewOf(BigInt64Array, bytes);
                members.forEach((parameter, index) => (state.steps[parameter.name] = toNumber(counts[index])));
            }
        }
        state.parameters = byName(parameters.map(({ name }) => [name, state.parameters[name]]));
        return state;
    }

    #array(group: number, kind: StateKind, name: string): Filling {
        const key = `${group} ${kind} ${name}`;
        let array = this.#arrays.get(key);
        if (array === undefined) {
            if (group >= this.#layout.groups.length) {
                throw new Internal(`got a piece of group ${group} of ${this.#layout.groups.length}; report this`);
            }
            const elements = this.#shapesOf(group, name).reduce((sum, shape) => sum + countOf(shape), 0);
            const whole = kind === StateKind.PARAMETERS || kind === StateKind.SLOT;
            const sizeBytes = whole
                ? elements * ITEM_BYTES[stateDType(this.#layout.groups[group].dtype)]
                : NUMBER_BYTES * this.#layout.byGroup[group].length;
            array = { group, kind, name, bytes: new Uint8Array(sizeBytes), filledBytes: 0 };
            this.#arrays.set(key, array);
        }
        return array;
    }

    /** The shapes of a slot, or of the parameters themselves, in the group's order. */
    #shapesOf(group: number, name: string): readonly (readonly number[])[] {
        return this.#shapes.get(`${group} ${name}`) ?? this.#layout.byGroup[group].map(({ shape }) => shape);
    }
}

/** The state in messages; throws InvalidValue where it does not fit the layout. */
export function* stateRequests(
    run: string,
    state: State,
    layout: Layout,
    expectedVersion: number | undefined,
): Generator<SetStateRequest> {
    let request = create(SetStateRequestSchema, {
        run,
        ...(expectedVersion !== undefined && { expectedVersion: BigInt(expectedVersion) }),
        header: create(StateHeaderSchema, { version: BigInt(state.version), samples: state.samples }),
    });
    for (const { kind, name, parts } of stateArrays(state, layout)) {
        for (const pieces of pack(parts)) {
            for (const piece of pieces) {
                request.ranges.push(create(StateRangeSchema, { kind, name, range: wholeRange(piece) }));
            }
            yield request;
            request = create(SetStateRequestSchema);
        }
    }
}

/** How much data a state holds, in bytes, without what is one number per parameter. */
export function stateBytes(state: State): number {
    const arrays = [state.parameters, ...entriesOf(state.slots).map(([, slots]) => slots)];
    return arrays.flatMap(entriesOf).reduce((sum, [, array]) => sum + array.byteLength, 0);
}

/** The type in which the server keeps parameters of a type, and their slots. */
function stateDType(dtype: DType): DType {
    return is16(dtype) ? "float32" : dtype;
}

/** Every array of the state, as the parts that `pack` takes. */
function* stateArrays(state: State, layout: Layout): Generator<{ kind: StateKind; name: string; parts: Part[] }> {
    const parameters = new Map(entriesOf(state.parameters));
    const slots = nested(state.slots);
    const scalars = nested(state.scalars);
    const steps = new Map(entriesOf(state.steps));
    const missing = layout.parameters.filter(({ name }) => !parameters.has(name)).map(({ name }) => name);
    const unknown = [...parameters.keys()].filter((name) => !layout.byName.has(name));
    if (missing.length > 0 || unknown.length > 0) {
        throw new InvalidValue(
            `state: ${listed(missing)} missing and ${listed(unknown)} unknown, expected exactly the run's; give the state ` +
                "of a run with the same parameters",
        );
    }
    for (const [group, members] of layout.byGroup.entries()) {
        for (const { name, count, dtype } of members) {
            const given = parameters.get(name);
            if (given?.length !== count) {
                throw new InvalidValue(
                    `state: parameter '${name}' has ${given?.length ?? "no"} elements, expected ${count} of ` +
                        `${stateDType(dtype)}; give the state of a run with the same parameters`,
                );
            }
        }
        yield { kind: StateKind.PARAMETERS, name: "", parts: statePart(group, members, parameters, "parameter") };
        for (const slot of namesOf(members, slots, "slots")) {
            const arrays = new Map(members.map(({ name }) => [name, slots.get(name)?.get(slot)]));
            yield { kind: StateKind.SLOT, name: slot, parts: statePart(group, members, arrays, `slot '${slot}'`) };
        }
        for (const scalar of namesOf(members, scalars, "scalars")) {
            const numbers = Float64Array.from(members, ({ name }) => scalars.get(name)?.get(scalar) ?? 0);
            yield { kind: StateKind.SCALAR, name: scalar, parts: [numbersPart(group, numbers)] };
        }
        const counted = members.filter(({ name }) => steps.has(name));
        if (counted.length > 0 && counted.length !== members.length) {
            throw new InvalidValue(
                `state: got steps of ${counted.length} of ${members.length} parameters, expected all or none; copy them ` +
                    "from getState",
            );
        }
        const counts = BigInt64Array.from(counted, ({ name }) => BigInt(steps.get(name) ?? 0));
        yield { kind: StateKind.STEPS, name: "", parts: [numbersPart(group, counts)] };
    }
}

/** One array after another, as they lie without padding. The server sees whether slots have the right shapes. */
function statePart(
    group: number,
    members: readonly Parameter[],
    arrays: ReadonlyMap<string, unknown>,
    what: string,
): Part[] {
    let offsetBytes = 0;
    return members.map(({ name, dtype }) => {
        const elements = elementsOf(arrays.get(name));
        const itemBytes = ITEM_BYTES[stateDType(dtype)];
        if (elements?.dtype !== stateDType(dtype)) {
            throw new InvalidValue(
                `state: ${what} of '${name}' is ${elements?.dtype ?? show(arrays.get(name))}, expected ` +
                    `${stateDType(dtype)}; give the state of a run with the same parameters`,
            );
        }
        const part = { group, offsetBytes, bytes: elements.bytes, itemBytes, groupItemBytes: itemBytes };
        offsetBytes += elements.bytes.byteLength;
        return part;
    });
}

function numbersPart(group: number, numbers: Float64Array | BigInt64Array): Part {
    return { group, offsetBytes: 0, bytes: bytesOf(numbers), itemBytes: NUMBER_BYTES, groupItemBytes: NUMBER_BYTES };
}

function namesOf(
    members: readonly Parameter[],
    byParameter: ReadonlyMap<string, ReadonlyMap<string, unknown>>,
    what: string,
): readonly string[] {
    const names = members.map(({ name }) => [...(byParameter.get(name)?.keys() ?? [])].sort());
    if (names.some((other) => other.join("\0") !== names[0].join("\0"))) {
        throw new InvalidValue(
            `state: got different ${what} within one group, expected the same; copy them from getState`,
        );
    }
    return names.at(0) ?? [];
}

function nested<T>(things: ByName<ByName<T>>): Map<string, Map<string, T>> {
    return new Map(entriesOf(things).map(([name, inner]) => [name, new Map(entriesOf(inner))]));
}

function perParameter<T>(parameters: readonly Parameter[]): Record<string, Record<string, T>> {
    return byName(parameters.map(({ name }) => [name, byName<T>()]));
}
