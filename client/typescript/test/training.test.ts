/** The operations of a client and a run, on a real server. */

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import * as stepwell from "../src/index.js";
import { type ArrayLike, type Client, connect, type Run, type RunOptions, tensor } from "../src/index.js";
import { random } from "./proxy.js";
import { runName, Server, temporaryDirectory } from "./server.js";

const directory = temporaryDirectory();
let server: Server;
let client: Client;

before(async () => {
    server = await Server.start("--data-dir", directory.path);
    client = connect(server.address, { patienceSeconds: 60 });
});

after(async () => {
    await client.close();
    await server.stop();
    directory.remove();
});

const SGD: RunOptions = { optimizer: "sgd", hyperparameters: { lr: 0.5 } };

/** A run of plain SGD: w [2, 2] from 1 to 4, b [1] of 0.5. */
function sgdRun(options: RunOptions = {}, name = runName()): Promise<Run> {
    const parameters = { w: tensor([1, 2, 3, 4], [2, 2]), b: Float32Array.of(0.5) };
    return client.createRun(name, parameters, { ...SGD, ...options });
}

const GRADS = { w: Float32Array.of(2, 0, 0, 4), b: Float32Array.of(1) };

/** An object without a prototype, as the SDK gives its arrays. */
function plain<T>(object: Record<string, T>): Record<string, T> {
    return { ...object };
}

/** A list of so many elements, each from -1 to 1, and exact in 8 bits. */
function draw(count: number, seed: number): number[] {
    const next = random(seed);
    return Array.from({ length: count }, () => Math.round(next() * 128 - 64) / 64);
}

test("a step returns the parameters after the update", async () => {
    const run = await sgdRun();
    assert.equal(run.created, true);
    assert.equal(run.version, 0);
    const params = await run.step(GRADS, { samples: 32 });
    assert.deepEqual(plain(params), { w: Float32Array.of(0, 2, 3, 2), b: Float32Array.of(0) });
    assert.equal(run.version, 1);
    assert.equal(run.lastAnswer?.outcome, "committed");
    assert.equal((await run.refresh()).samples, 32);
});

test("a push returns its version, and a pull everything, a part, or nothing", async () => {
    const run = await sgdRun();
    assert.equal(await run.push(GRADS), 1);
    assert.deepEqual(plain(await run.pull()), { w: Float32Array.of(0, 2, 3, 2), b: Float32Array.of(0) });
    assert.deepEqual(plain(await run.pull({ names: ["b"] })), { b: Float32Array.of(0) });
    assert.equal(await run.pull({ ifNewerThan: 1 }), undefined);
    assert.ok(await run.pull({ ifNewerThan: 0 }));
    await assert.rejects(run.pull({ names: ["nope"] }), stepwell.UnknownParameter);
    await assert.rejects(run.pull({ names: [] }), stepwell.InvalidValue);
});

test("arrays are filled in place, and only these are returned", async () => {
    const run = await sgdRun();
    const out = await run.parameters();
    const { w } = out;
    const params = await run.step(GRADS, { out });
    assert.equal(params["w"], w);
    assert.deepEqual(w, Float32Array.of(0, 2, 3, 2));
    const b = new Float32Array(1);
    assert.deepEqual(Object.keys(await run.pull({ out: { b } })), ["b"]);
    await assert.rejects(run.pull({ out: { b: new Float64Array(1) } }), stepwell.InvalidValue);
    await assert.rejects(run.pull({ out: { b }, names: ["b", "w"] }), stepwell.InvalidValue);
});

test("a parameter without a gradient stays as it is, and a frozen one takes none", async () => {
    const run = await sgdRun({ groups: [{ name: "fixed", parameters: ["b"], frozen: true }] });
    const params = await run.step({ w: null });
    assert.deepEqual(plain(params), { w: Float32Array.of(1, 2, 3, 4), b: Float32Array.of(0.5) });
    await assert.rejects(run.step({ w: null, b: Float32Array.of(1) }), /frozen/);
    assert.deepEqual(Object.keys(await run.gradients()), ["w"]);
});

