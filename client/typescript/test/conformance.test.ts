/** Every case of tests/conformance, and that the runner objects where something else comes than a case expects. */

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { isDeepStrictEqual } from "node:util";

import { RunRewound, UnknownRun } from "../src/index.js";
import { type Case, CaseFailed, carryOut, compare, compareError, loadCases, rounded, Stand } from "./conformance.js";

type Fields = Record<string, unknown>;

const stand = new Stand();
const cases = loadCases();

after(() => stand.close());

for (const [file, content] of cases) {
    test(file, () => carryOut(stand, file, content));
}

const SMALL = { dtype: "float32", shape: [1], values: [0] };

/**
 * What is changed in a case, after which the runner must object at that very step.
 *
 * The first step is changed that has something else at `path` (and the field `having`); undefined takes it away.
 */
const CHANGES: readonly (readonly [what: string, file: string, path: string, to: unknown, having?: string])[] = [
    ["a version", "step_push_pull.json", "expect.version", 99],
    ["an outcome", "nonfinite.json", "expect.outcome", "committed"],
    ["an element, by more than the tolerance", "adam.json", "expect.parameters.w.values.0", -1.2468750013],
    ["the type of elements", "adam.json", "expect.parameters.b.dtype", "float32"],
    ["the number of elements", "adagrad.json", "expect.parameters.b", { dtype: "float64", shape: [3], fill: 0 }],
    ["one parameter more", "step_push_pull.json", "expect.parameters", { w: SMALL, other: SMALL }],
    ["no parameters", "step_push_pull.json", "expect.parameters", {}],
    ["an element of a row", "tables.json", "expect.rows.user.values.0", 7],
    ["an element of a slot", "state.json", "expect.slots.w.momentum_buffer.values.0", 5],
    ["no slots", "state.json", "expect.slots", {}],
    ["a norm", "transforms_and_norms.json", "expect.gradient_norms.l2", 5.5],
    ["something where there is nothing", "step_push_pull.json", "expect", { loss_scale: 1 }],
    ["nothing where there is something", "loss_scaling.json", "expect.loss_scale", null],
    ["whether a run was created", "create_and_find.json", "expect.created", false],
    ["whether something is newer", "pull_conditional_and_partial.json", "expect.unchanged", false],
    ["a hyperparameter", "live_changes.json", "expect.hyperparameters.default.lr", 0.75],
    ["a field that nothing has", "live_changes.json", "expect", { versions: 1 }],
    ["a count", "nonfinite.json", "expect.tally.commits", 77],
    ["a list that is shorter", "worker_fenced.json", "expect.workers", []],
    ["a text in a list", "worker_fenced.json", "expect.workers", ["twin"]],
    ["an object in a list", "checkpoints.json", "expect.checkpoints.0.version", 7],
    ["a name among others", "server_and_catalogues.json", "expect.names.0", "sgdd"],
    ["a share of the samples", "membership.json", "expect.begin", 1],
    ["what a begun step ends with", "retry_of_everything.json", "expect.returned", 5, "end"],
    ["an error's reason", "errors_of_names.json", "error.reason", "UNKNOWN_POINT"],
    ["a piece of an error's message", "errors_of_names.json", "error.message", ["not said"]],
    ["an error's detail", "pull_after_a_rewind.json", "error.details.version", "7"],
    ["no error where there is one", "errors_of_names.json", "error", undefined],
    ["an answer of the stand", "retry_counts_once.json", "expect.count", 7],
    ["a command that the stand refuses", "checkpoints.json", "checkpoint", "never stored"],
];

for (const [what, file, path, to, having] of CHANGES) {
    test(`the runner objects: ${what}`, async () => {
        const { content, number } = changed(file, path, to, having);
        await rejects(carryOut(stand, file, content), file, number);
    });
}

test("the runner objects: what shall come of repeating never comes, what was begun never ends", async () => {
    const created = { do: "create", with: { parameters: { w: SMALL }, optimizer: "sgd", policy: { name: "sync" } } };
    const other = { ...created, client: "b" };
    const never = { title: "never", steps: [created, { do: "refresh", until: { version: 1 } }] };
    await rejects(carryOut(stand, "never", never, 0.5), "never", 2);
    const push = { do: "push", with: { gradients: { w: SMALL } }, begin: "waits for b" };
    const waits = { title: "waits", steps: [created, other, push, { end: "waits for b" }] };
    await rejects(carryOut(stand, "waits", waits, 0.5), "waits", 4);
});

test("the runner objects: an error does not come, or another one", async () => {
    for (const step of [{ do: "ping" }, { do: "get" }]) {
        const steps = [{ do: "ping" }, { ...step, error: { reason: "UNKNOWN_CHECKPOINT" } }];
        await rejects(carryOut(stand, "errors", { title: "errors", steps }), "errors", 2);
    }
});

test("the runner objects to a case that it does not understand", async () => {
    for (const step of [{ do: "stepp" }, { do: "step" }, { end: "not begun" }, { stand: "sit" }]) {
        await rejects(carryOut(stand, "wrong", { title: "wrong", steps: [step] }), "wrong", 1);
    }
});

