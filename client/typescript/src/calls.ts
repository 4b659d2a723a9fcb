/**
 * How a call waits, and how it is tried again.
 *
 * Two limits hold for every call. `silenceSeconds`: how long the server may say nothing; then the connection is given up
 * and the call is made again over a new one. `patienceSeconds`: how long that goes on without any word from the server;
 * then ServerUnavailable or TimedOut is thrown. While the server gives word a call waits as long as it takes, unless the
 * caller set a limit with `timeout`.
 *
 * Reads, CreateRun, Join and updates are made again: a second CreateRun finds the run, a second Join fences the first, and
 * an update keeps its identity, so that it is applied once. Calls that change something else (UpdateRun, DeleteRun,
 * SetState, SaveCheckpoint, RestoreCheckpoint) are made again only if the server surely did nothing.
 */

import { setTimeout as sleep } from "node:timers/promises";
import { debuglog } from "node:util";

import { create } from "@bufbuild/protobuf";
import { status } from "@grpc/grpc-js";

import { type Connection, Lost, Silent, type Stream } from "./connection.js";
import { InvalidValue, ServerUnavailable, type StepwellError, TimedOut } from "./errors.js";
import { GetServerRequestSchema } from "./generated/stepwell/v1/control_pb.js";
import { GET_SERVER, type Method } from "./methods.js";

/** Of long transfers, from 16 MiB on: how many bytes are done of how many in all. */
export type Progress = (doneBytes: number, totalBytes: number) => void;

/** What `connect` was given. */
export interface Settings {
    readonly address: string;
    readonly worker: string | undefined;
    readonly silenceSeconds: number;
    readonly patienceSeconds: number;
    readonly retrySeconds: number;
    readonly retrySecondsMax: number;
    readonly onRewind: "raise" | "continue";
    readonly progress: Progress | undefined;
    readonly leaseSeconds: number;
}

/** Takes the messages of a streamed response in order. */
export interface Collector<A> {
    add(message: A): void;
}

/** Where calls go: a connection, and how long they wait. */
export interface Server {
    readonly connection: Connection;
    readonly settings: Settings;
}

const END_SECONDS = 1;
const TRANSFER_BYTES_MIN = 16 << 20;

/** What is tried again is said here; NODE_DEBUG=stepwell shows it. */
export const log = debuglog("stepwell");

/** The limits of one call over all its tries. what: the call in words. timeout: the seconds it may take in all. */
export class Patience {
    readonly what: string;
    readonly #settings: Settings;
    readonly #timeout: number | undefined;
    readonly #deadline: number | undefined;
    #failingSince: number | undefined;
    #tries = 0;

    constructor(settings: Settings, what: string, timeout?: number) {
        if (timeout !== undefined && !(typeof timeout === "number" && timeout >= 0)) {
            throw new InvalidValue(
                `${what}: got timeout ${String(timeout)}, expected seconds; leave it out for no limit`,
            );
        }
        this.what = what;
        this.#settings = settings;
        this.#timeout = timeout;
        this.#deadline = timeout === undefined ? undefined : now() + timeout;
    }

