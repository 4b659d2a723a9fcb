"""What docs/protocol.md says in bytes and tables is so, by protobuf's runtime and by a server that is sent them."""

import itertools
import json
import math
import mmap
import os
import re
import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf import any_pb2, json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from stepwell.v1 import control_pb2, data_pb2, errors_pb2, run_pb2, values_pb2
from stepwell.wire import CONTRACT, RANGE_BYTES
from stepwell_server.core.tables import IDS_MAX
from stepwell_server.service.errors import TABLE
from stepwell_server.service.limits import Limits
from tests.end_to_end.raw import Raw, RawWorker, Refusal, WorkStream, call, spec
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
PAIRS = re.compile(r"^```hex (\S+)\n(.*?)^```\n\n```json\n(.*?)^```$", re.DOTALL | re.MULTILINE)
UID = bytes(range(16))
MESSAGES = {
    kind.DESCRIPTOR.full_name: kind
    for module in (control_pb2, data_pb2, run_pb2, errors_pb2, status_pb2)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Message)
}
ANY = any_pb2.Any.DESCRIPTOR.full_name


class Example(NamedTuple):
    """One message of the page: its type, its lines of hex, and the JSON beside it."""

    message: str
    lines: list[str]
    json: dict[str, Any]

    @property
    def content(self) -> bytes:
        return bytes.fromhex("".join(line.partition("#")[0] for line in self.lines))


EXAMPLES = [Example(name, hexes.splitlines(), json.loads(text)) for name, hexes, text in PAIRS.findall(PAGE)]
IDS = [f"{number}-{example.message}" for number, example in enumerate(EXAMPLES)]


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    with Server(kept_kernels()) as server, Raw(server.address) as raw:
        yield raw


def test_every_dump_stands_before_its_json():
    assert len(EXAMPLES) == len(re.findall(r"^```hex", PAGE, re.MULTILINE)) > 20


