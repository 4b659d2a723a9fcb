/**
 * Rows of embedding tables: ids and gradients out, ids out and values in.
 *
 * Ids are int64. They are taken as a BigInt64Array, as an Int32Array, or as lists of numbers or bigints; numbers must be
 * safe integers. Rows are flat arrays of ids.length * width elements, row after row, in the order of the ids.
 */

import { create } from "@bufbuild/protobuf";

import {
    arrayOf,
    type ArrayLike,
    bytesOf,
    type ByName,
    countOf,
    elementsOf,
    entriesOf,
    type FloatArray,
    ITEM_BYTES,
    shown,
} from "./arrays.js";
import { Internal, InvalidRows, LimitExceeded } from "./errors.js";
import type { RowsCount } from "./generated/stepwell/v1/data_pb.js";
import { RowsCountSchema } from "./generated/stepwell/v1/data_pb.js";
import type { Rows as RowsMessage } from "./generated/stepwell/v1/run_pb.js";
import { RowsSchema } from "./generated/stepwell/v1/run_pb.js";
import type { Layout, Table } from "./layout.js";
import { RANGE_BYTES, show, toNumber } from "./values.js";

/** Ids of rows. */
export type Ids = BigInt64Array | Int32Array | readonly number[] | readonly bigint[];

/** Ids and the gradients of their rows; those of an id that occurs several times are summed. */
export type RowGradients = readonly [ids: Ids, gradients: ArrayLike];

/** Rows on their way out: of one table, a piece of at most RANGE_BYTES. */
interface TableRows {
    readonly table: Table;
    readonly ids: BigInt64Array;
    readonly bytes: Uint8Array;
}

const ID_BYTES = 8;

/** How many ids one message has room for, with what else is in it. */
const PULLED_IDS_MAX = (3 << 20) / ID_BYTES;

/** The checked row gradients of one update. */
export class UpdateRows {
    readonly dataBytes: number;
    readonly #tables: readonly TableRows[];

    /** Throws UnknownTable, and InvalidRows for ids or gradients that do not fit the table. */
    constructor(layout: Layout, rows: ByName<RowGradients>, what: string) {
        this.#tables = entriesOf(rows).map(([name, given]) => {
            const table = layout.table(name);
            const pair: unknown = given;
            if (!Array.isArray(pair) || pair.length !== 2) {
                throw new InvalidRows(
                    `${what}: got rows ${show(pair)} for table '${name}', expected [ids, gradients]; give both`,
                );
            }
            const ids = idsOf(given[0], table, what);
            return { table, ids, bytes: rowBytes(given[1], ids.length, table, what) };
        });
        this.dataBytes = this.#tables.reduce((sum, { ids, bytes }) => sum + ids.byteLength + bytes.byteLength, 0);
    }

    /** How many rows of each table follow. */
    counts(): RowsCount[] {
        return this.#tables.map(({ table, ids }) =>
            create(RowsCountSchema, { table: table.index, count: BigInt(ids.length) }),
        );
    }

    /** The rows in messages' worth of pieces: ids and data of at most RANGE_BYTES together. */
    *pieces(): Generator<RowsMessage> {
        for (const { table, ids, bytes } of this.#tables) {
            const rowBytes = table.width * ITEM_BYTES[table.dtype];
            const most = Math.max(1, Math.floor(RANGE_BYTES / (rowBytes + ID_BYTES)));
            for (let first = 0; first < ids.length; first += most) {
                const last = Math.min(ids.length, first + most);
                yield create(RowsSchema, {
                    table: table.index,
                    ids: bytesOf(ids.subarray(first, last)),
                    data: bytes.subarray(first * rowBytes, last * rowBytes),
                });
            }
        }
    }
}

/** The rows that a selection asks for, and what comes of them. */
export class SelectedRows {
    readonly #tables: readonly { readonly table: Table; readonly ids: BigInt64Array }[];
    #buffers: Uint8Array[] = [];
    #filled: number[] = [];

