"""Where parameters lie, and that ranges find their places."""

import fnmatch
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell_server.core.errors import InvalidName, InvalidSpec, LimitExceeded, UnknownParameter
from stepwell_server.core.layout import ParameterSpec, build_layout, check_name

FLOAT32, FLOAT64 = np.dtype("float32"), np.dtype("float64")
FEW = settings(max_examples=60, deadline=None)

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
parameter_lists = st.lists(
    st.builds(ParameterSpec, st.just(""), shapes, st.sampled_from([FLOAT32, FLOAT64])), min_size=1, max_size=12
).map(lambda drawn: [replace(parameter, name=f"p{index}") for index, parameter in enumerate(drawn)])


def spec(name, shape=(4,), dtype=FLOAT32):
    return ParameterSpec(name, shape, dtype)


def places(layout):
    return {
        placed.spec.name: (placed.group, placed.vector_offset, placed.packed_offset) for placed in layout.parameters
    }


def test_a_layout_worked_out_by_hand():
    layout = build_layout(
        [
            spec("matrix", (3, 5)),  # 60 bytes
            spec("scalar", ()),  # 4
            spec("wide", (3,), FLOAT64),  # 24, in a vector of its own
            spec("empty", (0, 7)),
            spec("cache line", (16,)),  # 64 exactly
            spec("last", (17,)),  # 68
        ],
        [],
    )
    assert places(layout) == {
        "matrix": (0, 0, 0),
        "scalar": (0, 64, 60),
        "wide": (1, 0, 0),
        "empty": (0, 128, 64),
        "cache line": (0, 128, 64),
        "last": (0, 192, 128),
    }
    single, double = layout.groups
    assert (single.name, single.dtype, single.indices, single.frozen) == ("default", FLOAT32, (0, 1, 3, 4, 5), False)
    assert (single.vector_bytes, single.elements, single.packed_bytes) == (320, 80, 196)
    assert single.vector_offsets.tolist() == [0, 64, 128, 128, 192]
    assert single.packed_offsets.tolist() == [0, 60, 64, 64, 128, 196]
    assert (double.name, double.dtype, double.indices) == ("default", FLOAT64, (2,))
    assert (double.vector_bytes, double.elements, double.packed_bytes) == (64, 8, 24)
    assert layout.indices == {"matrix": 0, "scalar": 1, "wide": 2, "empty": 3, "cache line": 4, "last": 5}


@FEW
@given(parameters=parameter_lists, frozen=st.booleans())
def test_parameters_do_not_overlap_and_begin_on_64_byte_boundaries(parameters, frozen):
    odd = [parameter.name for parameter in parameters if parameter.name[-1] in "13579"]
    layout = build_layout(parameters, [("odd", odd, frozen)] if odd else [])
    assert [placed.spec for placed in layout.parameters] == parameters
    taken: dict[int, set[int]] = {}
    for index, placed in enumerate(layout.parameters):
        group = layout.groups[placed.group]
        begin, size = placed.vector_offset, placed.spec.size_bytes
        assert begin % 64 == 0
        assert begin + size <= group.vector_bytes
        assert not taken.setdefault(placed.group, set()) & set(range(begin, begin + size))
        taken[placed.group] |= set(range(begin, begin + size))
        assert group.dtype == placed.spec.dtype
        assert (group.name, group.frozen) == (("odd", frozen) if placed.spec.name in odd else ("default", False))
        assert index in group.indices
        earlier = [p.spec.size_bytes for p in layout.parameters[:index] if p.group == placed.group]
        assert placed.packed_offset == sum(earlier)
    for number, group in enumerate(layout.groups):
        assert group.packed_bytes == len(taken[number])
        assert group.vector_bytes - group.packed_bytes < 64 * len(group.indices) + 1
        assert group.indices == tuple(sorted(group.indices))


