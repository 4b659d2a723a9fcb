from stepwell.v1 import errors_pb2 as _errors_pb2
from stepwell.v1 import run_pb2 as _run_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_COMMITTED: _ClassVar[Outcome]
    OUTCOME_SKIPPED_NONFINITE: _ClassVar[Outcome]
    OUTCOME_DROPPED_LATE: _ClassVar[Outcome]
    OUTCOME_FOLDED: _ClassVar[Outcome]
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_COMMITTED: Outcome
OUTCOME_SKIPPED_NONFINITE: Outcome
OUTCOME_DROPPED_LATE: Outcome
OUTCOME_FOLDED: Outcome

class ShareMemoryRequest(_message.Message):
    __slots__ = ("run", "run_uid", "inputs", "rows_bytes")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ROWS_BYTES_FIELD_NUMBER: _ClassVar[int]
    run: str
    run_uid: bytes
    inputs: _containers.RepeatedScalarFieldContainer[str]
    rows_bytes: int
    def __init__(self, run: _Optional[str] = ..., run_uid: _Optional[bytes] = ..., inputs: _Optional[_Iterable[str]] = ..., rows_bytes: _Optional[int] = ...) -> None: ...

class ShareMemoryResponse(_message.Message):
    __slots__ = ("socket", "token", "vectors", "rows")
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    socket: str
    token: bytes
    vectors: _containers.RepeatedCompositeFieldContainer[SharedVector]
    rows: SharedVector
    def __init__(self, socket: _Optional[str] = ..., token: _Optional[bytes] = ..., vectors: _Optional[_Iterable[_Union[SharedVector, _Mapping]]] = ..., rows: _Optional[_Union[SharedVector, _Mapping]] = ...) -> None: ...

