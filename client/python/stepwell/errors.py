"""What can go wrong: one class per ErrorReason of the contract.

    StepwellError
    ├── ContractMismatch, MalformedRequest, Internal
    ├── InvalidName, InvalidValue, InvalidSpec
    ├── UnknownOptimizer, UnknownFlavor, UnknownSchedule, UnknownTransform, UnknownWrapper, UnknownArgument,
    │   UnknownEncoding, UnknownPolicy
    ├── PolicyRefused            a change of the policy that would leave workers waiting for ever
    ├── StaleUpdate              taken at parameters that are older than the policy allows; pull, and go on from there
    ├── UnknownRun, UnknownGroup, UnknownParameter, UnknownTable, UnknownWorker, UnknownCheckpoint, UnknownPoint
    ├── RunDiffers               a run of this name exists with another spec
    ├── RunReplaced              the run was deleted, and perhaps made anew, since it was joined
    ├── InvalidGradient          wrong name, shape or dtype; found before anything is sent
    ├── InvalidRows              ids that are no int64, or rows of another number, width or dtype; likewise
    ├── RowsNotSupported         an optimizer that cannot work on the rows of a table
    ├── TableFull, TablesUnavailable
    ├── EncodingNotAllowed, InvalidEncoding
    ├── InvalidRange, IncompleteUpdate, GradientRequired, InputRequired, NonfiniteGradient
    ├── SequenceReused, SequenceTooOld, SequenceGap
    ├── WorkerFenced             a newer join under the same worker name has taken over
    ├── RunRewound               the run went back to an older state
    ├── ChangeRefused, EtagMismatch, VersionMismatch
    ├── MemoryExhausted, LimitExceeded, SharedMemoryUnavailable
    ├── StorageDisabled, StorageFailed, CheckpointExists, CheckpointDamaged
    ├── ServerStopping           retried by the SDK; raised only where a call must not be repeated
    ├── ServerUnavailable        also a ConnectionError; in a child that was forked after the first call, too
    └── TimedOut                 also a TimeoutError

Every message says what was got, what was expected, and what to do.
"""

import re
from collections.abc import Mapping
from typing import Final

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from stepwell.v1 import errors_pb2
from stepwell.wire import ERROR_DOMAIN

REASON_PREFIX: Final = "ERROR_REASON_"
STATUS_METADATA: Final = "grpc-status-details-bin"


class StepwellError(Exception):
    """Base of all errors; itself raised only for a reason that a newer server has and this SDK does not know.

    reason: the name in the contract without its prefix, such as "UNKNOWN_RUN".
    details: the facts of the message for programs: short names to short texts.
    """

    reason: str = ""

    def __init__(self, message: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.details = dict(details or {})

    def __init_subclass__(cls) -> None:
        # UnknownRun -> UNKNOWN_RUN. Value() raises at import where the contract has no such reason.
        cls.reason = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).upper()
        BY_REASON[errors_pb2.ErrorReason.Value(REASON_PREFIX + cls.reason)] = cls


BY_REASON: Final[dict[int, type[StepwellError]]] = {}
"""The class of every reason; filled as the classes below are defined."""


class ContractMismatch(StepwellError):
    """Client and server speak different major versions of the contract; upgrade the older one."""


class MalformedRequest(StepwellError):
    """A message lacks a part that it must have, or has parts that exclude each other; a fault of the client's."""


class InvalidName(StepwellError):
    """A name of a run, checkpoint, worker or parameter is outside its alphabet or too long."""


class SharedMemoryUnavailable(StepwellError):
    """Memory cannot be shared with the server, or no longer; raised for transport="shared_memory" only."""


class UnknownOptimizer(StepwellError):
    """No optimizer has this name; list_optimizers has them all."""


class UnknownFlavor(StepwellError):
    """The optimizer does not have this flavor; the message names those that it has."""


class UnknownSchedule(StepwellError):
    """No schedule has this name; list_schedules has them all."""


class UnknownTransform(StepwellError):
    """No gradient transform has this name; list_transforms has them all."""


class UnknownWrapper(StepwellError):
    """No wrapper has this name; list_wrappers has them all."""


class UnknownArgument(StepwellError):
    """The optimizer, schedule or other part has no argument of this name; the message names those that it has."""


class UnknownEncoding(StepwellError):
    """No encoding for this direction has this name; list_encodings has them all."""


class UnknownPolicy(StepwellError):
    """No policy has this name; list_policies has them all."""


class PolicyRefused(StepwellError):
    """A change of the policy would leave workers waiting for ever; the run keeps the one that it has."""


class StaleUpdate(StepwellError):
    """The update was taken at parameters that are older than the policy allows; it had no effect.

    details: "version", the present one. Pull, and compute the gradients anew.
    """


class EncodingNotAllowed(StepwellError):
    """A range came in an encoding that the run does not have; a fault of the client's."""


class InvalidEncoding(StepwellError):
    """The parts of an encoded range do not fit together; a fault of the client's."""


class UnknownRun(StepwellError):
    """No run has this name."""


class UnknownGroup(StepwellError):
    """The run has no group or table of this name."""


class UnknownParameter(StepwellError):
    """The run has no parameter of this name."""


class UnknownTable(StepwellError):
    """The run has no table of this name."""


class UnknownWorker(StepwellError):
    """The worker has not joined the run, has left it, or its lease has run out; the next push joins again by itself."""