def test_no_block_escapes():
    """Commands are test_buf_curl's, with the JSON after them; the rest of the JSON stands beside hex."""
    kinds = re.findall(r"^```(\w+).*?^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert set(kinds) == {"sh", "json", "hex", "text"}
    assert all(before in ("sh", "hex") for before, kind in itertools.pairwise(kinds) if kind == "json")


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_a_dump_is_the_message_that_the_json_says(example: Example):
    kind = MESSAGES[example.message]
    parsed = kind.FromString(example.content)
    assert parsed == json_format.ParseDict(example.json, kind())
    assert parsed.SerializeToString(deterministic=True) == example.content


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_comments_name_every_field(example: Example):
    commented = [re.match(r"(\d+) (\w+)", line.partition("# ")[2]) for line in example.lines if "#" in line]
    assert [(int(found[1]), found[2]) for found in commented if found] == list(
        fields(example.content, MESSAGES[example.message].DESCRIPTOR)
    )


def test_every_dump_is_among_the_conformance_bytes():
    stored = [json.loads(path.read_text()) for path in (ROOT / "tests/conformance/bytes/messages").glob("*.json")]
    known = {(each["message"], each["hex"]) for each in stored}
    # Messages of Google's are no client's to generate.
    own = [example for example in EXAMPLES if example.message.startswith("stepwell.")]
    assert [each.message for each in own if (each.message, each.content.hex()) not in known] == []


def test_a_server_takes_and_gives_these_bytes():
    """The page's run, from its creation to the second step, spoken in the page's own bytes; but for the random uid."""
    sent = [example for example in EXAMPLES if example.message.endswith("Request")]
    create, values, join, push, pull, work = sent[:6]
    with Server(kept_kernels()) as server, Raw(server.address) as raw:
        answers = speak(raw, "Control", "CreateRun", [create.content, values.content])
        assert answers[0] == example_of("CreateRunResponse").content
        joined = speak(raw, "Control", "Join", [join.content])
        uid = control_pb2.JoinResponse.FromString(joined[0]).membership.run_uid
        assert len(uid) == 16
        assert joined == [example_of("JoinResponse").content.replace(UID, uid)]
        for _ in range(2):  # the second one is the retry after a lost answer
            answers = speak(raw, "Data", "Push", [push.content.replace(UID, uid)])
            assert answers == [example_of("PushResponse").content]
        part, unchanged = [example.content for example in EXAMPLES if example.message.endswith(".PullResponse")][:2]
        assert speak(raw, "Data", "Pull", [pull.content.replace(UID, uid)]) == [part]
        newer = data_pb2.PullRequest(selection=data_pb2.Selection(run="line", if_newer_than=1))
        assert speak(raw, "Data", "Pull", [newer.SerializeToString()]) == [unchanged]
        # A server puts large data last, whatever its number.
        answers = speak(raw, "Data", "Work", [work.content.replace(UID, uid)])
        found = [data_pb2.WorkResponse.FromString(answer) for answer in answers]
        assert found == [data_pb2.WorkResponse.FromString(example_of("WorkResponse").content)]
        failing = data_pb2.WorkRequest(exchange=3, selection=data_pb2.Selection(run="lime"), last=True)
        refused = next(each for each in EXAMPLES if "error" in each.json)
        assert speak(raw, "Data", "Work", [failing.SerializeToString()]) == [refused.content]
        with pytest.raises(grpc.RpcError) as failed:
            raw.control.GetRun(control_pb2.GetRunRequest(run="lime"), timeout=30)
        error: Any = failed.value
        metadata = dict(error.trailing_metadata())
        status = example_of("Status")
        assert metadata["grpc-status-details-bin"] == status.content
        assert error_details_pb2.ErrorInfo.DESCRIPTOR.full_name in status.json["details"][0]["@type"]


def test_a_server_takes_and_gives_these_rows(raw: Raw):
    push = next(each for each in EXAMPLES if each.json.get("stage", {}).get("rows"))
    pull = next(each for each in EXAMPLES if each.json.get("selection", {}).get("rows"))
    answer = next(each for each in EXAMPLES if each.message.endswith(".PullResponse") and "rows" in each.json)
    table = run_pb2.TableSpec(
        name="user", width=2, optimizer="sgd", hyperparameters={"lr": values_pb2.Value(number=1.0)}
    )
    table.initializer["name"].text, table.initializer["value"].number = "constant", 0.5
    raw.create("ids", run_pb2.Spec(tables=[table]), [])
    uid = raw.join("ids", "curl").membership.run_uid
    speak(raw, "Data", "Push", [push.content.replace(UID, uid)])
    assert speak(raw, "Data", "Pull", [pull.content]) == [answer.content]


ELEMENTS: dict[str, list[float]] = {
    "int8": [127.0, -50.5, 0.5, 1.5, 0.0, 0.0, 0.0, 0.0, -127 / 64],
    "sign": [1.0, -2.0, 0.0, -0.0, 5.0],
    "top_k": [{2: 5.0, 258: -6.0, 599: 7.0}.get(place, 0.0) for place in range(600)],
    "float16": [1.0, -0.25, 1e6],
}
"""What the page's encoded ranges were made of."""

ENCODED: list[tuple[str, dict[str, float], list[float]]] = [
    ("int8", {"block": 8}, [127.0, -50.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, -127 / 64]),
    ("sign", {"block": 8}, [1.6, -1.6, 1.6, 1.6, 1.6]),
    ("top_k", {"density": 0.005}, [{2: 5.0, 258: -6.0, 599: 7.0}.get(place, 0.0) for place in range(600)]),
    ("float16", {"scale": 1024}, [1.0, -0.25, 63.96875]),
    ("bfloat16", {}, [3.0, 4.0, 1.0, 1.0078125, -3.140625]),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), ENCODED, ids=[row[0] for row in ENCODED])
