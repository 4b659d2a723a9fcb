/**
 * Where parameters lie: groups, each one packed vector, and the parameters in them.
 *
 * Offsets count in the packed vector: consecutive parameters of a group are contiguous, and that is what travels.
 */

import { countOf, type DType, ITEM_BYTES } from "./arrays.js";
import { Internal, UnknownParameter, UnknownTable } from "./errors.js";
import type {
    Layout as LayoutMessage,
    LayoutGroup,
    LayoutParameter,
    LayoutTable,
} from "./generated/stepwell/v1/run_pb.js";
import { decodeDType, listed, show, toNumber } from "./values.js";

/** Parameters of one dtype that share an optimizer. itemBytes: the size of an element. */
export interface Group {
    readonly name: string;
    readonly dtype: DType;
    readonly itemBytes: number;
    readonly packedBytes: number;
    readonly frozen: boolean;
}

/** One parameter. index: its place in the layout; offsetBytes: where it begins in its group without padding. */
export interface Parameter {
    readonly name: string;
    readonly index: number;
    readonly shape: readonly number[];
    readonly count: number;
    readonly dtype: DType;
    readonly group: number;
    readonly offsetBytes: number;
    readonly sizeBytes: number;
    readonly frozen: boolean;
}

/** A table of rows. index: its place in the spec; width: the elements of a row. */
export interface Table {
    readonly name: string;
    readonly index: number;
    readonly width: number;
    readonly dtype: DType;
}

/** A whole layout. byGroup: each group's parameters by offset; trained: those that are not frozen, in order. */
export class Layout {
    readonly groups: readonly Group[];
    readonly parameters: readonly Parameter[];
    readonly tables: readonly Table[];
    readonly byName: ReadonlyMap<string, Parameter>;
    readonly byGroup: readonly (readonly Parameter[])[];
    readonly trained: readonly Parameter[];

    constructor(
        groups: readonly LayoutGroup[],
        parameters: readonly LayoutParameter[],
        tables: readonly LayoutTable[],
    ) {
        this.groups = groups.map((group) => {
            const dtype = decodeDType(group.dtype);
            const { name, frozen } = group;
            return { name, dtype, itemBytes: ITEM_BYTES[dtype], packedBytes: toNumber(group.packedBytes), frozen };
        });
        this.parameters = parameters.map((parameter, index) => this.#parameter(parameter, index));
        this.tables = tables.map(({ name, width, dtype }, index) => ({
            name,
            index,
            width,
            dtype: decodeDType(dtype),
        }));
        this.byName = new Map(this.parameters.map((parameter) => [parameter.name, parameter]));
        const byGroup: Parameter[][] = this.groups.map(() => []);
        for (const parameter of this.parameters) {
            byGroup[parameter.group].push(parameter);
        }
        this.byGroup = byGroup.map((members) => members.sort((one, other) => one.offsetBytes - other.offsetBytes));
        this.trained = this.parameters.filter((parameter) => !parameter.frozen);
        this.#check();
    }

    /** The parameters of these names, in this order; throws UnknownParameter. */
    select(names: Iterable<string>): Parameter[] {
        return [...new Set(names)].map((name) => {
            const parameter = this.byName.get(name);
            if (parameter === undefined) {
                throw new UnknownParameter(
                    `got parameter ${show(name)}, expected one of ${listed(this.byName.keys())}; ` +
                        "choose one of them",
                    { got: name.slice(0, 200) },
                );
            }
            return parameter;
        });
    }

    /** The table of this name; throws UnknownTable. */
    table(name: string): Table {
        const found = this.tables.find((table) => table.name === name);
        if (found === undefined) {
            const known = listed(this.tables.map((table) => table.name));
            throw new UnknownTable(`got table '${name.slice(0, 200)}', expected one of ${known}; choose one of them`, {
                got: name.slice(0, 200),
            });
        }
        return found;
    }

    #parameter(parameter: LayoutParameter, index: number): Parameter {
        if (parameter.group >= this.groups.length) {
            throw new Internal(
                `got a layout with group ${parameter.group} of ${this.groups.length}; see the server's log`,
            );
        }
        const { dtype, itemBytes, frozen } = this.groups[parameter.group];
        const shape = parameter.shape.map(toNumber);
        const count = countOf(shape);
        return {
            name: parameter.name,
            index,
            shape,
            count,
            dtype,
            group: parameter.group,
            offsetBytes: toNumber(parameter.packedOffsetBytes),
            sizeBytes: count * itemBytes,
            frozen,
        };
    }

    /** That the parameters of each group follow one another without a gap: what is received rests on it. */
    #check(): void {
        for (const [index, group] of this.groups.entries()) {
            let end = 0;
            for (const parameter of this.byGroup[index]) {
                if (parameter.offsetBytes !== end) {
                    throw new Internal(
                        `got a layout with a gap before '${parameter.name}', expected none; report this`,
                    );
                }
                end += parameter.sizeBytes;
            }
            if (end !== group.packedBytes) {
                throw new Internal(
                    `got a layout whose group '${group.name}' holds ${end} bytes, expected ${group.packedBytes}; report this`,
                );
            }
        }
    }
}

/** Puts a layout together from its pieces. */
export class LayoutPieces {
    complete = false;
    readonly #groups: LayoutGroup[] = [];
    readonly #parameters: LayoutParameter[] = [];
    readonly #tables: LayoutTable[] = [];

    add(piece: LayoutMessage): void {
        append(this.#groups, piece.groups);
        append(this.#parameters, piece.parameters);
        append(this.#tables, piece.tables);
        this.complete ||= piece.last;
    }

    layout(): Layout {
        if (!this.complete) {
            throw new Internal("got a layout without its last piece, expected it whole; see the server's log");
        }
        return new Layout(this.#groups, this.#parameters, this.#tables);
    }
}

function append<T>(list: T[], items: readonly T[]): void {
    for (const item of items) {
        list.push(item);
    }
}
