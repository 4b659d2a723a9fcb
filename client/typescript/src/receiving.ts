/** Ranges into arrays: what comes in. */

import { type Arrays, arrayOf, byName, bytesOf, type FloatArray, is16, newArray } from "./arrays.js";
import type { Decoder } from "./encoding.js";
import { Internal, InvalidValue } from "./errors.js";
import { DType as DTypeCode, type Range, type Rows } from "./generated/stepwell/v1/run_pb.js";
import type { Layout, Parameter } from "./layout.js";
import type { SelectedRows } from "./rows.js";
import { listed, show, toNumber } from "./values.js";

/** Where one parameter goes: an array of the caller's, and the memory that its bytes are put into. */
interface Target {
    readonly parameter: Parameter;
    readonly array: FloatArray;
    readonly bytes: Uint8Array;
}

/** The arrays of some parameters, and the rows, that one exchange fetches. */
export class Received {
    readonly sizeBytes: number;
    readonly rows: SelectedRows | undefined;
    readonly #layout: Layout;
    readonly #parameters: readonly Parameter[];
    readonly #out: Arrays | undefined;
    readonly #decoder: Decoder | undefined;
    #all: readonly Target[] = [];
    #targets: Target[][] | undefined; // by group, those with bytes, by offset
    #filledBytes = 0;

    /** parameters: in the order in which they shall be returned. out: arrays to fill in place, else fresh ones. */
    constructor(
        layout: Layout,
        parameters: readonly Parameter[],
        out?: Arrays,
        decoder?: Decoder,
        rows?: SelectedRows,
    ) {
        if (out !== undefined) {
            checkOut(parameters, out);
        }
        this.#layout = layout;
        this.#parameters = parameters;
        this.#out = out;
        this.#decoder = decoder;
        this.rows = rows;
        this.sizeBytes = parameters.reduce((sum, parameter) => sum + parameter.sizeBytes, rows?.sizeBytes ?? 0);
    }

    get filledBytes(): number {
        return this.#filledBytes + (this.rows?.filledBytes ?? 0);
    }

    /** Make room, or start over. */
    begin(): void {
        this.#filledBytes = 0;
        this.rows?.begin();
        const targets: Target[][] = this.#layout.groups.map(() => []);
        for (const parameter of this.#parameters) {
            const { name, dtype, count, sizeBytes } = parameter;
            // Each has memory of its own, so that one of them can be transferred to another thread without the others.
            const array = this.#out?.[name] ?? newArray(dtype, count);
            const bytes = is16(dtype) ? new Uint8Array(sizeBytes) : bytesOf(array);
            targets[parameter.group].push({ parameter, array, bytes });
        }
        for (const members of targets) {
            members.sort((one, other) => one.parameter.offsetBytes - other.parameter.offsetBytes);
        }
        this.#targets = targets.map((members) => members.filter(({ bytes }) => bytes.byteLength > 0));
        this.#all = targets.flat();
    }

    /** Take a range. */
    put(range: Range): void {
        const targets = this.#targets?.at(range.group);
        if (targets === undefined || range.group >= this.#layout.groups.length) {
            throw new Internal(
                `got a range of group ${range.group} that was not announced, expected none; report this`,
            );
        }
        const { dtype } = this.#layout.groups[range.group];
        const encoded = range.dtype !== DTypeCode.UNSPECIFIED || range.encoding !== "";
        if (encoded && this.#decoder === undefined) {
            throw new Internal("got an encoded range, expected plain elements; report this");
        }
        const data = encoded && this.#decoder ? this.#decoder.decode(range, dtype) : range.data;
        const offset = toNumber(range.packedOffsetBytes);
        let at = lastAt(targets, offset);
        for (let taken = 0; taken < data.byteLength; at++) {
            const target = targets.at(at);
            const inside = target && at >= 0 ? offset + taken - target.parameter.offsetBytes : -1;
            if (target === undefined || inside < 0 || inside >= target.bytes.byteLength) {
                throw new Internal(
                    `got bytes at ${offset + taken} of group ${range.group}, expected none; report this`,
                );
            }
            const size = Math.min(target.bytes.byteLength - inside, data.byteLength - taken);
            target.bytes.set(data.subarray(taken, taken + size), inside);
            taken += size;
        }
        this.#filledBytes += data.byteLength;
    }

    /** Take rows of a table. */
    putRows(rows: Rows): void {
        if (this.rows === undefined) {
            throw new Internal(`got rows of table ${rows.table} that were not asked for, expected none; report this`);
        }
        this.rows.put(rows);
    }

    /** The arrays by name, once all has come. */
    arrays(): Arrays {
        if (this.#targets === undefined || this.filledBytes !== this.sizeBytes) {
            // Ranges do not overlap, so counting is enough.
            throw new Internal(`got ${this.filledBytes} bytes of parameters, expected ${this.sizeBytes}; report this`);
        }
        const found = new Map<string, FloatArray>();
        for (const { parameter, array, bytes } of this.#all) {
            if (is16(parameter.dtype)) {
                array.set(arrayOf(parameter.dtype, bytes));
            }
            found.set(parameter.name, array);
        }
        return byName(this.#parameters.map(({ name }) => [name, found.get(name) as FloatArray]));
    }
}

/** The index of the last target that begins at or before an offset; -1 for none. */
function lastAt(targets: readonly Target[], offset: number): number {
    let low = 0;
    let high = targets.length;
    while (low < high) {
        const middle = (low + high) >>> 1;
        if (targets[middle].parameter.offsetBytes <= offset) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low - 1;
}

/** Throw InvalidValue unless `out` has an array to fill for each of these parameters and for nothing else. */
function checkOut(parameters: readonly Parameter[], out: Arrays): void {
    const names = new Set(parameters.map(({ name }) => name));
    const given = Object.keys(out);
    if (given.length !== names.size || given.some((name) => !names.has(name))) {
        throw new InvalidValue(
            `got out for ${listed(given.sort())}, expected arrays for ${listed([...names].sort())}; give exactly these`,
        );
    }
    for (const { name, dtype, count } of parameters) {
        const array: unknown = out[name];
        const fits = dtype === "float64" ? array instanceof Float64Array : array instanceof Float32Array;
        if (!fits || (array as FloatArray).length !== count) {
            const kind = dtype === "float64" ? "Float64Array" : "Float32Array";
            const got = ArrayBuffer.isView(array)
                ? `${array.constructor.name} of ${(array as FloatArray).length} elements`
                : show(array);
            throw new InvalidValue(
                `out for '${name}': got ${got}, expected a ${kind} of ${count}; make it with new ${kind}(${count})`,
            );
        }
    }
}