def test_a_server_decodes_the_ranges_to_what_the_page_says(
    name: str, arguments: dict[str, float], expected: list[float], raw: Raw
):
    """By a step of SGD with learning rate 1 from zero: the parameters are the gradient, negated."""
    (example,) = [
        each
        for each in EXAMPLES
        if each.message.endswith(".Range")
        and (each.json.get("encoding") == name or each.json.get("dtype") == f"D_TYPE_{name.upper()}")
    ]
    ranges = [run_pb2.Range.FromString(example.content)]
    if name == "bfloat16":  # it begins at element 2
        ranges.append(run_pb2.Range(data=struct.pack("<2f", *expected[:2])))
    described = spec({"w": [len(expected)]}, hyperparameters={"lr": {"number": 1.0}})
    described.gradient_encoding.name = name
    for key, value in arguments.items():
        described.gradient_encoding.arguments[key].number = value
    raw.create(name, described, [(0, 0, bytes(4 * len(expected)))])
    worker = raw.join(name, "me")
    push_ranges(worker, ranges)
    selection = data_pb2.Selection(run=name)
    (response,) = raw.data_call("Pull", data_pb2.PullRequest(selection=selection))
    got = struct.unpack(f"<{len(expected)}f", response.ranges[0].data)
    assert list(got) == [struct.unpack("<f", struct.pack("<f", -element))[0] for element in expected]


@pytest.mark.parametrize(("name", "arguments"), [row[:2] for row in ENCODED if row[0] in ELEMENTS])
def test_encoders_from_the_page_make_its_ranges(name: str, arguments: dict[str, float]):
    (example,) = [each for each in EXAMPLES if each.json.get("encoding") == name]
    made = run_pb2.Range(encoding=name, elements=len(ELEMENTS[name]))
    made.data, made.scales, made.indices = encode(name, np.array(ELEMENTS[name], np.float32), **arguments)
    assert made == run_pb2.Range.FromString(example.content)


def test_encoders_from_the_page_make_the_conformance_bytes():
    paths = (ROOT / "tests/conformance/bytes/arrays").glob("*.json")
    encoded = [each for each in map(json.loads, map(Path.read_text, paths)) if each["range"]["encoding"]]
    assert {each["range"]["encoding"] for each in encoded} == ELEMENTS.keys()
    for each in encoded:
        arguments = {key: each["encoding"][key] for key in ("block", "density", "scale") if key in each["encoding"]}
        made = encode(each["range"]["encoding"], np.array(each["values"], each["dtype"]), **arguments)
        assert [part.hex() for part in made] == [each["range"][part] for part in ("data", "scales", "indices")]


def test_identities_get_what_the_page_says(raw: Raw):
    raw.create("identities", spec({"w": [1]}), [(0, 0, bytes(4))])
    first = raw.join("identities", "me")
    counted = first.header()
    assert first.push(counted).committed_version == 1

    incomplete = first.header()
    with pytest.raises(Refusal, match="INCOMPLETE_UPDATE"):
        first.push(incomplete, ranges=[])
    assert first.header().identity.sequence == incomplete.identity.sequence == 2
    assert first.push().committed_version == 2  # with the sequence that was not used up

    second = raw.join("identities", "me")
    assert (second.membership.last_epoch, second.membership.last_sequence) == (1, 2)
    with pytest.raises(Refusal, match="WORKER_FENCED"):
        first.push(counted)  # the update has counted all the same

    leaving = control_pb2.LeaveRequest(run="identities", worker="me", epoch=second.membership.epoch)
    raw.control_call("Leave", leaving)
    with pytest.raises(Refusal, match="UNKNOWN_WORKER"):
        second.push()
    third = raw.join("identities", "me")
    assert (third.membership.last_epoch, third.membership.last_sequence) < (second.membership.epoch, 1)
    assert third.push().committed_version == 3