class UnknownCheckpoint(StepwellError):
    """The run has no checkpoint of this name; list_checkpoints has them all."""


class UnknownPoint(StepwellError):
    """The run has no such point to pull; `points` of its description has them all."""


class InvalidValue(StepwellError):
    """A value is of the wrong kind, out of range, or not finite."""


class InvalidSpec(StepwellError):
    """Parts of a spec do not fit together."""


class RunDiffers(StepwellError):
    """A run of this name exists with another spec; the message lists the differences."""


class RunReplaced(StepwellError):
    """The run was deleted, and perhaps made anew, since this object joined it; get it again."""


class InvalidGradient(StepwellError):
    """A gradient has a wrong name, shape or dtype; found before anything is sent."""


class InvalidRows(StepwellError):
    """Ids are no int64, or rows have another number, width or dtype than they must; found before anything is sent."""


class RowsNotSupported(StepwellError):
    """The optimizer cannot work on the rows of a table, or not in the table's sparse_mode."""


class TableFull(StepwellError):
    """The update would make more rows than the table's rows_max; it had no effect."""


class TablesUnavailable(StepwellError):
    """The server's device has no tables."""


class InvalidRange(StepwellError):
    """A range lies outside its group, or overlaps another; a fault of the client's."""


class IncompleteUpdate(StepwellError):
    """Not all that was announced has arrived; it had no effect."""


class GradientRequired(StepwellError):
    """A gradient is missing where the optimizer's flavor counts one step for the whole run."""


class InputRequired(StepwellError):
    """The update has no loss, or not another input, that an optimizer of the run needs."""


class NonfiniteGradient(StepwellError):
    """A gradient has a NaN or an infinity; with nonfinite="reject" the update had no effect."""


class SequenceReused(StepwellError):
    """An update came under the identity of another one; a fault of the client's."""


class SequenceTooOld(StepwellError):
    """An update is older than the answers that the server keeps; a fault of the client's."""


class SequenceGap(StepwellError):
    """An update does not follow the worker's last one; a fault of the client's."""


class WorkerFenced(StepwellError):
    """A newer join under the same worker name has taken over; a name must be one worker's alone."""


class RunRewound(StepwellError):
    """The run went back to an older state: a crash lost what was not stored, or somebody restored a checkpoint.

    The update was not applied and is never sent again. The next push joins the run as it is now.
    """

    @property
    def acknowledged_version(self) -> int:
        """The newest version that this worker had been told of."""
        return int(self.details.get("acknowledged_version", 0))

    @property
    def version(self) -> int:
        """The version that the run is at now."""
        return int(self.details.get("version", 0))


class ChangeRefused(StepwellError):
    """A change of a live run would add or remove a slot; the message lists what can change."""


class EtagMismatch(StepwellError):
    """The run was changed since its description with this etag; refresh, and decide again."""


class VersionMismatch(StepwellError):
    """The run is not at the expected version; it stays as it is."""


class MemoryExhausted(StepwellError):
    """The server's --max-memory leaves too little."""


class LimitExceeded(StepwellError):
    """Another limit is reached: of the server, which details name, or outstanding_updates_max."""


class StorageDisabled(StepwellError):
    """The server has no --data-dir."""


class StorageFailed(StepwellError):
    """The server could not write or read its data directory."""


class CheckpointExists(StepwellError):
    """A checkpoint of this name exists; it stays as it is."""


class CheckpointDamaged(StepwellError):
    """A checkpoint's checksum or form is wrong; the run stays as it is."""


class ServerStopping(StepwellError):
    """The server is shutting down; raised only where a call must not be repeated."""


class ServerUnavailable(StepwellError, ConnectionError):
    """No server answered within patience_seconds; also a ConnectionError."""


class TimedOut(StepwellError, TimeoutError):
    """The call did not end within its timeout, or within patience_seconds; also a TimeoutError."""


class Internal(StepwellError):
    """A fault of the server; its log has the cause."""


def from_reason(name: str, message: str, details: Mapping[str, str]) -> StepwellError:
    """The typed error for the name of a reason, with or without its prefix."""
    name = name.removeprefix(REASON_PREFIX)
    known = REASON_PREFIX + name in errors_pb2.ErrorReason.keys()  # noqa: SIM118 (the enum's wrapper is no mapping)
    code = errors_pb2.ErrorReason.Value(REASON_PREFIX + name) if known else 0
    error = BY_REASON.get(code, StepwellError)(message, details)
    error.reason = name  # says more than the base class where the reason is not known here
    return error


def from_message(error: errors_pb2.Error) -> StepwellError:
    """The typed error for the Error of an exchange on a worker's stream."""
    known = error.reason in errors_pb2.ErrorReason.values()
    name = errors_pb2.ErrorReason.Name(error.reason) if known else str(error.reason)
    return from_reason(name, error.message, error.details)


def from_status(status: bytes, message: str) -> StepwellError | None:
    """The typed error in a failed call's google.rpc.Status; None if it holds no ErrorInfo of Stepwell's."""
    try:
        rich = status_pb2.Status.FromString(status)
        for packed in rich.details:
            info = error_details_pb2.ErrorInfo()
            if packed.Unpack(info) and info.domain == ERROR_DOMAIN:
                return from_reason(info.reason, rich.message or message, info.metadata)
    except DecodeError:
        pass
    return None
