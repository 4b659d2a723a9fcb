"""From domain errors to the wire: one table, and the interceptor that applies it to every call."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from stepwell.v1 import errors_pb2 as pb
from stepwell.wire import CONTRACT, CONTRACT_METADATA, ERROR_DOMAIN, WireError
from stepwell_server.core import errors

log = structlog.get_logger()

_BAD = grpc.StatusCode.INVALID_ARGUMENT
_STATE = grpc.StatusCode.FAILED_PRECONDITION
_ABSENT = grpc.StatusCode.NOT_FOUND
_ABORTED = grpc.StatusCode.ABORTED
_EXISTS = grpc.StatusCode.ALREADY_EXISTS
_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED

TABLE: dict[type[Exception], tuple[str, grpc.StatusCode]] = {
    errors.InvalidName: ("INVALID_NAME", _BAD),
    errors.UnknownOptimizer: ("UNKNOWN_OPTIMIZER", _BAD),
    errors.UnknownFlavor: ("UNKNOWN_FLAVOR", _BAD),
    errors.UnknownSchedule: ("UNKNOWN_SCHEDULE", _BAD),
    errors.UnknownTransform: ("UNKNOWN_TRANSFORM", _BAD),
    errors.UnknownWrapper: ("UNKNOWN_WRAPPER", _BAD),
    errors.UnknownArgument: ("UNKNOWN_ARGUMENT", _BAD),
    errors.UnknownEncoding: ("UNKNOWN_ENCODING", _BAD),
    errors.UnknownPolicy: ("UNKNOWN_POLICY", _BAD),
    errors.UnknownRun: ("UNKNOWN_RUN", _ABSENT),
    errors.UnknownGroup: ("UNKNOWN_GROUP", _ABSENT),
    errors.UnknownParameter: ("UNKNOWN_PARAMETER", _ABSENT),
    errors.UnknownWorker: ("UNKNOWN_WORKER", _STATE),
    errors.UnknownCheckpoint: ("UNKNOWN_CHECKPOINT", _ABSENT),
    errors.UnknownPoint: ("UNKNOWN_POINT", _BAD),
    errors.InvalidValue: ("INVALID_VALUE", _BAD),
    errors.InvalidSpec: ("INVALID_SPEC", _BAD),
    errors.RunDiffers: ("RUN_DIFFERS", _EXISTS),
    errors.RunReplaced: ("RUN_REPLACED", _STATE),
    errors.InvalidRange: ("INVALID_RANGE", _BAD),
    errors.EncodingNotAllowed: ("ENCODING_NOT_ALLOWED", _BAD),
    errors.InvalidEncoding: ("INVALID_ENCODING", _BAD),
    errors.IncompleteUpdate: ("INCOMPLETE_UPDATE", _BAD),
    errors.GradientRequired: ("GRADIENT_REQUIRED", _BAD),
    errors.InputRequired: ("INPUT_REQUIRED", _BAD),
    errors.NonfiniteGradient: ("NONFINITE_GRADIENT", _BAD),
    errors.SequenceReused: ("SEQUENCE_REUSED", _STATE),
    errors.SequenceTooOld: ("SEQUENCE_TOO_OLD", _STATE),
    errors.SequenceGap: ("SEQUENCE_GAP", _STATE),
    errors.WorkerFenced: ("WORKER_FENCED", _STATE),
    errors.RunRewound: ("RUN_REWOUND", _STATE),
    errors.StaleUpdate: ("STALE_UPDATE", _ABORTED),
    errors.PolicyRefused: ("POLICY_REFUSED", _STATE),
    errors.ChangeRefused: ("CHANGE_REFUSED", _STATE),
    errors.UnknownTable: ("UNKNOWN_TABLE", grpc.StatusCode.NOT_FOUND),
    errors.InvalidRows: ("INVALID_ROWS", _BAD),
    errors.RowsNotSupported: ("ROWS_NOT_SUPPORTED", _BAD),
    errors.TableFull: ("TABLE_FULL", _EXHAUSTED),
    errors.TablesUnavailable: ("TABLES_UNAVAILABLE", _STATE),
    errors.EtagMismatch: ("ETAG_MISMATCH", _ABORTED),
    errors.VersionMismatch: ("VERSION_MISMATCH", _ABORTED),
    errors.MemoryExhausted: ("MEMORY_EXHAUSTED", _EXHAUSTED),
    errors.LimitExceeded: ("LIMIT_EXCEEDED", _EXHAUSTED),
    errors.StorageDisabled: ("STORAGE_DISABLED", _STATE),
    errors.StorageFailed: ("STORAGE_FAILED", grpc.StatusCode.UNAVAILABLE),
    errors.CheckpointExists: ("CHECKPOINT_EXISTS", _EXISTS),
    errors.CheckpointDamaged: ("CHECKPOINT_DAMAGED", grpc.StatusCode.DATA_LOSS),
    errors.ServerStopping: ("SERVER_STOPPING", grpc.StatusCode.UNAVAILABLE),
    errors.MalformedRequest: ("MALFORMED_REQUEST", _BAD),
    WireError: ("MALFORMED_REQUEST", _BAD),
    DecodeError: ("MALFORMED_REQUEST", _BAD),
    errors.SharedMemoryUnavailable: ("SHARED_MEMORY_UNAVAILABLE", _STATE),
    errors.ContractMismatch: ("CONTRACT_MISMATCH", _STATE),
}


def encode_error(error: Exception) -> pb.Error:
    """The error as a message on a worker's stream. One that is not in the table is our fault: logged, and INTERNAL."""
    if type(error) not in TABLE:
        log.error("internal error", exc_info=error)
        return pb.Error(
            reason=pb.ERROR_REASON_INTERNAL,
            message="the server failed, expected an answer; report it with the server's log",
        )
    reason = f"ERROR_REASON_{TABLE[type(error)][0]}"
    return pb.Error(reason=reason, message=str(error), details=getattr(error, "details", {}))


