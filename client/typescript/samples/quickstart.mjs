// Linear regression by a server's Adam: this program computes gradients, the server keeps the parameters.
//
//     stepwell serve                        in another terminal
//     node quickstart.mjs 127.0.0.1:50051   or set STEPWELL_ADDRESS

import { connect, tensor } from "stepwell";

const client = connect(process.argv[2]);

// Creates the run, or joins the one that exists with the same spec.
const run = await client.createRun(
    "quickstart",
    { w: tensor([0, 0, 0, 0], [4, 1]), b: new Float32Array(1) },
    {
        optimizer: "adam",
        hyperparameters: { lr: 0.05 },
        schedules: { lr: { name: "cosine", t_max: 500, eta_min: 1e-3 } },
    },
);

const truth = [1, -2, 3, 0.5];
let { w, b } = await run.pull(); // flat arrays in C order

for (let step = 0; step < 500; step++) {
    const grads = { w: new Float32Array(4), b: new Float32Array(1) };
    for (let sample = 0; sample < 32; sample++) {
        const x = truth.map(() => 4 * Math.random() - 2);
        const error = x.reduce((sum, value, index) => sum + value * (w[index] - truth[index]), b[0] - 1);
        x.forEach((value, index) => (grads.w[index] += (error * value) / 32));
        grads.b[0] += error / 32;
    }
    ({ w, b } = await run.step(grads, { samples: 32 }));
}

console.log(`version ${run.version}: w ${[...w].map((value) => value.toFixed(3)).join(" ")}, b ${b[0].toFixed(3)}`);
await run.close(); // leaves the run, which goes on
await client.close();