def test_memory_is_shared_as_the_page_says(raw: Raw):
    raw.create(
        "sharing", spec({"w": [2], "b": []}, hyperparameters={"lr": values_pb2.Value(number=0.5)}), [(0, 0, bytes(12))]
    )
    worker = raw.join("sharing", "me")
    asked = data_pb2.ShareMemoryRequest(run="sharing", run_uid=worker.membership.run_uid)
    shared = raw.data_call("ShareMemory", asked)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(30)
        connection.connect(shared.socket)
        connection.sendall(shared.token)
        assert descriptor_of(connection, 1 << 40) == (0, [])
        gradients = mapped(connection, shared.vectors[0], mmap.PROT_READ | mmap.PROT_WRITE)
        offsets = [parameter.vector_offset_bytes for parameter in worker.parameters]
        gradients[offsets[0] : offsets[0] + 8] = struct.pack("<2f", 1, -1)
        gradients[offsets[1] : offsets[1] + 4] = struct.pack("<f", 2)
        stream = WorkStream(raw)
        stage = data_pb2.Stage(header=worker.header(), shared_memory=shared.token)
        selection = data_pb2.Selection(run="sharing", shared_memory=shared.token)
        request = data_pb2.WorkRequest(stage=stage, commit=data_pb2.Commit(), selection=selection)
        (response,) = stream.exchange([request])
        assert response.answer.committed_version == response.parameters.version == 1
        assert not response.ranges
        (vector,) = response.parameters.vectors
        parameters = mapped(connection, vector, mmap.PROT_READ)
        assert struct.unpack_from("<2f", parameters, offsets[0]) == (-0.5, 0.5)
        assert struct.unpack_from("<f", parameters, offsets[1]) == (-1.0,)
        stream.send(data_pb2.WorkRequest(release=shared.token))
        everything = data_pb2.Selection(run="sharing")
        (response,) = stream.exchange([data_pb2.WorkRequest(selection=everything)])  # the release was not answered
        assert response.ranges[0].data == struct.pack("<3f", -0.5, 0.5, -1)
        stream.close()


def test_reasons_are_those_of_the_contract():
    rows = re.findall(r"^\| `([A-Z_0-9]+)` \| (?:`([A-Z_]+)` )?\|", PAGE, re.MULTILINE)
    said = {name: code for name, code in rows if f"ERROR_REASON_{name}" in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    expected = {name: code.name for name, code in TABLE.values()} | {"INTERNAL": "INTERNAL"}
    assert said == expected | dict.fromkeys(["INVALID_GRADIENT", "SERVER_UNAVAILABLE", "TIMED_OUT"], "")
    assert {f"ERROR_REASON_{name}" for name in said} == set(errors_pb2.ErrorReason.keys()) - {
        "ERROR_REASON_UNSPECIFIED"
    }


def test_outcomes_are_those_of_the_contract():
    said = set(re.findall(r"^\| `(OUTCOME_\w+)` \| [^|]+ \| The version", PAGE, re.MULTILINE))
    assert said == set(data_pb2.Outcome.keys()) - {"OUTCOME_UNSPECIFIED"}


def test_numbers_are_those_of_the_server():
    limits = Limits()
    expected = {
        "contract": f"`{CONTRACT}`",
        "message_bytes_max": f"{limits.message_bytes >> 20} MiB",
        "range_bytes": f"{RANGE_BYTES >> 20} MiB",
        "memory_bytes_max": f"{limits.memory_bytes >> 30} GiB",
        "outstanding_updates_max": str(limits.outstanding_updates_count),
        "word_seconds": f"{limits.word_seconds:g}",
    }
    for field, default in expected.items():
        assert f"| `{field}` | {default} |" in PAGE
    for text in (
        f"Up to {limits.parameters_count:,} parameters, {limits.spec_bytes >> 20} MiB of spec.",
        f"at most {limits.streams_count:,} calls",
        f"An update takes {IDS_MAX:,} ids of a table.",
        f"the server waits {limits.silence_seconds:g} s for your next message",
    ):
        assert text in re.sub(r"\s+", " ", PAGE), text


def example_of(name: str) -> Example:
    """The page's first message of this type."""
    return next(example for example in EXAMPLES if example.message.rpartition(".")[2] == name)


def push_ranges(worker: RawWorker, ranges: Iterable[run_pb2.Range]) -> None:
    staged = data_pb2.Stage(header=worker.header(), ranges=ranges)
    worker.send([data_pb2.PushRequest(stage=staged, commit=data_pb2.Commit())])


def speak(raw: Raw, service: str, method: str, requests: list[bytes]) -> list[bytes]:
    """Call with serialised messages; the serialised responses."""
    path = f"/stepwell.v1.{service}Service/{method}"
    kinds = {"Join": "unary_stream", "Pull": "unary_stream", "Push": "stream_unary"}
    kind = kinds.get(method, "stream_stream")
    answer = call(getattr(raw.channel, kind)(path), requests[0] if kind == "unary_stream" else iter(requests))
    return answer if isinstance(answer, list) else [answer]


def mapped(connection: socket.socket, vector: data_pb2.SharedVector, protection: int) -> mmap.mmap:
    """A shared vector, fetched by its handle."""
    size, (descriptor,) = descriptor_of(connection, vector.handle)
    assert size == vector.size_bytes
    try:
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, protection)
    finally:
        os.close(descriptor)


