from stepwell.v1 import values_pb2 as _values_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    D_TYPE_UNSPECIFIED: _ClassVar[DType]
    D_TYPE_FLOAT32: _ClassVar[DType]
    D_TYPE_FLOAT64: _ClassVar[DType]
    D_TYPE_FLOAT16: _ClassVar[DType]
    D_TYPE_BFLOAT16: _ClassVar[DType]

class Nonfinite(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONFINITE_UNSPECIFIED: _ClassVar[Nonfinite]
    NONFINITE_REJECT: _ClassVar[Nonfinite]
    NONFINITE_SKIP: _ClassVar[Nonfinite]
    NONFINITE_ALLOW: _ClassVar[Nonfinite]
D_TYPE_UNSPECIFIED: DType
D_TYPE_FLOAT32: DType
D_TYPE_FLOAT64: DType
D_TYPE_FLOAT16: DType
D_TYPE_BFLOAT16: DType
NONFINITE_UNSPECIFIED: Nonfinite
NONFINITE_REJECT: Nonfinite
NONFINITE_SKIP: Nonfinite
NONFINITE_ALLOW: Nonfinite

class Spec(_message.Message):
    __slots__ = ("parameters", "optimizer", "flavor", "hyperparameters", "schedules", "groups", "nonfinite", "samples_per_epoch", "definition", "transforms", "wrappers", "report_norms", "gradient_encoding", "parameter_encoding", "policy", "tables")
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
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    FLAVOR_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    NONFINITE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    TRANSFORMS_FIELD_NUMBER: _ClassVar[int]
    WRAPPERS_FIELD_NUMBER: _ClassVar[int]
    REPORT_NORMS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ENCODING_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_ENCODING_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    parameters: _containers.RepeatedCompositeFieldContainer[ParameterSpec]
    optimizer: str
    flavor: str
    hyperparameters: _containers.MessageMap[str, _values_pb2.Value]
    schedules: _containers.MessageMap[str, _values_pb2.Schedule]
    groups: _containers.RepeatedCompositeFieldContainer[GroupSpec]
    nonfinite: Nonfinite
    samples_per_epoch: float
    definition: str
    transforms: _containers.RepeatedCompositeFieldContainer[_values_pb2.Transform]
    wrappers: _containers.RepeatedCompositeFieldContainer[_values_pb2.Wrapper]
    report_norms: bool
    gradient_encoding: _values_pb2.Encoding
    parameter_encoding: _values_pb2.Encoding
    policy: _values_pb2.Policy
    tables: _containers.RepeatedCompositeFieldContainer[TableSpec]
    def __init__(self, parameters: _Optional[_Iterable[_Union[ParameterSpec, _Mapping]]] = ..., optimizer: _Optional[str] = ..., flavor: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, _values_pb2.Value]] = ..., schedules: _Optional[_Mapping[str, _values_pb2.Schedule]] = ..., groups: _Optional[_Iterable[_Union[GroupSpec, _Mapping]]] = ..., nonfinite: _Optional[_Union[Nonfinite, str]] = ..., samples_per_epoch: _Optional[float] = ..., definition: _Optional[str] = ..., transforms: _Optional[_Iterable[_Union[_values_pb2.Transform, _Mapping]]] = ..., wrappers: _Optional[_Iterable[_Union[_values_pb2.Wrapper, _Mapping]]] = ..., report_norms: bool = ..., gradient_encoding: _Optional[_Union[_values_pb2.Encoding, _Mapping]] = ..., parameter_encoding: _Optional[_Union[_values_pb2.Encoding, _Mapping]] = ..., policy: _Optional[_Union[_values_pb2.Policy, _Mapping]] = ..., tables: _Optional[_Iterable[_Union[TableSpec, _Mapping]]] = ...) -> None: ...

class TableSpec(_message.Message):
    __slots__ = ("name", "width", "dtype", "initializer", "seed", "optimizer", "flavor", "hyperparameters", "schedules", "sparse_mode", "rows_max", "admission", "eviction")
    class InitializerEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _values_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...
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
    class AdmissionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _values_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...
    class EvictionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _values_pb2.Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_values_pb2.Value, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    INITIALIZER_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    FLAVOR_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    SPARSE_MODE_FIELD_NUMBER: _ClassVar[int]
    ROWS_MAX_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    EVICTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    width: int
    dtype: DType
    initializer: _containers.MessageMap[str, _values_pb2.Value]
    seed: int
    optimizer: str
    flavor: str
    hyperparameters: _containers.MessageMap[str, _values_pb2.Value]
    schedules: _containers.MessageMap[str, _values_pb2.Schedule]
    sparse_mode: str
    rows_max: int
    admission: _containers.MessageMap[str, _values_pb2.Value]
    eviction: _containers.MessageMap[str, _values_pb2.Value]
    def __init__(self, name: _Optional[str] = ..., width: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., initializer: _Optional[_Mapping[str, _values_pb2.Value]] = ..., seed: _Optional[int] = ..., optimizer: _Optional[str] = ..., flavor: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, _values_pb2.Value]] = ..., schedules: _Optional[_Mapping[str, _values_pb2.Schedule]] = ..., sparse_mode: _Optional[str] = ..., rows_max: _Optional[int] = ..., admission: _Optional[_Mapping[str, _values_pb2.Value]] = ..., eviction: _Optional[_Mapping[str, _values_pb2.Value]] = ...) -> None: ...

class ParameterSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    dtype: DType
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[DType, str]] = ...) -> None: ...

class GroupSpec(_message.Message):
    __slots__ = ("name", "parameters", "optimizer", "flavor", "hyperparameters", "schedules", "frozen", "definition")
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
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    FLAVOR_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    DEFINITION_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.RepeatedScalarFieldContainer[str]
    optimizer: str
    flavor: str
    hyperparameters: _containers.MessageMap[str, _values_pb2.Value]
    schedules: _containers.MessageMap[str, _values_pb2.Schedule]
    frozen: bool
    definition: str
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Iterable[str]] = ..., optimizer: _Optional[str] = ..., flavor: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, _values_pb2.Value]] = ..., schedules: _Optional[_Mapping[str, _values_pb2.Schedule]] = ..., frozen: bool = ..., definition: _Optional[str] = ...) -> None: ...

class Layout(_message.Message):
    __slots__ = ("groups", "parameters", "last", "tables")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[LayoutGroup]
    parameters: _containers.RepeatedCompositeFieldContainer[LayoutParameter]
    last: bool
    tables: _containers.RepeatedCompositeFieldContainer[LayoutTable]
    def __init__(self, groups: _Optional[_Iterable[_Union[LayoutGroup, _Mapping]]] = ..., parameters: _Optional[_Iterable[_Union[LayoutParameter, _Mapping]]] = ..., last: bool = ..., tables: _Optional[_Iterable[_Union[LayoutTable, _Mapping]]] = ...) -> None: ...

class LayoutTable(_message.Message):
    __slots__ = ("name", "width", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    width: int
    dtype: DType
    def __init__(self, name: _Optional[str] = ..., width: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ...) -> None: ...

class LayoutGroup(_message.Message):
    __slots__ = ("name", "dtype", "vector_bytes", "packed_bytes", "frozen")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    VECTOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    PACKED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FROZEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    vector_bytes: int
    packed_bytes: int
    frozen: bool
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., vector_bytes: _Optional[int] = ..., packed_bytes: _Optional[int] = ..., frozen: bool = ...) -> None: ...

class LayoutParameter(_message.Message):
    __slots__ = ("name", "shape", "group", "vector_offset_bytes", "packed_offset_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    VECTOR_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    PACKED_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    group: int
    vector_offset_bytes: int
    packed_offset_bytes: int
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., group: _Optional[int] = ..., vector_offset_bytes: _Optional[int] = ..., packed_offset_bytes: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("group", "packed_offset_bytes", "data", "input", "dtype", "encoding", "elements", "scales", "indices")
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PACKED_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    group: int
    packed_offset_bytes: int
    data: bytes
    input: int
    dtype: DType
    encoding: str
    elements: int
    scales: bytes
    indices: bytes
    def __init__(self, group: _Optional[int] = ..., packed_offset_bytes: _Optional[int] = ..., data: _Optional[bytes] = ..., input: _Optional[int] = ..., dtype: _Optional[_Union[DType, str]] = ..., encoding: _Optional[str] = ..., elements: _Optional[int] = ..., scales: _Optional[bytes] = ..., indices: _Optional[bytes] = ...) -> None: ...

class Rows(_message.Message):
    __slots__ = ("table", "ids", "data", "first", "shared")
    TABLE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    table: int
    ids: bytes
    data: bytes
    first: int
    shared: SharedRows
    def __init__(self, table: _Optional[int] = ..., ids: _Optional[bytes] = ..., data: _Optional[bytes] = ..., first: _Optional[int] = ..., shared: _Optional[_Union[SharedRows, _Mapping]] = ...) -> None: ...

class SharedRows(_message.Message):
    __slots__ = ("count", "ids_offset_bytes", "data_offset_bytes")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    IDS_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATA_OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    count: int
    ids_offset_bytes: int
    data_offset_bytes: int
    def __init__(self, count: _Optional[int] = ..., ids_offset_bytes: _Optional[int] = ..., data_offset_bytes: _Optional[int] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("name", "uid", "generation", "version", "etag", "samples", "spec", "groups", "workers", "parameters_count", "state_bytes", "skipped_count", "duplicates_count", "loss_scale", "points", "metrics", "policy", "tally", "accumulated_count", "tables")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_COUNT_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_COUNT_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOSS_SCALE_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    TALLY_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATED_COUNT_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    uid: bytes
    generation: int
    version: int
    etag: str
    samples: float
    spec: Spec
    groups: _containers.RepeatedCompositeFieldContainer[GroupState]
    workers: _containers.RepeatedCompositeFieldContainer[Worker]
    parameters_count: int
    state_bytes: int
    skipped_count: int
    duplicates_count: int
    loss_scale: float
    points: _containers.RepeatedScalarFieldContainer[str]
    metrics: _containers.ScalarMap[str, float]
    policy: _values_pb2.Policy
    tally: Tally
    accumulated_count: int
    tables: _containers.RepeatedCompositeFieldContainer[TableState]
    def __init__(self, name: _Optional[str] = ..., uid: _Optional[bytes] = ..., generation: _Optional[int] = ..., version: _Optional[int] = ..., etag: _Optional[str] = ..., samples: _Optional[float] = ..., spec: _Optional[_Union[Spec, _Mapping]] = ..., groups: _Optional[_Iterable[_Union[GroupState, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[Worker, _Mapping]]] = ..., parameters_count: _Optional[int] = ..., state_bytes: _Optional[int] = ..., skipped_count: _Optional[int] = ..., duplicates_count: _Optional[int] = ..., loss_scale: _Optional[float] = ..., points: _Optional[_Iterable[str]] = ..., metrics: _Optional[_Mapping[str, float]] = ..., policy: _Optional[_Union[_values_pb2.Policy, _Mapping]] = ..., tally: _Optional[_Union[Tally, _Mapping]] = ..., accumulated_count: _Optional[int] = ..., tables: _Optional[_Iterable[_Union[TableState, _Mapping]]] = ...) -> None: ...

class TableState(_message.Message):
    __slots__ = ("name", "rows", "created", "refused", "evicted", "state_bytes", "step", "optimizer", "flavor", "hyperparameters", "schedules", "slots")
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
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    EVICTED_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    FLAVOR_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    created: int
    refused: int
    evicted: int
    state_bytes: int
    step: int
    optimizer: str
    flavor: str
    hyperparameters: _containers.MessageMap[str, _values_pb2.Value]
    schedules: _containers.MessageMap[str, _values_pb2.Schedule]
    slots: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., created: _Optional[int] = ..., refused: _Optional[int] = ..., evicted: _Optional[int] = ..., state_bytes: _Optional[int] = ..., step: _Optional[int] = ..., optimizer: _Optional[str] = ..., flavor: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, _values_pb2.Value]] = ..., schedules: _Optional[_Mapping[str, _values_pb2.Schedule]] = ..., slots: _Optional[_Iterable[str]] = ...) -> None: ...

