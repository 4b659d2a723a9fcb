"""The contract with its comments, read from proto/ by protoc."""

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2
from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

PROTO: Final = Path(__file__).parents[2] / "proto"

# Numbers of fields of descriptor.proto: what paths to comments are made of.
_SYNTAX, _MESSAGES, _ENUMS, _SERVICES = 12, 4, 5, 6
_METHODS, _FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS, _VALUES = 2, 2, 3, 4, 8, 2

Comments = Mapping[tuple[int, ...], str]


@dataclass(frozen=True)
class Element:
    """Something that the contract names.

    kind: "service", "rpc", "message", "field", "oneof", "enum" or "value". name: as other parts refer to it, from the
    package on, which is left out. before, after: what stands around the name. parts: what it has.
    """

    kind: str
    name: str
    comment: str
    before: str = ""
    after: str = ""
    parts: tuple["Element", ...] = ()

    def walk(self) -> Iterator["Element"]:
        """Itself and all of its parts, and theirs."""
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True)
class ContractFile:
    """One file of the contract: its path, what it says of itself, and what it has, services first."""

    path: str
    comment: str
    elements: tuple[Element, ...]


def read() -> list[ContractFile]:
    """All files of the contract, by path."""
    paths = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("stepwell/v1/*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        options = [f"--proto_path={PROTO}", "--include_source_info", f"--descriptor_set_out={out}"]
        if protoc.main(["protoc", *options, *paths]) != 0:
            raise ValueError(f"protoc does not take {', '.join(paths)}")
        files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    return sorted((_file(file) for file in files), key=lambda file: file.path)


def _file(file: descriptor_pb2.FileDescriptorProto) -> ContractFile:
    places = file.source_code_info.location
    comments = {tuple(place.path): place.leading_comments.replace("\n ", "\n").strip() for place in places}
    elements = [_service(service, comments, (_SERVICES, at)) for at, service in enumerate(file.service)]
    elements += [_message(message, comments, (_MESSAGES, at), "") for at, message in enumerate(file.message_type)]
    elements += [_enum(enum, comments, (_ENUMS, at), "") for at, enum in enumerate(file.enum_type)]
    return ContractFile(file.name, comments.get((_SYNTAX,), ""), tuple(elements))


def _service(service: descriptor_pb2.ServiceDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Element:
    parts = [
        Element(
            "rpc",
            f"{service.name}.{method.name}",
            comments.get((*path, _METHODS, at), ""),
            before="rpc",
            after=f"({_streamed(method.client_streaming, method.input_type)}) returns "
            f"({_streamed(method.server_streaming, method.output_type)})",
        )
        for at, method in enumerate(service.method)
    ]
    return Element("service", service.name, comments.get(path, ""), before="service", parts=tuple(parts))


def _message(
    message: descriptor_pb2.DescriptorProto, comments: Comments, path: tuple[int, ...], within: str
) -> Element:
    name = within + message.name
    maps = {f"{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    real_oneofs = {field.oneof_index for field in message.field if field.HasField("oneof_index")} - {
        field.oneof_index for field in message.field if field.proto3_optional
    }
    oneofs = [(at, f"{name}.{message.oneof_decl[at].name}") for at in sorted(real_oneofs)]
    parts = [Element("oneof", each, comments.get((*path, _ONEOFS, at), ""), before="oneof") for at, each in oneofs]
    parts += [
        Element(
            "field",
            f"{name}.{field.name}",
            comments.get((*path, _FIELDS, at), ""),
            before=_type(field, maps),
            after=f"= {field.number}",
        )
        for at, field in enumerate(message.field)
    ]
    parts += [
        _message(nested, comments, (*path, _NESTED, at), f"{name}.")
        for at, nested in enumerate(message.nested_type)
        if not nested.options.map_entry
    ]
    parts += [
        _enum(enum, comments, (*path, _NESTED_ENUMS, at), f"{name}.") for at, enum in enumerate(message.enum_type)
    ]
    return Element("message", name, comments.get(path, ""), before="message", parts=tuple(parts))


def _enum(enum: descriptor_pb2.EnumDescriptorProto, comments: Comments, path: tuple[int, ...], within: str) -> Element:
    name = within + enum.name
    parts = [
        Element("value", f"{name}.{value.name}", comments.get((*path, _VALUES, at), ""), after=f"= {value.number}")
        for at, value in enumerate(enum.value)
    ]
    return Element("enum", name, comments.get(path, ""), before="enum", parts=tuple(parts))


def _type(field: descriptor_pb2.FieldDescriptorProto, maps: Mapping[str, descriptor_pb2.DescriptorProto]) -> str:
    """The type of a field as the source has it, without the package."""
    named = _short(field.type_name)
    if named in maps:
        key, value = maps[named].field
        return f"map<{_type(key, {})}, {_type(value, {})}>"
    kind = descriptor_pb2.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {named or kind}"
    return f"optional {named or kind}" if field.proto3_optional else named or kind


def _streamed(streamed: bool, type_name: str) -> str:
    return ("stream " if streamed else "") + _short(type_name)


def _short(type_name: str) -> str:
    return type_name.removeprefix(".stepwell.v1.").removeprefix(".")
