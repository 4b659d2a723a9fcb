from stepwell.v1 import run_pb2 as _run_pb2
from stepwell.v1 import values_pb2 as _values_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Creation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CREATION_UNSPECIFIED: _ClassVar[Creation]
    CREATION_WAIT: _ClassVar[Creation]
    CREATION_SEND_VALUES: _ClassVar[Creation]
    CREATION_WORKING: _ClassVar[Creation]
    CREATION_EXISTS: _ClassVar[Creation]
    CREATION_CREATED: _ClassVar[Creation]

class StateKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_KIND_UNSPECIFIED: _ClassVar[StateKind]
    STATE_KIND_PARAMETERS: _ClassVar[StateKind]
    STATE_KIND_SLOT: _ClassVar[StateKind]
    STATE_KIND_SCALAR: _ClassVar[StateKind]
    STATE_KIND_STEPS: _ClassVar[StateKind]
CREATION_UNSPECIFIED: Creation
CREATION_WAIT: Creation
CREATION_SEND_VALUES: Creation
CREATION_WORKING: Creation
CREATION_EXISTS: Creation
CREATION_CREATED: Creation
STATE_KIND_UNSPECIFIED: StateKind
STATE_KIND_PARAMETERS: StateKind
STATE_KIND_SLOT: StateKind
STATE_KIND_SCALAR: StateKind
STATE_KIND_STEPS: StateKind

class GetServerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerResponse(_message.Message):
    __slots__ = ("version", "contract", "message_bytes_max", "range_bytes", "memory_bytes_max", "outstanding_updates_max", "word_seconds")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTRACT_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    RANGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    OUTSTANDING_UPDATES_MAX_FIELD_NUMBER: _ClassVar[int]
    WORD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    version: str
    contract: str
    message_bytes_max: int
    range_bytes: int
    memory_bytes_max: int
    outstanding_updates_max: int
    word_seconds: float
    def __init__(self, version: _Optional[str] = ..., contract: _Optional[str] = ..., message_bytes_max: _Optional[int] = ..., range_bytes: _Optional[int] = ..., memory_bytes_max: _Optional[int] = ..., outstanding_updates_max: _Optional[int] = ..., word_seconds: _Optional[float] = ...) -> None: ...

class CreateRunRequest(_message.Message):
    __slots__ = ("run", "spec", "spec_complete", "values", "values_complete")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SPEC_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    VALUES_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    run: str
    spec: _run_pb2.Spec
    spec_complete: bool
    values: _containers.RepeatedCompositeFieldContainer[_run_pb2.Range]
    values_complete: bool
    def __init__(self, run: _Optional[str] = ..., spec: _Optional[_Union[_run_pb2.Spec, _Mapping]] = ..., spec_complete: bool = ..., values: _Optional[_Iterable[_Union[_run_pb2.Range, _Mapping]]] = ..., values_complete: bool = ...) -> None: ...

