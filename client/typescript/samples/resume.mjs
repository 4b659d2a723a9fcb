// A worker that outlives its server: it goes on after a restart, from where the run is then.
//
//     node resume.mjs [HOST:PORT] [STEPS]
//
// Start the server with --data-dir, stop it with Ctrl-C or kill it while this runs, and start it again on the same port.

import { connect, RunRewound } from "stepwell";

const client = connect(process.argv[2] ?? process.env.STEPWELL_ADDRESS ?? "127.0.0.1:50051");
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
        console.log(`the server was told of version ${error.acknowledgedVersion}, and is back at ${error.version}`);
        ({ x } = await run.pull());
    }
}

console.log(`version ${run.version}: x ${x[0].toFixed(4)}`);
await client.close();
