/**
 * Messages with ranges, with one copy of their data.
 *
 * A protobuf writer copies a bytes field once for every message that it is nested in. Here it writes everything but the
 * data, and that is joined into the serialised message once. The bytes on the wire are ordinary messages of the contract.
 */

import { create, toBinary } from "@bufbuild/protobuf";

import type { WorkRequest } from "./generated/stepwell/v1/data_pb.js";
import { StageSchema, WorkRequestSchema } from "./generated/stepwell/v1/data_pb.js";
import { DType as DTypeCode, type Range } from "./generated/stepwell/v1/run_pb.js";
import { RangeSchema } from "./generated/stepwell/v1/run_pb.js";
import type { Piece } from "./packing.js";
import { CODE_BY_DTYPE } from "./values.js";

/** A message to be sent, without ranges, and the ranges of its stage. */
export interface OutgoingWork {
    readonly message: WorkRequest;
    readonly pieces: readonly Piece[];
}

const LENGTH_DELIMITED = 2;
const STAGE_TAG = (WorkRequestSchema.field.stage.number << 3) | LENGTH_DELIMITED;
const RANGES_TAG = (StageSchema.field.ranges.number << 3) | LENGTH_DELIMITED;
const DATA_TAG = (RangeSchema.field.data.number << 3) | LENGTH_DELIMITED;

/** The serialised message. Its stage comes once more where there are ranges: parsers merge the two. */
export function encodeWork({ message, pieces }: OutgoingWork): Buffer {
    const head = toBinary(WorkRequestSchema, message);
    const chunks: Uint8Array[] = [];
    let size = 0;
    for (const piece of pieces) {
        const dataBytes = sizeBytes(piece);
        const range = toBinary(RangeSchema, rangeOf(piece));
        const before = varints(DATA_TAG, dataBytes);
        const rangeBytes = range.length + before.length + dataBytes;
        const start = varints(RANGES_TAG, rangeBytes);
        chunks.push(start, range, before);
        for (const part of piece.parts) {
            chunks.push(part); // not spread: a range of tiny arrays has more parts than a call takes arguments
        }
        size += start.length + rangeBytes;
    }
    if (size > 0) {
        const stage = varints(STAGE_TAG, size);
        chunks.unshift(stage);
        size += stage.length;
    }
    return Buffer.concat([head, ...chunks], head.length + size);
}

/** The message of a range without its data. */
function rangeOf(piece: Piece): Range {
    return create(RangeSchema, {
        group: piece.group,
        packedOffsetBytes: BigInt(piece.offsetBytes),
        input: piece.input,
        dtype: piece.dtype ? CODE_BY_DTYPE[piece.dtype] : DTypeCode.UNSPECIFIED,
        ...(piece.encoded && {
            encoding: piece.encoded.name,
            elements: BigInt(piece.encoded.elements),
            scales: piece.encoded.scales,
            indices: piece.encoded.indices,
        }),
    });
}

/** The message of a range with its data, where it travels outside of a worker's stream. */
export function wholeRange(piece: Piece): Range {
    const range = rangeOf(piece);
    range.data = piece.parts.length === 1 ? piece.parts[0] : Buffer.concat(piece.parts);
    return range;
}

/** How much data a piece has, in bytes. */
export function sizeBytes(piece: Piece): number {
    return piece.parts.reduce((sum, part) => sum + part.byteLength, 0);
}

function varints(...numbers: number[]): Uint8Array {
    const bytes: number[] = [];
    for (let number of numbers) {
        while (number > 0x7f) {
            bytes.push((number % 0x80) | 0x80);
            number = Math.floor(number / 0x80);
        }
        bytes.push(number);
    }
    return Uint8Array.from(bytes);
}
