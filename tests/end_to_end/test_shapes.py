"""Parameters of every form, through everything that can be done with a run."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import stepwell
from tests.core.local import LocalRun
from tests.end_to_end.server import Server
from tests.end_to_end.states import Arrays, same_bits, same_state

Connect = Callable[..., stepwell.Client]


def draw(seed: int, shapes: dict[str, tuple[tuple[int, ...], str]]) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape)).astype(dtype) for name, (shape, dtype) in shapes.items()}


SHAPES: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
    "0-d": {"loss_scale": ((), "f4")},
    "0-d double": {"loss_scale": ((), "f8")},
    "empty": {"none": ((0,), "f4"), "neither": ((3, 0, 2), "f8"), "one": ((1,), "f4")},
    "nothing but empty": {"none": ((0,), "f4")},
    "two dtypes": {"a": ((3, 5), "f4"), "b": ((7,), "f8"), "c": ((2, 2), "f4"), "d": ((), "f8"), "e": ((0, 4), "f8")},
    "names": {
        "encoder/layer.0/attention.self:0": ((2, 3), "f4"),
        "größe": ((4,), "f4"),
        "权重.偏置": ((4,), "f8"),
        "🧠/β₁ with spaces": ((1,), "f4"),
        "..": ((2,), "f4"),
        "../../etc/passwd": ((2,), "f4"),
        "a": ((2,), "f4"),
        "A": ((2,), "f4"),
        "é": ((2,), "f4"),
        "e\u0301": ((2,), "f4"),  # another name than the one above, though it looks the same
        "*": ((2,), "f4"),
        "\n\t": ((2,), "f4"),
        "ä" * 512: ((2,), "f4"),
    },
    "many dimensions": {"w": ((2, 1, 3) + (1,) * 29, "f4")},
    "larger than a message": {"w": ((3, 500_001), "f4"), "v": ((300_001,), "f8")},
    "10,000 small": {f"block.{n}/w": ((n % 4,) if n % 5 else (), "f4" if n % 3 else "f8") for n in range(10_000)},
}


@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_shapes(client: stepwell.Client, name: str, shapes: dict[str, tuple[tuple[int, ...], str]]) -> None:
    values, first, second = (draw(seed, shapes) for seed in (1, 2, 3))
    spec: dict[str, Any] = {"optimizer": "adam", "flavor": "torch", "hyperparameters": {"lr": 0.1}}
    local = LocalRun(values, **spec)

    run = client.create_run(name, values, **spec)
    got = run.pull()
    assert got is not None
    same_bits(got, values)
    assert list(got) == list(values)
    same_bits(run.step(first), local.step(first))
    assert run.push(second) == 2
    expected = local.step(second)
    out = {key: np.empty_like(array) for key, array in values.items()}
    got = run.pull(out=out)
    assert got is not None
    assert all(got[key] is out[key] for key in out)
    same_bits(out, expected)
    for some in (list(values)[::2][::-1], list(values)[-1:]):
        got = run.pull(names=some)
        assert got is not None
        assert list(got) == some
        same_bits(got, {key: expected[key] for key in some})

    state = run.get_state()
    same_bits(state.parameters, expected)
    for slot in ("exp_avg", "exp_avg_sq"):
        same_bits({key: slots[slot] for key, slots in state.slots.items()}, local.arrays(slot))
    assert state.steps == dict.fromkeys(values, 2)
    other = client.create_run(name + "-2", first, **spec)
    other.set_state(state)
    same_state(other.get_state(), state)
    same_bits(other.step(first), local.step(first))
    described = run.refresh()
    assert described.parameters_count == len(values)
    for made in (name, name + "-2"):
        client.delete_run(made)


def test_arrays_as_people_have_them(client: stepwell.Client, name: str) -> None:
    """Transposed, sliced, reversed, big-endian, read-only, a list: what counts is the values."""
    base = np.arange(24, dtype=np.float32)
    forms: dict[str, Any] = {
        "transposed": base.reshape(4, 6).T,
        "sliced": base.reshape(4, 6)[::2, 1::2],
        "reversed": base[::-1],
        "big-endian": base.astype(">f4"),
        "fortran": np.asfortranarray(base.reshape(4, 6)),
        "broadcast": np.broadcast_to(base[:3], (5, 3)),
        "0-d": base[5:6].reshape(()),
    }
    forms["transposed"].flags.writeable = False
    run = client.create_run(name, forms, optimizer="sgd", hyperparameters={"lr": 1.0})
    got = run.step(forms)
    for key, array in got.items():
        assert array.shape == forms[key].shape
        np.testing.assert_array_equal(array, np.zeros_like(array), err_msg=key)
    fortran = np.asfortranarray(base.reshape(4, 6))
    for refused in (fortran, np.zeros((4, 6), ">f4"), np.zeros((4, 6)), np.zeros((6, 4))):
        with pytest.raises(stepwell.InvalidValue, match=r"expected a writable C-contiguous.*\(4, 6\); make it"):
            run.pull(out={"fortran": refused})


def test_names_for_globs(client: stepwell.Client, name: str) -> None:
    arrays = {"a/b.c": np.zeros(1), "a/b.d": np.zeros(1), "[x]": np.zeros(1), "größe": np.zeros(1)}
    run = client.create_run(
        name,
        arrays,
        optimizer="sgd",
        hyperparameters={"lr": 1.0},
        groups=[
            {"name": "c", "parameters": ["a/*.c"], "hyperparameters": {"lr": 2.0}},
            {"name": "x", "parameters": ["[[]x]", "gr??e"], "hyperparameters": {"lr": 3.0}},
        ],
    )
    got = run.step({key: np.ones(1) for key in arrays})
    assert {key: value.item() for key, value in got.items()} == {"a/b.c": -2, "a/b.d": -1, "[x]": -3, "größe": -3}


@pytest.mark.long
@pytest.mark.xdist_group("gigabytes")
def test_a_tensor_of_more_than_2_31_bytes(start: Callable[..., Server], connect: Connect) -> None:
    """Beyond what 32 bits count, in bytes; every element is looked at."""
    elements = 2**31 // 4 + 100_003
    server = start("--max-memory", "12GiB")
    client = connect(server)
    parameters = {"w": np.empty(elements, np.float32), "last": np.zeros(3, np.float32)}
    parameters["w"][:] = 1.0
    parameters["w"][-5:] = np.arange(5)
    run = client.create_run("large", parameters, optimizer="sgd", hyperparameters={"lr": 1.0})
    gradient = parameters["w"]  # the values are on their way: from here on the array is the gradient, and then `out`
    gradient[:] = 0.25
    gradient[-5:] = -np.arange(5)
    assert run.push({"w": gradient, "last": np.ones(3, np.float32)}) == 1
    gradient[:] = np.nan
    got = run.pull(out={"w": gradient, "last": parameters["last"]})
    assert got is not None
    assert got["w"] is gradient
    np.testing.assert_array_equal(gradient[-5:], 2 * np.arange(5))
    for begin in range(0, elements - 5, 1 << 26):
        assert (gradient[begin : min(begin + (1 << 26), elements - 5)] == 0.75).all(), begin
    np.testing.assert_array_equal(parameters["last"], -1.0)
    got = run.pull(names=["last"])
    assert got is not None
    assert sys.getsizeof(got["last"]) < 1000
    # A NaN in the last element is found, and changes nothing.
    gradient[:] = 0.0
    gradient[-1] = np.nan
    with pytest.raises(stepwell.NonfiniteGradient, match="'w'"):
        run.push({"w": gradient, "last": np.ones(3, np.float32)})
    assert run.refresh().version == 1
