"""What the comments of Range in run.proto say, once more, in plain NumPy."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.conformance.runner import DTYPES

Json = Mapping[str, Any]
Fields = dict[str, Any]


def blocks(elements: Any, block: int) -> list[Any]:
    return [elements[begin : begin + block] for begin in range(0, len(elements), block)]


def expected_range(encoding: Json | None, direction: str, elements: Any) -> Fields:
    """The fields of a range with these elements."""
    fields = {"data": b"", "scales": b"", "indices": b"", "dtype": "", "encoding": "", "elements": 0}
    name = encoding["name"] if encoding else None
    if name is None:
        return fields | {"data": elements.tobytes()}
    if name in ("float32", "bfloat16") or (name == "float16" and direction == "parameters"):
        with np.errstate(over="ignore"):
            return fields | {"data": elements.astype(DTYPES[name]).tobytes(), "dtype": name}
    assert encoding is not None
    fields |= {"encoding": name, "elements": len(elements)}
    if name == "float16":
        scaled = np.clip(elements * encoding["scale"], -65504, 65504).astype("<f2")
        return fields | {"data": scaled.tobytes(), "scales": np.float32(encoding["scale"]).tobytes()}
    if name == "int8":
        scales = [np.float32(np.abs(part).max() / 127) for part in blocks(elements, encoding["block"])]
        codes = [np.rint(part / scale) for part, scale in zip(blocks(elements, encoding["block"]), scales, strict=True)]
        return fields | {
            "data": np.concatenate(codes).astype("i1").tobytes(),
            "scales": np.array(scales, "<f4").tobytes(),
        }
    if name == "sign":
        scales = [np.float32(np.abs(part).mean()) for part in blocks(elements, encoding["block"])]
        bits = sum(1 << place for place, element in enumerate(elements) if element < 0)
        size = math.ceil(len(elements) / 8)
        return fields | {"data": bits.to_bytes(size, "little"), "scales": np.array(scales, "<f4").tobytes()}
    assert name == "top_k"
    count = math.ceil(encoding["density"] * len(elements))
    places = sorted(sorted(range(len(elements)), key=lambda place: -abs(elements[place]))[:count])
    indices = b""
    for before, place in zip([-1, *places], places, strict=False):
        further, rest = divmod(place - before - 1, 255)
        indices += b"\xff" * further + bytes([rest])
    return fields | {"data": elements[places].astype("<f4").tobytes(), "indices": indices}


def decoded(encoding: Json | None, found: Fields, dtype: np.dtype[Any]) -> Any:
    """What the other end makes of the fields."""
    if not found["encoding"]:
        return np.frombuffer(found["data"], DTYPES[found["dtype"]] if found["dtype"] else dtype).astype(dtype)
    assert encoding is not None
    scales = np.frombuffer(found["scales"], "<f4")
    if found["encoding"] == "float16":
        return (np.frombuffer(found["data"], "<f2").astype(np.float32) / scales[0]).astype(dtype)
    if found["encoding"] == "int8":
        codes = np.frombuffer(found["data"], "i1").astype(np.float32)
        return (codes * np.repeat(scales, encoding["block"])[: len(codes)]).astype(dtype)
    if found["encoding"] == "sign":
        bits = int.from_bytes(found["data"], "little")
        signs = np.array([-1 if bits >> place & 1 else 1 for place in range(found["elements"])], np.float32)
        return (signs * np.repeat(scales, encoding["block"])[: len(signs)]).astype(dtype)
    values, whole, place, gap = iter(np.frombuffer(found["data"], "<f4")), np.zeros(found["elements"], dtype), -1, 0
    for byte in found["indices"]:
        gap += byte
        if byte < 255:
            place, gap = place + gap + 1, 0
            whole[place] = next(values)
    return whole