    constructor(layout: Layout, rows: ByName<Ids>, what: string) {
        this.#tables = entriesOf(rows).map(([name, ids]) => {
            const table = layout.table(name);
            return { table, ids: idsOf(ids, table, what) };
        });
    }

    get sizeBytes(): number {
        return this.#tables.reduce(
            (sum, { table, ids }) => sum + ids.length * table.width * ITEM_BYTES[table.dtype],
            0,
        );
    }

    get filledBytes(): number {
        return this.#filled.reduce((sum, bytes) => sum + bytes, 0);
    }

    /** What the selection says. */
    messages(what: string): RowsMessage[] {
        const count = this.#tables.reduce((sum, { ids }) => sum + ids.length, 0);
        if (count > PULLED_IDS_MAX) {
            throw new LimitExceeded(
                `${what}: got ${count} ids, expected at most ${PULLED_IDS_MAX}: one pull has one version, so its ids are ` +
                    "one message; pull fewer at a time",
                { limit: String(PULLED_IDS_MAX) },
            );
        }
        return this.#tables.map(({ table, ids }) => create(RowsSchema, { table: table.index, ids: bytesOf(ids) }));
    }

    /** Make room, or start over. */
    begin(): void {
        this.#buffers = this.#tables.map(
            ({ table, ids }) => new Uint8Array(ids.length * table.width * ITEM_BYTES[table.dtype]),
        );
        this.#filled = this.#tables.map(() => 0);
    }

    /** Take a piece. */
    put(piece: RowsMessage): void {
        const index = this.#tables.findIndex(({ table }) => table.index === piece.table);
        if (index < 0 || this.#buffers.length === 0) {
            throw new Internal(`got rows of table ${piece.table} that were not asked for, expected none; report this`);
        }
        const { table } = this.#tables[index];
        const start = toNumber(piece.first) * table.width * ITEM_BYTES[table.dtype];
        const buffer = this.#buffers[index];
        if (start + piece.data.byteLength > buffer.byteLength) {
            throw new Internal(`got more rows of table '${table.name}' than were asked for; report this`);
        }
        buffer.set(piece.data, start);
        this.#filled[index] += piece.data.byteLength;
    }

    /** The rows by table, once all have come. */
    arrays(): [string, FloatArray][] {
        return this.#tables.map(({ table }, index) => {
            const buffer = this.#buffers.at(index);
            if (buffer === undefined || this.#filled[index] !== buffer.byteLength) {
                throw new Internal(
                    `got ${this.#filled.at(index) ?? 0} bytes of table '${table.name}', expected ` +
                        `${buffer?.byteLength ?? 0}; report this`,
                );
            }
            return [table.name, arrayOf(table.dtype, buffer)];
        });
    }
}

/** Ids as the contract has them; throws InvalidRows for what is no id. */
export function idsOf(ids: unknown, table: Table, what: string): BigInt64Array {
    if (ids instanceof BigInt64Array) {
        return ids;
    }
    if (!(ids instanceof Int32Array) && !Array.isArray(ids)) {
        throw new InvalidRows(
            `${what}: got ids ${show(ids)} for table '${table.name}', expected a BigInt64Array or a list of integers; ` +
                "convert them",
            { table: table.name },
        );
    }
    const taken = new BigInt64Array(ids.length);
    for (const [index, id] of (ids as readonly unknown[]).entries()) {
        const integer = typeof id === "bigint" ? id : Number.isSafeInteger(id) ? BigInt(id as number) : undefined;
        if (integer === undefined || BigInt.asIntN(64, integer) !== integer) {
            throw new InvalidRows(
                `${what}: got the id ${String(id).slice(0, 50)} for table '${table.name}', expected an integer of 64 ` +
                    "bits; give large ones as bigint",
                { table: table.name },
            );
        }
        taken[index] = integer;
    }
    return taken;
}

function rowBytes(gradients: unknown, count: number, table: Table, what: string): Uint8Array {
    const elements = elementsOf(gradients);
    const expected = [count, table.width];
    if (elements?.dtype !== table.dtype || elements.count !== countOf(expected)) {
        const got = elements
            ? `${elements.dtype} ${elements.shape ? shown(elements.shape) : `of ${elements.count} elements`}`
            : show(gradients);
        throw new InvalidRows(
            `${what}: got row gradients ${got} for table '${table.name}', expected ${table.dtype} ${shown(expected)}: a ` +
                "row for each id; give them so",
            { table: table.name, got, expected: `${table.dtype} ${shown(expected)}` },
        );
    }
    return elements.bytes;
}
