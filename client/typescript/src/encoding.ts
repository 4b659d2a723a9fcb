/**
 * Encodings on the worker's side: gradients made smaller, what that drops sent later, encoded parameters made whole.
 *
 * Error feedback: what an update did not carry of a gradient is owed, added to the next one, and sent as far as that one
 * carries it. It is settled only when the server has committed the update: one that leaves no trace there leaves none
 * here. Both ends compute in float32 what a code stands for, so they agree to the bit on what is owed.
 */

import { bytesOf, type DType, type FloatArray, is16, ITEM_BYTES, viewOf } from "./arrays.js";
import { Internal } from "./errors.js";
import { DType as DTypeCode, type Range } from "./generated/stepwell/v1/run_pb.js";
import type { Encoding } from "./generated/stepwell/v1/values_pb.js";
import { fromBits16, halfBits, fromHalfBits, roundEven, toBits16 } from "./halves.js";
import type { Layout } from "./layout.js";
import { dtypeOf, type Gradients, type Piece } from "./packing.js";
import { decodeDType, decodeValues, RANGE_BYTES, show, toNumber, type Value } from "./values.js";

type Arguments = Readonly<Record<string, Value>>;

/** What an encoding makes of some elements. decoded: what the other end will make of it. */
interface Codes {
    readonly data: Uint8Array;
    readonly decoded: Float32Array;
    readonly scales?: Uint8Array;
    readonly indices?: Uint8Array;
}

/** How much of the gradients is encoded at a time: what takes at most half of it fills a message. */
const PIECE_BYTES = 2 * RANGE_BYTES;

/** Above it top_k, which sends 5 bytes for an element, may make more of 16-bit gradients than a message takes. */
const DENSITY_MAX = 0.5;

const INT8_MAX = 127;
/** The largest float32 whose 127-fold is finite. */
const SCALE_MAX = below(Math.fround(3.4028234663852886e38 / INT8_MAX));
const HALF_MAX_BITS = 0x7bff; // 65,504
const GAP_GOES_ON = 255;

const NOTHING = new Uint8Array(0);

/** One worker's encoder of gradients. owed: by group, what was not sent yet of each element, with error feedback. */
export class Encoder {
    readonly name: string;
    readonly feedback: boolean;
    /** How much of the gradients is encoded at a time, in bytes. */
    readonly pieceBytes: number;
    readonly #arguments: Arguments;
    #owed: (FloatArray | undefined)[] = [];
    #next: (FloatArray | undefined)[] = [];

