"""An update while it arrives: what is counted, what is missing, what is not finite."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwell_server.core.errors import (
    GradientRequired,
    IncompleteUpdate,
    InvalidRange,
    InvalidValue,
    LimitExceeded,
    NonfiniteGradient,
    UnknownParameter,
)
from stepwell_server.core.layout import ParameterSpec
from stepwell_server.core.spec import GroupSpec, RunSpec
from stepwell_server.core.update import Coverage, Staging, UpdateHeader
from stepwell_server.core.workers import Answer, Identity, Outcome
from tests.core.local import LocalRun

FEW = settings(max_examples=100, deadline=None)
IDENTITY = Identity("r", b"u" * 16, 0, "worker", 1, 1, b"f" * 16, 0)


def runs_of(numbers):
    """The intervals that a set of integers is made of."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


# Coverage.


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=30))
def test_coverage_is_a_set_of_bytes(parts):
    coverage = Coverage()
    arrived: set[int] = set()
    for begin, size in parts:
        wanted = set(range(begin, begin + size))
        if wanted & arrived:
            with pytest.raises(
                InvalidRange, match=f"here bytes {begin} to {begin + size} overlap .* send each byte once"
            ):
                coverage.add(begin, begin + size, "here")
        else:
            coverage.add(begin, begin + size, "here")
            arrived |= wanted
        assert coverage.intervals == runs_of(arrived)


def test_pieces_that_do_not_touch_are_limited_and_touching_ones_are_not():
    coverage = Coverage()
    for number in range(4096):
        coverage.add(4 * number, 4 * number + 2, "here")
    with pytest.raises(LimitExceeded, match=r"here arrived in more than 4096 pieces.*send ranges in order"):
        coverage.add(4 * 4096, 4 * 4096 + 2, "here")
    ordered = Coverage()
    for number in range(10_000):
        ordered.add(number, number + 1, "here")
    assert ordered.intervals == [(0, 10_000)]
    downwards = Coverage()
    for number in reversed(range(10_000)):
        downwards.add(number, number + 1, "here")
    assert downwards.intervals == [(0, 10_000)]


# Staging. Parameters of 12, 0, 8 and 20 bytes, two float64 of 8 and 16, and a frozen one.

SHAPES = {"a": (3,), "empty": (0,), "b": (2,), "c": (5,), "wide": (), "wider": (2,), "fixed": (4,)}
SPEC = RunSpec(
    tuple(
        ParameterSpec(name, shape, np.dtype("float64" if name.startswith("wide") else "float32"))
        for name, shape in SHAPES.items()
    ),
    "sgd",
    groups=(GroupSpec("fixed", ("fixed",), frozen=True),),
)
LAYOUT = SPEC.layout()
FROZEN, SINGLE, DOUBLE = range(3)


def staging(device, check_finite=True, spec=SPEC, **header):
    layout = spec.layout()
    settings = spec.settings(layout)
    made = UpdateHeader(IDENTITY, **header)
    vectors = {
        key: device.allocate(size.elements, size.dtype) for key, size in Staging.sizes(layout, settings, made).items()
    }
    return Staging("r", made, layout, settings, vectors, check_finite)


def test_frozen_groups_need_no_memory_and_take_no_gradients(device):
    sizes = Staging.sizes(LAYOUT, SPEC.settings(LAYOUT), UpdateHeader(IDENTITY))
    assert list(sizes) == [(SINGLE, 0), (DOUBLE, 0)]
    with pytest.raises(InvalidRange, match=r"group 0, input 0, .* \[1, 2\] .*; frozen groups take no gradients"):
        staging(device).admit(FROZEN, 0, 16)


OUTSIDE = {
    "no such group": (3, 0, 4),
    "unaligned begin": (SINGLE, 2, 4),
    "unaligned size": (SINGLE, 0, 6),
    "float32 in float64": (DOUBLE, 4, 8),
    "half a float64": (DOUBLE, 0, 12),
    "no bytes": (SINGLE, 0, 0),
    "beyond the end": (SINGLE, 36, 8),
    "begins at the end": (SINGLE, 40, 4),
    "far beyond": (SINGLE, 1 << 63, 4),
}


