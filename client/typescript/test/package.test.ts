/** The package as others get it: packed, installed into a project elsewhere, and its samples run there. */

import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";
import { promisify } from "node:util";

import { connect, type Run } from "../src/index.js";
import { PACKAGE, Server, temporaryDirectory } from "./server.js";

const SAMPLE_SECONDS_MAX = 300;
const POLLS_MAX = 100_000;

const run = promisify(execFile);
const project = temporaryDirectory();
const data = temporaryDirectory();
const samples = join(project.path, "node_modules/stepwell/samples");
let server: Server;

before(async () => {
    const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", project.path], { cwd: PACKAGE });
    const [{ filename, files }] = JSON.parse(stdout.slice(stdout.indexOf("["))) as [
        { filename: string; files: { path: string }[] },
    ];
    const paths = files.map(({ path }) => path);
    assert.ok(
        ["dist/index.js", "dist/index.d.ts", "README.md", "samples/quickstart.mjs"].every((path) =>
            paths.includes(path),
        ),
    );
    assert.ok(!paths.some((path) => /^(src|test|build|node_modules)\//.test(path)), paths.join());
    writeFileSync(join(project.path, "package.json"), '{ "name": "outside", "private": true, "type": "module" }');
    const quiet = ["--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"];
    await run("npm", ["install", ...quiet, `./${filename}`], { cwd: project.path });
    server = await Server.start("--data-dir", data.path, "--snapshot-seconds", "0");
});

after(async () => {
    await server.stop();
    project.remove();
    data.remove();
});

async function sample(name: string, ...args: string[]): Promise<string> {
    const { stdout } = await run(process.execPath, [join(samples, `${name}.mjs`), server.address, ...args], {
        cwd: project.path,
        timeout: SAMPLE_SECONDS_MAX * 1000, // for one that hangs
    });
    return stdout;
}

test("the quickstart finds what it looks for", async () => {
    assert.equal(await sample("quickstart"), "version 500: w 1.000 -2.000 3.000 0.500, b 1.000\n");
});

test("two workers share the work and get the same parameters", async () => {
    const output = await sample("two_workers");
    assert.match(output, /\nboth have the same parameters\n$/);
    for (const half of ["0 to 500", "500 to 1000"]) {
        assert.match(output, new RegExp(`(one|two) had ${half}; version 300: 3\\.000 x -1\\.000\\n`));
    }
});

/** Waits until the one worker has made two more steps, and returns the version: it was told of the one before. */
async function twoMoreSteps(run: Run): Promise<number> {
    const { version } = await run.refresh();
    for (let poll = 0; poll < POLLS_MAX; poll++) {
        const now = (await run.refresh()).version;
        if (now >= version + 2) {
            return now;
        }
    }
    throw new Error(`the run stays at version ${version}`);
}

test("a worker goes on after its server was stopped, killed and started again", async () => {
    // So many steps that they do not end: the sample is killed when it has gone back, and called again with some more.
    const child = spawn(process.execPath, [join(samples, "resume.mjs"), server.address, "1e9"], { cwd: project.path });
    const exit = once(child, "exit");
    const output = createInterface(child.stdout)[Symbol.asyncIterator]();
    const client = connect(server.address);
    try {
        assert.equal((await output.next()).value, "a new run");
        const run = await client.getRun("resume");
        await twoMoreSteps(run);
        await server.stop();
        await server.start();
        const toldMin = (await twoMoreSteps(run)) - 1;
        await server.kill();
        await server.start();
        const line = String((await output.next()).value);
        child.kill("SIGKILL");
        await exit;
        const [, told, back] = /^went back from version (\d+) to (\d+)$/.exec(line) ?? [];
        assert.ok(Number(told) >= toldMin && toldMin > Number(back) && Number(back) >= 1, line);
        assert.ok((await output.next()).done);
        const { version } = await run.refresh();
        const printed = await sample("resume", String(version + 3000));
        const lines = /^goes on at version (\d+)\nversion (\d+): x -?0\.\d{4}\n$/.exec(printed) ?? [];
        // The killed one's last update may just have come.
        assert.ok([version, version + 1].includes(Number(lines[1])), printed);
        assert.equal(Number(lines[2]), version + 3000, printed);
        assert.match(await sample("resume", "1"), new RegExp(`^goes on at version ${version + 3000}\n`));
    } finally {
        child.kill("SIGKILL");
        await client.close();
    }
});

test("a table of rows and a dense parameter learn together", async () => {
    const output = await sample("table");
    const [, rows, score] = /^version 200: (\d+) rows; a user who likes 0.7 scores (\S+)\n$/.exec(output) ?? [];
    assert.ok(Number(rows) > 90 && Number(rows) <= 100, output);
    assert.ok(Math.abs(Number(score) - 0.7) < 0.2, output);
});

/** Runs the one block of JavaScript that a page has, and then another line. */
async function page(path: string, then: string): Promise<string> {
    const blocks = [...readFileSync(path, "utf8").matchAll(/```js\n(.*?)```/gs)];
    assert.equal(blocks.length, 1);
    const file = join(project.path, "readme.mjs");
    writeFileSync(file, blocks[0][1].replace("127.0.0.1:50051", server.address) + then);
    return (await run(process.execPath, [file], { cwd: project.path })).stdout;
}

test("the code in README does what it says", async () => {
    assert.equal(await page(join(PACKAGE, "README.md"), "console.log(run.version, w.length);\n"), "1 4\n");
});

test("so does that in the repository's README", async () => {
    const [version, w0, w1, b] = JSON.parse(
        (await page(join(PACKAGE, "../../README.md"), "console.log(JSON.stringify([run.version, ...w, ...b]));\n"))
            .split("\n")
            .at(-2) ?? "",
    ) as number[];
    assert.equal(version, 500);
    assert.ok(Math.max(Math.abs(w0 - 2), Math.abs(w1 + 1), Math.abs(b - 1)) < 0.2, [w0, w1, b].join());
});

test("every sample is tested here", () => {
    const names = readdirSync(join(PACKAGE, "samples")).sort();
    assert.deepEqual(names, ["quickstart.mjs", "resume.mjs", "table.mjs", "two_workers.mjs"]);
});

test("its types serve a strict project", async () => {
    writeFileSync(
        join(project.path, "uses.ts"),
        'import { connect, tensor, RunRewound, type Run } from "stepwell";\n' +
            "export async function use(run: Run): Promise<number> {\n" +
            "    const { w } = await run.step({ w: tensor([1], [1]), b: null }, { samples: 1 });\n" +
            "    return w.length + (await run.push({ w: new Float32Array(1) }));\n" +
            "}\n" +
            "export const rewound = (error: unknown): number => (error instanceof RunRewound ? error.version : 0);\n" +
            'export const client = connect("127.0.0.1:1");\n',
    );
    const tsc = join(PACKAGE, "node_modules/typescript/bin/tsc");
    const options = ["--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "uses.ts"];
    await run(process.execPath, [tsc, ...options], { cwd: project.path }).catch((error: unknown) => {
        throw new Error((error as { stdout: string }).stdout);
    });
});
