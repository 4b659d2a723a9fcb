"""What can go wrong in the domain. No status codes here: `service/errors.py` maps each class to the wire.

DomainError
├── InvalidName              a name outside its alphabet or length
├── UnknownOptimizer, UnknownFlavor, UnknownSchedule, UnknownTransform, UnknownWrapper, UnknownArgument,
│   UnknownEncoding, UnknownPolicy
├── UnknownRun, UnknownGroup, UnknownParameter, UnknownWorker, UnknownCheckpoint, UnknownPoint
├── InvalidValue             wrong kind, out of range, or not finite
├── InvalidSpec              parts of a spec that do not fit together
├── RunDiffers               a run of this name exists with another spec
├── RunReplaced              the run was deleted, and perhaps made anew, since the worker joined
├── InvalidUpdate
│   ├── InvalidRange         outside its group, unaligned, overlapping, or of a parameter that sends nothing
│   ├── EncodingNotAllowed   a range in an encoding that the run does not have
│   ├── InvalidEncoding      an encoded range whose parts do not fit together
│   ├── IncompleteUpdate     a declared parameter whose bytes did not all arrive
│   ├── GradientRequired     no gradient where the flavor counts one step for the whole run
│   ├── InvalidRows          ids or row gradients of another type, shape or number than the table's
│   ├── InputRequired        without a loss, or a further vector, that the run's optimizer needs
│   └── NonfiniteGradient
├── IdentityError
│   ├── SequenceReused, SequenceTooOld, SequenceGap
│   ├── WorkerFenced         a newer join under the same worker name
│   └── RunRewound           the run went back to an older state
├── StaleUpdate              taken at parameters that are older than the policy allows
├── ChangeRefused            a live change that would add or remove a slot
├── PolicyRefused            a live change of the policy that would leave workers waiting for ever
├── EtagMismatch, VersionMismatch
├── UnknownTable
├── RowsNotSupported         an optimizer, or a way to use it, that cannot work on a table's rows
├── TableFull                more rows than the table may have, and none that may be evicted
├── TablesUnavailable        the server's device has no tables
├── MemoryExhausted, LimitExceeded
├── StorageDisabled, StorageFailed, CheckpointExists, CheckpointDamaged
├── MalformedRequest         a message without a part that it must have
├── ContractMismatch
└── ServerStopping
"""


class DomainError(Exception):
    """Base of every error that a caller can cause or must handle.

    The message says what was got, what was expected, and what to do. `details` holds the same facts for
    programs: short names to short texts.
    """

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.details = {name: str(value) for name, value in details.items()}


class InvalidName(DomainError): ...


class UnknownOptimizer(DomainError): ...


class UnknownFlavor(DomainError): ...


class UnknownSchedule(DomainError): ...


class UnknownTransform(DomainError): ...


class UnknownWrapper(DomainError): ...


class UnknownArgument(DomainError): ...


class UnknownEncoding(DomainError): ...


class UnknownPolicy(DomainError): ...


class UnknownRun(DomainError): ...


class UnknownGroup(DomainError): ...


class UnknownParameter(DomainError): ...


class UnknownWorker(DomainError): ...


class UnknownCheckpoint(DomainError): ...


class UnknownPoint(DomainError): ...


class InvalidValue(DomainError): ...


class InvalidSpec(DomainError): ...


class RunDiffers(DomainError): ...


class RunReplaced(DomainError): ...


class InvalidUpdate(DomainError): ...


class InvalidRange(InvalidUpdate): ...


class EncodingNotAllowed(InvalidUpdate): ...


class InvalidEncoding(InvalidUpdate): ...


class IncompleteUpdate(InvalidUpdate): ...


class GradientRequired(InvalidUpdate): ...


class InvalidRows(InvalidUpdate): ...


class InputRequired(InvalidUpdate): ...


class NonfiniteGradient(InvalidUpdate): ...


class IdentityError(DomainError): ...


class SequenceReused(IdentityError): ...


class SequenceTooOld(IdentityError): ...


class SequenceGap(IdentityError): ...


class WorkerFenced(IdentityError): ...


class RunRewound(IdentityError): ...


class StaleUpdate(DomainError): ...


class ChangeRefused(DomainError): ...


class PolicyRefused(DomainError): ...


class EtagMismatch(DomainError): ...


class VersionMismatch(DomainError): ...


class UnknownTable(DomainError): ...


class RowsNotSupported(DomainError): ...


class TableFull(DomainError): ...


class TablesUnavailable(DomainError): ...


class MemoryExhausted(DomainError): ...


class LimitExceeded(DomainError): ...


class StorageDisabled(DomainError): ...


class StorageFailed(DomainError): ...


class CheckpointExists(DomainError): ...


class CheckpointDamaged(DomainError): ...


class ServerStopping(DomainError): ...


class MalformedRequest(DomainError): ...


class ContractMismatch(DomainError): ...


class SharedMemoryUnavailable(DomainError): ...
