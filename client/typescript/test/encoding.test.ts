/** Encodings, against expectations worked out by hand from the contract's comments. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { create } from "@bufbuild/protobuf";

import { Decoder, EncodedUpdate, Encoder, gaps, largest } from "../src/encoding.js";
import { DType, LayoutGroupSchema, LayoutParameterSchema, RangeSchema } from "../src/generated/stepwell/v1/run_pb.js";
import { EncodingSchema, type Encoding } from "../src/generated/stepwell/v1/values_pb.js";
import { type Client, connect, type FloatArray, tensor } from "../src/index.js";
import { Layout } from "../src/layout.js";
import { Gradients, type Piece } from "../src/packing.js";
import { encodePart, type Value } from "../src/values.js";
import { random } from "./proxy.js";
import { runName, Server } from "./server.js";

function encoding(name: string, options: Record<string, Value>): Encoding {
    return create(EncodingSchema, encodePart({ name, error_feedback: false, ...options }, "test"));
}

/** A layout of one parameter, w. */
function layoutOf(count: number, dtype = DType.FLOAT32): Layout {
    const packedBytes = BigInt(count * (dtype === DType.FLOAT64 ? 8 : dtype === DType.FLOAT32 ? 4 : 2));
    return new Layout(
        [create(LayoutGroupSchema, { name: "default", dtype, packedBytes })],
        [create(LayoutParameterSchema, { name: "w", shape: [BigInt(count)] })],
        [],
    );
}

/** What one update of w is made into. */
function encoded(encoder: Encoder, w: FloatArray): { pieces: readonly Piece[]; update: EncodedUpdate } {
    const layout = layoutOf(w.length, w instanceof Float64Array ? DType.FLOAT64 : DType.FLOAT32);
    const update = new EncodedUpdate(encoder, layout);
    const pieces = [...update.messages(new Gradients(layout, { w }, "test"))].flat();
    return { pieces, update };
}

function one(name: string, options: Record<string, Value>, w: FloatArray): Piece & { data: Uint8Array } {
    const [piece] = encoded(new Encoder(encoding(name, options)), w).pieces;
    assert.equal(piece.parts.length, 1);
    return { ...piece, data: piece.parts[0] };
}

function bytes(array: ArrayBufferView): number[] {
    return [...new Uint8Array(array.buffer, array.byteOffset, array.byteLength)];
}

test("int8: each block has its largest size as 127", () => {
    const piece = one("int8", { block: 4 }, Float32Array.of(127, -63.5, 1, 0.4, 2));
    // -63.5 lies half way and goes to the even -64.
    assert.deepEqual([...new Int8Array(piece.data)], [127, -64, 1, 0, 127]);
    assert.deepEqual(bytes(piece.encoded?.scales as Uint8Array), bytes(Float32Array.of(1, 2 / 127)));
    assert.deepEqual([piece.encoded?.name, piece.encoded?.elements, piece.dtype], ["int8", 5, undefined]);
});

test("int8: zeros stay zeros, the largest number does not overflow, what is not finite says so", () => {
    const zeros = one("int8", { block: 2 }, new Float32Array(2));
    assert.deepEqual([...zeros.data, ...(zeros.encoded?.scales ?? [])], [0, 0, 0, 0, 0, 0]);
    const huge = one("int8", { block: 2 }, Float32Array.of(3.4028234663852886e38, 0));
    const [scale] = new Float32Array(Uint8Array.from(huge.encoded?.scales ?? []).buffer);
    assert.ok(Number.isFinite(Math.fround(scale * 127)), String(scale));
    for (const bad of [NaN, Infinity]) {
        const piece = one("int8", { block: 2 }, Float32Array.of(1, bad, 1, 1));
        const scales = new Float32Array(Uint8Array.from(piece.encoded?.scales ?? []).buffer);
        assert.ok(!Number.isFinite(scales[0]) && Number.isFinite(scales[1]));
    }
});

test("sign: a bit each, the lowest first, and the mean size of each block", () => {
    const piece = one("sign", { block: 3 }, Float32Array.of(1, -2, 3, -4, 0, 0, 0, 0, -1));
    assert.deepEqual([...piece.data], [0b0000_1010, 0b1]);
    assert.deepEqual(bytes(piece.encoded?.scales as Uint8Array), bytes(Float32Array.of(2, 4 / 3, 1 / 3)));
});

