/** Gradients and parameters into ranges: what goes out. */

import { type ArrayLike, type ByName, type DType, entriesOf, elementsOf, ITEM_BYTES, shown } from "./arrays.js";
import { InvalidGradient, UnknownParameter } from "./errors.js";
import type { Layout, Parameter } from "./layout.js";
import { listed, RANGE_BYTES, show } from "./values.js";

/**
 * What a range takes in a message beside its data, at most; counted from a message's second range on, so that thousands
 * of tiny ranges stay bounded and one large array is cut at whole RANGE_BYTES.
 */
export const RANGE_OVERHEAD_BYTES = 24;

/** Gradients of which other types a parameter takes: those that its state holds exactly. 16-bit parameters have 32. */
const WIDENED: Readonly<Record<DType, readonly DType[]>> = {
    float64: ["float32", "float16", "bfloat16"],
    float32: ["float16", "bfloat16"],
    float16: ["float32", "bfloat16"],
    bfloat16: ["float32", "float16"],
};

/** What an encoded range has beside its data. */
export interface EncodedParts {
    readonly name: string;
    readonly elements: number;
    readonly scales: Uint8Array;
    readonly indices: Uint8Array;
}

/** A range before it is a message. parts: its data. dtype: where it is not the group's. */
export interface Piece {
    readonly group: number;
    readonly offsetBytes: number;
    readonly parts: readonly Uint8Array[];
    readonly input: number;
    readonly dtype: DType | undefined;
    readonly encoded?: EncodedParts;
}

/** An array on its way out: it belongs at an offset of a group, counted in elements of `groupItemBytes`. */
export interface Part {
    readonly group: number;
    readonly offsetBytes: number;
    readonly bytes: Uint8Array;
    readonly itemBytes: number;
    readonly groupItemBytes: number;
    readonly dtype?: DType | undefined;
}

/** An array or, in an update, null for a parameter that has no gradient in it. */
export type Gradient = ArrayLike | null;

/** The gradient of one parameter, checked: its bytes, and its dtype where that is not the parameter's. */
interface Checked {
    readonly bytes: Uint8Array;
    readonly dtype: DType | undefined;
}

/**
 * The checked gradients of one update, and its further inputs.
 *
 * withoutGradient: the indices of parameters that have none. inputs: the names of the further inputs.
 */
export class Gradients {
    readonly withoutGradient: number[] = [];
    readonly inputs: readonly string[];
    readonly dataBytes: number;
    readonly #layout: Layout;
    readonly #arrays = new Map<number, Checked>();
    readonly #inputArrays: readonly ReadonlyMap<number, Checked>[];

