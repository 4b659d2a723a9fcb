/** The channel to a server, and the calls over it as streams that can be waited on with a limit. */

import {
    Client as Channel,
    type ClientDuplexStream,
    credentials,
    Metadata,
    type ServiceError,
    status,
} from "@grpc/grpc-js";

import * as errors from "./errors.js";
import type { Method } from "./methods.js";

/** The version of the contract that this package was made for, MAJOR.MINOR. */
export const CONTRACT = "1.0";

const CONTRACT_METADATA = "stepwell-contract";
const STATUS_METADATA = "grpc-status-details-bin";

const CHANNEL_OPTIONS = {
    "grpc.enable_retries": 0, // the SDK repeats calls itself, with the update's identity
    "grpc.per_rpc_retry_buffer_size": 0, // so a write is done when it is on its way, not when it is kept for a retry
    "grpc.enable_http_proxy": 0, // http_proxy is for the web; grpc would take it for loopback, too
    "grpc.use_local_subchannel_pool": 1, // else a new channel shares the dead connection of the old one
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    "grpc.max_receive_message_length": 4 << 20,
    "grpc-node.flow_control_window": 4 << 20, // else every 64 KiB of parameters wait for an acknowledgement
};

/** How many messages wait to be sent or to be read on one stream: the memory that a transfer takes beside its arrays. */
const WAITING_MESSAGES_MAX = 4;

/** The longest that a timer of Node's takes, in milliseconds: 24 days. */
const TIMER_MS_MAX = 0x7fffffff;

/** No word came within the seconds of a send or receive. */
export class Silent extends Error {}

/** A call failed. error: what the server said; undefined where the connection broke, or what answered is no Stepwell. */
export class Lost extends Error {
    readonly code: status;
    readonly text: string;
    readonly error: errors.StepwellError | undefined;

    constructor(code: status, text: string, error?: errors.StepwellError) {
        super(`${status[code]}: ${text}`);
        this.code = code;
        this.text = text;
        this.error = error;
    }

    /** Whether the same call may succeed a little later, or over another connection. */
    get passing(): boolean {
        if (this.error) {
            return this.error instanceof errors.ServerStopping;
        }
        if (this.code === status.UNAVAILABLE || this.code === status.CANCELLED) {
            return true;
        }
        // What a connection cut at an unlucky moment looks like.
        return /RST_STREAM|GOAWAY|No status information|Failed to start HTTP/.test(this.text);
    }

    /** Whether the server surely did nothing: it was not reached, or refused because it stops. */
    get neverExecuted(): boolean {
        if (this.error) {
            return this.error instanceof errors.ServerStopping;
        }
        return /^(No connection established|Name resolution failed|Stream refused|Failed to start HTTP)/.test(
            this.text,
        );
    }

    /** The typed error for a call that is not tried again. */
    asError(): errors.StepwellError {
        if (this.error) {
            return this.error;
        }
        const [kind, remedy] = KIND_BY_STATUS.get(this.code) ?? [errors.Internal, "see the server's log"];
        return new kind(`got ${status[this.code]} (${this.text}) from the server, expected an answer; ${remedy}`);
    }
}

const UNREACHED = [errors.ServerUnavailable, "see that the server runs at this address"] as const;
const KIND_BY_STATUS = new Map<status, readonly [new (message: string) => errors.StepwellError, string]>([
    [status.UNAVAILABLE, UNREACHED],
    [status.CANCELLED, UNREACHED],
    [status.DEADLINE_EXCEEDED, [errors.TimedOut, "try again with a longer limit"]],
    [status.RESOURCE_EXHAUSTED, [errors.LimitExceeded, "see the server's limits"]],
    [status.UNIMPLEMENTED, [errors.ContractMismatch, "see that a Stepwell server of 1.x listens there"]],
]);

/** The channel of a client. It is made when it is first needed, and made anew after it was dropped. */
export class Connection {
    /** The workers that have joined over it, and have not left. */
    readonly members = new Set<{ leave(): Promise<void> }>();
    readonly #address: string;
    readonly #streams = new Map<Channel, Set<Stream<never, unknown>>>();
    #channel: Channel | undefined;
    #closing = false;
    #closed = false;

    constructor(address: string) {
        this.#address = address;
    }

    /** Whether nothing is opened any more, but for farewells. */
    get closed(): boolean {
        return this.#closing;
    }

    /** Start a call. request: the only one of a call that streams none. farewell: whether it is made while closing. */
    open<Q, A>(method: Method<Q, A>, request?: Q, { farewell = false } = {}): Stream<Q, A> {
        if (this.#closed || (this.#closing && !farewell)) {
            throw new Error("got a call on a closed client, expected an open one; connect again");
        }
        this.#channel ??= new Channel(this.#address, credentials.createInsecure(), CHANNEL_OPTIONS);
        const channel = this.#channel;
        const streams = this.#streams.get(channel) ?? new Set();
        this.#streams.set(channel, streams);
        const stream = new Stream(channel, method, () => streams.delete(stream));
        streams.add(stream);
        if (request !== undefined) {
            void stream.send(request, TIMER_MS_MAX); // the first one is never waited for
            stream.finish();
        }
        return stream;
    }