def descriptor_of(connection: socket.socket, handle: int) -> tuple[int, list[int]]:
    """The size that the server tells for a handle, and the descriptors that come with it."""
    connection.sendall(handle.to_bytes(8, "little"))
    answer, descriptors, _, _ = socket.recv_fds(connection, 8, 1)
    assert len(answer) == 8
    return int.from_bytes(answer, "little"), descriptors


def encode(
    name: str, x: npt.NDArray[np.float32], *, block: float = 1, density: float = 1.0, scale: float = 1.0
) -> tuple[bytes, bytes, bytes]:
    """Finite elements as the page says: data, scales and indices."""
    blocks = [x[first : first + int(block)] for first in range(0, len(x), int(block))]
    match name:
        case "float16":
            factor = np.float32(scale)
            return (x * factor).clip(-65504, 65504).astype("<f2").tobytes(), factor.tobytes(), b""
        case "int8":
            scales = [np.abs(each).max() / np.float32(127) for each in blocks]
            codes = [np.rint(each / (one or 1)).clip(-127, 127) for each, one in zip(blocks, scales, strict=True)]
            return np.concatenate(codes).astype(np.int8).tobytes(), np.array(scales, "<f4").tobytes(), b""
        case "sign":
            means = [np.abs(each).mean() for each in blocks]
            return np.packbits(x < 0, bitorder="little").tobytes(), np.array(means, "<f4").tobytes(), b""
        case _:
            places = np.sort(np.argsort(-np.abs(x), kind="stable")[: math.ceil(len(x) * density)])
            gaps = [int(place - before - 1) for before, place in itertools.pairwise([-1, *places])]
            indices = b"".join(b"\xff" * (gap // 255) + bytes([gap % 255]) for gap in gaps)
            return x[places].astype("<f4").tobytes(), b"", indices


def fields(content: bytes, descriptor: Any) -> Iterator[tuple[int, str]]:
    """Number and name of every field on the wire, those of a submessage after its own."""
    at = 0
    while at < len(content):
        tag, at = varint(content, at)
        field = descriptor.fields_by_number[tag >> 3]
        yield field.number, field.name
        if tag & 7 == 2:
            size, at = varint(content, at)
            inner = content[at : at + size]
            if field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type is not None:
                yield from fields(inner, field.message_type)
            elif descriptor.full_name == ANY and field.name == "value":
                yield from fields(inner, error_details_pb2.ErrorInfo.DESCRIPTOR)
            at += size
        elif tag & 7 == 0:
            _, at = varint(content, at)
        else:
            assert tag & 7 == 1
            at += 8


def varint(content: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    number = shift = 0
    while content[at] > 0x7F:
        number |= (content[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return number | content[at] << shift, at + 1
