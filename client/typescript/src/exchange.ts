/** One exchange on a worker's stream: an update, a selection of parameters, or both, and what comes back. */

import { create } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";

import { Lost } from "./connection.js";
import { type Answer, describeAnswer } from "./descriptions.js";
import type { EncodedUpdate } from "./encoding.js";
import { errorFromMessage, ServerStopping } from "./errors.js";
import type { Selection, UpdateHeader, WorkRequest, WorkResponse } from "./generated/stepwell/v1/data_pb.js";
import { CommitSchema, StageSchema, WorkRequestSchema } from "./generated/stepwell/v1/data_pb.js";
import type { Rows } from "./generated/stepwell/v1/run_pb.js";
import type { Gradients, Piece } from "./packing.js";
import { type OutgoingWork, sizeBytes } from "./payload.js";
import type { Received } from "./receiving.js";
import type { UpdateRows } from "./rows.js";
import { toNumber } from "./values.js";

/** An update: its header, whose identity is kept over all tries, its gradients, perhaps to be encoded, and its rows. */
export interface Update {
    readonly header: UpdateHeader;
    readonly gradients: Gradients;
    readonly encoded: EncodedUpdate | undefined;
    readonly rows: UpdateRows | undefined;
}

/** What to ask for, and what takes it. */
export interface Wanted {
    readonly selection: Selection;
    readonly received: Received;
}

/**
 * An exchange over all its tries.
 *
 * answer: what became of the update, once told. version: of the parameters that came. unchanged: whether none came
 * because the run is not beyond the version that was asked about. done: whether the present try is over. refused: whether
 * the server has refused the exchange, so that the update surely left no trace.
 */
export class Exchange {
    readonly update: Update | undefined;
    readonly received: Received | undefined;
    readonly totalBytes: number;
    answer: Answer | undefined;
    version = 0;
    unchanged = false;
    done = false;
    refused = false;
    readonly #selection: Selection | undefined;
    #number = 0n;
    #sentBytes = 0;

    constructor(update: Update | undefined, wanted: Wanted | undefined) {
        this.update = update;
        this.#selection = wanted?.selection;
        this.received = wanted?.received;
        const updateBytes = update ? update.gradients.dataBytes + (update.rows?.dataBytes ?? 0) : 0;
        this.totalBytes = updateBytes + (this.received?.sizeBytes ?? 0);
    }

    /** How much data has gone out and come in, in this try. */
    get movedBytes(): number {
        return this.#sentBytes + (this.received?.filledBytes ?? 0);
    }

    /** The messages of one try, under this number. An update that has been answered is not sent again. */
    *requests(number: number): Generator<OutgoingWork> {
        this.#number = BigInt(number);
        this.done = this.refused = false;
        this.#sentBytes = 0;
        if (this.update === undefined || this.answer !== undefined) {
            yield this.closing();
            return;
        }
        let message = this.#request({ stage: create(StageSchema, { header: this.update.header }) });
        let pieces: readonly Piece[] | undefined;
        for (const next of this.#parts(this.update)) {
            if (pieces !== undefined) {
                yield this.#outgoing(message, pieces);
                message = this.#request({});
            }
            pieces = next.pieces;
            if (next.rows) {
                message.stage ??= create(StageSchema);
                message.stage.rows.push(next.rows);
                this.#sentBytes += next.rows.data.byteLength + next.rows.ids.byteLength;
            }
        }
        Object.assign(message, this.#closing(true));
        yield this.#outgoing(message, pieces ?? []);
    }

    /** What the last message says. It alone is still sent where the answer comes before the update has all gone. */
    closing(): OutgoingWork {
        const staging = this.update !== undefined && this.answer === undefined;
        return { message: this.#request(this.#closing(staging)), pieces: [] };
    }

    /** Take the server's word; throws the typed error if the exchange has failed. */
    take(response: WorkResponse): void {
        if (response.exchange !== this.#number) {
            return; // late word on an exchange that has been given up
        }
        if (response.error) {
            const error = errorFromMessage(response.error);
            if (error instanceof ServerStopping) {
                throw new Lost(status.UNAVAILABLE, error.message, error);
            }
            this.refused = true;
            throw error;
        }
        if (response.answer) {
            this.answer = describeAnswer(response.answer);
        }
        if (response.parameters) {
            this.version = toNumber(response.parameters.version);
            this.unchanged = response.parameters.unchanged;
            if (!this.unchanged) {
                this.received?.begin();
            }
        }
        for (const range of response.ranges) {
            this.received?.put(range);
        }
        for (const rows of response.rows) {
            this.received?.putRows(rows);
        }
        this.done = response.done;
    }

    *#parts(update: Update): Generator<{ pieces: readonly Piece[]; rows?: Rows }> {
        for (const pieces of update.encoded?.messages(update.gradients) ?? update.gradients.messages()) {
            yield { pieces };
        }
        for (const rows of update.rows?.pieces() ?? []) {
            yield { pieces: [], rows };
        }
    }

    #request(parts: Partial<WorkRequest>): WorkRequest {
        return Object.assign(create(WorkRequestSchema, { exchange: this.#number }), parts);
    }

    #closing(staging: boolean): Partial<WorkRequest> {
        return {
            ...(staging && { commit: create(CommitSchema) }),
            ...(this.#selection && { selection: this.#selection }),
            last: true,
        };
    }

    #outgoing(message: WorkRequest, pieces: readonly Piece[]): OutgoingWork {
        this.#sentBytes += pieces.reduce((sum, piece) => sum + sizeBytes(piece), 0);
        return { message, pieces };
    }
}
