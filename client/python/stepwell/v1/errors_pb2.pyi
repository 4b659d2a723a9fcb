from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ErrorReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_REASON_UNSPECIFIED: _ClassVar[ErrorReason]
    ERROR_REASON_CONTRACT_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_MALFORMED_REQUEST: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_NAME: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_OPTIMIZER: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_FLAVOR: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_SCHEDULE: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_ARGUMENT: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_RUN: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_GROUP: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_PARAMETER: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_WORKER: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_CHECKPOINT: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_VALUE: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_SPEC: _ClassVar[ErrorReason]
    ERROR_REASON_RUN_DIFFERS: _ClassVar[ErrorReason]
    ERROR_REASON_RUN_REPLACED: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_GRADIENT: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_RANGE: _ClassVar[ErrorReason]
    ERROR_REASON_INCOMPLETE_UPDATE: _ClassVar[ErrorReason]
    ERROR_REASON_GRADIENT_REQUIRED: _ClassVar[ErrorReason]
    ERROR_REASON_NONFINITE_GRADIENT: _ClassVar[ErrorReason]
    ERROR_REASON_SEQUENCE_REUSED: _ClassVar[ErrorReason]
    ERROR_REASON_SEQUENCE_TOO_OLD: _ClassVar[ErrorReason]
    ERROR_REASON_SEQUENCE_GAP: _ClassVar[ErrorReason]
    ERROR_REASON_WORKER_FENCED: _ClassVar[ErrorReason]
    ERROR_REASON_RUN_REWOUND: _ClassVar[ErrorReason]
    ERROR_REASON_CHANGE_REFUSED: _ClassVar[ErrorReason]
    ERROR_REASON_ETAG_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_VERSION_MISMATCH: _ClassVar[ErrorReason]
    ERROR_REASON_MEMORY_EXHAUSTED: _ClassVar[ErrorReason]
    ERROR_REASON_LIMIT_EXCEEDED: _ClassVar[ErrorReason]
    ERROR_REASON_STORAGE_DISABLED: _ClassVar[ErrorReason]
    ERROR_REASON_STORAGE_FAILED: _ClassVar[ErrorReason]
    ERROR_REASON_CHECKPOINT_EXISTS: _ClassVar[ErrorReason]
    ERROR_REASON_CHECKPOINT_DAMAGED: _ClassVar[ErrorReason]
    ERROR_REASON_SERVER_STOPPING: _ClassVar[ErrorReason]
    ERROR_REASON_SERVER_UNAVAILABLE: _ClassVar[ErrorReason]
    ERROR_REASON_TIMED_OUT: _ClassVar[ErrorReason]
    ERROR_REASON_INTERNAL: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_TRANSFORM: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_WRAPPER: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_POINT: _ClassVar[ErrorReason]
    ERROR_REASON_INPUT_REQUIRED: _ClassVar[ErrorReason]
    ERROR_REASON_SHARED_MEMORY_UNAVAILABLE: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_ENCODING: _ClassVar[ErrorReason]
    ERROR_REASON_ENCODING_NOT_ALLOWED: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_ENCODING: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_POLICY: _ClassVar[ErrorReason]
    ERROR_REASON_STALE_UPDATE: _ClassVar[ErrorReason]
    ERROR_REASON_POLICY_REFUSED: _ClassVar[ErrorReason]
    ERROR_REASON_UNKNOWN_TABLE: _ClassVar[ErrorReason]
    ERROR_REASON_INVALID_ROWS: _ClassVar[ErrorReason]
    ERROR_REASON_ROWS_NOT_SUPPORTED: _ClassVar[ErrorReason]
    ERROR_REASON_TABLE_FULL: _ClassVar[ErrorReason]
    ERROR_REASON_TABLES_UNAVAILABLE: _ClassVar[ErrorReason]
