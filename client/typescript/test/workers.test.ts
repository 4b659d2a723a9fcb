/** Several workers on one run: every policy, leases, barriers, places. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { after, before, test } from "node:test";

import * as stepwell from "../src/index.js";
import { type Client, connect, type ConnectOptions, type Part, type Run, type RunOptions } from "../src/index.js";
import { runName, Server } from "./server.js";

const SGD: RunOptions = { optimizer: "sgd", hyperparameters: { lr: 1 } };
const POLLS_MAX = 100_000;
// Of those whose loss a test sees or rules out: it has to wait for one, and no stall may be as long.
const LEASE_SECONDS = 10;

const clients: Client[] = [];
let server: Server;

before(async () => {
    server = await Server.start();
});

after(async () => {
    await Promise.all(clients.map((client) => client.close()));
    await server.stop();
});

function client(options: ConnectOptions = {}): Client {
    const made = connect(server.address, { patienceSeconds: 60, ...options });
    clients.push(made);
    return made;
}

/** So many workers of one new run. */
async function crew(count: number, policy: string | Part | undefined, options: ConnectOptions = {}): Promise<Run[]> {
    const name = runName();
    const runs: Run[] = [];
    for (let index = 0; index < count; index++) {
        const made = client({ worker: `w${index}`, ...options });
        runs.push(await made.createRun(name, { w: Float64Array.of(0, 0) }, { ...SGD, policy }));
    }
    return runs;
}

/** A program: until a run has no workers. */
const UNTIL_ALL_ARE_GONE = `
    const [sdk, address, name] = process.argv.slice(1);
    const { connect } = await import(sdk);
    const client = connect(address);
    const run = await client.getRun(name);
    while ((await run.refresh()).workers.length > 0);
    await client.close();
`;
const SDK = new URL("../src/index.js", import.meta.url).href;

async function until(holds: () => Promise<boolean>): Promise<void> {
    for (let poll = 0; poll < POLLS_MAX; poll++) {
        if (await holds()) {
            return;
        }
    }
    throw new Error("it did not happen");
}

function gradient(value: number): { w: Float64Array } {
    return { w: Float64Array.of(value, 0) };
}

test("every policy that there is takes a worker's steps", async () => {
    const names = (await client().listPolicies()).map(({ name }) => name);
    assert.ok(
        ["async", "bounded", "sync"].every((name) => names.includes(name)),
        names.join(),
    );
    for (const name of names) {
        const [run] = await crew(1, name);
        const params = await run.step(gradient(1));
        assert.deepEqual(params["w"], Float64Array.of(-1, 0), name);
        const { policy } = await run.refresh();
        assert.equal(policy.name, name);
    }
    await assert.rejects(crew(1, "nonsense"), stepwell.UnknownPolicy);
    await assert.rejects(crew(1, { name: "async", nonsense: 1 }), stepwell.UnknownArgument);
});

test("async: each update commits as it comes, or several of them together", async () => {
    const [one, two] = await crew(2, "async");
    await Promise.all([one.push(gradient(1)), two.push(gradient(2))]);
    assert.deepEqual((await one.pull())["w"], Float64Array.of(-3, 0));
    await one.change({ policy: { name: "async", accumulate: 2 } });
    await one.push(gradient(1));
    assert.equal(one.lastAnswer?.outcome, "folded");
    assert.equal(await two.push(gradient(3)), 3);
    assert.deepEqual((await two.pull())["w"], Float64Array.of(-5, 0));
});

test("sync: a round averages the gradients of all, and a step waits for it", async () => {
    const runs = await crew(3, "sync");
    const params = await Promise.all(runs.map((run, index) => run.step(gradient(index))));
    for (const { w } of params) {
        assert.deepEqual(w, Float64Array.of(-1, 0));
    }
    assert.deepEqual(
        runs.map(({ version }) => version),
        [1, 1, 1],
    );
    // Ending a wait does not take back what is part of the open round.
    await assert.rejects(runs[0].step(gradient(1), { timeout: 3 }), stepwell.TimedOut);
    const next = await Promise.all(runs.slice(1).map((run) => run.step(gradient(4))));
    assert.deepEqual(next[0]["w"], Float64Array.of(-4, 0));
});