test("top_k: the values in the order of their places, and the gaps between these", () => {
    const piece = one("top_k", { density: 0.5 }, Float32Array.of(1, -5, 2, 4));
    assert.deepEqual(bytes(piece.data), bytes(Float32Array.of(-5, 4)));
    assert.deepEqual([...(piece.encoded?.indices ?? [])], [1, 1]);
    // A gap of 254 is one byte, of 255 two, of 510 three.
    assert.deepEqual([...gaps(Uint32Array.of(0, 255, 511, 1022))], [0, 254, 255, 0, 255, 255, 0]);
    assert.deepEqual([...largest(Float32Array.of(1, NaN, -3, 3, 2), 3)], [1, 2, 3]);
    assert.deepEqual([...largest(Float32Array.of(2, 2, 2, 2), 2)], [0, 1]);
    const draw = random(7);
    const elements = Float32Array.from({ length: 5000 }, () => draw() - 0.5);
    const sorted = [...elements.keys()].sort((a, b) => Math.abs(elements[b]) - Math.abs(elements[a]));
    assert.deepEqual(
        [...largest(elements, 50)],
        sorted.slice(0, 50).sort((a, b) => a - b),
    );
});

test("bfloat16, float16 and float32: the bits of the nearest ones", () => {
    const bfloat16 = one("bfloat16", {}, Float32Array.of(1, -2.5, 1 + 2 ** -8, 1 + 2 ** -9, Infinity, NaN, 0));
    assert.deepEqual(
        [...new Uint16Array(Uint8Array.from(bfloat16.data).buffer)],
        [0x3f80, 0xc020, 0x3f81, 0x3f80, 0x7f80, 0x7fc0, 0],
    );
    assert.deepEqual([bfloat16.dtype, bfloat16.encoded], ["bfloat16", undefined]);

    const float16 = one("float16", { scale: 4 }, Float32Array.of(0.25, -0.5, 1e9, -1e9, Infinity, 2 ** -26));
    assert.deepEqual(
        [...new Uint16Array(Uint8Array.from(float16.data).buffer)],
        [0x3c00, 0xc000, 0x7bff, 0xfbff, 0x7c00, 0x0001],
    );
    assert.deepEqual(bytes(float16.encoded?.scales as Uint8Array), bytes(Float32Array.of(4)));

    const float32 = one("float32", {}, Float64Array.of(0.1, 2));
    assert.deepEqual(bytes(float32.data), bytes(Float32Array.of(0.1, 2)));
    assert.equal(float32.dtype, "float32");
    // What would not become smaller is sent as it is.
    assert.equal(one("float32", {}, Float32Array.of(1)).dtype, undefined);
});

test("error feedback: what was left out is owed, once the update was committed", () => {
    const encoder = new Encoder(encoding("top_k", { density: 0.25, error_feedback: true }));
    const gradient = Float32Array.of(1, 3, 0.5, 2);
    const values = (): number[] => {
        const { pieces, update } = encoded(encoder, gradient);
        last = update;
        return [...new Float32Array(Uint8Array.from(pieces[0].parts[0]).buffer)];
    };
    let last: EncodedUpdate | undefined;
    assert.deepEqual(values(), [3]);
    assert.deepEqual(values(), [3]); // the first one was refused: nothing is owed
    last?.settle();
    assert.deepEqual(values(), [4]); // 2 owed and 2 new
    last?.settle();
    assert.deepEqual(values(), [6]); // 3 owed since the first, 3 new: 2 * 3
    assert.deepEqual(gradient, Float32Array.of(1, 3, 0.5, 2));
});

test("a retry of an update sends the same bytes, however far the first try came", () => {
    const encoder = new Encoder(encoding("sign", { block: 1024, error_feedback: true }));
    const draw = random(3);
    const layout = layoutOf(1_200_000);
    const w = Float32Array.from({ length: 1_200_000 }, () => draw() - 0.5);
    const gradients = new Gradients(layout, { w }, "test");
    const update = new EncodedUpdate(encoder, layout);
    const first = update.messages(gradients);
    const begun = first.next().value as unknown;
    const again = [...update.messages(gradients)];
    assert.equal(again[0], begun);
    assert.equal(again.length, 3);
    assert.deepEqual([...update.messages(gradients)], again);
});

test("parameters that come encoded are made whole", () => {
    const decoder = new Decoder(encoding("int8", { block: 2 }));
    const int8 = create(RangeSchema, {
        encoding: "int8",
        elements: 3n,
        data: new Uint8Array(Int8Array.of(2, -1, 3).buffer),
        scales: new Uint8Array(Float32Array.of(0.5, 2).buffer),
    });
    assert.deepEqual(bytes(decoder.decode(int8, "float32")), bytes(Float32Array.of(1, -0.5, 6)));
    assert.deepEqual(bytes(decoder.decode(int8, "float64")), bytes(Float64Array.of(1, -0.5, 6)));
    assert.deepEqual(bytes(decoder.decode(int8, "float16")), bytes(Uint16Array.of(0x3c00, 0xb800, 0x4600)));
    const bfloat16 = create(RangeSchema, {
        dtype: DType.BFLOAT16,
        data: new Uint8Array(Uint16Array.of(0x3f80, 0xc020).buffer),
    });
    assert.deepEqual(bytes(decoder.decode(bfloat16, "float32")), bytes(Float32Array.of(1, -2.5)));
    int8.elements = 4n;
    assert.throws(() => decoder.decode(int8, "float32"), /do not fit/);
    assert.throws(() => decoder.decode(create(RangeSchema, { encoding: "new" }), "float32"), /upgrade stepwell/);
});

