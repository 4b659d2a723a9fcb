// A worker that outlives its server: it goes on after a restart, from where the run is then.
//
//     stepwell serve --data-dir runs            in another terminal
//     node resume.mjs 127.0.0.1:50051 [STEPS]
//
// Stop the server with Ctrl-C or kill it while this runs, and start it again. Or call this again with more steps.

import { connect, RunRewound } from "stepwell";

const client = connect(process.argv[2]);
const steps = Number(process.argv[3] ?? 1000);

// The first time this creates the run; later it finds it with its parameters, its optimizer's state and its clock.
const run = await client.createRun(
    "resume",
    { x: Float32Array.of(5) },
    { optimizer: "adam", hyperparameters: { lr: 0.01 } },
);
console.log(run.created ? "a new run" : `goes on at version ${run.version}`);

let { x } = await run.pull();
while (run.version < steps) {
    try {
        // While the server is away this call tries again, for patienceSeconds. The update is applied once.
        ({ x } = await run.step({ x: Float32Array.of(2 * x[0]) })); // of x squared
    } catch (error) {
        if (!(error instanceof RunRewound)) {
            throw error;
        }
        // A kill loses what was not stored yet. The update was dropped; go on from the present parameters.
        console.log(`went back from version ${error.acknowledgedVersion} to ${error.version}`);
        ({ x } = await run.pull());
    }
}

console.log(`version ${run.version}: x ${x[0].toFixed(4)}`);
await run.close();
await client.close();
