/** Connections that are cut, servers that stop, die, or say nothing: every update is applied once, and no call hangs. */

import assert from "node:assert/strict";
import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { after, before, test } from "node:test";

import * as stepwell from "../src/index.js";
import { type Client, connect, type ConnectOptions, type Run, type RunOptions } from "../src/index.js";
import { Proxy, random } from "./proxy.js";
import { runName, Server, temporaryDirectory } from "./server.js";

const SGD: RunOptions = { optimizer: "sgd", hyperparameters: { lr: 1 } };
const QUICK: ConnectOptions = { retrySeconds: 0.01, retrySecondsMax: 0.2, patienceSeconds: 60 };
const POLLS_MAX = 100_000;

const directory = temporaryDirectory();
const clients: Client[] = [];
let server: Server;

before(async () => {
    // Snapshots are written only when it is stopped, or asked to.
    server = await Server.start("--data-dir", directory.path, "--snapshot-seconds", "0");
});

after(async () => {
    await Promise.all(clients.map((client) => client.close()));
    await server.stop();
    directory.remove();
});

function client(address = server.address, options: ConnectOptions = {}): Client {
    const made = connect(address, { ...QUICK, ...options });
    clients.push(made);
    return made;
}

async function until(holds: () => Promise<boolean>): Promise<void> {
    for (let poll = 0; poll < POLLS_MAX; poll++) {
        if (await holds()) {
            return;
        }
    }
    throw new Error("it did not happen");
}

async function through(work: (proxy: Proxy) => Promise<void>, seed = 0, bytesMean?: number): Promise<void> {
    const proxy = await Proxy.start(() => server.address, seed, bytesMean);
    try {
        await work(proxy);
    } finally {
        await proxy.stop();
    }
}

test("two workers through a network that cuts: each update is applied once", async (context) => {
    const seed = Number(process.env["STEPWELL_TEST_SEED"] ?? Math.floor(Math.random() * 2 ** 31));
    context.diagnostic(`seed ${seed}; repeat with STEPWELL_TEST_SEED=${seed}`);
    const name = runName();
    const direct = await client().createRun(name, { w: new Float32Array(500), d: new Float64Array(40) }, SGD);
    await through(
        async (proxy) => {
            const expected = { w: new Float32Array(500), d: new Float64Array(40) };
            const draw = random(seed);
            const push = async (run: Run): Promise<number[]> => {
                const versions = [];
                for (let update = 0; update < 150; update++) {
                    // Whole numbers, so that the sum is the same in any order.
                    const grads = {
                        w: Float32Array.from({ length: 500 }, () => Math.floor(draw() * 8)),
                        d: Float64Array.from({ length: 40 }, () => Math.floor(draw() * 8)),
                    };
                    expected.w.forEach((_, index) => (expected.w[index] -= grads.w[index]));
                    expected.d.forEach((_, index) => (expected.d[index] -= grads.d[index]));
                    if (update % 2 === 0) {
                        versions.push(await run.push(grads, { samples: 1 }));
                    } else {
                        await run.step(grads, { samples: 1 });
                        versions.push(run.lastAnswer?.committedVersion ?? NaN);
                    }
                }
                return versions;
            };
            const runs = await Promise.all([1, 2].map(() => client(proxy.address).getRun(name)));
            const versions = (await Promise.all(runs.map(push))).flat();
            assert.ok(proxy.cutsCount > 10, `${proxy.cutsCount} cuts`);
            const numbers = Array.from({ length: 300 }, (_, index) => index + 1);
            assert.deepEqual(
                versions.sort((one, other) => one - other),
                numbers,
            );
            assert.deepEqual({ ...(await direct.pull()) }, expected);
            assert.equal((await direct.refresh()).samples, 300);
        },
        seed,
        30_000,
    );
});

test("an answer that is lost is given again, and nothing is applied twice", async () => {
    await through(async (proxy) => {
        const run = await client(proxy.address).createRun(runName(), { w: Float32Array.of(1, 1) }, SGD);
        const direct = await client().getRun(run.name);
        await run.push({ w: Float32Array.of(1, 0) });
        proxy.mute({ answersOnly: true });
        const step = run.step({ w: Float32Array.of(0, 1) });
        await until(async () => (await direct.refresh()).version === 2);
        proxy.cut();
        assert.deepEqual((await step)["w"], Float32Array.of(0, 0));
        assert.equal(run.lastAnswer?.committedVersion, 2);
        const present = await direct.refresh();
        assert.equal(present.version, 2);
        assert.equal(present.duplicatesCount, 1);
    });
});

