/** The bytes of tests/conformance: messages through the generated code, arrays through the encoder and the decoder. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { create, createRegistry, equals, fromBinary, fromJson, type JsonValue, toBinary } from "@bufbuild/protobuf";

import { ITEM_BYTES } from "../src/arrays.js";
import { Decoder, EncodedUpdate, Encoder } from "../src/encoding.js";
import { file_google_rpc_error_details } from "../src/generated/google/rpc/error_details_pb.js";
import { file_google_rpc_status } from "../src/generated/google/rpc/status_pb.js";
import { file_stepwell_v1_control } from "../src/generated/stepwell/v1/control_pb.js";
import { file_stepwell_v1_data } from "../src/generated/stepwell/v1/data_pb.js";
import { file_stepwell_v1_errors } from "../src/generated/stepwell/v1/errors_pb.js";
import { file_stepwell_v1_run, LayoutGroupSchema, LayoutParameterSchema } from "../src/generated/stepwell/v1/run_pb.js";
import { DType as DTypeCode, type Range, RangeSchema } from "../src/generated/stepwell/v1/run_pb.js";
import { EncodingSchema, file_stepwell_v1_values } from "../src/generated/stepwell/v1/values_pb.js";
import { type DType, type Part, tensor } from "../src/index.js";
import { Layout } from "../src/layout.js";
import { Gradients } from "../src/packing.js";
import { wholeRange } from "../src/payload.js";
import { Received } from "../src/receiving.js";
import { CODE_BY_DTYPE, decodeDType, encodePart } from "../src/values.js";
import { arrayOf, compare, load } from "./conformance.js";

interface MessageFile {
    readonly title: string;
    readonly message: string;
    readonly json: JsonValue;
    readonly hex: string;
}

interface RangeFields {
    readonly data: string;
    readonly scales: string;
    readonly indices: string;
    readonly dtype: DType | "";
    readonly encoding: string;
    readonly elements: number;
}

interface ArrayFile {
    readonly title: string;
    readonly direction: "gradients" | "parameters" | "both";
    readonly encoding: Part | null;
    readonly dtype: DType;
    readonly values: readonly (number | string)[];
    readonly range: RangeFields;
    readonly decoded: readonly (number | string)[];
}

const registry = createRegistry(
    file_google_rpc_error_details,
    file_google_rpc_status,
    file_stepwell_v1_control,
    file_stepwell_v1_data,
    file_stepwell_v1_errors,
    file_stepwell_v1_run,
    file_stepwell_v1_values,
);

/** That the JSON becomes the bytes, and the bytes the message that the JSON describes. */
function checkMessage({ message, json, hex }: MessageFile): void {
    const schema = registry.getMessage(message);
    assert.ok(schema, `there is no message ${message}`);
    const described = fromJson(schema, json, { registry });
    assert.equal(Buffer.from(toBinary(schema, described)).toString("hex"), hex);
    assert.ok(equals(schema, fromBinary(schema, Buffer.from(hex, "hex")), described, { registry }), "the bytes differ");
}

/** That the client encodes, or decodes, these elements so. */
function checkArray(file: ArrayFile): void {
    if (file.direction !== "parameters") {
        assert.deepEqual(fieldsOf(encoded(file)), file.range);
    }
    if (file.direction !== "gradients") {
        const expected = { dtype: file.dtype, shape: [file.decoded.length], values: file.decoded };
        compare(decoded(file), expected);
    }
}

/** The one range of an update of w. */
function encoded({ encoding, dtype, values }: ArrayFile): Range {
    const shape = [values.length];
    const layout = layoutOf(dtype, values.length);
    const gradients = new Gradients(layout, { w: tensor(arrayOf({ dtype, shape, values }), shape, dtype) }, "test");
    const messages = encoding
        ? new EncodedUpdate(new Encoder(create(EncodingSchema, encodePart(encoding, "test"))), layout).messages(
              gradients,
          )
        : gradients.messages();
    const pieces = [...messages].flat();
    assert.equal(pieces.length, 1);
    return wholeRange(pieces[0]);
}

/** The array that a reader of w gets. */
function decoded({ encoding, dtype, decoded: { length }, range }: ArrayFile): unknown {
    const layout = layoutOf(dtype, length);
    const decoder = encoding ? new Decoder(create(EncodingSchema, encodePart(encoding, "test"))) : undefined;
    const received = new Received(layout, layout.parameters, undefined, decoder);
    received.begin();
    received.put(
        create(RangeSchema, {
            data: Buffer.from(range.data, "hex"),
            scales: Buffer.from(range.scales, "hex"),
            indices: Buffer.from(range.indices, "hex"),
            dtype: range.dtype ? CODE_BY_DTYPE[range.dtype] : DTypeCode.UNSPECIFIED,
            encoding: range.encoding,
            elements: BigInt(range.elements),
        }),
    );
    return received.arrays()["w"];
}

function fieldsOf({ data, scales, indices, dtype, encoding, elements }: Range): RangeFields {
    return {
        data: Buffer.from(data).toString("hex"),
        scales: Buffer.from(scales).toString("hex"),
        indices: Buffer.from(indices).toString("hex"),
        dtype: dtype === DTypeCode.UNSPECIFIED ? "" : decodeDType(dtype),
        encoding,
        elements: Number(elements),
    };
}

/** A layout of one parameter, w. */
function layoutOf(dtype: DType, count: number): Layout {
    return new Layout(
        [
            create(LayoutGroupSchema, {
                name: "default",
                dtype: CODE_BY_DTYPE[dtype],
                packedBytes: BigInt(count * ITEM_BYTES[dtype]),
            }),
        ],
        [create(LayoutParameterSchema, { name: "w", shape: [BigInt(count)] })],
        [],
    );
}

const messages = load<MessageFile>("bytes/messages");
const arrays = load<ArrayFile>("bytes/arrays");

for (const [file, content] of messages) {
    test(`messages/${file}`, () => {
        checkMessage(content);
    });
}

for (const [file, content] of arrays) {
    test(`arrays/${file}`, () => {
        checkArray(content);
    });
}

test("another last byte of a message is found", () => {
    for (const [file, content] of messages) {
        const last = (parseInt(content.hex.slice(-2), 16) ^ 1).toString(16).padStart(2, "0");
        assert.throws(() => {
            checkMessage({ ...content, hex: content.hex.slice(0, -2) + last });
        }, file);
    }
});

test("another byte, or another element, of an array is found", () => {
    for (const [file, content] of arrays) {
        const { range, decoded: elements, direction } = content;
        const fields = (["data", "scales", "indices"] as const).filter((field) => range[field] !== "");
        const changed: ArrayFile[] = fields.map((field) => {
            const last = (parseInt(range[field].slice(-2), 16) ^ 1).toString(16).padStart(2, "0");
            return { ...content, range: { ...range, [field]: range[field].slice(0, -2) + last } };
        });
        if (direction !== "gradients") {
            changed.push({ ...content, decoded: [...elements.slice(0, -1), 12345] });
        }
        for (const each of changed) {
            assert.throws(() => {
                checkArray(each);
            }, file);
        }
    }
});
