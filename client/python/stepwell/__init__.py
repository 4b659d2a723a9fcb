"""Stepwell's client: push gradients to an optimizer that runs as a service, pull parameters back.

    import stepwell

    with stepwell.connect("127.0.0.1:50051") as client:
        with client.create_run("mnist", {"w": w, "b": b}, optimizer="adam", hyperparameters={"lr": 1e-3}) as run:
            params = run.step({"w": gw, "b": gb})

`stepwell.aio` has the same names with `await`. Below is everything that is public.
"""

# Before gRPC is imported anywhere: what it shall not do when the process forks.
from stepwell import _forks as _forks

# isort: split
# Where it begins.
from stepwell._blocking_client import Client as Client
from stepwell._blocking_client import Run as Run
from stepwell._blocking_client import Update as Update
from stepwell._blocking_client import connect as connect

# What calls return and take.
from stepwell._descriptions import Answer as Answer
from stepwell._descriptions import Argument as Argument
from stepwell._descriptions import Checkpoint as Checkpoint
from stepwell._descriptions import FlavorDescription as FlavorDescription
from stepwell._descriptions import GroupDescription as GroupDescription
from stepwell._descriptions import Norms as Norms
from stepwell._descriptions import OptimizerDescription as OptimizerDescription
from stepwell._descriptions import Outcome as Outcome
from stepwell._descriptions import PartDescription as PartDescription
from stepwell._descriptions import Place as Place
from stepwell._descriptions import RunDescription as RunDescription
from stepwell._descriptions import ScheduleDescription as ScheduleDescription
from stepwell._descriptions import ServerDescription as ServerDescription
from stepwell._descriptions import TableDescription as TableDescription
from stepwell._descriptions import Tally as Tally
from stepwell._descriptions import WorkerDescription as WorkerDescription
from stepwell._difference import difference as difference
from stepwell._state import State as State

# What can go wrong; the tree is drawn in stepwell.errors.
from stepwell.errors import ChangeRefused as ChangeRefused
from stepwell.errors import CheckpointDamaged as CheckpointDamaged
from stepwell.errors import CheckpointExists as CheckpointExists
from stepwell.errors import ContractMismatch as ContractMismatch
from stepwell.errors import EncodingNotAllowed as EncodingNotAllowed
from stepwell.errors import EtagMismatch as EtagMismatch
from stepwell.errors import GradientRequired as GradientRequired
from stepwell.errors import IncompleteUpdate as IncompleteUpdate
from stepwell.errors import InputRequired as InputRequired
from stepwell.errors import Internal as Internal
from stepwell.errors import InvalidEncoding as InvalidEncoding
from stepwell.errors import InvalidGradient as InvalidGradient
from stepwell.errors import InvalidName as InvalidName
from stepwell.errors import InvalidRange as InvalidRange
from stepwell.errors import InvalidRows as InvalidRows
from stepwell.errors import InvalidSpec as InvalidSpec
from stepwell.errors import InvalidValue as InvalidValue
from stepwell.errors import LimitExceeded as LimitExceeded
from stepwell.errors import MalformedRequest as MalformedRequest
from stepwell.errors import MemoryExhausted as MemoryExhausted
from stepwell.errors import NonfiniteGradient as NonfiniteGradient
from stepwell.errors import PolicyRefused as PolicyRefused
from stepwell.errors import RowsNotSupported as RowsNotSupported
from stepwell.errors import RunDiffers as RunDiffers
from stepwell.errors import RunReplaced as RunReplaced
from stepwell.errors import RunRewound as RunRewound
from stepwell.errors import SequenceGap as SequenceGap
from stepwell.errors import SequenceReused as SequenceReused
from stepwell.errors import SequenceTooOld as SequenceTooOld
from stepwell.errors import ServerStopping as ServerStopping
from stepwell.errors import ServerUnavailable as ServerUnavailable
from stepwell.errors import SharedMemoryUnavailable as SharedMemoryUnavailable
from stepwell.errors import StaleUpdate as StaleUpdate
from stepwell.errors import StepwellError as StepwellError
from stepwell.errors import StorageDisabled as StorageDisabled
from stepwell.errors import StorageFailed as StorageFailed
from stepwell.errors import TableFull as TableFull
from stepwell.errors import TablesUnavailable as TablesUnavailable
from stepwell.errors import TimedOut as TimedOut
from stepwell.errors import UnknownArgument as UnknownArgument
from stepwell.errors import UnknownCheckpoint as UnknownCheckpoint
from stepwell.errors import UnknownEncoding as UnknownEncoding
from stepwell.errors import UnknownFlavor as UnknownFlavor
from stepwell.errors import UnknownGroup as UnknownGroup
from stepwell.errors import UnknownOptimizer as UnknownOptimizer
from stepwell.errors import UnknownParameter as UnknownParameter
from stepwell.errors import UnknownPoint as UnknownPoint
from stepwell.errors import UnknownPolicy as UnknownPolicy
from stepwell.errors import UnknownRun as UnknownRun
from stepwell.errors import UnknownSchedule as UnknownSchedule
from stepwell.errors import UnknownTable as UnknownTable
from stepwell.errors import UnknownTransform as UnknownTransform
from stepwell.errors import UnknownWorker as UnknownWorker
from stepwell.errors import UnknownWrapper as UnknownWrapper
from stepwell.errors import VersionMismatch as VersionMismatch
from stepwell.errors import WorkerFenced as WorkerFenced

__all__ = [
    "Answer",
    "Argument",
    "ChangeRefused",
    "Checkpoint",
    "CheckpointDamaged",
    "CheckpointExists",
    "Client",
    "ContractMismatch",
    "EncodingNotAllowed",
    "EtagMismatch",
    "FlavorDescription",
    "GradientRequired",
    "GroupDescription",
    "IncompleteUpdate",
    "InputRequired",
    "Internal",
    "InvalidEncoding",
    "InvalidGradient",
    "InvalidName",
    "InvalidRange",
    "InvalidRows",
    "InvalidSpec",
    "InvalidValue",
    "LimitExceeded",
    "MalformedRequest",
    "MemoryExhausted",
    "NonfiniteGradient",
    "Norms",
    "OptimizerDescription",
    "Outcome",
    "PartDescription",
    "Place",
    "PolicyRefused",
    "RowsNotSupported",
    "Run",
    "RunDescription",
    "RunDiffers",
    "RunReplaced",
    "RunRewound",
    "ScheduleDescription",
    "SequenceGap",
    "SequenceReused",
    "SequenceTooOld",
    "ServerDescription",
    "ServerStopping",
    "ServerUnavailable",
    "SharedMemoryUnavailable",
    "StaleUpdate",
    "State",
    "StepwellError",
    "StorageDisabled",
    "StorageFailed",
    "TableDescription",
    "TableFull",
    "TablesUnavailable",
    "Tally",
    "TimedOut",
    "UnknownArgument",
    "UnknownCheckpoint",
    "UnknownEncoding",
    "UnknownFlavor",
    "UnknownGroup",
    "UnknownOptimizer",
    "UnknownParameter",
    "UnknownPoint",
    "UnknownPolicy",
    "UnknownRun",
    "UnknownSchedule",
    "UnknownTable",
    "UnknownTransform",
    "UnknownWorker",
    "UnknownWrapper",
    "Update",
    "VersionMismatch",
    "WorkerDescription",
    "WorkerFenced",
    "connect",
    "difference",
]