test("a large update that was committed is not sent again as a whole", async () => {
    await through(async (proxy) => {
        const count = 2_000_000;
        const run = await client(proxy.address).createRun(runName(), { w: new Float32Array(count) }, SGD);
        const direct = await client().getRun(run.name);
        proxy.mute({ answersOnly: true });
        const push = run.push({ w: new Float32Array(count).fill(1) });
        await until(async () => (await direct.refresh()).version === 1);
        proxy.cut();
        assert.equal(await push, 1);
        assert.equal(await run.push({ w: null }), 2);
        assert.ok((await direct.pull())["w"].every((value) => value === -1));
    });
});

test("a connection without a word is given up after the silence, and the call goes on over another", async () => {
    await through(async (proxy) => {
        const run = await client(proxy.address, { silenceSeconds: 0.5 }).createRun(
            runName(),
            { w: Float32Array.of(1) },
            SGD,
        );
        await run.push({ w: Float32Array.of(1) });
        const connections = proxy.connectionsCount;
        proxy.mute();
        assert.equal(await run.push({ w: Float32Array.of(1) }), 2);
        assert.ok(proxy.connectionsCount > connections);
        proxy.mute();
        assert.equal((await run.refresh()).version, 2);
        assert.deepEqual((await run.pull())["w"], Float32Array.of(-1));
    });
});

test("a clean stop is a pause", async () => {
    const run = await client().createRun(runName(), { w: Float32Array.of(0) }, { optimizer: "adam" });
    await run.step({ w: Float32Array.of(1) });
    const state = await run.getState();
    await server.stop();
    const step = run.step({ w: Float32Array.of(2) });
    await server.start();
    await step;
    assert.equal(run.version, 2);
    const { generation, version } = await run.refresh();
    assert.deepEqual({ generation, version }, { generation: 0, version: 2 });

    const other = await client().createRun(runName(), { w: Float32Array.of(0) }, { optimizer: "adam" });
    await other.setState(state);
    assert.deepEqual(await other.step({ w: Float32Array.of(2) }), await run.pull());
});

test("after a kill RunRewound says where the run is, once, and training goes on from there", async () => {
    const run = await client().createRun(runName(), { w: Float32Array.of(0) }, SGD);
    await run.push({ w: Float32Array.of(1) });
    await server.stop();
    await server.start();
    for (let update = 0; update < 3; update++) {
        await run.push({ w: Float32Array.of(1) });
    }
    await server.kill();
    await server.start();
    await assert.rejects(run.step({ w: Float32Array.of(1) }), (error) => {
        assert.ok(error instanceof stepwell.RunRewound);
        assert.deepEqual([error.acknowledgedVersion, error.version], [4, 1]);
        return true;
    });
    assert.equal(run.version, 1);
    assert.deepEqual((await run.step({ w: Float32Array.of(1) }))["w"], Float32Array.of(-2));
});

test("a reader hears of a rewind, too; onRewind: continue goes on", async () => {
    const run = await client(undefined, { onRewind: "continue" }).createRun(runName(), { w: Float32Array.of(0) }, SGD);
    await server.stop();
    await server.start();
    await run.push({ w: Float32Array.of(1) });
    const reader = await client().getRun(run.name);
    const calm = await client(undefined, { onRewind: "continue" }).getRun(run.name);
    await Promise.all([reader.pull(), calm.pull()]);
    await server.kill();
    await server.start();
    await assert.rejects(reader.pull(), stepwell.RunRewound);
    assert.deepEqual((await reader.pull())["w"], Float32Array.of(0));
    assert.deepEqual((await calm.pull())["w"], Float32Array.of(0));
    assert.deepEqual((await run.step({ w: Float32Array.of(1) }))["w"], Float32Array.of(0));
    assert.equal(run.lastAnswer?.outcome, "rewound");
    assert.deepEqual((await run.step({ w: Float32Array.of(1) }))["w"], Float32Array.of(-1));
    assert.equal(run.lastAnswer?.outcome, "committed");
});