test("several dtypes, empty and single parameters, and one of several messages go in one run", async () => {
    const large = draw(300_001, 1);
    const half = draw(41, 2);
    const parameters: Record<string, ArrayLike> = {
        "small.0": Float32Array.of(1, 2, 3),
        none: tensor([], [0, 4]),
        scale: tensor(2.5, []),
        large: Float32Array.from(large),
        "small.1": tensor(draw(35, 3), [5, 7]),
        double: Float64Array.from(draw(140_001, 4)),
        half: tensor(half, [41], "float16"),
        brain: tensor(draw(13, 5), [13], "bfloat16"),
    };
    const run = await client.createRun(runName(), parameters, { ...SGD, hyperparameters: { lr: 1 } });
    const start = await run.pull();
    assert.deepEqual(start["large"], Float32Array.from(large));
    assert.deepEqual(start["double"], Float64Array.from(draw(140_001, 4)));
    assert.deepEqual(start["half"], Float32Array.from(half));
    assert.deepEqual(start["scale"], Float32Array.of(2.5));
    assert.equal(start["none"].length, 0);
    const described = new Map((await run.describeParameters()).map((each) => [each.name, each]));
    assert.deepEqual(described.get("small.1")?.shape, [5, 7]);
    assert.deepEqual(described.get("scale")?.shape, []);
    assert.equal(described.get("brain")?.dtype, "bfloat16");

    const grads = Object.fromEntries(
        Object.entries(start).map(([name, { length }], index) => {
            const kind = name === "double" ? Float64Array : Float32Array;
            return [name, kind.from(draw(length, 100 + index))];
        }),
    );
    const next = await run.step(grads);
    for (const [name, array] of Object.entries(next)) {
        const expected = start[name].map((value, index) => value - grads[name][index]);
        assert.deepEqual(array, expected, name);
    }
    assert.deepEqual(await run.pull(), next);
    assert.deepEqual(plain(await run.pull({ names: ["brain", "small.0"] })), {
        brain: next["brain"],
        "small.0": next["small.0"],
    });
});

test("narrower gradients are widened by the server, wider ones refused here", async () => {
    const run = await client.createRun(
        runName(),
        { d: Float64Array.of(1, 2), h: tensor([1, 2], [2], "float16"), f: Float32Array.of(1, 2) },
        { ...SGD, hyperparameters: { lr: 1 } },
    );
    const params = await run.step({
        d: Float32Array.of(1, 0.5),
        h: tensor([0.5, 0.25], [2], "float16"),
        f: tensor([0.5, 0.25], [2], "bfloat16"),
    });
    assert.deepEqual(plain(params), {
        d: Float64Array.of(0, 1.5),
        h: Float32Array.of(0.5, 1.75),
        f: Float32Array.of(0.5, 1.75),
    });
    // The bits of float16: 0x3c00 is 1.
    const next = await run.step({ d: null, h: Uint16Array.of(0x3c00, 0), f: null });
    assert.deepEqual(next["h"], Float32Array.of(-0.5, 1.75));
    await assert.rejects(run.step({ d: null, h: null, f: Float64Array.of(1, 2) }), stepwell.InvalidGradient);
});

test("any name is a name, and thousands of small parameters are one message", async () => {
    const parameters = new Map<string, ArrayLike>([
        ["__proto__", Float32Array.of(1)],
        ["10", Float32Array.of(2)],
        ["2", Float32Array.of(3)],
        ["Größe/λ.weight", Float32Array.of(4)],
    ]);
    for (let index = 0; index < 3000; index++) {
        parameters.set(`layer.${index}`, Float32Array.of(index));
    }
    const run = await client.createRun(runName(), parameters, { ...SGD, hyperparameters: { lr: 1 } });
    const grads = new Map([...parameters].map(([name]) => [name, Float32Array.of(1)]));
    const params = await run.step(grads);
    assert.equal(params["__proto__"][0], 0);
    assert.deepEqual([params["10"][0], params["2"][0], params["Größe/λ.weight"][0]], [1, 2, 3]);
    assert.equal(params["layer.2999"][0], 2998);
});