    constructor(spec: Encoding) {
        this.name = spec.name;
        this.#arguments = decodeValues(spec.arguments);
        this.feedback = this.#arguments["error_feedback"] === true;
        this.pieceBytes = Number(this.#arguments["density"] ?? 0) <= DENSITY_MAX ? PIECE_BYTES : RANGE_BYTES;
    }

    /** Have the memory that error feedback takes: two numbers for each element. */
    prepare(layout: Layout): void {
        if (!this.feedback || this.#owed.length > 0) {
            return;
        }
        const vectors = (): (FloatArray | undefined)[] =>
            layout.groups.map(({ dtype, itemBytes, packedBytes, frozen }) => {
                const wide = dtype === "float64" ? Float64Array : Float32Array;
                return frozen ? undefined : new wide(packedBytes / itemBytes);
            });
        this.#owed = vectors();
        this.#next = vectors();
    }

    /** The update was committed: what it left out is owed from now on, and what it did not touch still is. */
    settle(covered: ReadonlyMap<number, readonly [number, number][]>): void {
        for (const [group, vector] of this.#next.entries()) {
            const owed = this.#owed[group];
            if (vector === undefined || owed === undefined) {
                continue;
            }
            let end = 0;
            const ranges = [...(covered.get(group) ?? [])].sort(([one], [other]) => one - other);
            for (const [begin, after] of [...ranges, [vector.length, vector.length] as const]) {
                vector.set(owed.subarray(end, begin), end);
                end = after;
            }
        }
        [this.#owed, this.#next] = [this.#next, this.#owed];
    }

    /** An encoded piece, and how many elements were encoded: none of those that would not become smaller. */
    encode(piece: Piece, layout: Layout): { piece: Piece; count: number } {
        const dtype = dtypeOf(piece, layout);
        const casts = this.name === "float32" || this.name === "bfloat16" ? this.name : undefined;
        if (casts && ITEM_BYTES[casts] >= ITEM_BYTES[dtype]) {
            return { piece, count: 0 };
        }
        let elements = joined(piece.parts, dtype);
        const begin = piece.offsetBytes / layout.groups[piece.group].itemBytes;
        const owed = this.#owed.at(piece.group);
        const next = this.#next.at(piece.group);
        if (this.feedback && owed) {
            elements = elements.slice(); // never the caller's own
            for (let index = 0; index < elements.length; index++) {
                elements[index] += owed[begin + index];
            }
        }
        const encode = ENCODERS[this.name] as ((elements: FloatArray, options: Arguments) => Codes) | undefined;
        if (encode === undefined) {
            throw new Internal(`got a run with encoding ${show(this.name)}, expected a known one; upgrade stepwell`);
        }
        const codes = encode(elements, this.#arguments);
        if (this.feedback && next) {
            for (let index = 0; index < elements.length; index++) {
                const left = elements[index] - codes.decoded[index];
                // Whoever allows what is not finite gets it as it is, and once.
                next[begin + index] = Number.isFinite(left) ? left : 0;
            }
        }
        const encoded = { name: this.name, elements: elements.length, scales: NOTHING, indices: NOTHING };
        const { scales = NOTHING, indices = NOTHING } = codes;
        const plain = { ...piece, parts: [codes.data] };
        return {
            piece: casts
                ? { ...plain, dtype: casts }
                : { ...plain, dtype: undefined, encoded: { ...encoded, scales, indices } },
            count: elements.length,
        };
    }
}

/**
 * One update's messages. With error feedback they are kept for retries: the same bytes go out again.
 *
 * Of an encoder's updates only the last one can be settled.
 */
export class EncodedUpdate {
    readonly #encoder: Encoder;
    readonly #layout: Layout;
    readonly #made: (readonly Piece[])[] = [];
    readonly #covered = new Map<number, [number, number][]>();
    #rest: Generator<readonly Piece[]> | undefined;

    constructor(encoder: Encoder, layout: Layout) {
        this.#encoder = encoder;
        this.#layout = layout;
    }

    /** All messages: those that were made, and the rest of the gradients. */
    *messages(gradients: Gradients): Generator<readonly Piece[]> {
        this.#encoder.prepare(this.#layout);
        if (!this.#encoder.feedback) {
            for (const pieces of gradients.messages(this.#encoder.pieceBytes)) {
                yield this.#encoded(pieces);
            }
            return;
        }
        this.#rest ??= gradients.messages(this.#encoder.pieceBytes);
        yield* [...this.#made];
        for (let next = this.#rest.next(); !next.done; next = this.#rest.next()) {
            const message = this.#encoded(next.value);
            this.#made.push(message);
            yield message;
        }
    }

    /** The update was committed. */
    settle(): void {
        if (this.#encoder.feedback) {
            this.#encoder.settle(this.#covered);
        }
    }

    #encoded(pieces: readonly Piece[]): readonly Piece[] {
        return pieces.map((plain) => {
            if (plain.input > 0) {
                return plain; // inputs beside the gradients stay as they are
            }
            const { piece, count } = this.#encoder.encode(plain, this.#layout);
            if (count > 0) {
                const begin = plain.offsetBytes / this.#layout.groups[plain.group].itemBytes;
                const covered = this.#covered.get(plain.group) ?? [];
                covered.push([begin, begin + count]);
                this.#covered.set(plain.group, covered);
            }
            return piece;
        });
    }
}

/** Makes plain elements of the ranges in which a server sends parameters. */
export class Decoder {
    readonly #arguments: Arguments;

    constructor(spec: Encoding) {
        this.#arguments = decodeValues(spec.arguments);
    }

    /** The bytes of a range as elements of `dtype`. */
    decode(range: Range, dtype: DType): Uint8Array {
        const elements = this.#elements(range);
        if (dtype === "float64") {
            return bytesOf(Float64Array.from(elements));
        }
        const narrow = elements instanceof Float32Array ? elements : Float32Array.from(elements);
        return bytesOf(is16(dtype) ? toBits16(narrow, dtype) : narrow);
    }

    #elements(range: Range): FloatArray {
        if (range.dtype !== DTypeCode.UNSPECIFIED) {
            return joined([range.data], decodeDType(range.dtype));
        }
        const count = toNumber(range.elements);
        if (range.encoding === "int8" && typeof this.#arguments["block"] === "number") {
            const codes = viewOf(Int8Array, range.data);
            const scales = viewOf(Float32Array, range.scales);
            const block = this.#arguments["block"];
            if (codes.length !== count || scales.length !== Math.ceil(count / block)) {
                throw new Internal(
                    `got ${codes.length} codes and ${scales.length} scales, which do not fit; report this`,
                );
            }
            return multiplied(codes, scales, block);
        }
        throw new Internal(`got a range in encoding ${show(range.encoding)}, expected the run's; upgrade stepwell`);
    }
}

const ENCODERS: Readonly<Record<string, (elements: FloatArray, options: Arguments) => Codes>> = {
    float32: (elements) => {
        const narrow = Float32Array.from(elements);
        return { data: bytesOf(narrow), decoded: narrow };
    },

    bfloat16: (elements) => {
        const narrow = Float32Array.from(elements);
        const words = new Uint32Array(narrow.buffer);
        const bits = new Uint16Array(narrow.length);
        for (let index = 0; index < bits.length; index++) {
            // Half way goes away from zero, as in the other SDKs; rounding may carry a NaN into the sign.
            const word = words[index];
            bits[index] = (word & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (word + 0x8000) >>> 16;
        }
        return { data: bytesOf(bits), decoded: fromBits16(bits, "bfloat16") };
    },

    float16: (elements, options) => {
        const scale = Math.fround(Number(options["scale"]));
        const bits = new Uint16Array(elements.length);
        const decoded = new Float32Array(elements.length);
        for (let index = 0; index < bits.length; index++) {
            const half = halfBits(elements[index] * scale);
            const beyond = (half & 0x7fff) === 0x7c00 && Number.isFinite(elements[index]);
            bits[index] = beyond ? (half & 0x8000) | HALF_MAX_BITS : half;
            decoded[index] = fromHalfBits(bits[index]) / scale;
        }
        return { data: bytesOf(bits), decoded, scales: bytesOf(Float32Array.of(scale)) };
    },

    int8: (elements, options) => {
        const block = Number(options["block"]);
        const scales = new Float32Array(Math.ceil(elements.length / block));
        const codes = new Int8Array(elements.length);
        const narrow = elements instanceof Float32Array; // then all is computed in float32
        for (let row = 0; row < scales.length; row++) {
            const end = Math.min(elements.length, (row + 1) * block);
            let largest = 0;
            for (let index = row * block; index < end; index++) {
                const size = Math.abs(elements[index]);
                largest = size > largest || Number.isNaN(size) ? size : largest;
                if (Number.isNaN(size)) {
                    break;
                }
            }
            scales[row] = Math.fround(largest) / INT8_MAX;
            if (Number.isFinite(scales[row]) && scales[row] > SCALE_MAX) {
                scales[row] = SCALE_MAX;
            }
            const divisor = scales[row] > 0 ? scales[row] : 1;
            for (let index = row * block; index < end; index++) {
                const quotient = elements[index] / divisor;
                const code = roundEven(narrow ? Math.fround(quotient) : quotient);
                codes[index] = Math.max(-INT8_MAX, Math.min(INT8_MAX, code)); // tiny scales are rounded coarsely
            }
        }
        return { data: bytesOf(codes), decoded: multiplied(codes, scales, block), scales: bytesOf(scales) };
    },

    sign: (elements, options) => {
        const block = Number(options["block"]);
        const scales = new Float32Array(Math.ceil(elements.length / block));
        const bits = new Uint8Array(Math.ceil(elements.length / 8));
        const signs = new Int8Array(elements.length);
        for (let row = 0; row < scales.length; row++) {
            const end = Math.min(elements.length, (row + 1) * block);
            let sum = 0;
            for (let index = row * block; index < end; index++) {
                const negative = elements[index] < 0;
                sum += Math.abs(elements[index]);
                signs[index] = negative ? -1 : 1;
                bits[index >>> 3] |= negative ? 1 << (index & 7) : 0;
            }
            scales[row] = sum / (end - row * block);
        }
        return { data: bits, decoded: multiplied(signs, scales, block), scales: bytesOf(scales) };
    },

    top_k: (elements, options) => {
        const count = Math.min(elements.length, Math.ceil(elements.length * Number(options["density"])));
        const places = largest(elements, count);
        const values = new Float32Array(count);
        const decoded = new Float32Array(elements.length);
        for (let index = 0; index < count; index++) {
            values[index] = elements[places[index]];
            decoded[places[index]] = values[index];
        }
        return { data: bytesOf(values), decoded, indices: gaps(places) };
    },
};

/** The places of the `count` elements of the largest size, ascending; a NaN counts as the largest. */
export function largest(elements: FloatArray, count: number): Uint32Array {
    const places = new Uint32Array(count);
    if (count === 0) {
        return places;
    }
    const sizes = elements.map((element) => (Number.isNaN(element) ? Infinity : Math.abs(element)));
    const limit = select(sizes.slice(), elements.length - count);
    let above = 0;
    for (const size of sizes) {
        above += size > limit ? 1 : 0;
    }
    let equal = count - above; // of those just at the limit, the first ones
    let taken = 0;
    for (let index = 0; index < sizes.length && taken < count; index++) {
        if (sizes[index] > limit || (sizes[index] === limit && equal-- > 0)) {
            places[taken++] = index;
        }
    }
    return places;
}

/** The number that would be at a place if the numbers were sorted; reorders them. */
function select(numbers: FloatArray, place: number): number {
    let low = 0;
    let high = numbers.length - 1;
    while (low < high) {
        const pivot = numbers[(low + high) >>> 1];
        let left = low;
        let right = high;
        while (left <= right) {
            while (numbers[left] < pivot) {
                left++;
            }
            while (numbers[right] > pivot) {
                right--;
            }
            if (left <= right) {
                const kept = numbers[left];
                numbers[left++] = numbers[right];
                numbers[right--] = kept;
            }
        }
        if (place <= right) {
            high = right;
        } else if (place >= left) {
            low = left;
        } else {
            break;
        }
    }
    return numbers[place];
}

/** How many elements lie before each place, since the one before, in bytes; 255 says that the count goes on. */
export function gaps(places: Uint32Array): Uint8Array {
    let size = 0;
    let before = -1;
    for (const place of places) {
        size += Math.floor((place - before - 1) / GAP_GOES_ON) + 1;
        before = place;
    }
    const coded = new Uint8Array(size).fill(GAP_GOES_ON);
    let at = 0;
    before = -1;
    for (const place of places) {
        const gap = place - before - 1;
        at += Math.floor(gap / GAP_GOES_ON);
        coded[at++] = gap % GAP_GOES_ON;
        before = place;
    }
    return coded;
}

/** Each code times the scale of its block, in float32. */
function multiplied(codes: Int8Array, scales: Float32Array, block: number): Float32Array {
    const elements = new Float32Array(codes.length);
    for (let row = 0; row < scales.length; row++) {
        const end = Math.min(codes.length, (row + 1) * block);
        for (let index = row * block; index < end; index++) {
            elements[index] = codes[index] * scales[row];
        }
    }
    return elements;
}

/** The parts' elements in a row, as float64 or float32; in their own memory where that is so already. */
function joined(parts: readonly Uint8Array[], dtype: DType): FloatArray {
    const bytes = parts.length === 1 ? parts[0] : Buffer.concat(parts);
    if (dtype === "float64") {
        return viewOf(Float64Array, bytes);
    }
    return is16(dtype) ? fromBits16(viewOf(Uint16Array, bytes), dtype) : viewOf(Float32Array, bytes);
}

/** The float32 next below a positive one. */
function below(number: number): number {
    const bits = new Uint32Array(Float32Array.of(number).buffer);
    bits[0]--;
    return new Float32Array(bits.buffer)[0];
}
