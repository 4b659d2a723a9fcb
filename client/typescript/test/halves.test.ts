/** Elements of 16 bits, against definitions and known bits. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { fromBits16, fromHalfBits, halfBits, roundEven, toBits16 } from "../src/halves.js";

test("known float16 numbers have their bits", () => {
    const known: [number, number][] = [
        [0, 0x0000],
        [-0, 0x8000],
        [1, 0x3c00],
        [-2, 0xc000],
        [65504, 0x7bff],
        [65519.99, 0x7bff],
        [65520, 0x7c00],
        [Infinity, 0x7c00],
        [-Infinity, 0xfc00],
        [2 ** -14, 0x0400],
        [2 ** -24, 0x0001],
        [2 ** -25, 0x0000], // half way to the even 0
        [1.5 * 2 ** -24, 0x0002], // half way to the even 2
        [2 ** -14 - 2 ** -26, 0x0400],
        [1 / 3, 0x3555],
        [1 + 2 ** -11, 0x3c00], // half way
        [1 + 3 * 2 ** -11, 0x3c02],
    ];
    for (const [number, bits] of known) {
        assert.equal(halfBits(number), bits, String(number));
    }
    assert.ok((halfBits(NaN) & 0x7fff) > 0x7c00);
});

test("every float16 goes out and in again, and its neighbours round to it", () => {
    for (let bits = 0; bits < 0x10000; bits++) {
        const number = fromHalfBits(bits);
        if (Number.isNaN(number)) {
            continue;
        }
        assert.equal(halfBits(number), bits);
        if (bits > 0 && bits < 0x7c00) {
            const below = fromHalfBits(bits - 1);
            assert.equal(halfBits(number - (number - below) / 4), bits);
        }
    }
});

test("every bfloat16 goes out and in again, and what lies half way goes to the even one", () => {
    const bits = Uint16Array.from({ length: 0x10000 }, (_, index) => index);
    const numbers = fromBits16(bits, "bfloat16");
    const again = toBits16(numbers, "bfloat16");
    for (let index = 0; index < bits.length; index++) {
        assert.ok(Number.isNaN(numbers[index]) ? again[index] === 0x7fc0 : again[index] === index, String(index));
    }
    assert.deepEqual([...toBits16(Float32Array.of(1 + 2 ** -8, 1 + 3 * 2 ** -8), "bfloat16")], [0x3f80, 0x3f82]);
});

test("half way goes to the even number", () => {
    assert.deepEqual(
        [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49, -63.5].map((number) => roundEven(number) + 0),
        [0, 2, 2, 0, -2, -2, 0, -64],
    );
});