let server: Server;
let client: Client;

before(async () => {
    server = await Server.start();
    client = connect(server.address, { patienceSeconds: 60 });
});

after(async () => {
    await client.close();
    await server.stop();
});

const COUNTS = { w: 700_001, b: 3 };

function draw(seed: number): Record<string, FloatArray> {
    const next = random(seed);
    return {
        w: Float32Array.from({ length: COUNTS.w }, () => next() - 0.5),
        d: Float64Array.from({ length: 1000 }, () => next() - 0.5),
        h: Float32Array.from({ length: 41 }, () => Math.fround(Math.round((next() - 0.5) * 256) / 256)),
    };
}

test("every encoding of gradients is taken by the server, and what is dropped is sent later", async () => {
    const { gradients } = await client.listEncodings();
    assert.deepEqual(gradients.map(({ name }) => name).sort(), [
        "bfloat16",
        "float16",
        "float32",
        "int8",
        "sign",
        "top_k",
    ]);
    const start = {
        w: new Float32Array(COUNTS.w),
        d: new Float64Array(1000),
        h: tensor(new Float32Array(41), [41], "float16"),
    };
    const grads = draw(11);
    const updates = 12;
    for (const { name, arguments: known } of gradients) {
        const feedback = known.some((argument) => argument.name === "error_feedback");
        const run = await client.createRun(runName(), start, {
            optimizer: "sgd",
            hyperparameters: { lr: 1 },
            encodings: { gradients: { name, ...(feedback && { error_feedback: true }) } },
        });
        assert.equal((await run.refresh()).encodings.gradients?.name, name);
        for (let update = 0; update < updates; update++) {
            assert.equal(await run.push(grads), update + 1);
        }
        const params = await run.pull();
        // With error feedback what is missing after any number of updates is what is owed, which stays bounded.
        const bound = { float32: 1e-3, bfloat16: 0.02, float16: 0.02, int8: 0.02, sign: 6, top_k: 12 }[name] ?? 0;
        for (const [parameter, array] of Object.entries(params)) {
            const gradient = grads[parameter];
            let missing = 0;
            let sent = 0;
            for (let index = 0; index < array.length; index++) {
                missing = Math.max(missing, Math.abs(array[index] + updates * gradient[index]));
                sent = Math.max(sent, Math.abs(array[index]));
            }
            assert.ok(missing <= bound && sent > 1, `${name}: ${parameter}: ${missing} missing, ${sent} sent`);
        }
    }
});

test("the server takes of int8 and sign just what was worked out by hand", async () => {
    const w = Float32Array.of(127, -63.5, 1, 0.4, 0, 0, 0, 0, 2, 0);
    const expected = {
        int8: Float32Array.of(-127, 64, -1, 0, 0, 0, 0, 0, -Math.fround(127 * Math.fround(2 / 127)), 0),
        sign: Float32Array.of(...[-1, 1, -1, -1, -1, -1, -1, -1].map((sign) => sign * Math.fround(191.9 / 8)), -1, -1),
    };
    for (const [name, params] of Object.entries(expected)) {
        const run = await client.createRun(
            runName(),
            { w: new Float32Array(10) },
            {
                optimizer: "sgd",
                hyperparameters: { lr: 1 },
                encodings: { gradients: { name, block: 8, error_feedback: false } },
            },
        );
        assert.deepEqual((await run.step({ w }))["w"], params, name);
    }
});

test("every encoding of parameters comes back close, and exact where that is asked for", async () => {
    const { parameters } = await client.listEncodings();
    const values = draw(5);
    for (const { name } of parameters) {
        const start = { w: values["w"], d: values["d"], h: tensor(values["h"] as Float32Array, [41], "bfloat16") };
        const run = await client.createRun(runName(), start, { optimizer: "sgd", encodings: { parameters: name } });
        const [near, exact] = [await run.pull(), await run.pull({ exact: true })];
        assert.deepEqual(exact["w"], values["w"]);
        assert.deepEqual(exact["d"], values["d"]);
        for (const [parameter, array] of Object.entries(near)) {
            let apart = 0;
            for (let index = 0; index < array.length; index++) {
                apart = Math.max(apart, Math.abs(array[index] - exact[parameter][index]));
            }
            assert.ok(apart <= 0.005, `${name}: ${parameter}: ${apart}`);
        }
        const part = await run.pull({ names: ["d"] });
        assert.deepEqual(part["d"], near["d"]);
        const step = await run.step({ w: null, d: null, h: null });
        assert.deepEqual(step, near);
    }
});