@pytest.mark.parametrize(("group", "begin", "size"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_range_outside_its_group_is_refused_and_not_counted(device, group, begin, size):
    update = staging(device)
    with pytest.raises(InvalidRange):
        update.admit(group, begin, size)
    assert all(transfer.coverage.intervals == [] for transfer in update.transfers.values())


def test_a_range_before_its_group_is_refused(device):
    with pytest.raises(InvalidRange):
        staging(device).admit(SINGLE, -8, 8)


def test_a_byte_that_arrives_twice_is_refused(device):
    update = staging(device)
    update.admit(SINGLE, 8, 16)
    for begin, size in ((8, 16), (20, 8), (4, 8), (12, 4), (0, 40)):
        with pytest.raises(InvalidRange, match=f"run 'r', group 1 bytes {begin} to {begin + size} overlap"):
            update.admit(SINGLE, begin, size)
    update.admit(DOUBLE, 8, 16)
    update.admit(SINGLE, 24, 16)
    update.admit(SINGLE, 0, 8)
    update.admit(DOUBLE, 0, 8)
    update.check_complete()


def bytes_of(names):
    """The (group, byte) of every packed byte of some parameters."""
    found = set()
    for name in names:
        placed = LAYOUT.parameters[LAYOUT.indices[name]]
        found |= {(placed.group, placed.packed_offset + at) for at in range(placed.spec.size_bytes)}
    return found


@FEW
@given(
    absent=st.sets(st.sampled_from([name for name in SHAPES if name != "fixed"])),
    sent=st.sets(st.sampled_from([name for name in SHAPES if name != "fixed"])),
    data=st.data(),
)
def test_an_update_is_whole_if_exactly_the_declared_bytes_came(device, absent, sent, data):
    if data.draw(st.booleans()):
        sent = SHAPES.keys() - {"fixed"} - absent  # otherwise hardly ever
    update = staging(device, without_gradient=tuple(sorted(LAYOUT.indices[name] for name in absent)))
    ranges = []
    for name in sent:
        placed = LAYOUT.parameters[LAYOUT.indices[name]]
        step = placed.spec.dtype.itemsize
        elements = range(0, placed.spec.size_bytes, step)
        # Element by element, or whole.
        if data.draw(st.booleans()):
            ranges += [(placed.group, placed.packed_offset + at, step) for at in elements]
        elif elements:
            ranges.append((placed.group, placed.packed_offset, placed.spec.size_bytes))
    if ranges and data.draw(st.booleans()):
        ranges.pop()
    arrived = set()
    for group, begin, size in data.draw(st.permutations(ranges)):
        update.admit(group, begin, size)
        arrived |= {(group, begin + at) for at in range(size)}

    declared = bytes_of(SHAPES.keys() - {"fixed"} - absent)
    if arrived == declared:
        update.check_complete()
        return
    missing = declared - arrived
    # Groups are checked one after the other; the first that is not whole is reported.
    first = min(group for group, _ in declared ^ arrived)
    missing_bytes = sum(group == first for group, _ in missing)
    with pytest.raises(IncompleteUpdate if missing_bytes else InvalidRange, match=f"group {first}") as caught:
        update.check_complete()
    if missing_bytes:
        assert caught.value.details == {"missing_bytes": str(missing_bytes)}
        assert f"the first at {min(at for group, at in missing if group == first)}," in str(caught.value)
    else:
        begin, end = runs_of({at for group, at in arrived - declared if group == first})[0]
        assert f"bytes {begin} to {end} are of a parameter that is declared without a gradient" in str(caught.value)


def test_an_update_without_any_gradient_is_whole_at_once(device):
    every = tuple(range(len(SHAPES)))
    update = staging(device, without_gradient=every)
    update.check_complete()
    assert not update.present_in(SINGLE).any()
    assert staging(device).present_in(SINGLE) is None


def test_which_parameters_of_a_group_have_gradients(device):
    update = staging(device, without_gradient=(LAYOUT.indices["b"], LAYOUT.indices["wide"]))
    assert update.present_in(SINGLE).tolist() == [True, True, False, True]
    assert update.present_in(DOUBLE).tolist() == [False, True]


@pytest.mark.parametrize("flavor", ["optax", "keras"])
def test_a_flavor_that_counts_one_step_requires_every_gradient(device, flavor):
    spec = RunSpec(SPEC.parameters, "sgd", flavor, {"lr": 0.1}, groups=SPEC.groups)
    staging(device, spec=spec)
    staging(device, spec=spec, without_gradient=(LAYOUT.indices["fixed"],))
    with pytest.raises(GradientRequired, match=rf"\['a', 'c'\].*'default'.*sgd in flavor {flavor}.*send zeros"):
        staging(device, spec=spec, without_gradient=(LAYOUT.indices["a"], LAYOUT.indices["c"]))


def test_a_group_of_another_flavor_is_judged_by_its_own(device):
    groups = (*SPEC.groups, GroupSpec("strict", ("b", "wide*"), flavor="keras"))
    spec = RunSpec(SPEC.parameters, "sgd", "torch", groups=groups)
    staging(device, spec=spec, without_gradient=(LAYOUT.indices["a"],))
    with pytest.raises(GradientRequired, match=r"\['wider'\].*group 'strict'"):
        staging(device, spec=spec, without_gradient=(LAYOUT.indices["a"], LAYOUT.indices["wider"]))


@pytest.mark.parametrize("samples", [-1.0, float("nan"), float("inf")])
def test_samples_are_finite_and_not_negative(device, samples):
    with pytest.raises(InvalidValue, match=f"samples is {samples}"):
        staging(device, samples=samples)


def test_an_index_beyond_the_parameters_is_refused(device):
    with pytest.raises(UnknownParameter, match="index 7 is not known, expected 0 to 6"):
        staging(device, without_gradient=(0, 7))


def test_every_other_one_of_many_parameters_may_be_without_gradient(device):
    many = RunSpec(tuple(ParameterSpec(f"p{index}", (4,), np.dtype("float32")) for index in range(10_000)), "sgd")
    update = staging(device, spec=many, without_gradient=tuple(range(0, 10_000, 2)))
    for index in range(1, 10_000, 2):
        update.admit(0, 16 * index, 16)
    update.check_complete()


# Finiteness.

BAD = {
    name: [np.array(value, name).tobytes() for value in (np.nan, np.inf, -np.inf)] + [payload]
    for name, payload in (("float32", b"\x01\x00\x80\x7f"), ("float64", b"\x01" + b"\0" * 5 + b"\xf0\x7f"))
}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_nonfinite_element_is_found_in_any_range_and_its_parameter_named(device, data):
    check_finite = data.draw(st.sampled_from([True, True, True, False]))
    update = staging(device, check_finite)
    contents = {
        number: bytearray(np.ones(group.packed_bytes // group.dtype.itemsize, group.dtype).tobytes())
        for number, group in enumerate(LAYOUT.groups)
    }
    named = set()
    for name in data.draw(st.lists(st.sampled_from(["a", "b", "c", "wide", "wider"]), max_size=2)):
        placed = LAYOUT.parameters[LAYOUT.indices[name]]
        size = placed.spec.dtype.itemsize
        at = placed.packed_offset + size * data.draw(st.integers(0, placed.spec.elements - 1))
        contents[placed.group][at : at + size] = data.draw(st.sampled_from(BAD[placed.spec.dtype.name]))
        named.add(name)
    for number in (SINGLE, DOUBLE):
        size, end = LAYOUT.groups[number].dtype.itemsize, LAYOUT.groups[number].packed_bytes
        cuts = sorted({0, end, *(size * cut for cut in data.draw(st.sets(st.integers(0, end // size))))})
        for begin, after in data.draw(st.permutations(list(itertools.pairwise(cuts)))):
            update.admit(number, begin, after - begin)
            update.place(device, number, begin, bytes(contents[number][begin:after]))
    update.check_complete()
    if named and check_finite:
        assert update.nonfinite is not None
        assert update.nonfinite_owner() in named
    else:
        assert update.nonfinite is None


@pytest.mark.parametrize(("value", "finite"), [(3.4e38, True), (3.5e38, False), (-1e300, False)])
def test_what_arrives_too_large_for_its_type_is_an_infinity(device, value, finite):
    update = staging(device)
    elements = LAYOUT.groups[SINGLE].packed_bytes // 4
    arrived = np.ones(elements)
    arrived[-1] = value
    update.admit(SINGLE, 0, arrived.nbytes, dtype=arrived.dtype)
    update.place(device, SINGLE, 0, arrived.tobytes(), dtype=arrived.dtype)
    assert update.is_finite == finite
    if not finite:
        assert update.nonfinite_owner() == "c"  # the last of the group


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_becomes_of_an_update_that_is_not_finite(device, dtype, bad):
    start = {"first": np.ones(3, dtype), "second": np.ones(2, dtype)}
    fine = {"first": np.ones(3, dtype), "second": np.ones(2, dtype)}
    poisoned = fine | {"second": np.array([1, bad], dtype)}

    def make(nonfinite):
        return LocalRun(start, device=device, hyperparameters={"lr": 0.5}, nonfinite=nonfinite)

    reject = make("reject")
    with pytest.raises(NonfiniteGradient, match="run 'local': the gradient for 'second' holds a NaN") as caught:
        reject.commit(reject.stage(poisoned))
    assert caught.value.details == {"parameter": "second"}
    assert reject.run.version == reject.run.skipped_count == 0
    reject.step(fine)  # the refusal has not used up the sequence
    assert reject.parameters()["second"].tolist() == [0.5, 0.5]

    skip = make("skip")
    skip.step(fine, samples=4.0)
    answer = skip.commit(skip.stage(poisoned, {"": {"lr": 7.0}}, samples=4.0))
    skip.sequence += 1
    assert answer == Answer(Outcome.SKIPPED_NONFINITE, 1)
    assert skip.run.recall(skip.identity(2)) == answer
    assert (skip.run.version, skip.run.skipped_count, skip.run.samples) == (1, 1, 4.0)
    assert skip.step(fine)["second"].tolist() == [0.0, 0.0]  # with the old learning rate
    assert skip.run.groups[0].steps.tolist() == [2, 2]

    allow = make("allow")
    after = allow.step(poisoned)["second"]
    np.testing.assert_array_equal(after, np.array([0.5, np.nan if np.isnan(bad) else -bad], dtype))
    assert allow.run.version == 1