test("operations on one run follow one another without being awaited", async () => {
    const run = await sgdRun();
    const steps = Array.from({ length: 8 }, () => run.push({ w: null, b: Float32Array.of(0.25) }));
    assert.deepEqual(await Promise.all(steps), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert.deepEqual((await run.pull())["b"], Float32Array.of(-0.5));
});

test("a second creator joins what is there, and another spec is refused with its differences", async () => {
    const name = runName();
    await sgdRun({}, name);
    const other = connect(server.address);
    const parameters = { w: tensor([9, 9, 9, 9], [2, 2]), b: Float32Array.of(9) };
    const run = await other.createRun(name, parameters, SGD);
    assert.equal(run.created, false);
    assert.deepEqual((await run.pull())["b"], Float32Array.of(0.5));
    await assert.rejects(other.createRun(name, parameters, { optimizer: "adam" }), (error) => {
        assert.ok(error instanceof stepwell.RunDiffers);
        assert.match(error.message, /lr is 0.001, the run has 0.5/);
        assert.equal(error.reason, "RUN_DIFFERS");
        return true;
    });
    await other.close();
});

test("hyperparameters change with an update and by themselves, schedules with them", async () => {
    const run = await sgdRun({ groups: [{ name: "bias", parameters: ["b"] }] });
    const params = await run.step(GRADS, { hyperparameters: { lr: 0.25, bias: { lr: 1 } } });
    assert.deepEqual(plain(params), { w: Float32Array.of(0.5, 2, 3, 3), b: Float32Array.of(-0.5) });
    const changed = await run.change({ hyperparameters: { lr: 0.125 }, group: "bias" });
    assert.equal(changed.groups.find(({ name }) => name === "bias")?.hyperparameters["lr"], 0.125);
    await assert.rejects(run.change({ hyperparameters: { lr: 1 }, etag: "stale" }), stepwell.EtagMismatch);
    await run.change({ schedules: { lr: { name: "step", step_size: 1, gamma: 0.5 } } });
    assert.equal((await run.refresh()).groups[0].schedules["lr"].name, "step");
    const none = await run.change({ schedules: { lr: null }, etag: (await run.refresh()).etag });
    assert.deepEqual(none.groups[0].schedules, {});
    await assert.rejects(run.change({ hyperparameters: { nonsense: 1 } }), stepwell.UnknownArgument);
    await assert.rejects(run.change({ hyperparameters: { momentum: 0.9 } }), stepwell.ChangeRefused);
});

test("adam, betas, groups, transforms, wrappers, norms and a definition are the server's to apply", async () => {
    const run = await client.createRun(
        runName(),
        { w: Float32Array.of(1, 1), "layer.bias": Float32Array.of(1) },
        {
            optimizer: "adamw",
            flavor: "torch",
            hyperparameters: { lr: 0.1, betas: [0.5, 0.75], weight_decay: 0.5 },
            groups: [{ name: "no_decay", parameters: ["*.bias"], hyperparameters: { weight_decay: 0 } }],
            transforms: [{ name: "clip_by_global_norm", max_norm: 1 }],
            wrappers: [{ name: "ema", decay: 0.5 }],
            reportNorms: true,
        },
    );
    const params = await run.step({ w: Float32Array.of(3, 4), "layer.bias": Float32Array.of(12) });
    // Adam's first step is the learning rate, whatever the gradient's size; decay takes lr * weight_decay.
    assert.ok(Math.abs(params["w"][0] - (1 - 0.1 * 0.5 - 0.1)) < 1e-6, String(params["w"][0]));
    assert.ok(Math.abs(params["layer.bias"][0] - 0.9) < 1e-6);
    assert.equal(run.lastAnswer?.gradientNorms?.l2, 13);
    const description = await run.refresh();
    assert.equal(description.groups.find(({ name }) => name === "default")?.hyperparameters["beta2"], 0.75);
    assert.equal(description.transforms[0]["max_norm"], 1);
    const next = await run.step({ w: Float32Array.of(3, 4), "layer.bias": Float32Array.of(12) });
    const average = await run.pull({ of: "average" });
    assert.ok(average["w"][0] > next["w"][0]);
    await assert.rejects(run.pull({ of: "nonsense" }), stepwell.UnknownPoint);

    const own = await client.createRun(
        runName(),
        { w: Float32Array.of(1) },
        { definition: "def double_sgd(param, grad, *, lr=0.25):\n    return param - 2 * lr * grad\n" },
    );
    assert.deepEqual((await own.step({ w: Float32Array.of(1) }))["w"], Float32Array.of(0.5));
});

test("plateau follows reports, and polyak_sgd takes the loss", async () => {
    const plateau = { name: "plateau", metric: "val_loss", patience: 0, factor: 0.5, threshold: 0, cooldown: 0 };
    const described = (await client.listSchedules()).find(({ name }) => name === "plateau");
    const known = new Set(described?.arguments.map(({ name }) => name));
    const spec = Object.fromEntries(Object.entries(plateau).filter(([name]) => name === "name" || known.has(name)));
    const run = await sgdRun({ schedules: { lr: spec as stepwell.Schedule } });
    const metric = String(described?.arguments.find(({ name }) => name === "metric")?.default ?? "val_loss");
    const { metrics } = await run.report({ [known.has("metric") ? "val_loss" : metric]: 0.5 });
    assert.equal(metrics["val_loss"], 0.5);

    const polyak = await client.createRun(runName(), { w: Float32Array.of(2) }, { optimizer: "polyak_sgd" });
    await assert.rejects(polyak.step({ w: Float32Array.of(2) }), stepwell.InputRequired);
    assert.notDeepEqual((await polyak.step({ w: Float32Array.of(2) }, { loss: 2 }))["w"], Float32Array.of(2));
});

test("a loss scale is told, sent back, and an overflow skipped", async () => {
    const run = await client.createRun(
        runName(),
        { h: tensor([1, 2], [2], "bfloat16") },
        { ...SGD, transforms: [{ name: "unscale" }], nonfinite: "skip" },
    );
    const scale = run.lossScale ?? NaN;
    assert.ok(scale > 1);
    const params = await run.step({ h: Float32Array.of(scale, 0) });
    assert.deepEqual(params["h"], Float32Array.of(0.5, 2));
    await run.step({ h: Float32Array.of(Infinity, 0) });
    assert.equal(run.lastAnswer?.outcome, "skipped_nonfinite");
    assert.ok((run.lossScale ?? NaN) < scale);
});

test("the whole state goes out and comes in, and a checkpoint is a point to come back to", async () => {
    const options = { optimizer: "adam", hyperparameters: { lr: 0.1 } };
    const parameters = { w: tensor([1, 2, 3, 4], [2, 2]), b: tensor([0.5], [1], "float16") };
    const run = await client.createRun(runName(), parameters, options);
    await run.step({ w: Float32Array.of(1, 2, 3, 4), b: Float32Array.of(1) }, { samples: 7 });
    const state = await run.getState();
    assert.equal(state.version, 1);
    assert.equal(state.samples, 7);
    assert.equal(state.steps["w"], 1);
    assert.equal(state.slots["w"]["exp_avg"].length, 4);
    assert.ok(Math.abs(state.slots["w"]["exp_avg"][3] - 0.4) < 1e-6);
    assert.deepEqual(await run.slots(), state.slots);

    const checkpoint = await run.saveCheckpoint("first");
    assert.equal(checkpoint.version, 1);
    await assert.rejects(run.saveCheckpoint("first"), stepwell.CheckpointExists);
    const grads = { w: Float32Array.of(1, 1, 1, 1), b: null };
    const further = await run.step(grads);
    assert.deepEqual(
        (await run.listCheckpoints()).map(({ name }) => name),
        ["first"],
    );
    assert.equal((await run.restoreCheckpoint("first")).version, 1);
    assert.deepEqual(await run.step(grads), further);
    await assert.rejects(run.restoreCheckpoint("nope"), stepwell.UnknownCheckpoint);

    const other = await client.createRun(runName(), parameters, options);
    assert.equal((await other.setState(state, { expectedVersion: 0 })).version, 1);
    assert.deepEqual(await other.step(grads), further);
    await assert.rejects(other.setState(state, { expectedVersion: 0 }), stepwell.VersionMismatch);
    await assert.rejects(other.setState({ ...state, parameters: {} }), stepwell.InvalidValue);
});

test("slots of other shapes keep theirs", async () => {
    const run = await client.createRun(
        runName(),
        { w: tensor(draw(512 * 8, 1), [8, 512]) },
        { optimizer: "adafactor" },
    );
    await run.push({ w: Float32Array.from(draw(512 * 8, 2)) });
    const state = await run.getState();
    for (const [slot, shape] of Object.entries(state.slotShapes["w"])) {
        assert.equal(
            state.slots["w"][slot].length,
            shape.reduce((count, length) => count * length, 1),
            slot,
        );
    }
    await run.setState(state);
    assert.deepEqual(await run.getState(), state);
});

test("the catalogue is listed, and schedules can be seen ahead", async () => {
    const optimizers = await client.listOptimizers();
    const adam = optimizers.find(({ name }) => name === "adam");
    assert.ok(adam?.flavors.some(({ name }) => name === "torch"));
    assert.deepEqual(adam?.flavors[0].slots, ["exp_avg", "exp_avg_sq"]);
    assert.ok((await client.listSchedules()).some(({ name, absolute }) => name === "cosine" && !absolute));
    assert.ok((await client.listTransforms()).some(({ name }) => name === "clip_by_global_norm"));
    assert.ok((await client.listWrappers()).some(({ points }) => points.includes("average")));
    assert.ok((await client.listPolicies()).some(({ name }) => name === "sync"));
    const { gradients, parameters } = await client.listEncodings();
    assert.ok(gradients.some(({ name }) => name === "top_k") && parameters.some(({ name }) => name === "bfloat16"));
    const values = await client.previewSchedule({ name: "step", step_size: 2, gamma: 0.5 }, { initial: 1, steps: 5 });
    assert.deepEqual(values, Float64Array.of(1, 1, 0.5, 0.5, 0.25));
    const chained: stepwell.Schedule = {
        name: "sequential",
        milestones: [2],
        schedules: [{ name: "constant" }, { name: "step", step_size: 1, gamma: 0.5 }],
    };
    const known = (await client.listSchedules()).map(({ name }) => name);
    if (known.includes("constant")) {
        assert.equal((await client.previewSchedule(chained, { initial: 1, steps: 4 })).length, 4);
    }
    assert.ok((await client.ping()).roundTripSeconds > 0);
});

test("runs are listed, got and deleted", async () => {
    const run = await sgdRun();
    assert.ok((await client.listRuns()).some(({ name }) => name === run.name));
    const reader = await client.getRun(run.name);
    assert.deepEqual((await reader.pull())["b"], Float32Array.of(0.5));
    assert.equal(reader.place, undefined);
    await client.deleteRun(run.name);
    await assert.rejects(client.getRun(run.name), stepwell.UnknownRun);
    await sgdRun({}, run.name);
    await assert.rejects(reader.pull(), stepwell.RunReplaced);
    await assert.rejects(reader.refresh(), stepwell.RunReplaced);
});

test("what is not finite is refused, and leaves the run as it was", async () => {
    const run = await sgdRun();
    const before = await run.getState();
    await assert.rejects(run.step({ ...GRADS, b: Float32Array.of(NaN) }), stepwell.NonfiniteGradient);
    assert.deepEqual(await run.getState(), before);
    assert.equal(await run.push(GRADS), 1);
});

test("optimizers that take more than gradients get it", async () => {
    const needing = (await client.listOptimizers()).filter(({ inputs }) => inputs.length > 0);
    assert.ok(needing.length > 0);
    for (const { name, inputs, required, flavors } of needing) {
        const lr = flavors[0].arguments.find((argument) => argument.name === "lr");
        const hyperparameters = lr?.required ? { lr: 0.01 } : {};
        const run = await client.createRun(
            runName(),
            { w: Float32Array.of(1, 2) },
            { optimizer: name, hyperparameters },
        );
        const given = Object.fromEntries(inputs.map((input) => [input, { w: Float32Array.of(1, 1) }]));
        if (inputs.some((input) => required.includes(input))) {
            await assert.rejects(run.push({ w: Float32Array.of(1, 1) }), stepwell.InputRequired, name);
        }
        assert.equal(await run.push({ w: Float32Array.of(1, 1) }, { inputs: given, loss: 1 }), 1, name);
        const wrong = { [inputs[0]]: { nope: Float32Array.of(1) } };
        await assert.rejects(run.push({ w: Float32Array.of(1, 1) }, { inputs: wrong }), stepwell.UnknownParameter);
    }
});

test("a closed run takes no calls, and leaving tells the server", async () => {
    const run = await sgdRun();
    assert.deepEqual(
        (await run.refresh()).workers.map(({ name }) => name),
        [run.worker],
    );
    await run.close();
    await run.close();
    await assert.rejects(run.pull(), /closed run/);
    assert.deepEqual(await (await client.getRun(run.name)).refresh().then(({ workers }) => workers), []);

    const other = connect(server.address);
    const again = await other.getRun(run.name);
    await again.push({ w: null, b: null });
    await other.close();
    assert.deepEqual((await (await client.getRun(run.name)).refresh()).workers, []);
    await assert.rejects(again.pull(), /closed client/);
});