    /** How long to wait for the next word. */
    seconds(): number {
        const { silenceSeconds } = this.#settings;
        return this.#deadline === undefined
            ? silenceSeconds
            : Math.max(0, Math.min(silenceSeconds, this.#deadline - now()));
    }

    /** The server gave word. */
    heard(): void {
        this.#failingSince = undefined;
        this.#tries = 0;
    }

    /** Throw TimedOut if the call has taken longer in all than it may. */
    check(): void {
        if (this.#deadline !== undefined && now() >= this.#deadline) {
            throw new TimedOut(
                `${this.what}: got no end within ${this.#timeout} s, expected one; allow more with timeout, or leave it ` +
                    "out for no limit",
                { timeout_seconds: String(this.#timeout) },
            );
        }
    }

    /** Back off before the next try, or throw what it means that there is none. */
    async wait(failure: Lost | Silent): Promise<void> {
        if (failure instanceof Lost && !failure.passing) {
            throw failure.asError();
        }
        this.check();
        const { address, patienceSeconds, silenceSeconds, retrySeconds, retrySecondsMax } = this.#settings;
        const present = now();
        if (this.#failingSince === undefined) {
            this.#failingSince = present - (failure instanceof Silent ? silenceSeconds : 0);
            log("%s: %s from %s; trying again for %d s", this.what, failure.message, address, patienceSeconds);
        }
        if (present - this.#failingSince >= patienceSeconds) {
            throw this.#runOut(failure);
        }
        // Full jitter: workers that lost the same server do not come back in step.
        const longest = Math.min(retrySecondsMax, retrySeconds * 2 ** this.#tries);
        this.#tries++;
        let remaining = this.#failingSince + patienceSeconds - present;
        if (this.#deadline !== undefined) {
            remaining = Math.min(remaining, this.#deadline - present);
        }
        await sleep(Math.max(0, Math.min(Math.random() * longest, remaining)) * 1000);
    }

    #runOut(failure: Lost | Silent): StepwellError {
        const { address, patienceSeconds } = this.#settings;
        const kind = failure instanceof Silent ? TimedOut : ServerUnavailable;
        return new kind(
            `${this.what}: got ${failure.message} from ${address} for ${patienceSeconds} s, expected an answer; see that ` +
                "the server runs at this address, or raise patienceSeconds",
            { address, patience_seconds: String(patienceSeconds) },
        );
    }
}

/** Make a call with one request and one response. repeat: whether it may be made twice. */
export async function ask<Q, A>(
    { connection, settings }: Server,
    method: Method<Q, A>,
    request: Q,
    what: string,
    { repeat = true } = {},
): Promise<A> {
    const patience = new Patience(settings, what);
    for (;;) {
        const stream = connection.open(method, request);
        try {
            return await receiveAnswer(connection, stream, patience);
        } catch (failure) {
            await again(connection, stream, patience, failure, repeat);
        }
    }
}

/** Make a call with a streamed response, and put the response into the collector that `start` makes for each try. */
export async function collect<Q, A, C extends Collector<A>>(
    { connection, settings }: Server,
    method: Method<Q, A>,
    request: Q,
    start: () => C,
    what: string,
    timeout?: number,
): Promise<C> {
    const patience = new Patience(settings, what, timeout);
    for (;;) {
        const collector = start();
        const stream = connection.open(method, request);
        try {
            for (;;) {
                const message = await stream.receive(patience.seconds());
                if (message === undefined) {
                    return collector;
                }
                patience.heard();
                collector.add(message);
            }
        } catch (failure) {
            await again(connection, stream, patience, failure);
        }
    }
}

/** Make a call with streamed requests and one response, once unless the server surely did nothing. */
export async function deliver<Q, A>(
    { connection, settings }: Server,
    method: Method<Q, A>,
    requests: () => Iterable<Q>,
    what: string,
): Promise<A> {
    const patience = new Patience(settings, what);
    for (;;) {
        const stream = connection.open(method);
        try {
            let sent = true;
            for (const request of requests()) {
                sent = await stream.send(request, patience.seconds());
                if (!sent) {
                    break; // the server has an answer, or an error, before it has everything
                }
            }
            if (sent) {
                stream.finish();
            }
            return await receiveAnswer(connection, stream, patience);
        } catch (failure) {
            await again(connection, stream, patience, failure, false);
        }
    }
}

/**
 * Clean up after a failed try, and wait for the next; throw where there shall be none.
 *
 * failure: what was thrown; what is neither Lost nor Silent is thrown again.
 */
export async function again(
    connection: Connection,
    stream: Stream<never, unknown>,
    patience: Patience,
    failure: unknown,
    repeat = true,
): Promise<void> {
    stream.cancel();
    if (!isFailure(failure)) {
        throw failure;
    }
    if (!repeat && !(failure instanceof Lost && (failure.neverExecuted || !failure.passing))) {
        const kind = failure instanceof Silent ? TimedOut : ServerUnavailable;
        throw new kind(
            `${patience.what}: got ${failure.message} before the answer, expected an answer; it may have been done or ` +
                "not: look before you call it again",
        );
    }
    await patience.wait(failure);
    if (failure instanceof Silent) {
        connection.reconnect(stream); // the connection looks alive and is dead
    }
}

/** Leave politely: say that nothing follows and let the server end the call; after a second, cut it off. */
export async function end(stream: Stream<never, unknown>): Promise<void> {
    try {
        stream.finish();
        while ((await stream.receive(END_SECONDS)) !== undefined) {
            // What still comes is not wanted.
        }
    } catch (failure) {
        if (!isFailure(failure)) {
            throw failure;
        }
    } finally {
        stream.cancel();
    }
}

/** Make a call once, for a second at most, whatever becomes of it; also while the connection is being closed. */
export async function say<Q, A>({ connection }: Server, method: Method<Q, A>, request: Q): Promise<void> {
    const stream = connection.open(method, request, { farewell: true });
    try {
        await stream.receive(END_SECONDS);
    } catch (failure) {
        if (!isFailure(failure)) {
            throw failure;
        }
    } finally {
        stream.cancel();
    }
}

/** Whether a call failed on its way, so that it may be tried again. */
export function isFailure(thrown: unknown): thrown is Lost | Silent {
    return thrown instanceof Lost || thrown instanceof Silent;
}

/** Tells the caller how far a transfer is, if it is long. A try that starts over reports smaller numbers again. */
export function reporter(settings: Settings, totalBytes: number): (doneBytes: number) => void {
    const { progress } = settings;
    return (doneBytes) => {
        if (totalBytes >= TRANSFER_BYTES_MIN) {
            progress?.(Math.min(doneBytes, totalBytes), totalBytes);
        }
    };
}

/**
 * Wait for the one response of a call that gives no word on the way.
 *
 * A server that is only slow still answers GetServer on the same connection, and that counts as its word.
 */
async function receiveAnswer<A>(connection: Connection, stream: Stream<never, A>, patience: Patience): Promise<A> {
    for (;;) {
        try {
            const answer = await stream.receive(patience.seconds());
            if (answer === undefined) {
                throw new Lost(status.UNAVAILABLE, "the call ended without an answer");
            }
            return answer;
        } catch (failure) {
            if (!(failure instanceof Silent)) {
                throw failure;
            }
            patience.check();
            await ping(connection, patience);
        }
    }
}

async function ping(connection: Connection, patience: Patience): Promise<void> {
    const stream = connection.open(GET_SERVER, create(GetServerRequestSchema));
    try {
        await stream.receive(patience.seconds());
    } catch (failure) {
        // The call that waits may still be at work, so a failure of this one must not speak for it.
        throw failure instanceof Lost ? new Silent("no word") : failure;
    } finally {
        stream.cancel();
    }
    patience.heard();
}

function now(): number {
    return performance.now() / 1000;
}
