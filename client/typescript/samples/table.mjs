// An embedding table: rows by 64-bit id, created when they are first touched, beside dense parameters.
//
//     stepwell serve                   in another terminal
//     node table.mjs 127.0.0.1:50051   or set STEPWELL_ADDRESS

import { connect } from "stepwell";

const WIDTH = 4;
const client = connect(process.argv[2]);
const run = await client.createRun(
    "table",
    { bias: new Float32Array(1) },
    {
        optimizer: "sgd",
        hyperparameters: { lr: 0.1 },
        tables: [{ name: "user", width: WIDTH, optimizer: "adagrad", hyperparameters: { lr: 0.5 } }],
    },
);

// Each user likes what their number's last digit says; the score is the sum of the user's row, and a bias.
const likes = (user) => Number(user % 10n) / 10;
let { bias } = await run.pull();

for (let step = 0; step < 200; step++) {
    const users = Array.from({ length: 32 }, () => 10n ** 15n + BigInt(Math.floor(Math.random() * 100)));
    const rows = await run.pullRows("user", users); // 32 * WIDTH elements; who is new has what a row begins with
    const gradients = new Float32Array(rows.length);
    let biasGradient = 0;
    users.forEach((user, index) => {
        const row = rows.subarray(index * WIDTH, (index + 1) * WIDTH);
        const error = row.reduce((sum, value) => sum + value, bias[0]) - likes(user);
        gradients.fill(error / 32, index * WIDTH, (index + 1) * WIDTH);
        biasGradient += error / 32;
    });
    // One update: the rows and the bias change together. Who occurs twice has both gradients summed.
    ({ bias } = await run.step({ bias: Float32Array.of(biasGradient) }, { rows: { user: [users, gradients] } }));
}

const { tables } = await run.refresh();
const row = await run.pullRows("user", [10n ** 15n + 7n]);
const score = row.reduce((sum, value) => sum + value, bias[0]);
console.log(`version ${run.version}: ${tables[0].rows} rows; a user who likes 0.7 scores ${score.toFixed(2)}`);
await run.close();
await client.close();