test("where nobody listens, ServerUnavailable comes after the patience", async () => {
    const socket = createServer();
    socket.listen(0, "127.0.0.1");
    await once(socket, "listening");
    const { port } = socket.address() as AddressInfo;
    socket.close();
    await once(socket, "close");
    const dead = client(`127.0.0.1:${port}`, { patienceSeconds: 0.5 });
    for (const call of [() => dead.ping(), () => dead.createRun("run", { w: Float32Array.of(1) })]) {
        await assert.rejects(call(), (error) => {
            assert.ok(error instanceof stepwell.ServerUnavailable);
            assert.match(error.message, new RegExp(`127.0.0.1:${port} for 0.5 s, expected an answer`));
            assert.equal(error.details["patience_seconds"], "0.5");
            return true;
        });
    }
});

test("a server that dies for good ends a step, and leaving it does not hang", async () => {
    await through(async (proxy) => {
        const lonely = client(proxy.address, { patienceSeconds: 0.5 });
        const run = await lonely.createRun(runName(), { w: Float32Array.of(1) }, SGD);
        proxy.closed = true;
        proxy.cut();
        await assert.rejects(run.step({ w: Float32Array.of(1) }), stepwell.ServerUnavailable);
        await assert.rejects(run.pull(), stepwell.ServerUnavailable);
        await assert.rejects(run.report({ loss: 1 }), stepwell.ServerUnavailable);
        await run.close();
        await lonely.close();
    });
});

test("closing a client cuts off what is under way, and the worker has left", async () => {
    const closing = client();
    const run = await closing.createRun(runName(), { w: Float32Array.of(1) }, { ...SGD, policy: "sync" });
    const other = await client().getRun(run.name);
    await other.join();
    const step = run.step({ w: Float32Array.of(1) });
    await until(async () => (await other.refresh()).workers.some(({ waits }) => waits));
    const refused = assert.rejects(step, /closed client/);
    await closing.close();
    await refused;
    assert.deepEqual(
        (await other.refresh()).workers.map(({ name }) => name),
        [other.worker],
    );
    await assert.rejects(closing.ping(), /closed client/);
});

test("one that accepts and says nothing ends with TimedOut", async () => {
    const sockets = new Set<Socket>();
    const mute = createServer((socket) => {
        sockets.add(socket);
        socket.on("error", () => undefined).resume();
    });
    mute.listen(0, "127.0.0.1");
    await once(mute, "listening");
    const { port } = mute.address() as AddressInfo;
    const patient = client(`127.0.0.1:${port}`, { silenceSeconds: 0.2, patienceSeconds: 0.5 });
    await assert.rejects(patient.ping(), (error) => error instanceof stepwell.TimedOut && error.reason === "TIMED_OUT");
    await assert.rejects(patient.createRun("run", { w: Float32Array.of(1) }), stepwell.TimedOut);
    for (const socket of sockets) {
        socket.destroy();
    }
    mute.close();
});

test("what listens but is no Stepwell server is said", async () => {
    const sockets = new Set<Socket>();
    const web = createServer((socket) => {
        sockets.add(socket);
        socket.on("error", () => undefined);
        socket.end("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n");
    });
    web.listen(0, "127.0.0.1");
    await once(web, "listening");
    const { port } = web.address() as AddressInfo;
    await assert.rejects(client(`127.0.0.1:${port}`, { patienceSeconds: 0.5 }).ping(), stepwell.StepwellError);
    for (const socket of sockets) {
        socket.destroy();
    }
    web.close();
});

test("connect checks what it is given", () => {
    for (const [address, options] of [
        ["nowhere", {}],
        ["127.0.0.1:1", { worker: "no spaces" }],
        ["127.0.0.1:1", { silenceSeconds: 0 }],
        ["127.0.0.1:1", { patienceSeconds: NaN }],
        ["127.0.0.1:1", { onRewind: "ignore" }],
        ["127.0.0.1:1", { silence: 3 }],
    ] as [string, ConnectOptions][]) {
        assert.throws(() => connect(address, options), /expected/);
    }
});
