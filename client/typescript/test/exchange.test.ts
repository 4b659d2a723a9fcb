/** What goes over the wire, and what the client makes of the server's word: against a fake server in this process. */

import assert from "node:assert/strict";
import { type TestContext, test } from "node:test";

import { create, toBinary } from "@bufbuild/protobuf";
import { Metadata, status } from "@grpc/grpc-js";

import * as stepwell from "../src/index.js";
import { connect, type ConnectOptions, type Run } from "../src/index.js";
import { StageSchema, WorkResponseSchema } from "../src/generated/stepwell/v1/data_pb.js";
import { ErrorReason } from "../src/generated/stepwell/v1/errors_pb.js";
import { SpecSchema } from "../src/generated/stepwell/v1/run_pb.js";
import { FakeServer } from "./fake_server.js";

const SHAPES = { a: [2, 3], b: [], c: [5] };

async function served(
    context: TestContext,
    { shapes = SHAPES as Record<string, number[]>, spec = create(SpecSchema), options = {} as ConnectOptions } = {},
): Promise<{ fake: FakeServer; run: Run }> {
    const fake = await FakeServer.start(shapes, spec);
    const client = connect(fake.address, { retrySeconds: 0.01, ...options });
    context.after(async () => {
        await client.close();
        fake.stop();
    });
    return { fake, run: await client.getRun("run") };
}

function ones(): Record<string, Float32Array> {
    return { a: new Float32Array(6).fill(1), b: Float32Array.of(1), c: new Float32Array(5).fill(1) };
}

test("an update is one message, and carries who sends it", async (context) => {
    const { fake, run } = await served(context);
    await run.push(ones(), { samples: 3, loss: 0.5, hyperparameters: { lr: 0.1 } });
    assert.equal(fake.requests.length, 1);
    const [{ exchange, stage, commit, last, selection }] = fake.requests;
    assert.deepEqual([exchange, last, commit !== undefined, selection], [1n, true, true, undefined]);
    assert.equal(stage?.ranges.length, 1);
    assert.equal(stage.ranges[0].data.length, 48);
    const { identity, samples, loss, hyperparameters } = stage.header ?? {};
    assert.deepEqual([samples, loss, hyperparameters?.[0].values], [3, 0.5, { lr: 0.1 }]);
    assert.deepEqual(
        [identity?.run, identity?.worker, identity?.epoch, identity?.sequence],
        ["run", run.worker, 1n, 1n],
    );
    assert.equal(identity?.fingerprint.length, 16);
    assert.deepEqual(fake.metadata[0].get("stepwell-contract"), ["1.0"]);
    await run.push(ones());
    assert.equal(fake.requests[1].exchange, 2n);
    assert.equal(fake.requests[1].stage?.header?.identity?.sequence, 2n);
    assert.notDeepEqual(fake.requests[1].stage?.header?.identity?.fingerprint, identity.fingerprint);
    assert.equal(fake.streams, 1);
    await run.close();
    assert.deepEqual(
        fake.leaves.map(({ worker, epoch }) => [worker, epoch]),
        [[run.worker, 1n]],
    );
});

test("ranges are put where they belong, whatever they cut", async (context) => {
    const { fake, run } = await served(context);
    fake.values = Float32Array.from({ length: 12 }, (_, index) => index);
    assert.deepEqual(
        { ...(await run.pull()) },
        { a: Float32Array.of(0, 1, 2, 3, 4, 5), b: Float32Array.of(6), c: Float32Array.of(7, 8, 9, 10, 11) },
    );
    assert.equal(fake.epoch, 0); // a reader does not join
});

test("a retry repeats the update to the letter", async (context) => {
    const { fake, run } = await served(context, { shapes: { w: [600_000] } });
    let cuts = 3;
    fake.intercept = (request, call) => {
        if (request.last && cuts-- > 0) {
            call.emit("error", { code: status.UNAVAILABLE, details: "cut by the test" });
            return true;
        }
        return false;
    };
    await run.step({ w: new Float32Array(600_000).fill(1) });
    assert.equal(fake.streams, 4);
    assert.equal(fake.version, 1);
    const tries: string[][] = [];
    for (const request of fake.requests) {
        if (request.stage?.header) {
            tries.push([]);
        }
        const bytes = toBinary(StageSchema, request.stage ?? create(StageSchema));
        tries.at(-1)?.push(Buffer.from(bytes).toString("base64"));
    }
    assert.equal(tries.length, 4);
    assert.equal(tries[0].length, 3);
    for (const other of tries.slice(1)) {
        assert.deepEqual(other, tries[0]);
    }
});

test("what the server stored is not sent again once it has told", async (context) => {
    const { fake, run } = await served(context, { shapes: { w: [3_000_000] } });
    await run.push({ w: null });
    let told = false;
    fake.intercept = (request, call) => {
        if (!told && request.stage?.header) {
            // The header alone is answered, as for a retry; the commit's answer comes again after the last message.
            told = true;
            const answer = { outcome: 1, committedVersion: 1n };
            call.write(create(WorkResponseSchema, { exchange: request.exchange, answer }));
            return true;
        }
        return !request.last;
    };
    await run.push({ w: new Float32Array(3_000_000) });
    assert.ok(fake.requests.length < 12, `${fake.requests.length} messages`);
    assert.equal(run.lastAnswer?.committedVersion, 1);
});

