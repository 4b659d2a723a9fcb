/** Every call of the contract: its path and its messages. */

import { type DescMessage, type MessageShape, fromBinary, toBinary } from "@bufbuild/protobuf";

import * as control from "./generated/stepwell/v1/control_pb.js";
import { WorkResponseSchema } from "./generated/stepwell/v1/data_pb.js";
import { encodeWork } from "./payload.js";

/** One call. On the wire all look the same, whether they stream or not. */
export interface Method<Q, A> {
    readonly path: string;
    readonly encode: (request: Q) => Buffer;
    readonly decode: (serialized: Uint8Array) => A;
}

function controlMethod<Q extends DescMessage, A extends DescMessage>(
    name: string,
    request: Q,
    response: A,
): Method<MessageShape<Q>, MessageShape<A>> {
    return {
        path: `/stepwell.v1.ControlService/${name}`,
        encode: (message) => asBuffer(toBinary(request, message)),
        decode: (serialized) => fromBinary(response, serialized),
    };
}

function asBuffer(bytes: Uint8Array): Buffer {
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

export const GET_SERVER = controlMethod("GetServer", control.GetServerRequestSchema, control.GetServerResponseSchema);
export const CREATE_RUN = controlMethod("CreateRun", control.CreateRunRequestSchema, control.CreateRunResponseSchema);
export const JOIN = controlMethod("Join", control.JoinRequestSchema, control.JoinResponseSchema);
export const HEARTBEAT = controlMethod("Heartbeat", control.HeartbeatRequestSchema, control.HeartbeatResponseSchema);
export const LEAVE = controlMethod("Leave", control.LeaveRequestSchema, control.LeaveResponseSchema);
export const BARRIER = controlMethod("Barrier", control.BarrierRequestSchema, control.BarrierResponseSchema);
export const GET_LAYOUT = controlMethod("GetLayout", control.GetLayoutRequestSchema, control.GetLayoutResponseSchema);
export const GET_RUN = controlMethod("GetRun", control.GetRunRequestSchema, control.GetRunResponseSchema);
export const LIST_RUNS = controlMethod("ListRuns", control.ListRunsRequestSchema, control.ListRunsResponseSchema);
export const UPDATE_RUN = controlMethod("UpdateRun", control.UpdateRunRequestSchema, control.UpdateRunResponseSchema);
export const REPORT = controlMethod("Report", control.ReportRequestSchema, control.ReportResponseSchema);
export const DELETE_RUN = controlMethod("DeleteRun", control.DeleteRunRequestSchema, control.DeleteRunResponseSchema);
export const LIST_OPTIMIZERS = controlMethod(
    "ListOptimizers",
    control.ListOptimizersRequestSchema,
    control.ListOptimizersResponseSchema,
);
export const LIST_SCHEDULES = controlMethod(
    "ListSchedules",
    control.ListSchedulesRequestSchema,
    control.ListSchedulesResponseSchema,
);
export const LIST_PARTS = controlMethod("ListParts", control.ListPartsRequestSchema, control.ListPartsResponseSchema);
export const PREVIEW_SCHEDULE = controlMethod(
    "PreviewSchedule",
    control.PreviewScheduleRequestSchema,
    control.PreviewScheduleResponseSchema,
);
export const GET_STATE = controlMethod("GetState", control.GetStateRequestSchema, control.GetStateResponseSchema);
export const SET_STATE = controlMethod("SetState", control.SetStateRequestSchema, control.SetStateResponseSchema);
export const SAVE_CHECKPOINT = controlMethod(
    "SaveCheckpoint",
    control.SaveCheckpointRequestSchema,
    control.SaveCheckpointResponseSchema,
);
export const LIST_CHECKPOINTS = controlMethod(
    "ListCheckpoints",
    control.ListCheckpointsRequestSchema,
    control.ListCheckpointsResponseSchema,
);
export const RESTORE_CHECKPOINT = controlMethod(
    "RestoreCheckpoint",
    control.RestoreCheckpointRequestSchema,
    control.RestoreCheckpointResponseSchema,
);

// Push, Pull and Step are the same exchanges as Work carries, one per call; this SDK holds a Work stream instead.
export const WORK = {
    path: "/stepwell.v1.DataService/Work",
    encode: encodeWork,
    decode: (serialized: Uint8Array) => fromBinary(WorkResponseSchema, serialized),
};
