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
    ├── ServerUnavailable        also a ConnectionError
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


class ContractMismatch(StepwellError): ...


class MalformedRequest(StepwellError): ...


class InvalidName(StepwellError): ...


class SharedMemoryUnavailable(StepwellError): ...


class UnknownOptimizer(StepwellError): ...


class UnknownFlavor(StepwellError): ...


class UnknownSchedule(StepwellError): ...


class UnknownTransform(StepwellError): ...


class UnknownWrapper(StepwellError): ...


class UnknownArgument(StepwellError): ...


class UnknownEncoding(StepwellError): ...


class UnknownPolicy(StepwellError): ...


class PolicyRefused(StepwellError): ...


class StaleUpdate(StepwellError): ...


class EncodingNotAllowed(StepwellError): ...


class InvalidEncoding(StepwellError): ...


class UnknownRun(StepwellError): ...


class UnknownGroup(StepwellError): ...


class UnknownParameter(StepwellError): ...


class UnknownTable(StepwellError): ...


class UnknownWorker(StepwellError): ...


class UnknownCheckpoint(StepwellError): ...


class UnknownPoint(StepwellError): ...


class InvalidValue(StepwellError): ...


class InvalidSpec(StepwellError): ...


class RunDiffers(StepwellError): ...


class RunReplaced(StepwellError): ...


class InvalidGradient(StepwellError): ...


class InvalidRows(StepwellError): ...


class RowsNotSupported(StepwellError): ...


class TableFull(StepwellError): ...


class TablesUnavailable(StepwellError): ...


class InvalidRange(StepwellError): ...


class IncompleteUpdate(StepwellError): ...


class GradientRequired(StepwellError): ...


class InputRequired(StepwellError): ...


class NonfiniteGradient(StepwellError): ...


class SequenceReused(StepwellError): ...


class SequenceTooOld(StepwellError): ...


class SequenceGap(StepwellError): ...


class WorkerFenced(StepwellError): ...


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


class ChangeRefused(StepwellError): ...


class EtagMismatch(StepwellError): ...


class VersionMismatch(StepwellError): ...


class MemoryExhausted(StepwellError): ...


class LimitExceeded(StepwellError): ...


class StorageDisabled(StepwellError): ...


class StorageFailed(StepwellError): ...


class CheckpointExists(StepwellError): ...


class CheckpointDamaged(StepwellError): ...


class ServerStopping(StepwellError): ...


class ServerUnavailable(StepwellError, ConnectionError): ...


class TimedOut(StepwellError, TimeoutError): ...


class Internal(StepwellError): ...


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