    /** Give up the channel that carries a stream; whatever is opened next goes over a new one. */
    reconnect(stream: Stream<never, unknown>): void {
        this.#drop(stream.channel);
    }

    /** Let every worker leave, then close the connection; nothing is opened any more. */
    async close(): Promise<void> {
        this.#closing = true;
        await Promise.all([...this.members].map((member) => member.leave()));
        this.#closed = true;
        for (const channel of [...this.#streams.keys()]) {
            this.#drop(channel);
        }
    }

    #drop(channel: Channel): void {
        if (this.#channel === channel) {
            this.#channel = undefined;
        }
        // Whoever waits on one of its calls tries again over the next channel.
        for (const stream of [...(this.#streams.get(channel) ?? [])]) {
            stream.cancel();
        }
        this.#streams.delete(channel);
        channel.close();
    }
}

/** A call that has been opened; all of them are streams here. */
export class Stream<in Q, out A> {
    readonly channel: Channel;
    readonly #call: ClientDuplexStream<Q, A>;
    readonly #inbox: A[] = [];
    #writing = 0;
    #ended = false;
    #failure: Lost | undefined;
    readonly #waiters = new Set<() => void>();

    constructor(channel: Channel, method: Method<Q, A>, over: () => void) {
        this.channel = channel;
        const metadata = new Metadata();
        metadata.set(CONTRACT_METADATA, CONTRACT);
        const decode = (serialized: Buffer): A => method.decode(serialized);
        const call = channel.makeBidiStreamRequest(method.path, method.encode, decode, metadata, {});
        this.#call = call;
        call.on("data", (message: A) => {
            this.#inbox.push(message);
            if (this.#inbox.length >= WAITING_MESSAGES_MAX) {
                call.pause();
            }
            this.#news();
        });
        call.on("error", (error: Partial<ServiceError>) => {
            if (typeof error.code === "number" && error.metadata) {
                this.#failure ??= lost(error as ServiceError);
            }
        });
        // Messages that came before the end are read before it.
        for (const event of ["end", "close"]) {
            call.on(event, () => {
                this.#ended = true;
                over();
                this.#news();
            });
        }
    }

    /**
     * Send a message; gives true once it is on its way, false if instead a response, or the end, wants to be received.
     *
     * So a long upload hears an early answer, and the server's word while it cannot take more. Throws Silent when nothing
     * moves for so many seconds.
     */
    async send(message: Q, seconds: number): Promise<boolean> {
        const moves = (): boolean => this.#inbox.length > 0 || this.#ended || this.#writing < WAITING_MESSAGES_MAX;
        if (!moves()) {
            await this.#wait(moves, seconds);
        }
        if (this.#inbox.length > 0 || this.#ended) {
            return false;
        }
        this.#writing++;
        this.#call.write(message, () => {
            this.#writing--;
            this.#news();
        });
        return true;
    }

    /** Say that no more messages will be sent. */
    finish(): void {
        this.#call.end();
    }

    /** Give the next response, or undefined at the end. Throws Silent after so many seconds, Lost if the call failed. */
    async receive(seconds: number): Promise<A | undefined> {
        const moves = (): boolean => this.#inbox.length > 0 || this.#ended;
        if (!moves()) {
            await this.#wait(moves, seconds);
        }
        const message = this.#inbox.shift();
        if (message !== undefined) {
            if (this.#call.isPaused()) {
                this.#call.resume();
            }
            return message;
        }
        if (this.#failure) {
            throw this.#failure;
        }
        return undefined;
    }

    /** End the call at once, without waiting. May be called more than once. */
    cancel(): void {
        this.#inbox.length = 0;
        this.#call.cancel();
        this.#call.resume(); // so that its end is read
    }

    #wait(holds: () => boolean, seconds: number): Promise<void> {
        return new Promise((resolve, reject) => {
            const timer = setTimeout(
                () => {
                    this.#waiters.delete(wake);
                    reject(new Silent("no word"));
                },
                Math.min(TIMER_MS_MAX, seconds * 1000),
            );
            const wake = (): void => {
                if (holds()) {
                    this.#waiters.delete(wake);
                    clearTimeout(timer);
                    resolve();
                }
            };
            this.#waiters.add(wake);
        });
    }

    #news(): void {
        for (const wake of [...this.#waiters]) {
            wake();
        }
    }
}

function lost(error: ServiceError): Lost {
    const [details] = error.metadata.get(STATUS_METADATA);
    const typed = details instanceof Buffer ? errors.errorFromStatus(details, error.details) : undefined;
    return new Lost(error.code, error.details, typed);
}
