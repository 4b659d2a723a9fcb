/**
 * A server that speaks the contract and knows one run with one group of float32: just enough to see what the client does.
 *
 * It is written from the contract alone, byte by byte and without a thought for speed, so that it shares no mistake with
 * the client. Tests make it misbehave.
 */

import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

import * as control from "../src/generated/stepwell/v1/control_pb.js";
import type { WorkRequest, WorkResponse } from "../src/generated/stepwell/v1/data_pb.js";
import {
    AnswerSchema,
    Outcome,
    ParametersHeaderSchema,
    WorkRequestSchema,
    WorkResponseSchema,
} from "../src/generated/stepwell/v1/data_pb.js";
import type { ErrorReason } from "../src/generated/stepwell/v1/errors_pb.js";
import { ErrorSchema } from "../src/generated/stepwell/v1/errors_pb.js";
import type { Spec } from "../src/generated/stepwell/v1/run_pb.js";
import { DType, LayoutSchema, RangeSchema, RunSchema, SpecSchema } from "../src/generated/stepwell/v1/run_pb.js";

type WorkCall = grpc.ServerDuplexStream<WorkRequest, WorkResponse>;

/** What a test does with a message of a worker's; true where it has dealt with it. */
export type Intercept = (request: WorkRequest, call: WorkCall) => boolean;

export class FakeServer {
    address = "";
    /** The elements of the parameters, packed. */
    values = new Float32Array(0);
    version = 0;
    epoch = 0;
    generation = 0;
    readonly requests: WorkRequest[] = [];
    readonly metadata: grpc.Metadata[] = [];
    readonly leaves: control.LeaveRequest[] = [];
    streams = 0;
    intercept: Intercept | undefined;
    spec: Spec = create(SpecSchema);
    heartbeats = 0;
    readonly #answers = new Map<string, { fingerprint: string; version: number }>();
    readonly #server = new grpc.Server();