ERROR_REASON_UNSPECIFIED: ErrorReason
ERROR_REASON_CONTRACT_MISMATCH: ErrorReason
ERROR_REASON_MALFORMED_REQUEST: ErrorReason
ERROR_REASON_INVALID_NAME: ErrorReason
ERROR_REASON_UNKNOWN_OPTIMIZER: ErrorReason
ERROR_REASON_UNKNOWN_FLAVOR: ErrorReason
ERROR_REASON_UNKNOWN_SCHEDULE: ErrorReason
ERROR_REASON_UNKNOWN_ARGUMENT: ErrorReason
ERROR_REASON_UNKNOWN_RUN: ErrorReason
ERROR_REASON_UNKNOWN_GROUP: ErrorReason
ERROR_REASON_UNKNOWN_PARAMETER: ErrorReason
ERROR_REASON_UNKNOWN_WORKER: ErrorReason
ERROR_REASON_UNKNOWN_CHECKPOINT: ErrorReason
ERROR_REASON_INVALID_VALUE: ErrorReason
ERROR_REASON_INVALID_SPEC: ErrorReason
ERROR_REASON_RUN_DIFFERS: ErrorReason
ERROR_REASON_RUN_REPLACED: ErrorReason
ERROR_REASON_INVALID_GRADIENT: ErrorReason
ERROR_REASON_INVALID_RANGE: ErrorReason
ERROR_REASON_INCOMPLETE_UPDATE: ErrorReason
ERROR_REASON_GRADIENT_REQUIRED: ErrorReason
ERROR_REASON_NONFINITE_GRADIENT: ErrorReason
ERROR_REASON_SEQUENCE_REUSED: ErrorReason
ERROR_REASON_SEQUENCE_TOO_OLD: ErrorReason
ERROR_REASON_SEQUENCE_GAP: ErrorReason
ERROR_REASON_WORKER_FENCED: ErrorReason
ERROR_REASON_RUN_REWOUND: ErrorReason
ERROR_REASON_CHANGE_REFUSED: ErrorReason
ERROR_REASON_ETAG_MISMATCH: ErrorReason
ERROR_REASON_VERSION_MISMATCH: ErrorReason
ERROR_REASON_MEMORY_EXHAUSTED: ErrorReason
ERROR_REASON_LIMIT_EXCEEDED: ErrorReason
ERROR_REASON_STORAGE_DISABLED: ErrorReason
ERROR_REASON_STORAGE_FAILED: ErrorReason
ERROR_REASON_CHECKPOINT_EXISTS: ErrorReason
ERROR_REASON_CHECKPOINT_DAMAGED: ErrorReason
ERROR_REASON_SERVER_STOPPING: ErrorReason
ERROR_REASON_SERVER_UNAVAILABLE: ErrorReason
ERROR_REASON_TIMED_OUT: ErrorReason
ERROR_REASON_INTERNAL: ErrorReason
ERROR_REASON_UNKNOWN_TRANSFORM: ErrorReason
ERROR_REASON_UNKNOWN_WRAPPER: ErrorReason
ERROR_REASON_UNKNOWN_POINT: ErrorReason
ERROR_REASON_INPUT_REQUIRED: ErrorReason
ERROR_REASON_SHARED_MEMORY_UNAVAILABLE: ErrorReason
ERROR_REASON_UNKNOWN_ENCODING: ErrorReason
ERROR_REASON_ENCODING_NOT_ALLOWED: ErrorReason
ERROR_REASON_INVALID_ENCODING: ErrorReason
ERROR_REASON_UNKNOWN_POLICY: ErrorReason
ERROR_REASON_STALE_UPDATE: ErrorReason
ERROR_REASON_POLICY_REFUSED: ErrorReason
ERROR_REASON_UNKNOWN_TABLE: ErrorReason
ERROR_REASON_INVALID_ROWS: ErrorReason
ERROR_REASON_ROWS_NOT_SUPPORTED: ErrorReason
ERROR_REASON_TABLE_FULL: ErrorReason
ERROR_REASON_TABLES_UNAVAILABLE: ErrorReason

class Error(_message.Message):
    __slots__ = ("reason", "message", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    reason: ErrorReason
    message: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, reason: _Optional[_Union[ErrorReason, str]] = ..., message: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...