test("numbers and arrays are compared as the page says", () => {
    const array = (dtype: string, ...values: unknown[]): unknown => ({ dtype, shape: [values.length], values });
    const same: [got: unknown, expected: unknown, tolerance?: { relative?: number; absolute?: number }][] = [
        [1, 1],
        [NaN, "nan"],
        [-Infinity, "-inf"],
        [1.25, 1, { absolute: 0.25 }],
        [-125, -100, { relative: 0.25 }],
        [undefined, null],
        [null, null],
        [
            [1, "a", true],
            [1, "a", true],
        ],
        [{ a: 1, b: 2 }, { a: 1 }],
        [new Set(["a", "b"]), ["b"]],
        [Float32Array.of(1, NaN, Infinity), array("float32", 1, "nan", "inf")],
        [Float32Array.of(0.1), array("float32", 0.1)],
        [Float64Array.of(0.1), array("float64", 0.1)],
        [Float32Array.of(0.0999755859375), array("float16", 0.1)],
        [Float32Array.of(0.10009765625), array("bfloat16", 0.1)],
        [
            { parameters: { w: Float32Array.of(2, 2) } },
            { parameters: { w: { dtype: "float32", shape: [2], fill: 2 } } },
        ],
    ];
    for (const [got, expected, tolerance] of same) {
        compare(got, expected, tolerance);
    }
    const different: typeof same = [
        [1, 2],
        [NaN, 1],
        [1, "nan"],
        [Infinity, "-inf"],
        [Infinity, 1, { relative: 1, absolute: 1 }],
        [1.2500001, 1, { absolute: 0.25 }],
        [-125.00001, -100, { relative: 0.25 }],
        ["1", 1],
        [true, 1],
        [1, true],
        [undefined, false],
        [0, null],
        ["a", "b"],
        [undefined, { a: 1 }],
        [{ a: 1 }, { b: null }],
        [[1], [1, 2]],
        [[1, 2], [1]],
        [new Set(["a", "b"]), ["a", "c"]],
        [Float32Array.of(1), array("float32", 1, 1)],
        [Float32Array.of(1), array("float64", 1)],
        [Float64Array.of(1), array("float32", 1)],
        [[1], array("float32", 1)],
        [Float32Array.of(1, NaN), array("float32", 1, 2)],
        [Float32Array.of(1, 2), array("float32", 1, "nan")],
        [Float32Array.of(0.1), array("bfloat16", 0.1)],
        [{ rows: { t: 1, u: 2 } }, { rows: { t: 1 } }],
    ];
    for (const [got, expected, tolerance] of different) {
        assert.throws(() => {
            compare(got, expected, tolerance);
        }, CaseFailed);
    }
});

test("an error is this client's own, of that reason", () => {
    const error = new RunRewound("run 'a' went back", { version: "1" });
    compareError(error, { reason: "RUN_REWOUND", message: ["'a'", "back"], details: { version: "1" } });
    for (const [other, expected] of [
        [error, { reason: "UNKNOWN_RUN" }],
        [new UnknownRun("run 'a' went back"), { reason: "RUN_REWOUND" }],
        [new Error("run 'a' went back"), { reason: "RUN_REWOUND" }],
        [error, { reason: "RUN_REWOUND", message: ["'b'"] }],
        [error, { reason: "RUN_REWOUND", details: { version: "2" } }],
        [error, { reason: "RUN_REWOUND", details: { acknowledged_version: "1" } }],
        [error, { reason: "NO_SUCH_REASON" }],
    ] as const) {
        assert.throws(() => {
            compareError(other, expected);
        }, CaseFailed);
    }
});

test("numbers are rounded to nearest, ties to even", () => {
    const known = [
        ["float64", 0.1, 0.1],
        ["float32", 1 + 2 ** -24, 1],
        ["float32", 1 + 3 * 2 ** -24, 1 + 2 ** -22],
        ["float16", 1 + 2 ** -11, 1],
        ["float16", 1 + 2 ** -11 + 2 ** -40, 1 + 2 ** -10], // by way of float32 it would be 1
        ["float16", -(1 + 3 * 2 ** -11), -(1 + 2 ** -9)],
        ["float16", 2 ** -25, 0],
        ["float16", 3 * 2 ** -25, 2 ** -23],
        ["float16", 65519, 65504],
        ["float16", -65520, -Infinity],
        ["bfloat16", 1 + 2 ** -8, 1],
        ["bfloat16", 1 + 3 * 2 ** -8, 1 + 2 ** -6],
        ["bfloat16", 2 ** -133, 2 ** -133],
        ["bfloat16", 3e38, 226 * 2 ** 120],
        ["bfloat16", 3.4e38, Infinity],
    ] as const;
    for (const [dtype, number, expected] of known) {
        assert.equal(rounded(number, dtype), expected, `${dtype} ${number}`);
    }
});

async function rejects(carried: Promise<void>, file: string, number: number): Promise<void> {
    await assert.rejects(carried, (failure: unknown) => {
        assert.ok(failure instanceof CaseFailed, String(failure));
        assert.ok(failure.message.startsWith(`${file}: step ${number}: `), failure.message);
        return true;
    });
}

/** The case with one step changed, and that step's number. */
function changed(file: string, path: string, to: unknown, having?: string): { content: Case; number: number } {
    const content = structuredClone(cases.find(([name]) => name === file)?.[1]);
    const keys = path.split(".");
    const last = keys.pop() ?? "";
    for (const [index, step] of content?.steps.entries() ?? []) {
        const at = keys.reduce<unknown>((found, key) => (found as Fields | undefined)?.[key], step);
        if (typeof at === "object" && at !== null && (having === undefined || having in step)) {
            const fields = at as Fields;
            if (last in fields && !isDeepStrictEqual(fields[last], to)) {
                fields[last] = to;
                return { content: content as Case, number: index + 1 };
            }
        }
    }
    throw new Error(`${file} has no step with something else at ${path}`);
}