def test_the_first_group_that_matches_takes_a_parameter():
    names = ["a.bias", "a.weight", "b.bias", "b.weight", "c", "d[0]"]
    groups = [("first", ["a.*"], False), ("second", ["*.bias", "c"], True), ("third", ["*.weight", "d[[]?]"], False)]
    layout = build_layout([spec(name) for name in names], groups)
    by_name = {placed.spec.name: layout.groups[placed.group].name for placed in layout.parameters}
    assert by_name == {
        "a.bias": "first",
        "a.weight": "first",
        "b.bias": "second",
        "b.weight": "third",
        "c": "second",
        "d[0]": "third",
    }
    assert [(group.name, group.frozen) for group in layout.groups] == [
        ("first", False),
        ("second", True),
        ("third", False),
    ]
    # In another order, the same globs take other parameters.
    reverse = build_layout([spec(name) for name in names], [groups[1], groups[0]])
    assert [group.indices for group in reverse.groups] == [(0, 2, 4), (1,), (3, 5)]


@FEW
@given(
    names=st.lists(st.text("ab.*[]!?", min_size=1, max_size=4), min_size=1, max_size=6, unique=True),
    globs=st.lists(st.text("ab.*[]!?", max_size=4), max_size=4),
)
def test_globs_match_as_in_fnmatch_and_case_counts(names, globs):
    globs = [*globs, "last resort", "*"]
    layout = build_layout([spec(name) for name in [*names, "last resort"]], [("all", globs[:-1], False)])
    for placed in layout.parameters:
        matched = any(fnmatch.fnmatchcase(placed.spec.name, glob) for glob in globs[:-1])
        assert layout.groups[placed.group].name == ("all" if matched else "default")
    assert len(build_layout([spec("A"), spec("a")], [("one", ["a"], False)]).groups) == 2


def test_the_dtypes_of_a_group_are_vectors_of_their_own_under_one_name():
    parameters = [spec("a"), spec("b", dtype=FLOAT64), spec("c"), spec("d", dtype=FLOAT64)]
    layout = build_layout(parameters, [("fixed", ["c", "d"], True)])
    assert [(group.name, group.dtype.name, group.frozen, group.indices) for group in layout.groups] == [
        ("fixed", "float32", True, (2,)),
        ("fixed", "float64", True, (3,)),
        ("default", "float32", False, (0,)),
        ("default", "float64", False, (1,)),
    ]


def test_ten_thousand_small_tensors_are_one_range():
    layout = build_layout([spec(f"layer/{index}.bias", (index % 40,)) for index in range(10_000)], [])
    (group,) = layout.groups
    assert group.packed_bytes == 250 * sum(range(40)) * 4
    sizes = [math.ceil(4 * (index % 40) / 64) * 64 for index in range(10_000)]
    assert group.vector_offsets.tolist() == np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()
    assert layout.indices["layer/9999.bias"] == 9999


def test_offsets_are_64_bit():
    layout = build_layout([spec("huge", (1 << 40,)), spec("next", ())], [])
    assert places(layout)["next"] == (0, 1 << 42, 1 << 42)
    assert layout.groups[0].packed_bytes == (1 << 42) + 4


ONE = [spec("w")]
REFUSED = {
    "empty name": ([spec("")], [], InvalidName, "parameter name '' is not valid"),
    "NUL": ([spec("a\0b")], [], InvalidName, "without NUL"),
    "long name": ([spec("x" * 1025)], [], InvalidName, "1 to 1024 bytes"),
    "long in bytes": ([spec("é" * 513)], [], InvalidName, "1 to 1024 bytes"),
    "twice": ([spec("w"), spec("v"), spec("w")], [], InvalidSpec, "'w' occurs twice"),
    "dtype": ([spec("w", dtype=np.dtype("int32"))], [], InvalidSpec, "'w' has dtype int32, expected one of float32"),
    "byte order": ([spec("w", dtype=np.dtype(">f4"))], [], InvalidSpec, "'w' has dtype >f4"),
    "dimensions": ([spec("w", (1,) * 33)], [], LimitExceeded, "'w'.* at most 32 dimensions"),
    "too large": ([spec("w", (1 << 60, 2))], [], LimitExceeded, "'w' with shape .* is too large"),
    "far too large": ([spec("w", (1 << 64,) * 32)], [], LimitExceeded, "'w'"),
    "too large in all": ([spec("v", (1 << 59,)), spec("w", (1 << 60,))], [], LimitExceeded, "'w'"),
    "group called default": (ONE, [("default", ["*"], False)], InvalidSpec, "group 'default' occurs twice or"),
    "group twice": ([*ONE, spec("v")], [("g", ["w"], False), ("g", ["v"], False)], InvalidSpec, "group 'g' occurs"),
    "group's name": (ONE, [("a b", ["*"], False)], InvalidName, "group name 'a b'"),
    "matches nothing": (ONE, [("g", ["v*"], False)], InvalidSpec, "group 'g' has no parameters: .*v"),
    "no globs": (ONE, [("g", [], False)], InvalidSpec, "group 'g' has no parameters"),
    "taken before": (ONE, [("g", ["w"], False), ("h", ["w"], False)], InvalidSpec, "group 'h' .* earlier group"),
}


