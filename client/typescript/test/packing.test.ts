/** Arrays into ranges, and a message into bytes. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { create, fromBinary, toBinary } from "@bufbuild/protobuf";

import { StageSchema, WorkRequestSchema } from "../src/generated/stepwell/v1/data_pb.js";
import { pack, type Part, type Piece, RANGE_OVERHEAD_BYTES } from "../src/packing.js";
import { encodeWork, sizeBytes, wholeRange } from "../src/payload.js";
import { RANGE_BYTES } from "../src/values.js";

/** Parts of one group, of so many bytes each, at these offsets. */
function parts(...places: [offsetBytes: number, sizeBytes: number][]): Part[] {
    return places.map(([offsetBytes, size], index) => {
        const bytes = new Uint8Array(size).fill(index + 1);
        return { group: 0, offsetBytes, bytes, itemBytes: 4, groupItemBytes: 4 };
    });
}

function places(messages: Iterable<readonly Piece[]>): [number, number][][] {
    return [...messages].map((pieces) => pieces.map((piece) => [piece.offsetBytes, sizeBytes(piece)]));
}

test("neighbours share a range, a gap begins another, nothing gives one empty message", () => {
    assert.deepEqual(places(pack(parts([0, 8], [8, 4], [16, 4]))), [
        [
            [0, 12],
            [16, 4],
        ],
    ]);
    assert.deepEqual(places(pack([])), [[]]);
    assert.deepEqual(places(pack(parts([0, 0], [0, 4]))), [[[0, 4]]]);
});

test("messages are filled to their bound, and arrays cut at whole elements", () => {
    assert.deepEqual(places(pack(parts([0, 40]), 16)), [[[0, 16]], [[16, 16]], [[32, 8]]]);
    assert.deepEqual(places(pack(parts([0, 40]), 18)), [[[0, 16]], [[16, 16]], [[32, 8]]]);
    assert.deepEqual(places(pack(parts([0, 12], [12, 12]), 16)), [[[0, 16]], [[16, 8]]]);
    assert.deepEqual(places(pack(parts([0, 16], [16, 4]), 16)), [[[0, 16]], [[16, 4]]]);
    // A second range takes room for itself, too.
    assert.deepEqual(places(pack(parts([0, 8], [20, 8]), 16 + RANGE_OVERHEAD_BYTES)), [
        [
            [0, 8],
            [20, 8],
        ],
    ]);
    assert.deepEqual(places(pack(parts([0, 8], [20, 8]), 15 + RANGE_OVERHEAD_BYTES)), [
        [
            [0, 8],
            [20, 4],
        ],
        [[24, 4]],
    ]);
});

test("offsets count in the group's elements where the array's are narrower", () => {
    const narrow: Part = {
        group: 1,
        offsetBytes: 80,
        bytes: new Uint8Array(20),
        itemBytes: 4,
        groupItemBytes: 8,
        dtype: "float32",
    };
    const messages = [...pack([narrow], 12)];
    assert.deepEqual(places(messages), [[[80, 12]], [[104, 8]]]);
    assert.equal(messages[1][0].dtype, "float32");
});

test("100,000 tiny arrays are few messages", () => {
    const tiny = Array.from({ length: 100_000 }, (_, index) => [index * 8, 4] as [number, number]);
    const messages = [...pack(parts(...tiny))];
    for (const message of messages) {
        const size = message.reduce((sum, piece) => sum + sizeBytes(piece) + RANGE_OVERHEAD_BYTES, 0);
        assert.ok(size <= RANGE_BYTES + RANGE_OVERHEAD_BYTES);
    }
    assert.equal(messages.flat().length, 100_000);
});

test("a message with ranges is, byte for byte in its meaning, what protobuf makes of it", () => {
    const pieces: Piece[] = [
        { group: 3, offsetBytes: 2 ** 40, parts: [Uint8Array.of(1, 2), Uint8Array.of(3)], input: 2, dtype: "bfloat16" },
        {
            group: 0,
            offsetBytes: 0,
            parts: [new Uint8Array(300).fill(7)],
            input: 0,
            dtype: undefined,
            encoded: { name: "int8", elements: 300, scales: Uint8Array.of(1), indices: Uint8Array.of(2) },
        },
    ];
    const message = create(WorkRequestSchema, { exchange: 5n, stage: { header: { samples: 2 } }, last: true });
    const expected = create(WorkRequestSchema, {
        exchange: 5n,
        stage: { header: { samples: 2 }, ranges: pieces.map(wholeRange) },
        last: true,
    });
    const bytes = encodeWork({ message, pieces });
    assert.deepEqual(
        fromBinary(WorkRequestSchema, Uint8Array.from(bytes)),
        fromBinary(WorkRequestSchema, toBinary(WorkRequestSchema, expected)),
    );
    assert.deepEqual(expected.stage?.ranges[0].data, Buffer.from([1, 2, 3]));
    assert.deepEqual(new Uint8Array(encodeWork({ message, pieces: [] })), toBinary(WorkRequestSchema, message));
    assert.ok(bytes.length < toBinary(StageSchema, expected.stage ?? create(StageSchema)).length + 30);
});
