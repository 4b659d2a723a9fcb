/** Arrays as the SDK takes and gives them: flat typed arrays in C order, with a shape where one is needed. */

import { fromBits16, toBits16 } from "./halves.js";

/** The type of a parameter's elements. */
export type DType = "float32" | "float64" | "float16" | "bfloat16";

/** Elements in C order. Those of float16 and bfloat16 are float32 here: every one of them is one exactly. */
export type FloatArray = Float32Array | Float64Array;

/** Flat arrays by name of the parameter; an object without a prototype, so that every name is an own key. */
export type Arrays = Record<string, FloatArray>;

/** Things by name; a Map keeps names such as "10" in their own order. */
export type ByName<T> = Readonly<Record<string, T>> | ReadonlyMap<string, T>;

/**
 * Elements with a shape.
 *
 * data: in C order. A Uint16Array holds the bits of float16 or bfloat16, and then `dtype` says which; other data that is
 * given one of these dtypes is rounded to it. dtype: by default that of the data, float32 for plain numbers.
 */
export interface Tensor {
    readonly data: FloatArray | Uint16Array | readonly number[];
    readonly shape: readonly number[];
    readonly dtype?: DType | undefined;
}

/** What is taken as an array. A typed array alone has one dimension; as a gradient it has its parameter's shape. */
export type ArrayLike = FloatArray | Uint16Array | Tensor;

export const ITEM_BYTES: Readonly<Record<DType, number>> = { float32: 4, float64: 8, float16: 2, bfloat16: 2 };

/** A tensor: `tensor([1, 2, 3, 4], [2, 2])`, `tensor(1.5, [])` for a single number. */
export function tensor(data: Tensor["data"] | number, shape: readonly number[], dtype?: DType): Tensor {
    return { data: typeof data === "number" ? [data] : data, shape, dtype };
}

/** Elements ready to be sent: their bytes in `dtype`. */
export interface Elements {
    readonly dtype: DType;
    readonly shape: readonly number[] | undefined;
    readonly count: number;
    readonly bytes: Uint8Array;
}

/**
 * The elements of an array; undefined for what is none. Its memory is the caller's own unless it has to be rounded.
 *
 * bits: the dtype of a Uint16Array that does not say.
 */
export function elementsOf(value: unknown, bits?: DType): Elements | undefined {
    if (isTyped(value)) {
        const dtype = nativeDType(value) ?? (bits && is16(bits) ? bits : undefined);
        return dtype && { dtype, shape: undefined, count: value.length, bytes: bytesOf(value) };
    }
    const { data, shape, dtype } = (value ?? {}) as Partial<Tensor>;
    if (!Array.isArray(shape) || (!isTyped(data) && !Array.isArray(data)) || (dtype && !(dtype in ITEM_BYTES))) {
        return undefined;
    }
    const own = isTyped(data) ? nativeDType(data) : "float32";
    const wanted = dtype ?? own ?? bits;
    if (wanted === undefined || (own === undefined && !is16(wanted))) {
        return undefined;
    }
    return { dtype: wanted, shape, count: data.length, bytes: bytesOf(cast(data, wanted)) };
}

/** An array of `count` elements for values of this dtype, as the SDK gives them. */
export function newArray(dtype: DType, count: number): FloatArray {
    return dtype === "float64" ? new Float64Array(count) : new Float32Array(count);
}

/** The memory of a typed array. */
export function bytesOf(array: ArrayBufferView): Uint8Array {
    return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** A view of bytes as elements; of a copy where they do not begin on an element's boundary. */
export function viewOf<T>(
    kind: { new (buffer: ArrayBufferLike, offset: number, length: number): T; readonly BYTES_PER_ELEMENT: number },
    bytes: Uint8Array,
): T {
    const size = kind.BYTES_PER_ELEMENT;
    const aligned = bytes.byteOffset % size === 0 ? bytes : Uint8Array.from(bytes);
    return new kind(aligned.buffer, aligned.byteOffset, Math.floor(aligned.byteLength / size));
}

/** Elements of `dtype`, given by their bytes, as an array of the caller's: a view, or widened from 16 bits. */
export function arrayOf(dtype: DType, bytes: Uint8Array): FloatArray {
    if (dtype === "float64") {
        return viewOf(Float64Array, bytes);
    }
    return is16(dtype) ? fromBits16(viewOf(Uint16Array, bytes), dtype) : viewOf(Float32Array, bytes);
}

/** Whether elements have 16 bits. */
export function is16(dtype: DType): dtype is "float16" | "bfloat16" {
    return ITEM_BYTES[dtype] === 2;
}

/** How many elements a shape has. */
export function countOf(shape: readonly number[]): number {
    return shape.reduce((count, length) => count * length, 1);
}

/** The entries of things by name. */
export function entriesOf<T>(byName: ByName<T>): [string, T][] {
    return byName instanceof Map
        ? [...(byName as ReadonlyMap<string, T>)]
        : Object.entries(byName as Record<string, T>);
}

/** An object without a prototype, so that "__proto__" is a name like any other. */
export function byName<T>(entries: Iterable<readonly [string, T]> = []): Record<string, T> {
    const object = Object.create(null) as Record<string, T>;
    for (const [name, value] of entries) {
        object[name] = value;
    }
    return object;
}

/** A shape for a message. */
export function shown(shape: readonly number[]): string {
    return `[${shape.join(", ")}]`;
}

function isTyped(value: unknown): value is FloatArray | Uint16Array {
    return value instanceof Float32Array || value instanceof Float64Array || value instanceof Uint16Array;
}

function nativeDType(array: FloatArray | Uint16Array): DType | undefined {
    return array instanceof Float32Array ? "float32" : array instanceof Float64Array ? "float64" : undefined;
}

function cast(data: Tensor["data"], dtype: DType): FloatArray | Uint16Array {
    if (is16(dtype)) {
        return data instanceof Uint16Array ? data : toBits16(Float32Array.from(data), dtype);
    }
    const kind = dtype === "float64" ? Float64Array : Float32Array;
    return data instanceof kind ? data : kind.from(data);
}

if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1) {
    throw new Error("got a big-endian machine, expected a little-endian one: elements travel as they lie in memory");
}