    /** grads: undefined for an update of rows alone. Throws InvalidGradient for a wrong name, shape or dtype. */
    constructor(
        layout: Layout,
        grads: ByName<Gradient> | undefined,
        what: string,
        inputs: ByName<ByName<ArrayLike>> = {},
    ) {
        this.#layout = layout;
        if (grads !== undefined) {
            const given = new Map(entriesOf(grads));
            checkNames(layout, given, what);
            for (const parameter of layout.trained) {
                const gradient = given.get(parameter.name);
                if (gradient === null) {
                    this.withoutGradient.push(parameter.index);
                } else {
                    this.#arrays.set(parameter.index, checkGradient(parameter, gradient, what));
                }
            }
        }
        const named = entriesOf(inputs);
        this.inputs = named.map(([name]) => name);
        this.#inputArrays = named.map(([name, arrays]) => checkInput(layout, arrays, `${what}: ${name}`));
        this.dataBytes = 0;
        for (const arrays of [this.#arrays, ...this.#inputArrays]) {
            for (const { bytes } of arrays.values()) {
                this.dataBytes += bytes.byteLength;
            }
        }
    }

    /** The ranges, grouped into messages of at most so many bytes; at least one message, perhaps empty. */
    *messages(messageBytesMax = RANGE_BYTES): Generator<readonly Piece[]> {
        yield* pack(this.#parts(this.#arrays), messageBytesMax);
        for (const [number, arrays] of this.#inputArrays.entries()) {
            for (const message of pack(this.#parts(arrays))) {
                yield message.map((piece) => ({ ...piece, input: number + 1 }));
            }
        }
    }

    *#parts(arrays: ReadonlyMap<number, Checked>): Generator<Part> {
        for (const [group, members] of this.#layout.byGroup.entries()) {
            const groupItemBytes = this.#layout.groups[group].itemBytes;
            for (const { index, offsetBytes } of members) {
                const array = arrays.get(index);
                if (array !== undefined) {
                    const itemBytes = array.dtype ? ITEM_BYTES[array.dtype] : groupItemBytes;
                    yield { group, offsetBytes, bytes: array.bytes, itemBytes, groupItemBytes, dtype: array.dtype };
                }
            }
        }
    }
}

/** The dtypes of what is sent plain, as encodings see them: that of a piece, or its group's. */
export function dtypeOf(piece: Piece, layout: Layout): DType {
    return piece.dtype ?? layout.groups[piece.group].dtype;
}

/**
 * Cut arrays into messages of at most so many bytes.
 *
 * Neighbours share a range, a large array is sliced. Gives at least one message, perhaps empty.
 */
export function* pack(arrays: Iterable<Part>, messageBytesMax = RANGE_BYTES): Generator<readonly Piece[]> {
    let message: Piece[] = [];
    let messageBytes = 0;
    let open: { group: number; start: number; dtype: DType | undefined; parts: Uint8Array[] } | undefined;
    let end = 0; // of the open range, in its group

    const close = (): void => {
        if (open) {
            message.push({
                group: open.group,
                offsetBytes: open.start,
                parts: open.parts,
                input: 0,
                dtype: open.dtype,
            });
            open = undefined;
        }
    };

    for (const { group, offsetBytes, bytes, itemBytes, groupItemBytes, dtype } of arrays) {
        if (bytes.byteLength === 0) {
            continue;
        }
        if (open && (open.group !== group || end !== offsetBytes || open.dtype !== dtype)) {
            close();
        }
        let taken = 0;
        while (taken < bytes.byteLength) {
            if (!open) {
                open = { group, start: offsetBytes + (taken / itemBytes) * groupItemBytes, dtype, parts: [] };
                messageBytes += message.length > 0 ? RANGE_OVERHEAD_BYTES : 0;
            }
            const room = Math.floor((messageBytesMax - messageBytes) / itemBytes) * itemBytes;
            if (room <= 0) {
                if (open.parts.length === 0) {
                    open = undefined;
                }
                close();
                yield message;
                message = [];
                messageBytes = 0;
                continue;
            }
            const size = Math.min(room, bytes.byteLength - taken);
            open.parts.push(bytes.subarray(taken, taken + size));
            taken += size;
            messageBytes += size;
        }
        end = offsetBytes + (bytes.byteLength / itemBytes) * groupItemBytes;
    }
    close();
    yield message;
}

/** A gradient as it can be sent; throws InvalidGradient for a wrong shape or dtype. */
export function checkGradient(parameter: Parameter, gradient: unknown, what: string): Checked {
    const elements = elementsOf(gradient, parameter.dtype);
    if (elements === undefined) {
        throw new InvalidGradient(
            `${what}: gradient for '${parameter.name}' is ${kindOf(gradient)}, expected a ` +
                `${parameter.dtype === "float64" ? "Float64Array" : "Float32Array"} or a tensor; convert it`,
            { parameter: parameter.name },
        );
    }
    const { dtype, shape, count, bytes } = elements;
    if (dtype !== parameter.dtype && !WIDENED[parameter.dtype].includes(dtype)) {
        throw new InvalidGradient(
            `${what}: gradient for '${parameter.name}' has dtype ${dtype}, expected ${parameter.dtype}; convert it ` +
                "yourself, with Float32Array.from, so that no precision is lost unseen",
            { parameter: parameter.name, got: dtype, expected: parameter.dtype },
        );
    }
    const fits = shape === undefined ? count === parameter.count : sameShape(shape, parameter.shape);
    if (!fits || count !== parameter.count) {
        const got = shape === undefined || fits ? `${count} elements` : `shape ${shown(shape)}`;
        throw new InvalidGradient(
            `${what}: gradient for '${parameter.name}' has ${got}, expected shape ${shown(parameter.shape)}; ` +
                "push gradients in the parameter's own shape",
            { parameter: parameter.name, got, expected: shown(parameter.shape) },
        );
    }
    return { bytes, dtype: dtype === parameter.dtype ? undefined : dtype };
}

/** Whether two shapes are the same. */
export function sameShape(one: readonly number[], other: readonly number[]): boolean {
    return one.length === other.length && one.every((length, index) => length === other[index]);
}

function checkInput(layout: Layout, arrays: ByName<ArrayLike>, what: string): Map<number, Checked> {
    const checked = new Map<number, Checked>();
    for (const [name, array] of entriesOf(arrays)) {
        const parameter = layout.byName.get(name);
        if (parameter === undefined) {
            throw new UnknownParameter(
                `${what}: got parameter '${name.slice(0, 200)}', expected one of ${listed(layout.byName.keys())}; ` +
                    "choose one of them",
                { got: name.slice(0, 200) },
            );
        }
        checked.set(parameter.index, checkGradient(parameter, array, what));
    }
    return checked;
}

function checkNames(layout: Layout, given: ReadonlyMap<string, unknown>, what: string): void {
    const trained = layout.trained.map((parameter) => parameter.name);
    const expected = new Set(trained);
    const unknown = [...given.keys()].filter((name) => !expected.has(name));
    if (unknown.length > 0) {
        const frozen = unknown.filter((name) => layout.byName.has(name));
        throw new InvalidGradient(
            frozen.length > 0
                ? `${what}: got a gradient for ${listed(frozen)}, which is frozen, expected none; leave it out`
                : `${what}: got a gradient for ${listed(unknown)}, expected some of ${listed(trained)}; leave it out`,
            { unknown: listed(unknown) },
        );
    }
    const missing = trained.filter((name) => given.get(name) === undefined);
    if (missing.length > 0) {
        throw new InvalidGradient(
            `${what}: got no gradient for ${listed(missing)}, expected every parameter to be named; ` +
                "give null for a parameter that has no gradient in this update",
            { missing: listed(missing) },
        );
    }
}

function kindOf(value: unknown): string {
    const kind = (value as { constructor?: { name?: string } } | undefined)?.constructor?.name;
    return ArrayBuffer.isView(value) ? `a ${kind}` : show(value);
}