@pytest.mark.parametrize(("parameters", "groups", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(parameters, groups, error, message):
    with pytest.raises(error, match=message):
        build_layout(parameters, groups)


def test_the_limits_themselves_are_legal():
    for name in ("x" * 1024, "é" * 512, "/.. weird\n\x01"):
        build_layout([spec(name)], [])
    build_layout([spec("w", (1,) * 32)], [])
    build_layout([spec("w", (1 << 60,))], [])
    build_layout([spec("w", (0, 1 << 62)), spec("v", (0,) * 32)], [])


def test_a_negative_size_is_refused():
    with pytest.raises(InvalidSpec):
        build_layout([spec("v"), spec("w", (-4,))], [])


@pytest.mark.parametrize("name", ["a", "0", "run-1.b_c", "x" * 128])
def test_names_that_are_valid(name):
    assert check_name("run", name) == name


@pytest.mark.parametrize("name", ["", ".", "-a", "_a", "a/b", "a b", "a\n", "é", "x" * 129, "a\0"])
def test_names_that_are_not(name):
    with pytest.raises(InvalidName, match=r"run name .* choose such a name") as caught:
        check_name("run", name)
    assert len(str(caught.value)) < 500


def test_an_index_beyond_the_parameters_is_refused():
    layout = build_layout([spec("a"), spec("b")], [])
    layout.check_index(1)
    with pytest.raises(UnknownParameter, match="parameter index 2 is not known, expected 0 to 1"):
        layout.check_index(2)


# Ranges: what the compiled loops of `copies` do is done again here, a byte at a time.


def cut(data, size):
    """Ranges that cover 0..size, in any order, cut anywhere, also inside elements."""
    cuts = sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=8))})
    return data.draw(st.permutations(list(itertools.pairwise(cuts))))


def naive(layout, number, packed):
    """The vector's bytes after the packed ones have been placed; 170 where nothing belongs."""
    vector = bytearray([170]) * layout.groups[number].vector_bytes
    for placed in layout.parameters:
        if placed.group == number:
            for at in range(placed.spec.size_bytes):
                vector[placed.vector_offset + at] = packed[placed.packed_offset + at]
    return bytes(vector)


@FEW
@given(parameters=parameter_lists, data=st.data())
def test_ranges_find_their_places_and_come_back(device, parameters, data):
    layout = build_layout(parameters, [])
    for number, group in enumerate(layout.groups):
        packed = np.random.default_rng(group.packed_bytes).integers(0, 256, group.packed_bytes, np.uint8)
        vector = device.allocate(group.elements, group.dtype)
        vector.view(np.uint8)[:] = 170
        for begin, end in cut(data, group.packed_bytes):
            # As they arrive: read-only bytes.
            part = np.frombuffer(packed[begin:end].tobytes(), np.uint8)
            device.place(vector, part, begin, group.packed_offsets, group.vector_offsets)
        assert vector.tobytes() == naive(layout, number, packed)
        for begin, end in cut(data, group.packed_bytes):
            out = np.zeros(end - begin, np.uint8)
            device.gather(vector, out, begin, group.packed_offsets, group.vector_offsets)
            assert out.tobytes() == packed[begin:end].tobytes()


@FEW
@given(parameters=parameter_lists, data=st.data())
def test_a_range_changes_its_own_bytes_only(device, parameters, data):
    layout = build_layout(parameters, [])
    number = data.draw(st.integers(0, len(layout.groups) - 1))
    group = layout.groups[number]
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, group.packed_bytes)] * 2)))
    before = np.full(group.packed_bytes, 1, np.uint8)
    after = before.copy()
    after[begin:end] = 2
    vector = np.frombuffer(bytearray(naive(layout, number, before)), group.dtype)
    device.place(vector, after[begin:end], begin, group.packed_offsets, group.vector_offsets)
    assert vector.tobytes() == naive(layout, number, after)