class CreateRunResponse(_message.Message):
    __slots__ = ("creation", "layout", "run")
    CREATION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    creation: Creation
    layout: _run_pb2.Layout
    run: _run_pb2.Run
    def __init__(self, creation: _Optional[_Union[Creation, str]] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ..., run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("run", "worker", "lease_seconds")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    run: str
    worker: str
    lease_seconds: float
    def __init__(self, run: _Optional[str] = ..., worker: _Optional[str] = ..., lease_seconds: _Optional[float] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("membership", "layout")
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    membership: Membership
    layout: _run_pb2.Layout
    def __init__(self, membership: _Optional[_Union[Membership, _Mapping]] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ...) -> None: ...

class Membership(_message.Message):
    __slots__ = ("run_uid", "generation", "epoch", "version", "last_sequence", "last_epoch", "lease_seconds", "place")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    run_uid: bytes
    generation: int
    epoch: int
    version: int
    last_sequence: int
    last_epoch: int
    lease_seconds: float
    place: Place
    def __init__(self, run_uid: _Optional[bytes] = ..., generation: _Optional[int] = ..., epoch: _Optional[int] = ..., version: _Optional[int] = ..., last_sequence: _Optional[int] = ..., last_epoch: _Optional[int] = ..., lease_seconds: _Optional[float] = ..., place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class Place(_message.Message):
    __slots__ = ("index", "count", "membership_number")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_NUMBER_FIELD_NUMBER: _ClassVar[int]
    index: int
    count: int
    membership_number: int
    def __init__(self, index: _Optional[int] = ..., count: _Optional[int] = ..., membership_number: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("run", "worker", "epoch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run: str
    worker: str
    epoch: int
    def __init__(self, run: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("place",)
    PLACE_FIELD_NUMBER: _ClassVar[int]
    place: Place
    def __init__(self, place: _Optional[_Union[Place, _Mapping]] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("run", "worker", "epoch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run: str
    worker: str
    epoch: int
    def __init__(self, run: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BarrierRequest(_message.Message):
    __slots__ = ("run", "worker", "epoch", "barrier", "call")
    RUN_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BARRIER_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    run: str
    worker: str
    epoch: int
    barrier: str
    call: int
    def __init__(self, run: _Optional[str] = ..., worker: _Optional[str] = ..., epoch: _Optional[int] = ..., barrier: _Optional[str] = ..., call: _Optional[int] = ...) -> None: ...

class BarrierResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: bool = ...) -> None: ...

class GetLayoutRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class GetLayoutResponse(_message.Message):
    __slots__ = ("run_uid", "layout")
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    run_uid: bytes
    layout: _run_pb2.Layout
    def __init__(self, run_uid: _Optional[bytes] = ..., layout: _Optional[_Union[_run_pb2.Layout, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[_run_pb2.Run]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[_run_pb2.Run, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class UpdateRunRequest(_message.Message):
    __slots__ = ("run", "group", "hyperparameters", "schedules", "schedules_removed", "keep_clock", "etag", "policy")
    class HyperparametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _values_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...
    class SchedulesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _values_pb2.Schedule
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_values_pb2.Schedule, _Mapping]] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_REMOVED_FIELD_NUMBER: _ClassVar[int]
    KEEP_CLOCK_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    run: str
    group: str
    hyperparameters: _containers.MessageMap[str, _values_pb2.Value]
    schedules: _containers.MessageMap[str, _values_pb2.Schedule]
    schedules_removed: _containers.RepeatedScalarFieldContainer[str]
    keep_clock: bool
    etag: str
    policy: _values_pb2.Policy
    def __init__(self, run: _Optional[str] = ..., group: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, _values_pb2.Value]] = ..., schedules: _Optional[_Mapping[str, _values_pb2.Schedule]] = ..., schedules_removed: _Optional[_Iterable[str]] = ..., keep_clock: bool = ..., etag: _Optional[str] = ..., policy: _Optional[_Union[_values_pb2.Policy, _Mapping]] = ...) -> None: ...

class UpdateRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("run", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    run: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, run: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class DeleteRunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class DeleteRunResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOptimizersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOptimizersResponse(_message.Message):
    __slots__ = ("optimizers",)
    OPTIMIZERS_FIELD_NUMBER: _ClassVar[int]
    optimizers: _containers.RepeatedCompositeFieldContainer[Optimizer]
    def __init__(self, optimizers: _Optional[_Iterable[_Union[Optimizer, _Mapping]]] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("name", "summary", "reference", "matches", "flavors", "inputs", "required", "points")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    FLAVORS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    reference: str
    matches: str
    flavors: _containers.RepeatedCompositeFieldContainer[Flavor]
    inputs: _containers.RepeatedScalarFieldContainer[str]
    required: _containers.RepeatedScalarFieldContainer[str]
    points: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., reference: _Optional[str] = ..., matches: _Optional[str] = ..., flavors: _Optional[_Iterable[_Union[Flavor, _Mapping]]] = ..., inputs: _Optional[_Iterable[str]] = ..., required: _Optional[_Iterable[str]] = ..., points: _Optional[_Iterable[str]] = ...) -> None: ...

class Flavor(_message.Message):
    __slots__ = ("name", "arguments", "slots", "scalars", "step_per_parameter")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    STEP_PER_PARAMETER_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _containers.RepeatedCompositeFieldContainer[_values_pb2.Argument]
    slots: _containers.RepeatedScalarFieldContainer[str]
    scalars: _containers.RepeatedScalarFieldContainer[str]
    step_per_parameter: bool
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[_values_pb2.Argument, _Mapping]]] = ..., slots: _Optional[_Iterable[str]] = ..., scalars: _Optional[_Iterable[str]] = ..., step_per_parameter: bool = ...) -> None: ...

class ListSchedulesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSchedulesResponse(_message.Message):
    __slots__ = ("schedules",)
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    schedules: _containers.RepeatedCompositeFieldContainer[ScheduleDescription]
    def __init__(self, schedules: _Optional[_Iterable[_Union[ScheduleDescription, _Mapping]]] = ...) -> None: ...

class ScheduleDescription(_message.Message):
    __slots__ = ("name", "summary", "reference", "matches", "arguments", "absolute", "children_min", "children_max")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_MIN_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_MAX_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    reference: str
    matches: str
    arguments: _containers.RepeatedCompositeFieldContainer[_values_pb2.Argument]
    absolute: bool
    children_min: int
    children_max: int
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., reference: _Optional[str] = ..., matches: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[_values_pb2.Argument, _Mapping]]] = ..., absolute: bool = ..., children_min: _Optional[int] = ..., children_max: _Optional[int] = ...) -> None: ...

class ListPartsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPartsResponse(_message.Message):
    __slots__ = ("transforms", "wrappers", "gradient_encodings", "parameter_encodings", "policies")
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    WRAPPERS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_ENCODINGS_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    transforms: _containers.RepeatedCompositeFieldContainer[PartDescription]
    wrappers: _containers.RepeatedCompositeFieldContainer[PartDescription]
    gradient_encodings: _containers.RepeatedCompositeFieldContainer[PartDescription]
    parameter_encodings: _containers.RepeatedCompositeFieldContainer[PartDescription]
    policies: _containers.RepeatedCompositeFieldContainer[PartDescription]
    def __init__(self, transforms: _Optional[_Iterable[_Union[PartDescription, _Mapping]]] = ..., wrappers: _Optional[_Iterable[_Union[PartDescription, _Mapping]]] = ..., gradient_encodings: _Optional[_Iterable[_Union[PartDescription, _Mapping]]] = ..., parameter_encodings: _Optional[_Iterable[_Union[PartDescription, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[PartDescription, _Mapping]]] = ...) -> None: ...

class PartDescription(_message.Message):
    __slots__ = ("name", "summary", "reference", "matches", "arguments", "points")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MATCHES_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    reference: str
    matches: str
    arguments: _containers.RepeatedCompositeFieldContainer[_values_pb2.Argument]
    points: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., reference: _Optional[str] = ..., matches: _Optional[str] = ..., arguments: _Optional[_Iterable[_Union[_values_pb2.Argument, _Mapping]]] = ..., points: _Optional[_Iterable[str]] = ...) -> None: ...

class PreviewScheduleRequest(_message.Message):
    __slots__ = ("schedule", "initial", "steps")
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    schedule: _values_pb2.Schedule
    initial: float
    steps: int
    def __init__(self, schedule: _Optional[_Union[_values_pb2.Schedule, _Mapping]] = ..., initial: _Optional[float] = ..., steps: _Optional[int] = ...) -> None: ...

class PreviewScheduleResponse(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class StateHeader(_message.Message):
    __slots__ = ("version", "samples", "run_uid", "generation")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    RUN_UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    version: int
    samples: float
    run_uid: bytes
    generation: int
    def __init__(self, version: _Optional[int] = ..., samples: _Optional[float] = ..., run_uid: _Optional[bytes] = ..., generation: _Optional[int] = ...) -> None: ...

class StateRange(_message.Message):
    __slots__ = ("kind", "name", "range")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    RANGE_FIELD_NUMBER: _ClassVar[int]
    kind: StateKind
    name: str
    range: _run_pb2.Range
    def __init__(self, kind: _Optional[_Union[StateKind, str]] = ..., name: _Optional[str] = ..., range: _Optional[_Union[_run_pb2.Range, _Mapping]] = ...) -> None: ...

class SlotShapes(_message.Message):
    __slots__ = ("group", "name", "shapes")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    group: int
    name: str
    shapes: _containers.RepeatedCompositeFieldContainer[Shape]
    def __init__(self, group: _Optional[int] = ..., name: _Optional[str] = ..., shapes: _Optional[_Iterable[_Union[Shape, _Mapping]]] = ...) -> None: ...

class Shape(_message.Message):
    __slots__ = ("lengths",)
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, lengths: _Optional[_Iterable[int]] = ...) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("header", "ranges", "slot_shapes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    SLOT_SHAPES_FIELD_NUMBER: _ClassVar[int]
    header: StateHeader
    ranges: _containers.RepeatedCompositeFieldContainer[StateRange]
    slot_shapes: _containers.RepeatedCompositeFieldContainer[SlotShapes]
    def __init__(self, header: _Optional[_Union[StateHeader, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[StateRange, _Mapping]]] = ..., slot_shapes: _Optional[_Iterable[_Union[SlotShapes, _Mapping]]] = ...) -> None: ...

class SetStateRequest(_message.Message):
    __slots__ = ("run", "expected_version", "header", "ranges")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RANGES_FIELD_NUMBER: _ClassVar[int]
    run: str
    expected_version: int
    header: StateHeader
    ranges: _containers.RepeatedCompositeFieldContainer[StateRange]
    def __init__(self, run: _Optional[str] = ..., expected_version: _Optional[int] = ..., header: _Optional[_Union[StateHeader, _Mapping]] = ..., ranges: _Optional[_Iterable[_Union[StateRange, _Mapping]]] = ...) -> None: ...

class SetStateResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("name", "version", "created_seconds", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    created_seconds: float
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., created_seconds: _Optional[float] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class SaveCheckpointRequest(_message.Message):
    __slots__ = ("run", "checkpoint")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    run: str
    checkpoint: str
    def __init__(self, run: _Optional[str] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class SaveCheckpointResponse(_message.Message):
    __slots__ = ("checkpoint",)
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("run", "page_size", "page_token")
    RUN_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run: str
    page_size: int
    page_token: str
    def __init__(self, run: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints", "next_page_token")
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    next_page_token: str
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RestoreCheckpointRequest(_message.Message):
    __slots__ = ("run", "checkpoint")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    run: str
    checkpoint: str
    def __init__(self, run: _Optional[str] = ..., checkpoint: _Optional[str] = ...) -> None: ...

class RestoreCheckpointResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: _run_pb2.Run
    def __init__(self, run: _Optional[_Union[_run_pb2.Run, _Mapping]] = ...) -> None: ...