class SharedVector(_message.Message):
    __slots__ = ("group", "input", "handle", "size_bytes")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    group: int
    input: int
    handle: int
    size_bytes: int
    def __init__(self, group: _Optional[int] = ..., input: _Optional[int] = ..., handle: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class UpdateIdentity(_message.Message):
    __slots__ = ("run", "run_uid", "generation", "worker", "epoch", "sequence", "fingerprint", "acknowledged_version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    run_uid: bytes
    generation: int
    worker: str
    epoch: int
    sequence: int
    fingerprint: bytes
    acknowledged_version: int
    def __init__(self, run: _Optional[str] = ..., run_uid: _Optional[bytes] = ..., generation: _Optional[int] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., fingerprint: _Optional[bytes] = ..., acknowledged_version: _Optional[int] = ...) -> None: ...

class UpdateHeader(_message.Message):
    __slots__ = ("identity", "without_gradient", "samples", "hyperparameters", "inputs", "loss", "loss_scale", "sparsity_factor", "base_version", "rows_only", "rows")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LOSS_SCALE_FIELD_NUMBER: _ClassVar[int]
    SPARSITY_FACTOR_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_ONLY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    identity: UpdateIdentity
    without_gradient: _containers.RepeatedScalarFieldContainer[int]
    samples: float
    hyperparameters: _containers.RepeatedCompositeFieldContainer[GroupHyperparameters]
    inputs: _containers.RepeatedScalarFieldContainer[str]
    loss: float
    loss_scale: float
    sparsity_factor: float
    base_version: int
    rows_only: bool
    rows: _containers.RepeatedCompositeFieldContainer[RowsCount]
    def __init__(self, identity: _Optional[_Union[UpdateIdentity, _Mapping]] = ..., without_gradient: _Optional[_Iterable[int]] = ..., samples: _Optional[float] = ..., hyperparameters: _Optional[_Iterable[_Union[GroupHyperparameters, _Mapping]]] = ..., inputs: _Optional[_Iterable[str]] = ..., loss: _Optional[float] = ..., loss_scale: _Optional[float] = ..., sparsity_factor: _Optional[float] = ..., base_version: _Optional[int] = ..., rows_only: bool = ..., rows: _Optional[_Iterable[_Union[RowsCount, _Mapping]]] = ...) -> None: ...

class RowsCount(_message.Message):
    __slots__ = ("table", "count")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    table: int
    count: int
    def __init__(self, table: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class GroupHyperparameters(_message.Message):
    __slots__ = ("group", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    GROUP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    group: str
    values: _containers.ScalarMap[str, float]
    def __init__(self, group: _Optional[str] = ..., values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class Stage(_message.Message):
    __slots__ = ("header", "ranges", "shared_memory", "rows")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    header: UpdateHeader
    ranges: _containers.RepeatedCompositeFieldContainer[_run_pb2.Range]
    shared_memory: bytes
    rows: _containers.RepeatedCompositeFieldContainer[_run_pb2.Rows]
    def __init__(self, header: _Optional[_Union[UpdateHeader, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[_run_pb2.Range, _Mapping]]] = ..., shared_memory: _Optional[bytes] = ..., rows: _Optional[_Iterable[_Union[_run_pb2.Rows, _Mapping]]] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("identity", "without_gradient")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    WITHOUT_GRADIENT_FIELD_NUMBER: _ClassVar[int]
    identity: UpdateIdentity
    without_gradient: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, identity: _Optional[_Union[UpdateIdentity, _Mapping]] = ..., without_gradient: _Optional[_Iterable[int]] = ...) -> None: ...

class Selection(_message.Message):
    __slots__ = ("run", "parameters", "if_newer_than", "run_uid", "point", "shared_memory", "encoded", "rows", "rows_only")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    IF_NEWER_THAN_FIELD_NUMBER: _ClassVar[int]
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    POINT_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_ONLY_FIELD_NUMBER: _ClassVar[int]
    run: str
    parameters: _containers.RepeatedScalarFieldContainer[int]
    if_newer_than: int
    run_uid: bytes
    point: str
    shared_memory: bytes
    encoded: bool
    rows: _containers.RepeatedCompositeFieldContainer[_run_pb2.Rows]
    rows_only: bool
    def __init__(self, run: _Optional[str] = ..., parameters: _Optional[_Iterable[int]] = ..., if_newer_than: _Optional[int] = ..., run_uid: _Optional[bytes] = ..., point: _Optional[str] = ..., shared_memory: _Optional[bytes] = ..., encoded: bool = ..., rows: _Optional[_Iterable[_Union[_run_pb2.Rows, _Mapping]]] = ..., rows_only: bool = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("outcome", "committed_version", "loss_scale", "gradient_norms", "parameter_norms")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOSS_SCALE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORMS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_NORMS_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    committed_version: int
    loss_scale: float
    gradient_norms: Norms
    parameter_norms: Norms
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., committed_version: _Optional[int] = ..., loss_scale: _Optional[float] = ..., gradient_norms: _Optional[_Union[Norms, _Mapping]] = ..., parameter_norms: _Optional[_Union[Norms, _Mapping]] = ...) -> None: ...

class Norms(_message.Message):
    __slots__ = ("l1", "l2", "maximum")
    L1_FIELD_NUMBER: _ClassVar[int]
    L2_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    l1: float
    l2: float
    maximum: float
    def __init__(self, l1: _Optional[float] = ..., l2: _Optional[float] = ..., maximum: _Optional[float] = ...) -> None: ...

class ParametersHeader(_message.Message):
    __slots__ = ("version", "unchanged", "data_bytes", "vectors")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    DATA_BYTES_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    version: int
    unchanged: bool
    data_bytes: int
    vectors: _containers.RepeatedCompositeFieldContainer[SharedVector]
    def __init__(self, version: _Optional[int] = ..., unchanged: bool = ..., data_bytes: _Optional[int] = ..., vectors: _Optional[_Iterable[_Union[SharedVector, _Mapping]]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("stage", "commit")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    commit: Commit
    def __init__(self, stage: _Optional[_Union[Stage, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("answer",)
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("selection",)
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    selection: Selection
    def __init__(self, selection: _Optional[_Union[Selection, _Mapping]] = ...) -> None: ...

class PullResponse(_message.Message):
    __slots__ = ("parameters", "ranges", "rows")
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    parameters: ParametersHeader
    ranges: _containers.RepeatedCompositeFieldContainer[_run_pb2.Range]
    rows: _containers.RepeatedCompositeFieldContainer[_run_pb2.Rows]
    def __init__(self, parameters: _Optional[_Union[ParametersHeader, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[_run_pb2.Range, _Mapping]]] = ..., rows: _Optional[_Iterable[_Union[_run_pb2.Rows, _Mapping]]] = ...) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("stage", "commit", "selection")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    commit: Commit
    selection: Selection
    def __init__(self, stage: _Optional[_Union[Stage, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., selection: _Optional[_Union[Selection, _Mapping]] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("answer", "parameters", "ranges", "rows")
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    answer: Answer
    parameters: ParametersHeader
    ranges: _containers.RepeatedCompositeFieldContainer[_run_pb2.Range]
    rows: _containers.RepeatedCompositeFieldContainer[_run_pb2.Rows]
    def __init__(self, answer: _Optional[_Union[Answer, _Mapping]] = ..., parameters: _Optional[_Union[ParametersHeader, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[_run_pb2.Range, _Mapping]]] = ..., rows: _Optional[_Iterable[_Union[_run_pb2.Rows, _Mapping]]] = ...) -> None: ...

class WorkRequest(_message.Message):
    __slots__ = ("exchange", "stage", "commit", "selection", "last", "release")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    SELECTION_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    exchange: int
    stage: Stage
    commit: Commit
    selection: Selection
    last: bool
    release: bytes
    def __init__(self, exchange: _Optional[int] = ..., stage: _Optional[_Union[Stage, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ..., selection: _Optional[_Union[Selection, _Mapping]] = ..., last: bool = ..., release: _Optional[bytes] = ...) -> None: ...

class WorkResponse(_message.Message):
    __slots__ = ("exchange", "answer", "parameters", "ranges", "error", "done", "rows")
    EXCHANGE_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    exchange: int
    answer: Answer
    parameters: ParametersHeader
    ranges: _containers.RepeatedCompositeFieldContainer[_run_pb2.Range]
    error: _errors_pb2.Error
    done: bool
    rows: _containers.RepeatedCompositeFieldContainer[_run_pb2.Rows]
    def __init__(self, exchange: _Optional[int] = ..., answer: _Optional[_Union[Answer, _Mapping]] = ..., parameters: _Optional[_Union[ParametersHeader, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[_run_pb2.Range, _Mapping]]] = ..., error: _Optional[_Union[_errors_pb2.Error, _Mapping]] = ..., done: bool = ..., rows: _Optional[_Iterable[_Union[_run_pb2.Rows, _Mapping]]] = ...) -> None: ...
