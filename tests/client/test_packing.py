import numpy as np
import pytest

from stepwell._layout import Layout
from stepwell._packing import RANGE_OVERHEAD_BYTES, Gradients
from stepwell.errors import Internal
from stepwell.v1 import run_pb2
from stepwell.wire import RANGE_BYTES

F32, F64 = run_pb2.D_TYPE_FLOAT32, run_pb2.D_TYPE_FLOAT64
SIZES = {F32: 4, F64: 8}


def lay_out(parameters, frozen=()):
    """parameters: (name, shape, group); groups alternate between float32 and float64."""
    count = 1 + max(group for _, _, group in parameters)
    groups = [
        run_pb2.LayoutGroup(name=f"g{group}", dtype=(F32, F64)[group % 2], frozen=group in frozen)
        for group in range(count)
    ]
    members = []
    for name, shape, group in parameters:
        at = groups[group].packed_bytes
        members.append(run_pb2.LayoutParameter(name=name, shape=shape, group=group, packed_offset_bytes=at))
        groups[group].packed_bytes += int(np.prod(shape)) * SIZES[groups[group].dtype]
    return Layout(groups, members)


def draw(rng):
    shapes = [(), (0,), (1,), (3, 5), (2, 3, 4), (1000,), (70, 3001), (400_003,), (600, 1000)]
    count = int(rng.integers(1, 12))
    parameters = [(f"p{i}", shapes[rng.integers(len(shapes))], int(rng.integers(3))) for i in range(count)]
    layout = lay_out([*parameters, ("last", (2,), 2)], frozen={1} if rng.random() < 0.3 else ())
    grads = {
        parameter.name: None if rng.random() < 0.3 else rng.standard_normal(parameter.shape).astype(parameter.dtype)
        for parameter in layout.parameters
        if not parameter.frozen
    }
    return layout, grads


@pytest.mark.parametrize("seed", range(40))
def test_ranges_hold_every_gradient_once_and_nothing_else(seed):
    layout, grads = draw(np.random.default_rng(seed))
    gradients = Gradients(layout, grads, "test")
    wanted = [bytearray(group.packed_bytes) for group in layout.groups]
    sent = [np.zeros(group.packed_bytes, int) for group in layout.groups]
    for parameter in layout.parameters:
        gradient = grads.get(parameter.name)
        if gradient is not None:
            start, end = parameter.offset_bytes, parameter.offset_bytes + parameter.size_bytes
            wanted[parameter.group][start:end] = gradient.tobytes()
            sent[parameter.group][start:end] += 1
    got = [bytearray(group.packed_bytes) for group in layout.groups]
    total = 0
    for message in gradients.messages():
        size = sum(piece.size_bytes for piece in message)
        assert size <= RANGE_BYTES
        total += size
        for piece in message:
            start, end = piece.packed_offset_bytes, piece.packed_offset_bytes + piece.size_bytes
            item = layout.groups[piece.group].dtype.itemsize
            assert start % item == end % item == 0
            assert piece.size_bytes
            assert not piece.range().data
            got[piece.group][start:end] = piece.range(data=True).data
            sent[piece.group][start:end] -= 1
    assert got == wanted
    assert not any(counts.any() for counts in sent)
    assert total == gradients.data_bytes
    expected = [p.index for p in layout.parameters if not p.frozen and grads[p.name] is None]
    assert gradients.without_gradient == expected


def test_small_neighbours_share_a_range():
    layout = lay_out([(f"p{i}", (7,), 0) for i in range(1000)])
    grads = {f"p{i}": np.full(7, i, np.float32) for i in range(1000)}
    ((piece,),) = Gradients(layout, grads, "test").messages()
    assert (piece.group, piece.packed_offset_bytes, piece.size_bytes) == (0, 0, 28_000)
    ((first, second),) = Gradients(layout, grads | {"p3": None}, "test").messages()
    assert (first.packed_offset_bytes, first.size_bytes) == (0, 84)
    assert second.packed_offset_bytes == 112


def test_a_large_parameter_is_cut_at_whole_range_bytes():
    layout = lay_out([("small", (5,), 0), ("large", (1 << 20,), 0)])
    grads = {"small": np.zeros(5, np.float32), "large": np.zeros(1 << 20, np.float32)}
    messages = list(Gradients(layout, grads, "test").messages())
    assert [piece.packed_offset_bytes for (piece,) in messages] == [i * RANGE_BYTES for i in range(5)]


def test_tiny_ranges_stay_bounded():
    count = 60_000
    layout = lay_out([(f"p{i}", (), 0) for i in range(count)])
    grads = {f"p{i}": np.float32(0) if i % 2 else None for i in range(count)}
    messages = list(Gradients(layout, grads, "test").messages())
    assert sum(len(message) for message in messages) == count // 2
    assert max(len(message) for message in messages) <= RANGE_BYTES // (RANGE_OVERHEAD_BYTES + 4) + 1


def test_contiguous_gradients_are_not_copied():
    layout = lay_out([("w", (4, 5), 0)])
    gradient = np.zeros((4, 5), np.float32)
    gradients = Gradients(layout, {"w": gradient}, "test")
    assert gradients.arrays[0] is gradient


@pytest.mark.parametrize(
    "change",
    [
        lambda group, parameter: setattr(parameter, "packed_offset_bytes", 4),
        lambda group, parameter: setattr(group, "packed_bytes", 7),
        lambda group, parameter: setattr(parameter, "group", 3),
    ],
)
def test_a_layout_with_gaps_is_refused(change):
    group = run_pb2.LayoutGroup(name="g", dtype=F32, packed_bytes=8)
    parameter = run_pb2.LayoutParameter(name="w", shape=[2], group=0)
    Layout([group], [parameter])
    change(group, parameter)
    with pytest.raises(Internal):
        Layout([group], [parameter])