test("an error ends the exchange and not the stream; its reason, message and details are kept", async (context) => {
    const { fake, run } = await served(context);
    await run.push(ones());
    for (const [name, reason] of Object.entries(ErrorReason)) {
        if (typeof reason !== "number" || reason === 0 || name === "RUN_REWOUND" || name === "SERVER_STOPPING") {
            continue;
        }
        fake.intercept = (request, call) => {
            if (request.last) {
                call.write(fake.refusal(request, reason, `because of ${name}`));
            }
            fake.intercept = undefined;
            return true;
        };
        if (name === "UNKNOWN_WORKER") {
            await run.push(ones()); // joins again, and sends it again
            continue;
        }
        await assert.rejects(run.push(ones()), (error) => {
            assert.ok(error instanceof stepwell.StepwellError);
            assert.deepEqual([error.reason, error.message, error.details], [name, `because of ${name}`, { a: "b" }]);
            assert.equal(error.name.toLowerCase(), name.replaceAll("_", "").toLowerCase());
            assert.ok(error instanceof (stepwell[error.name as "Internal"] as typeof stepwell.Internal));
            return true;
        });
    }
    assert.equal(fake.streams, 1);
    fake.intercept = (request, call) => {
        fake.intercept = undefined;
        const refusal = fake.refusal(request, ErrorReason.INTERNAL);
        Object.assign(refusal.error ?? {}, { reason: 9999 });
        return call.write(refusal);
    };
    await assert.rejects(
        run.push(ones()),
        (error) => error instanceof stepwell.StepwellError && error.reason === "9999",
    );
    const before = fake.version;
    await run.push(ones());
    assert.equal(fake.version, before + 1);
});

test("a server that stops is waited for", async (context) => {
    const { fake, run } = await served(context);
    let refusals = 3;
    fake.intercept = (request, call) =>
        refusals-- > 0 && call.write(fake.refusal(request, ErrorReason.SERVER_STOPPING)) !== undefined;
    await run.push(ones());
    assert.equal(fake.version, 1);
    assert.equal(fake.requests.length, 4);
});

test("a stream that the server ends is opened again", async (context) => {
    const { fake, run } = await served(context);
    fake.intercept = (_, call) => {
        fake.intercept = undefined;
        call.end();
        return true;
    };
    await run.push(ones());
    assert.equal(fake.version, 1);
    assert.equal(fake.streams, 2);
});

test("word of the server is patience enough, a timeout is the caller's own", async (context) => {
    const { fake, run } = await served(context, { options: { silenceSeconds: 3, patienceSeconds: 3.5 } });
    let words = 20; // for longer than the patience, and no stall is as long as the silence
    fake.intercept = (request, call) => {
        const word = create(WorkResponseSchema, { exchange: request.exchange });
        const timer = setInterval(() => {
            if (words-- > 0) {
                call.write(word);
            } else {
                clearInterval(timer);
                fake.intercept = undefined;
                call.emit("data", request);
            }
        }, 200);
        fake.intercept = () => true;
        return true;
    };
    await run.push(ones());
    assert.equal(fake.version, 1);
    fake.intercept = () => true;
    await assert.rejects(run.push(ones(), { timeout: 0.2 }), /no end within 0.2 s/);
    await assert.rejects(run.push(ones()), stepwell.TimedOut);
});

test("a call that the server does not know says so, with no retry", async (context) => {
    const { run, fake } = await served(context, { options: { patienceSeconds: 30 } });
    await assert.rejects(run.report({ loss: 1 }), stepwell.ContractMismatch);
    fake.intercept = (_, call) => {
        call.emit("error", { code: status.RESOURCE_EXHAUSTED, details: "too large", metadata: new Metadata() });
        return true;
    };
    await assert.rejects(run.pull(), stepwell.LimitExceeded);
});

test("heartbeats tell the place", async (context) => {
    const { fake, run } = await served(context, { options: { leaseSeconds: 0.15 } });
    await run.push(ones());
    for (let poll = 0; poll < 100_000 && (fake.heartbeats < 3 || run.place?.count === 1); poll++) {
        await run.pull();
    }
    assert.ok(fake.heartbeats >= 3);
    assert.equal(run.place?.count, 7);
});

test("a wrong gradient is found before anything is sent", async (context) => {
    const { fake, run } = await served(context);
    const wrong: [Record<string, unknown>, RegExp][] = [
        [{ a: new Float32Array(6) }, /no gradient for 'b', 'c', expected every parameter to be named/],
        [{ ...ones(), d: new Float32Array(1) }, /got a gradient for 'd', expected some of 'a', 'b', 'c'/],
        [{ ...ones(), a: new Float32Array(5) }, /'a' has 5 elements, expected shape \[2, 3\]/],
        [
            { ...ones(), a: stepwell.tensor(new Float32Array(6), [3, 2]) },
            /'a' has shape \[3, 2\], expected shape \[2, 3\]/,
        ],
        [{ ...ones(), a: stepwell.tensor(new Float32Array(5), [2, 3]) }, /'a' has 5 elements/],
        [{ ...ones(), a: new Float64Array(6) }, /'a' has dtype float64, expected float32/],
        [{ ...ones(), a: new Int32Array(6) }, /'a' is a Int32Array, expected a Float32Array or a tensor/],
        [{ ...ones(), a: [1, 2, 3, 4, 5, 6] }, /'a' is \[1,2,3,4,5,6\], expected a Float32Array or a tensor/],
        [{ ...ones(), a: undefined }, /no gradient for 'a'/],
    ];
    for (const [grads, message] of wrong) {
        await assert.rejects(run.push(grads as never), (error) => {
            assert.ok(error instanceof stepwell.InvalidGradient);
            assert.match(error.message, message);
            return true;
        });
    }
    await assert.rejects(run.push(ones(), { sample: 3 } as never), /got the option 'sample'/);
    assert.equal(fake.requests.length, 0);
});
