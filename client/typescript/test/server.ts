/** The real server in a process of its own, as a user starts it. STEPWELL_SERVER names another executable. */

import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

/** The package's folder; tests run from build/out/test. */
export const PACKAGE = fileURLToPath(new URL("../../..", import.meta.url));

const EXECUTABLE = process.env["STEPWELL_SERVER"] ?? join(PACKAGE, "../../.venv/bin/stepwell");
const START_SECONDS_MAX = 120;
const STOP_SECONDS_MAX = 60;

// Kept from one run of the tests to the next: compiling takes longer than all else that they do.
const KERNELS = join(PACKAGE, "build/kernels");

/** A server process. After `stop` or `kill`, `start` listens on the same port again. */
export class Server {
    address = "127.0.0.1:0";
    readonly #options: readonly string[];
    #process: ChildProcess | undefined;
    #log = "";

    private constructor(options: readonly string[]) {
        this.#options = options;
    }

    static async start(...options: string[]): Promise<Server> {
        const server = new Server(options);
        await server.start();
        return server;
    }

    async start(): Promise<void> {
        mkdirSync(KERNELS, { recursive: true, mode: 0o700 });
        const settings = ["--address", this.address, "--kernel-cache", KERNELS, ...this.#options];
        // A stepwell that the person running the tests has set up is not the one that is tested.
        const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("STEPWELL_")));
        const child = spawn(EXECUTABLE, ["serve", ...settings], { stdio: ["ignore", "pipe", "pipe"], env });
        this.#process = child;
        child.stderr.setEncoding("utf8").on("data", (text: string) => (this.#log += text));
        const lines = createInterface(child.stdout);
        // The line comes or the process ends; the bound is for a server that hangs.
        const signal = AbortSignal.timeout(START_SECONDS_MAX * 1000);
        const [first] = (await Promise.race([
            once(lines, "line", { signal }),
            once(child, "exit", { signal }).then(() => [""]),
        ])) as [string];
        const address = /^listening on (\S+:\d+)$/.exec(first)?.[1];
        if (address === undefined) {
            child.kill("SIGKILL");
            throw new Error(`the server did not start: ${first}\n${this.#log}`);
        }
        this.address = address;
    }

    /** SIGTERM; it must end with 0. */
    async stop(): Promise<void> {
        const child = this.#process;
        this.#process = undefined;
        if (child !== undefined) {
            const code = await end(child, "SIGTERM");
            if (code !== 0) {
                throw new Error(`the server ended with ${code} after SIGTERM\n${this.#log}`);
            }
        }
    }

    /** SIGKILL: no farewell. */
    async kill(): Promise<void> {
        const child = this.#process;
        this.#process = undefined;
        if (child !== undefined) {
            await end(child, "SIGKILL");
        }
    }
}

async function end(child: ChildProcess, signal: NodeJS.Signals): Promise<number | null> {
    if (child.exitCode !== null || child.signalCode !== null) {
        return child.exitCode;
    }
    const exit = once(child, "exit", { signal: AbortSignal.timeout(STOP_SECONDS_MAX * 1000) });
    child.kill(signal);
    try {
        return ((await exit) as [number | null])[0];
    } catch (error) {
        child.kill("SIGKILL");
        throw error;
    }
}

/** A run's name that no other test has. */
export function runName(): string {
    return `test-${randomBytes(6).toString("hex")}`;
}

/** A fresh directory, and what removes it. */
export function temporaryDirectory(): { path: string; remove: () => void } {
    const path = mkdtempSync(join(tmpdir(), "stepwell-"));
    return {
        path,
        remove: () => {
            rmSync(path, { recursive: true, force: true });
        },
    };
}
