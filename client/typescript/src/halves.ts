/** Elements of 16 bits: float16 (IEEE 754 binary16) and bfloat16 (the upper half of a binary32), by their bits. */

const ONE = new Float32Array(1);
const ONE_BITS = new Uint32Array(ONE.buffer);

/** The bits of float32 elements rounded to 16: to nearest, half way to even. */
export function toBits16(elements: Float32Array, dtype: "float16" | "bfloat16"): Uint16Array {
    const bits = new Uint16Array(elements.length);
    if (dtype === "float16") {
        for (let index = 0; index < elements.length; index++) {
            bits[index] = halfBits(elements[index]);
        }
        return bits;
    }
    const words = new Uint32Array(elements.buffer, elements.byteOffset, elements.length);
    for (let index = 0; index < elements.length; index++) {
        const word = words[index];
        // Rounding may carry a NaN into the sign.
        bits[index] = (word & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
    }
    return bits;
}

/** The float32 elements that bits stand for; all of them are exact. */
export function fromBits16(bits: Uint16Array, dtype: "float16" | "bfloat16"): Float32Array {
    const elements = new Float32Array(bits.length);
    if (dtype === "float16") {
        for (let index = 0; index < bits.length; index++) {
            elements[index] = fromHalfBits(bits[index]);
        }
        return elements;
    }
    const words = new Uint32Array(elements.buffer);
    for (let index = 0; index < bits.length; index++) {
        words[index] = bits[index] << 16;
    }
    return elements;
}

/** The bits of the nearest float16, half way to even; infinity beyond the largest. */
export function halfBits(element: number): number {
    ONE[0] = element;
    const word = ONE_BITS[0];
    const sign = (word >>> 16) & 0x8000;
    const size = word & 0x7fffffff;
    if (size > 0x7f800000) {
        return 0x7e00; // a NaN
    }
    if (size >= 0x477ff000) {
        return sign | 0x7c00; // from 65,520 on
    }
    if (size >= 0x38800000) {
        // A normal float16: 10 of 23 bits of the fraction stay, the exponent's bias is 112 less.
        return sign | ((size - 0x38000000 + 0xfff + ((size >>> 13) & 1)) >>> 13);
    }
    // A subnormal one counts in units of 2^-24.
    ONE_BITS[0] = size;
    return sign | roundEven(ONE[0] * 2 ** 24);
}

/** The number that the bits of a float16 stand for. */
export function fromHalfBits(bits: number): number {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >>> 10) & 0x1f;
    const fraction = bits & 0x3ff;
    if (exponent === 0x1f) {
        return fraction ? NaN : sign * Infinity;
    }
    return exponent === 0 ? sign * fraction * 2 ** -24 : sign * (0x400 + fraction) * 2 ** (exponent - 25);
}

/** The nearest whole number, half way to even. */
export function roundEven(number: number): number {
    const rounded = Math.round(number);
    return rounded - number === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}