    /** shapes: of the parameters by name. */
    static async start(shapes: Record<string, number[]>, spec: Spec = create(SpecSchema)): Promise<FakeServer> {
        const fake = new FakeServer(shapes, spec);
        const port = await new Promise<number>((resolve, reject) => {
            const secrets = grpc.ServerCredentials.createInsecure();
            fake.#server.bindAsync("127.0.0.1:0", secrets, (error, found) => {
                (error ? reject : resolve)((error ?? found) as never);
            });
        });
        fake.address = `127.0.0.1:${port}`;
        return fake;
    }

    private constructor(
        private readonly shapes: Record<string, number[]>,
        spec: Spec,
    ) {
        this.spec = spec;
        this.values = new Float32Array(
            this.#layout().groups[0].packedBytes === 0n ? 0 : Number(this.#layout().groups[0].packedBytes) / 4,
        );
        const unary = <Q extends DescMessage, A extends DescMessage>(
            name: string,
            request: Q,
            response: A,
            answer: (message: MessageShape<Q>) => MessageShape<A>,
        ): [string, grpc.MethodDefinition<unknown, unknown>, grpc.UntypedHandleCall] => [
            name,
            definition(`/stepwell.v1.ControlService/${name}`, request, response, false, false),
            ((call: grpc.ServerUnaryCall<MessageShape<Q>, unknown>, reply: grpc.sendUnaryData<unknown>) => {
                this.metadata.push(call.metadata);
                reply(null, answer(call.request));
            }) as grpc.UntypedHandleCall,
        ];
        const served = <Q extends DescMessage, A extends DescMessage>(
            name: string,
            request: Q,
            response: A,
            answers: (message: MessageShape<Q>) => MessageShape<A>[],
        ): [string, grpc.MethodDefinition<unknown, unknown>, grpc.UntypedHandleCall] => [
            name,
            definition(`/stepwell.v1.ControlService/${name}`, request, response, false, true),
            ((call: grpc.ServerWritableStream<MessageShape<Q>, MessageShape<A>>) => {
                for (const message of answers(call.request)) {
                    call.write(message);
                }
                call.end();
            }) as grpc.UntypedHandleCall,
        ];
        this.#add([
            unary("GetServer", control.GetServerRequestSchema, control.GetServerResponseSchema, () =>
                create(control.GetServerResponseSchema, { version: "fake", contract: "1.0" }),
            ),
            unary("GetRun", control.GetRunRequestSchema, control.GetRunResponseSchema, ({ run }) =>
                create(control.GetRunResponseSchema, {
                    run: create(RunSchema, { name: run, uid: UID, version: BigInt(this.version), spec: this.spec }),
                }),
            ),
            unary("Heartbeat", control.HeartbeatRequestSchema, control.HeartbeatResponseSchema, () => {
                this.heartbeats++;
                return create(control.HeartbeatResponseSchema, { place: { count: 7n } });
            }),
            unary("Leave", control.LeaveRequestSchema, control.LeaveResponseSchema, (request) => {
                this.leaves.push(request);
                return create(control.LeaveResponseSchema);
            }),
            served("Join", control.JoinRequestSchema, control.JoinResponseSchema, ({ leaseSeconds }) => [
                create(control.JoinResponseSchema, {
                    membership: {
                        runUid: UID,
                        generation: BigInt(this.generation),
                        epoch: BigInt(++this.epoch),
                        version: BigInt(this.version),
                        leaseSeconds,
                        place: { count: 1n },
                    },
                }),
                // In two pieces, the second one with the parameters.
                create(control.JoinResponseSchema, { layout: { groups: this.#layout().groups } }),
                create(control.JoinResponseSchema, { layout: { parameters: this.#layout().parameters, last: true } }),
            ]),
            served("GetLayout", control.GetLayoutRequestSchema, control.GetLayoutResponseSchema, () => [
                create(control.GetLayoutResponseSchema, { runUid: UID, layout: this.#layout() }),
            ]),
        ]);
        this.#add([
            [
                "Work",
                definition("/stepwell.v1.DataService/Work", WorkRequestSchema, WorkResponseSchema, true, true),
                ((call: WorkCall) => {
                    this.#work(call);
                }) as grpc.UntypedHandleCall,
            ],
        ]);
    }

    stop(): void {
        this.#server.forceShutdown();
    }

    /** The response that refuses an exchange. */
    refusal(request: WorkRequest, reason: ErrorReason, message = "refused by the fake"): WorkResponse {
        const error = create(ErrorSchema, { reason, message, details: { a: "b" } });
        return create(WorkResponseSchema, { exchange: request.exchange, error, done: true });
    }

    #work(call: WorkCall): void {
        this.streams++;
        let staged = new Float32Array(this.values.length);
        let header: NonNullable<WorkRequest["stage"]>["header"];
        call.on("error", () => undefined);
        call.on("end", () => {
            call.end();
        });
        call.on("data", (request: WorkRequest) => {
            this.requests.push(request);
            if (this.intercept?.(request, call)) {
                return;
            }
            header = request.stage?.header ?? header;
            for (const range of request.stage?.ranges ?? []) {
                new Uint8Array(staged.buffer).set(range.data, Number(range.packedOffsetBytes));
            }
            if (!request.last) {
                return;
            }
            const response = create(WorkResponseSchema, { exchange: request.exchange, done: true });
            if (request.commit && header?.identity) {
                response.answer = this.#commit(header.identity, staged);
                staged = new Float32Array(this.values.length);
            }
            if (request.selection) {
                response.parameters = create(ParametersHeaderSchema, { version: BigInt(this.version) });
                // In two ranges that meet in the middle of a parameter.
                const bytes = new Uint8Array(this.values.slice().buffer);
                const middle = Math.floor(this.values.length / 2) * 4;
                response.ranges = [
                    create(RangeSchema, { data: bytes.subarray(middle), packedOffsetBytes: BigInt(middle) }),
                    create(RangeSchema, { data: bytes.subarray(0, middle) }),
                ];
            }
            call.write(response);
        });
    }

    #commit(
        { epoch, sequence, fingerprint }: { epoch: bigint; sequence: bigint; fingerprint: Uint8Array },
        staged: Float32Array,
    ): WorkResponse["answer"] {
        const key = `${epoch} ${sequence}`;
        const print = Buffer.from(fingerprint).toString("hex");
        let answer = this.#answers.get(key);
        if (answer === undefined) {
            this.values.forEach((_, index) => (this.values[index] -= staged[index]));
            answer = { fingerprint: print, version: ++this.version };
            this.#answers.set(key, answer);
        }
        if (answer.fingerprint !== print) {
            throw new Error("a sequence came with another fingerprint");
        }
        return create(AnswerSchema, { outcome: Outcome.COMMITTED, committedVersion: BigInt(answer.version) });
    }

    #layout(): MessageShape<typeof LayoutSchema> {
        let offset = 0;
        const parameters = Object.entries(this.shapes).map(([name, shape]) => {
            const start = offset;
            offset += 4 * shape.reduce((count, length) => count * length, 1);
            return { name, shape: shape.map(BigInt), group: 0, packedOffsetBytes: BigInt(start) };
        });
        const groups = [{ name: "default", dtype: DType.FLOAT32, packedBytes: BigInt(offset) }];
        return create(LayoutSchema, { groups, parameters, last: true });
    }

    #add(methods: [string, grpc.MethodDefinition<unknown, unknown>, grpc.UntypedHandleCall][]): void {
        this.#server.addService(
            Object.fromEntries(methods.map(([name, method]) => [name, method])),
            Object.fromEntries(methods.map(([name, , implementation]) => [name, implementation])),
        );
    }
}

const UID = Uint8Array.from({ length: 16 }, (_, index) => index);

function definition(
    path: string,
    request: DescMessage,
    response: DescMessage,
    requestStream: boolean,
    responseStream: boolean,
): grpc.MethodDefinition<unknown, unknown> {
    return {
        path,
        requestStream,
        responseStream,
        requestSerialize: (message) => Buffer.from(toBinary(request, message as never)),
        requestDeserialize: (bytes) => fromBinary(request, bytes),
        responseSerialize: (message) => Buffer.from(toBinary(response, message as never)),
        responseDeserialize: (bytes) => fromBinary(response, bytes),
    };
}