async def _abort(context: Any, error: Exception) -> None:
    message = encode_error(error)
    code = TABLE[type(error)][1] if type(error) in TABLE else grpc.StatusCode.INTERNAL
    info = error_details_pb2.ErrorInfo(
        reason=pb.ErrorReason.Name(message.reason).removeprefix("ERROR_REASON_"),
        domain=ERROR_DOMAIN,
        metadata=message.details,
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    status = status_pb2.Status(code=code.value[0], message=message.message, details=[detail])
    await context.abort(code, message.message, (("grpc-status-details-bin", status.SerializeToString()),))


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns the domain's errors into statuses, and refuses clients of another contract."""

    async def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        theirs = dict(details.invocation_metadata or ()).get(CONTRACT_METADATA, CONTRACT)
        wrapped = {
            kind: _guard(getattr(handler, kind), str(theirs))
            for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
            if getattr(handler, kind) is not None
        }
        return handler._replace(**wrapped)


# How grpc.aio itself ends a call: the peer is gone, and nobody waits for a status.
ENDED = (grpc.aio.AbortError, grpc.aio.UsageError, grpc.aio.InternalError)


def _guard(behavior: Callable[..., Any], contract: str) -> Callable[..., Any]:
    def check() -> None:
        if contract.split(".")[0] != CONTRACT.split(".")[0]:
            raise errors.ContractMismatch(
                f"the client speaks contract {contract[:20]!r}, expected {CONTRACT}; install a client and server of "
                "the same major version",
                got=contract[:20],
                expected=CONTRACT,
            )

    if inspect.isasyncgenfunction(behavior):

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                check()
                async for response in behavior(request, context):
                    yield response
            except ENDED:
                raise
            except Exception as error:  # noqa: BLE001  # becomes a status
                await _abort(context, error)

        return stream

    async def call(request: Any, context: Any) -> Any:
        try:
            check()
            result: Awaitable[Any] = behavior(request, context)
            return await result
        except ENDED:
            raise
        except Exception as error:  # noqa: BLE001  # becomes a status
            await _abort(context, error)

    return call
