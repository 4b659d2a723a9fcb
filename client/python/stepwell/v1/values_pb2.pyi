from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Clock(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLOCK_UNSPECIFIED: _ClassVar[Clock]
    CLOCK_UPDATES: _ClassVar[Clock]
    CLOCK_SAMPLES: _ClassVar[Clock]
    CLOCK_EPOCHS: _ClassVar[Clock]

class ArgumentKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARGUMENT_KIND_UNSPECIFIED: _ClassVar[ArgumentKind]
    ARGUMENT_KIND_NUMBER: _ClassVar[ArgumentKind]
    ARGUMENT_KIND_INTEGER: _ClassVar[ArgumentKind]
    ARGUMENT_KIND_FLAG: _ClassVar[ArgumentKind]
    ARGUMENT_KIND_TEXT: _ClassVar[ArgumentKind]
    ARGUMENT_KIND_NUMBERS: _ClassVar[ArgumentKind]
CLOCK_UNSPECIFIED: Clock
CLOCK_UPDATES: Clock
CLOCK_SAMPLES: Clock
CLOCK_EPOCHS: Clock
ARGUMENT_KIND_UNSPECIFIED: ArgumentKind
ARGUMENT_KIND_NUMBER: ArgumentKind
ARGUMENT_KIND_INTEGER: ArgumentKind
ARGUMENT_KIND_FLAG: ArgumentKind
ARGUMENT_KIND_TEXT: ArgumentKind
ARGUMENT_KIND_NUMBERS: ArgumentKind

class Value(_message.Message):
    __slots__ = ("number", "flag", "text", "numbers", "none")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    NONE_FIELD_NUMBER: _ClassVar[int]
    number: float
    flag: bool
    text: str
    numbers: NumberList
    none: NoValue
    def __init__(self, number: _Optional[float] = ..., flag: bool = ..., text: _Optional[str] = ..., numbers: _Optional[_Union[NumberList, _Mapping]] = ..., none: _Optional[_Union[NoValue, _Mapping]] = ...) -> None: ...

class NumberList(_message.Message):
    __slots__ = ("numbers",)
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, numbers: _Optional[_Iterable[float]] = ...) -> None: ...

class NoValue(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Schedule(_message.Message):
    __slots__ = ("name", "arguments", "clock", "schedules")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SCHEDULES_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _containers.MessageMap[str, Value]
    clock: Clock
    schedules: _containers.RepeatedCompositeFieldContainer[Schedule]
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ..., clock: _Optional[_Union[Clock, str]] = ..., schedules: _Optional[_Iterable[_Union[Schedule, _Mapping]]] = ...) -> None: ...

class Transform(_message.Message):
    __slots__ = ("name", "arguments")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _containers.MessageMap[str, Value]
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Wrapper(_message.Message):
    __slots__ = ("name", "arguments")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _containers.MessageMap[str, Value]
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Encoding(_message.Message):
    __slots__ = ("name", "arguments")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _containers.MessageMap[str, Value]
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("name", "arguments")
    class ArgumentsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _containers.MessageMap[str, Value]
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class Argument(_message.Message):
    __slots__ = ("name", "kind", "default", "optional", "minimum", "maximum", "minimum_open", "maximum_open", "choices", "infinite")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_OPEN_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_OPEN_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    INFINITE_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: ArgumentKind
    default: Value
    optional: bool
    minimum: float
    maximum: float
    minimum_open: bool
    maximum_open: bool
    choices: _containers.RepeatedScalarFieldContainer[str]
    infinite: bool
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[ArgumentKind, str]] = ..., default: _Optional[_Union[Value, _Mapping]] = ..., optional: bool = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., minimum_open: bool = ..., maximum_open: bool = ..., choices: _Optional[_Iterable[str]] = ..., infinite: bool = ...) -> None: ...