test("bounded: nobody runs further ahead than the lead", async () => {
    const [fast, slow] = await crew(2, { name: "bounded", lead_max: 2 });
    await fast.push(gradient(1));
    await fast.push(gradient(1));
    const third = fast.push(gradient(1));
    await until(async () => (await slow.refresh()).workers.some(({ waits }) => waits));
    await slow.push(gradient(1));
    assert.ok((await third) >= 3);
});

test("a worker that leaves holds up nobody", async () => {
    const [stays, goes] = await crew(2, "sync");
    const step = stays.step(gradient(2));
    await until(async () => (await goes.refresh()).workers.some(({ waits }) => waits));
    await goes.close();
    assert.deepEqual((await step)["w"], Float64Array.of(-2, 0));
});

test("places tell the assignment, and a barrier waits for all", async () => {
    const runs = await crew(3, "async");
    const shares = await Promise.all(runs.map((run) => run.assignment(100)));
    assert.deepEqual(shares, [
        { begin: 0, end: 33 },
        { begin: 33, end: 66 },
        { begin: 66, end: 100 },
    ]);
    assert.deepEqual(
        runs.map(({ place }) => place?.index),
        [0, 1, 2],
    );
    let passed = 0;
    const barriers = runs.slice(1).map((run) => run.barrier("epoch").then(() => passed++));
    await assert.rejects(runs[0].barrier("other", { timeout: 0.2 }), stepwell.TimedOut);
    assert.equal(passed, 0);
    await runs[0].barrier("epoch");
    await Promise.all(barriers);
    await runs[2].close();
    assert.deepEqual(await runs[1].assignment(100), { begin: 50, end: 100 });
});

test("heartbeats keep a lease while nothing else is sent", async () => {
    const [run] = await crew(1, "async", { leaseSeconds: LEASE_SECONDS });
    const observer = await client().getRun(run.name);
    const { epoch } = (await observer.refresh()).workers[0];
    // Longer than a lease, without a call of this worker's.
    const end = performance.now() + 1200 * LEASE_SECONDS;
    await until(async () => {
        await observer.refresh();
        return performance.now() > end;
    });
    assert.equal((await observer.refresh()).workers[0]?.epoch, epoch);
    await run.push(gradient(1));
    assert.equal((await observer.refresh()).workers[0]?.epoch, epoch);
});

test("a worker whose lease has run out joins again and sends its update again", async () => {
    const [run, other] = await crew(2, "async", { leaseSeconds: LEASE_SECONDS });
    await run.push(gradient(1));
    const place = run.place?.membershipNumber ?? NaN;
    // Node has one thread: whoever blocks it gives no sign of life.
    execFileSync(process.execPath, [
        "--input-type=module",
        "--eval",
        UNTIL_ALL_ARE_GONE,
        SDK,
        server.address,
        run.name,
    ]);
    assert.equal(await run.push(gradient(2)), 2);
    assert.deepEqual((await run.pull())["w"], Float64Array.of(-3, 0));
    assert.ok((run.place?.membershipNumber ?? NaN) > place);
    // A barrier waits for who is live, so the other one must be back before.
    assert.equal(await other.push(gradient(1)), 3);
    await Promise.all([run.barrier(), other.barrier()]);
});

test("a newer join under the same name fences the older one", async () => {
    const [first] = await crew(1, "async");
    await first.push(gradient(1));
    const second = await client({ worker: first.worker }).getRun(first.name);
    assert.equal(await second.push(gradient(1)), 2);
    await assert.rejects(first.push(gradient(1)), stepwell.WorkerFenced);
    assert.equal(await second.push(gradient(1)), 3);
});

test("a stale update is refused with the present version, and another one goes on after a pull", async () => {
    const described = (await client().listPolicies()).find(({ name }) => name === "async");
    assert.ok(described?.arguments.some(({ name }) => name === "staleness_max"));
    const [one, two] = await crew(2, { name: "async", staleness_max: 0 });
    await Promise.all([one.pull(), two.pull()]);
    await one.push(gradient(1));
    await assert.rejects(two.push(gradient(1)), stepwell.StaleUpdate);
    await two.pull();
    assert.equal(await two.push(gradient(1)), 2);
});
