/** A TCP proxy on loopback that cuts connections, at random from a seed, or leaves them open and silent. */

import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** Numbers in [0, 1) from a seed: mulberry32. */
export function random(seed: number): () => number {
    let state = seed >>> 0;
    return () => {
        state = (state + 0x6d2b79f5) >>> 0;
        let mixed = Math.imul(state ^ (state >>> 15), state | 1);
        mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
        return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
}

interface Link {
    readonly near: Socket;
    readonly far: Socket;
    muted: boolean;
    answersMuted: boolean;
}

/**
 * Forwards to `target` (HOST:PORT) from `address`.
 *
 * bytesMean: after about so many bytes, in both directions together, a connection is cut in the middle of whatever it
 * carries; undefined for never.
 */
export class Proxy {
    address = "";
    cutsCount = 0;
    connectionsCount = 0;
    /** While it is set, connections are not let in: they end at once. */
    closed = false;
    readonly #links = new Set<Link>();
    readonly #server: Server;

    private constructor(target: () => string, seed: number, bytesMean: number | undefined) {
        const draw = random(seed);
        this.#server = createServer((near) => {
            this.connectionsCount++;
            const [host, port] = target().split(":");
            const far = connect(Number(port), host);
            const link = { near, far, muted: false, answersMuted: false };
            this.#links.add(link);
            let budget = bytesMean === undefined ? Infinity : -Math.log(1 - draw()) * bytesMean;
            const forward = (from: Socket, to: Socket, answers: boolean): void => {
                from.on("data", (data: Buffer) => {
                    if (link.muted || (answers && link.answersMuted)) {
                        return;
                    }
                    to.write(data.subarray(0, Math.max(0, Math.floor(budget))));
                    budget -= data.length;
                    if (budget < 1) {
                        this.cutsCount++;
                        this.#cut(link);
                    }
                });
                from.on("error", () => {
                    this.#cut(link);
                });
                from.on("close", () => {
                    this.#cut(link);
                });
            };
            forward(near, far, false);
            forward(far, near, true);
            if (this.closed) {
                this.#cut(link);
            }
        });
    }

    static async start(target: () => string, seed = 0, bytesMean?: number): Promise<Proxy> {
        const proxy = new Proxy(target, seed, bytesMean);
        proxy.#server.listen(0, "127.0.0.1");
        await once(proxy.#server, "listening");
        proxy.address = `127.0.0.1:${(proxy.#server.address() as AddressInfo).port}`;
        return proxy;
    }

    /** From now on nothing moves over the connections that there are, or only no answers; new ones are forwarded. */
    mute({ answersOnly = false } = {}): void {
        for (const link of this.#links) {
            link.answersMuted = true;
            link.muted = !answersOnly;
        }
    }

    /** Cut the connections that there are: what is on its way is lost. */
    cut(): void {
        for (const link of [...this.#links]) {
            this.#cut(link);
        }
    }

    async stop(): Promise<void> {
        this.#server.close();
        this.cut();
        await once(this.#server, "close");
    }

    #cut(link: Link): void {
        this.#links.delete(link);
        for (const socket of [link.near, link.far]) {
            if (!socket.destroyed) {
                socket.resetAndDestroy();
            }
        }
    }
}