class Tally(_message.Message):
    __slots__ = ("commits", "folded", "skipped", "dropped", "refused", "withdrawn", "duplicates", "staleness_last", "staleness_max", "staleness_counts", "gradient_norm_last")
    COMMITS_FIELD_NUMBER: _ClassVar[int]
    FOLDED_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    STALENESS_LAST_FIELD_NUMBER: _ClassVar[int]
    STALENESS_MAX_FIELD_NUMBER: _ClassVar[int]
    STALENESS_COUNTS_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_NORM_LAST_FIELD_NUMBER: _ClassVar[int]
    commits: int
    folded: int
    skipped: int
    dropped: int
    refused: int
    withdrawn: int
    duplicates: int
    staleness_last: int
    staleness_max: int
    staleness_counts: _containers.RepeatedScalarFieldContainer[int]
    gradient_norm_last: float
    def __init__(self, commits: _Optional[int] = ..., folded: _Optional[int] = ..., skipped: _Optional[int] = ..., dropped: _Optional[int] = ..., refused: _Optional[int] = ..., withdrawn: _Optional[int] = ..., duplicates: _Optional[int] = ..., staleness_last: _Optional[int] = ..., staleness_max: _Optional[int] = ..., staleness_counts: _Optional[_Iterable[int]] = ..., gradient_norm_last: _Optional[float] = ...) -> None: ...

class GroupState(_message.Message):
    __slots__ = ("name", "dtype", "optimizer", "flavor", "hyperparameters", "schedules", "slots", "scalars")
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
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    FLAVOR_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    SCALARS_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DType
    optimizer: str
    flavor: str
    hyperparameters: _containers.MessageMap[str, _values_pb2.Value]
    schedules: _containers.MessageMap[str, _values_pb2.Schedule]
    slots: _containers.RepeatedScalarFieldContainer[str]
    scalars: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., optimizer: _Optional[str] = ..., flavor: _Optional[str] = ..., hyperparameters: _Optional[_Mapping[str, _values_pb2.Value]] = ..., schedules: _Optional[_Mapping[str, _values_pb2.Schedule]] = ..., slots: _Optional[_Iterable[str]] = ..., scalars: _Optional[_Iterable[str]] = ...) -> None: ...

class Worker(_message.Message):
    __slots__ = ("name", "epoch", "last_sequence", "index", "lease_seconds", "waits", "tally")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    TALLY_FIELD_NUMBER: _ClassVar[int]
    name: str
    epoch: int
    last_sequence: int
    index: int
    lease_seconds: float
    waits: bool
    tally: Tally
    def __init__(self, name: _Optional[str] = ..., epoch: _Optional[int] = ..., last_sequence: _Optional[int] = ..., index: _Optional[int] = ..., lease_seconds: _Optional[float] = ..., waits: bool = ..., tally: _Optional[_Union[Tally, _Mapping]] = ...) -> None: ...
