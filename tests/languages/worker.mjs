// worker.py in JavaScript, which says what it does.

import { connect, tensor } from "../../client/typescript/dist/index.js";

const FEATURES = 3;

const features = (sample) =>
    Array.from({ length: FEATURES }, (_, feature) => (((sample * (7 + 4 * feature)) % 17) - 8) / 8);

function target(sample) {
    const x = features(sample);
    return 2 * x[0] - 3 * x[1] + 0.5 * x[2] + 1 + ((sample % 5) - 2) / 8;
}

function gradients({ w, b }, begin, end) {
    const wGradient = new Float64Array(FEATURES);
    const bGradient = new Float64Array(1);
    for (let sample = begin; sample < end; sample++) {
        const x = features(sample);
        let error = b[0] - target(sample);
        x.forEach((value, feature) => (error += w[feature] * value));
        x.forEach((value, feature) => (wGradient[feature] += error * value));
        bGradient[0] += error;
    }
    const count = end - begin;
    return { w: wGradient.map((sum) => sum / count), b: bGradient.map((sum) => sum / count) };
}

const [address, name, worker] = process.argv.slice(2, 5);
const [begin, end, rounds] = process.argv.slice(5).map(Number);
const client = connect(address, { worker });
const run = await client.createRun(
    name,
    { w: new Float64Array(FEATURES), b: tensor(new Float64Array(1), []) },
    {
        optimizer: "adam",
        hyperparameters: { lr: 0.1 },
        schedules: { lr: { name: "exponential", gamma: 0.99 } },
        policy: { name: "sync", workers_min: 3 },
    },
);
let params = await run.pull();
for (let round = 0; round < rounds; round++) {
    params = await run.step(gradients(params, begin, end), { samples: end - begin });
}
console.log(JSON.stringify({ version: run.version, w: [...params.w], b: params.b[0] }));
await run.close();
await client.close();
