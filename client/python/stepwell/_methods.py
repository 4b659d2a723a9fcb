"""Every call of the contract: its path and its messages."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from stepwell import payload
from stepwell.v1 import control_pb2, data_pb2

Q = TypeVar("Q")
A = TypeVar("A")
MQ = TypeVar("MQ", bound=Message)
MA = TypeVar("MA", bound=Message)


@dataclass(frozen=True)
class Method(Generic[Q, A]):
    """One call. unary: one request, one response; all others are streams in at least one direction."""

    path: str
    encode: Callable[[Q], bytes]
    decode: Callable[[bytes], A]
    unary: bool = True


def control(name: str, request: type[MQ], response: type[MA], *, unary: bool = True) -> Method[MQ, MA]:
    return method(f"/stepwell.v1.ControlService/{name}", request, response, unary=unary)


def method(path: str, request: type[MQ], response: type[MA], *, unary: bool = True) -> Method[MQ, MA]:
    """A call whose messages protobuf alone encodes."""
    encode: Any = request.SerializeToString
    return Method(path, encode, response.FromString, unary)


GET_SERVER = control("GetServer", control_pb2.GetServerRequest, control_pb2.GetServerResponse)
CREATE_RUN = control("CreateRun", control_pb2.CreateRunRequest, control_pb2.CreateRunResponse, unary=False)
JOIN = control("Join", control_pb2.JoinRequest, control_pb2.JoinResponse, unary=False)
HEARTBEAT = control("Heartbeat", control_pb2.HeartbeatRequest, control_pb2.HeartbeatResponse)
LEAVE = control("Leave", control_pb2.LeaveRequest, control_pb2.LeaveResponse)
BARRIER = control("Barrier", control_pb2.BarrierRequest, control_pb2.BarrierResponse, unary=False)
GET_LAYOUT = control("GetLayout", control_pb2.GetLayoutRequest, control_pb2.GetLayoutResponse, unary=False)
GET_RUN = control("GetRun", control_pb2.GetRunRequest, control_pb2.GetRunResponse)
LIST_RUNS = control("ListRuns", control_pb2.ListRunsRequest, control_pb2.ListRunsResponse)
UPDATE_RUN = control("UpdateRun", control_pb2.UpdateRunRequest, control_pb2.UpdateRunResponse)
DELETE_RUN = control("DeleteRun", control_pb2.DeleteRunRequest, control_pb2.DeleteRunResponse)
LIST_OPTIMIZERS = control("ListOptimizers", control_pb2.ListOptimizersRequest, control_pb2.ListOptimizersResponse)
LIST_SCHEDULES = control("ListSchedules", control_pb2.ListSchedulesRequest, control_pb2.ListSchedulesResponse)
LIST_PARTS = control("ListParts", control_pb2.ListPartsRequest, control_pb2.ListPartsResponse)
REPORT = control("Report", control_pb2.ReportRequest, control_pb2.ReportResponse)
PREVIEW_SCHEDULE = control("PreviewSchedule", control_pb2.PreviewScheduleRequest, control_pb2.PreviewScheduleResponse)
GET_STATE = control("GetState", control_pb2.GetStateRequest, control_pb2.GetStateResponse, unary=False)
SET_STATE = control("SetState", control_pb2.SetStateRequest, control_pb2.SetStateResponse, unary=False)
SAVE_CHECKPOINT = control("SaveCheckpoint", control_pb2.SaveCheckpointRequest, control_pb2.SaveCheckpointResponse)
LIST_CHECKPOINTS = control("ListCheckpoints", control_pb2.ListCheckpointsRequest, control_pb2.ListCheckpointsResponse)
RESTORE_CHECKPOINT = control(
    "RestoreCheckpoint", control_pb2.RestoreCheckpointRequest, control_pb2.RestoreCheckpointResponse
)
# Push, Pull and Step are the same exchanges as Work carries, one per call; this SDK holds a Work stream instead.
WORK: Method[payload.Outgoing[data_pb2.WorkRequest], payload.Incoming[data_pb2.WorkResponse]] = Method(
    "/stepwell.v1.DataService/Work", payload.WORK_REQUEST.encode, payload.WORK_RESPONSE.decode, unary=False
)
SHARE_MEMORY = method("/stepwell.v1.DataService/ShareMemory", data_pb2.ShareMemoryRequest, data_pb2.ShareMemoryResponse)
