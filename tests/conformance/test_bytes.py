"""The bytes of README.md, against protobuf's own runtime, against NumPy by hand, and against the Python client."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2

from stepwell._encoding import Decoder, Encoder
from stepwell._layout import Layout
from stepwell._packing import Piece
from stepwell.v1 import control_pb2, data_pb2, run_pb2, values_pb2
from stepwell.wire import decode_dtype, encode_dtype, encode_part
from tests.conformance.encodings import Fields, decoded, expected_range
from tests.conformance.runner import DTYPES, given

BYTES = Path(__file__).parent / "bytes"
MESSAGES = sorted((BYTES / "messages").glob("*.json"))
ARRAYS = sorted((BYTES / "arrays").glob("*.json"))
# Whose messages they are; imported so that protobuf knows them.
FILES = (control_pb2, data_pb2, run_pb2, status_pb2, error_details_pb2)

Json = Mapping[str, Any]


def read(file: Path) -> Any:
    return json.loads(file.read_text())


# Messages.


@pytest.mark.parametrize("file", MESSAGES, ids=lambda file: file.stem)
def test_message(file: Path) -> None:
    found = read(file)
    made = message_factory.GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(found["message"]))
    message = json_format.ParseDict(found["json"], made())
    assert message.SerializeToString().hex() == found["hex"]
    parsed = made.FromString(bytes.fromhex(found["hex"]))
    assert json_format.MessageToDict(parsed, use_integers_for_enums=False) == found["json"]


def test_a_broken_message_is_found(tmp_path: Path) -> None:
    broken = read(MESSAGES[0]) | {"hex": read(MESSAGES[1])["hex"]}
    file = tmp_path / "broken.json"
    file.write_text(json.dumps(broken))
    with pytest.raises(AssertionError):
        test_message(file)


# Arrays.


def load(file: Path) -> tuple[Json, Fields, Any, Any]:
    """The vector, the range's fields, the elements, and what they become."""
    vector = read(file)
    fields = {
        key: bytes.fromhex(value) if key in ("data", "scales", "indices") else value
        for key, value in vector["range"].items()
    }
    elements, after = (
        np.array([given(value) for value in vector[key]], np.float64).astype(DTYPES[vector["dtype"]])
        for key in ("values", "decoded")
    )
    return vector, fields, elements, after


@pytest.mark.parametrize("file", ARRAYS, ids=lambda file: file.stem)
def test_array(file: Path) -> None:
    vector, fields, elements, after = load(file)
    assert fields == expected_range(vector["encoding"], vector["direction"], elements)
    np.testing.assert_array_equal(decoded(vector["encoding"], fields, elements.dtype), after)


def layout_of(elements: Any) -> Layout:
    group = run_pb2.LayoutGroup(
        name="default",
        dtype=encode_dtype(elements.dtype),
        packed_bytes=elements.nbytes,
        vector_bytes=-(-elements.nbytes // 64) * 64,
    )
    parameter = run_pb2.LayoutParameter(name="w", shape=[len(elements)])
    return Layout([group], [parameter])


@pytest.mark.parametrize("file", [file for file in ARRAYS if "gradients" in file.stem], ids=lambda file: file.stem)
def test_the_client_encodes(file: Path) -> None:
    vector, fields, elements, _ = load(file)
    encoder = Encoder(encode_part(values_pb2.Encoding, vector["encoding"]))
    piece, count = encoder.encode(Piece(0, 0, [elements.view(np.uint8)]), layout_of(elements))
    assert count == len(elements)
    made = piece.range(data=True)
    assert fields == {
        **{key: getattr(made, key) for key in ("data", "scales", "indices", "encoding", "elements")},
        "dtype": decode_dtype(made.dtype).name if made.dtype else "",
    }


@pytest.mark.parametrize("file", [file for file in ARRAYS if "parameters" in file.stem], ids=lambda file: file.stem)
def test_the_client_decodes(file: Path) -> None:
    vector, fields, elements, after = load(file)
    dtype = encode_dtype(DTYPES[fields["dtype"]]) if fields["dtype"] else run_pb2.D_TYPE_UNSPECIFIED
    message = run_pb2.Range(**{**fields, "dtype": dtype})
    decoder = Decoder(encode_part(values_pb2.Encoding, vector["encoding"]))
    out = np.empty_like(elements)
    assert decoder.count(message, fields["data"]) == len(elements)
    decoder.write(message, fields["data"], out.dtype, iter([(out.view(np.uint8), 0, out.nbytes)]))
    np.testing.assert_array_equal(out, after)


def test_all_encodings_have_vectors() -> None:
    named = {(vector["direction"], (vector["encoding"] or {"name": None})["name"]) for vector in map(read, ARRAYS)}
    gradients = {("gradients", name) for name in ("float32", "bfloat16", "float16", "int8", "top_k", "sign")}
    parameters = {("parameters", name) for name in ("float32", "bfloat16", "float16", "int8")}
    assert named == gradients | parameters | {("both", None)}
