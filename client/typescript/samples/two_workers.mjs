// Two workers on one run: each computes gradients on its half of the data, and every round averages them.
//
//     stepwell serve                         in another terminal
//     node two_workers.mjs 127.0.0.1:50051   or set STEPWELL_ADDRESS

import { connect } from "stepwell";

const address = process.argv[2];
const data = Array.from({ length: 1000 }, (_, index) => ({ x: index / 1000, y: 3 * (index / 1000) - 1 }));

async function work(worker) {
    // Usually each worker is a process of its own, and more of them may come and go.
    const client = connect(address, { worker });
    const run = await client.createRun(
        "two-workers",
        { line: new Float64Array(2) },
        { optimizer: "sgd", hyperparameters: { lr: 0.5 }, policy: { name: "sync", workers_min: 2 } },
    );
    let { line } = await run.pull();
    let begin, end;
    for (let round = 0; round < 300; round++) {
        ({ begin, end } = await run.assignment(data.length)); // follows whoever joins and leaves
        const gradient = new Float64Array(2);
        for (const { x, y } of data.slice(begin, end)) {
            const error = line[0] * x + line[1] - y;
            gradient[0] += (error * x) / (end - begin);
            gradient[1] += error / (end - begin);
        }
        ({ line } = await run.step({ line: gradient }, { samples: end - begin })); // waits for the other one
    }
    const [slope, start] = [line[0].toFixed(3), (line[1] < 0 ? "" : "+") + line[1].toFixed(3)];
    console.log(`${worker} had ${begin} to ${end}; version ${run.version}: ${slope} x ${start}`);
    await run.close();
    await client.close();
    return line;
}

const [one, other] = await Promise.all([work("one"), work("two")]);
console.log(one.every((value, index) => value === other[index]) ? "both have the same parameters" : "they differ");
