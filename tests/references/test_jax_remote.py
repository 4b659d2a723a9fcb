"""stepwell.jax against optax itself: the same loop, the same numbers, wherever the state is."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import stepwell
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels
from tests.references.comparison import expect_close
from tests.references.halves import train_halves
from tests.references.jaxed import import_jax

jax = import_jax()
optax = pytest.importorskip("optax")
pytestmark = [pytest.mark.references, pytest.mark.xdist_group("jax_remote")]

EXAMPLES = Path(__file__).parents[2] / "examples"
# What the catalogue demands of every parameter after every step: (rtol, atol).
TOLERANCES = {np.float64: (1e-11, 1e-13), np.float32: (2e-5, 1e-6)}
IMPATIENT = {"patience_seconds": 2.0, "retry_seconds": 0.01}

every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda dtype: dtype.__name__)
jitted_or_not = pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(kept_kernels()) as server:
        yield server


@pytest.fixture
def remote(server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes transformations with runs that no other test has."""
    import stepwell.jax

    made: list[Any] = []
    base = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)

    def make(optimizer: str = "adamw", *, run: str | None = None, **options: Any) -> Any:
        run = run or f"{base}-{len(made)}"
        made.append(stepwell.jax.remote(optimizer, run=run, address=server.address, **options))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


# --- a small network ---


class Layer(NamedTuple):
    w: Any
    b: Any


def network(dtype: Any = np.float64, width: int = 5) -> Any:
    """Two layers in a list, and a number, in a dictionary; one leaf is None."""
    rng = np.random.default_rng(1)
    layers = [Layer(rng.normal(size=(width, width)).astype(dtype) / 2, np.zeros(width, dtype)) for _ in range(2)]
    return jax.tree.map(jax.numpy.asarray, {"layers": layers, "scale": dtype(1.5), "unused": None})


def loss_of(params: Any, batch: Any) -> Any:
    hidden = batch
    for layer in params["layers"]:
        hidden = jax.numpy.tanh(hidden @ layer.w + layer.b)
    return jax.numpy.mean((params["scale"] * hidden - batch[:, ::-1]) ** 2)


def slope_of(params: Any, batch: Any) -> Any:
    """Its gradients are the same whatever the parameters, so that roundings do not grow from step to step."""
    return sum(jax.numpy.vdot(leaf, jax.numpy.resize(batch, leaf.shape)) for leaf in jax.tree.leaves(params))


def batches(count: int, dtype: Any = np.float64, width: int = 5) -> Any:
    return np.random.default_rng(2).normal(size=(count, 4, width)).astype(dtype)


def stepping(optimizer: Any, jit: bool, loss: Any = loss_of) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    gradient = jax.jit(jax.grad(loss))

    def step(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient(params, batch), state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step) if jit else step


def train(optimizer: Any, params: Any, data: Any, jit: bool = True, loss: Any = loss_of) -> list[dict[str, Any]]:
    """The parameters, by any names, after every step."""
    step, state, seen = stepping(optimizer, jit, loss), optimizer.init(params), []
    for batch in data:
        params, state = step(params, state, batch)
        seen.append({str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(params))})
    return seen


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, bit by bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in pairs)


# --- the same numbers ---

COSINE = {"lr": {"name": "cosine", "t_max": 100, "eta_min": 0.002}}
OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[[], Any]]] = {
    "adam": ({"optimizer": "adam", "lr": 0.02, "beta1": 0.8}, lambda: optax.adam(0.02, b1=0.8)),
    "momentum": ({"optimizer": "sgd", "lr": 0.05, "momentum": 0.9}, lambda: optax.sgd(0.05, momentum=0.9)),
    "servers-schedule": (
        {"optimizer": "adamw", "lr": 0.02, "weight_decay": 0.05, "run_options": {"schedules": COSINE}},
        lambda: optax.adamw(optax.cosine_decay_schedule(0.02, 100, alpha=0.1), weight_decay=0.05),
    ),
    "own-schedule": (
        {"optimizer": "adamw", "lr": optax.warmup_cosine_decay_schedule(0.0, 0.02, 10, 90), "weight_decay": 0.05},
        lambda: optax.adamw(optax.warmup_cosine_decay_schedule(0.0, 0.02, 10, 90), weight_decay=0.05),
    ),
}


@every_dtype
@jitted_or_not
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_100_steps_equal_optax(remote, name, jit, dtype):
    given, local = OPTIMIZERS[name]
    params, data = network(dtype), batches(100, dtype)
    mine = remote(**given)
    loss = loss_of if dtype is np.float64 else slope_of
    # optax's schedules are float32, and differ by a rounding between jit and without.
    found, expected = (train(optimizer, params, data, jit, loss) for optimizer in (mine, local()))
    expect_close(found, expected, TOLERANCES[dtype], name)
    assert mine.run.version == 100


def test_it_is_chained_as_others_are(remote):
    mine, local = (
        optax.chain(optax.clip_by_global_norm(0.1), optimizer)
        for optimizer in (remote("adamw", lr=0.02), optax.adamw(0.02))
    )
    params, data = network(), batches(100)
    expect_close(train(mine, params, data), train(local, params, data), TOLERANCES[np.float64], "chained")


def test_steps_within_scan_equal_steps_one_by_one(remote):
    params, data = network(), batches(30)
    mine = remote("adamw", lr=0.02)

    @jax.jit
    def many(params: Any, state: Any, data: Any) -> Any:
        step = stepping(mine, jit=False)

        def body(carry: Any, batch: Any) -> Any:
            params, state = carry
            return step(params, state, batch), None

        return jax.lax.scan(body, (params, state), data)[0]

    found, state = many(params, mine.init(params), data)
    expected = train(remote("adamw", lr=0.02), params, data)[-1]
    assert [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), expected.values(), strict=True)] == [True] * 5
    assert state.version == 30
    assert state.version.dtype == np.int32


def test_vmap_and_grad_are_refused(remote):
    """What they would mean is not what one run could do."""
    mine = remote("sgd", lr=1.0)
    params = {"w": jax.numpy.ones(2)}
    state = mine.init(params)
    with pytest.raises(ValueError, match="ordered"):
        jax.vmap(lambda grads: mine.update(grads, state, params))({"w": jax.numpy.ones((3, 2))})
    with pytest.raises(ValueError, match="JVP"):
        jax.grad(lambda grads: mine.update(grads, state, params)[0]["w"].sum())(params)
    assert mine.run.version == 0


def test_the_loss_reaches_optimizers_that_need_it(remote):
    """By optax's name for it, and through its chains."""
    params, data, seen = network(), batches(20), []
    for optimizer in (remote("polyak_sgd"), optax.polyak_sgd()):
        chained = optax.chain(optax.clip_by_global_norm(1.0), optimizer)

        def step(params: Any, state: Any, batch: Any, chained: Any = chained) -> Any:
            loss, grads = jax.value_and_grad(loss_of)(params, batch)
            updates, state = chained.update(grads, state, params, value=loss, unknown_to_both=1)
            return optax.apply_updates(params, updates), state

        state, steps, now = chained.init(params), jax.jit(step), params
        for batch in data:
            now, state = steps(now, state, batch)
        seen.append({str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(now))})
    expect_close(seen[:1], seen[1:], TOLERANCES[np.float64], "polyak_sgd")


def test_samples_drive_a_schedule_on_their_clock(remote):
    schedule = {"name": "step", "step_size": 64, "gamma": 0.5, "clock": "samples"}
    mine = remote("sgd", lr=1.0, run_options={"schedules": {"lr": schedule}})
    params = {"w": jax.numpy.zeros(2)}
    state = mine.init(params)
    update = jax.jit(lambda params, state: mine.update({"w": jax.numpy.ones(2)}, state, params, samples=32))
    steps = []
    for _ in range(5):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
        steps.append(float(updates["w"][0]))
    assert steps == [-1.0, -1.0, -0.5, -0.5, -0.25]


# --- whose parameters ---


@pytest.mark.parametrize("dtype", [np.float64, np.float32, jax.numpy.bfloat16, np.float16], ids=str)
@jitted_or_not
def test_applied_updates_give_the_runs_parameters(remote, dtype, jit):
    """Exactly, where they lie between half and twice the old ones; else within half a rounding of the difference."""
    params = {"w": jax.numpy.asarray(np.random.default_rng(3).normal(size=400).astype(dtype))}
    mine = remote("sgd", lr=1.0)
    state, update, near, far = mine.init(params), jax.jit(mine.update) if jit else mine.update, 0, 0
    for scale in (1e-3, 0.1, 1.0, 10.0):
        drawn = np.random.default_rng(4).normal(scale=scale, size=400).astype(dtype)
        updates, state = update({"w": jax.numpy.asarray(drawn)}, state, params)
        assert updates["w"].dtype == dtype
        old, difference = np.asarray(params["w"]), np.asarray(updates["w"])
        params = optax.apply_updates(params, updates)
        assert params["w"].dtype == dtype
        got, expected = np.asarray(params["w"]), np.asarray(mine.pull()["w"])
        close = (np.abs(old) / 2 <= np.abs(expected)) & (np.abs(expected) <= 2 * np.abs(old)) & (old * expected > 0)
        assert np.array_equal(got[close], expected[close])
        # Rounded when it is subtracted and when it is added.
        wide = np.maximum(np.abs(difference), np.abs(expected)).astype(np.float64)
        rounding = float(jax.numpy.finfo(dtype).eps) * wide + float(jax.numpy.finfo(dtype).smallest_normal)
        assert np.all(np.abs(got.astype(np.float64) - expected.astype(np.float64)) <= rounding)
        near, far = near + close.sum(), far + (~close).sum()
    assert min(near, far) > 100  # both kinds were there


def test_16_bits_are_kept_as_32_on_the_server(remote):
    """Steps too small for the trainer's own 16 bits add up on the server."""
    params = {"w": jax.numpy.ones(3, jax.numpy.bfloat16)}
    mine = remote("sgd", lr=1e-5)
    state, update = mine.init(params), jax.jit(mine.update)
    for _ in range(4):
        updates, state = update({"w": jax.numpy.ones(3, jax.numpy.bfloat16)}, state, params)
        assert not updates["w"].any()
    (kept,) = mine.run.get_state().parameters.values()
    assert kept.dtype == np.float32
    np.testing.assert_allclose(1 - kept, 4e-5, rtol=0.01)


def test_who_finds_a_run_goes_on_with_it(remote):
    params, data = network(), batches(20)
    expected = train(optax.adamw(0.02), params, data)[-1]
    first = remote("adamw", lr=0.02, run="kept")
    train(first, params, data[:10])
    first.close()
    second = remote("adamw", lr=0.02, run="kept")
    fresh = jax.tree.map(jax.numpy.zeros_like, params)
    state = second.init(fresh)
    assert state.version == 10
    assert not second.run.created
    params = second.pull()
    step = stepping(second, jit=True)
    for batch in data[10:]:
        params, state = step(params, state, batch)
    for found, wanted in zip(jax.tree.leaves(params), expected.values(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-13)


def test_a_schedule_goes_on_with_the_run(remote):
    """Its count is the run's version; what the run had before, or another worker set, does not matter."""
    for expected in (-1.0, -3.0, -1.0):
        mine = remote("sgd", lr=lambda count: jax.numpy.where(count == 1, 3.0, 1.0), run="counted")
        state = mine.init({"w": jax.numpy.zeros(1)})
        if mine.run.version == 2:
            mine.run.change(hyperparameters={"lr": 9.0})
        updates, _ = jax.jit(mine.update)({"w": jax.numpy.ones(1)}, state, mine.pull())
        assert updates["w"] == expected
        mine.close()


def test_parameters_are_named_by_their_paths(remote):
    mine = remote(lr=0.1)
    mine.init(network())
    names = {"layers/0/w", "layers/0/b", "layers/1/w", "layers/1/b", "scale"}
    assert set(mine.run.get_state().parameters) == names
    alone = remote(lr=0.1)
    alone.init(jax.numpy.ones(3))
    assert set(alone.run.get_state().parameters) == {"params"}
    np.testing.assert_array_equal(alone.pull(), np.ones(3))


def test_groups_take_globs_of_names(remote):
    groups = [{"name": "biases", "parameters": ["layers/*/b"], "hyperparameters": {"weight_decay": 0.0}}]
    mine = remote("adamw", lr=0.02, weight_decay=0.5, run_options={"groups": groups})
    decayed = {"layers": [Layer(True, False)] * 2, "scale": True, "unused": None}
    local = optax.adamw(0.02, weight_decay=0.5, mask=decayed)
    params, data = network(), batches(20)
    expect_close(train(mine, params, data), train(local, params, data), TOLERANCES[np.float64], "groups")


def test_masked_parameters_stay_out(remote):
    mine = remote("adam", lr=0.02)
    mask = {"layers": [Layer(True, True), Layer(False, False)], "scale": True, "unused": None}
    masked, params, data = optax.masked(mine, mask), network(), batches(10)
    found = train(masked, params, data)
    expect_close(found, train(optax.masked(optax.adam(0.02), mask), params, data), TOLERANCES[np.float64], "masked")
    assert set(mine.run.get_state().parameters) == {"layers/0/w", "layers/0/b", "scale"}


def test_none_is_no_gradient(remote):
    """With PyTorch's steps, which each parameter has for itself; optax has one for all and refuses."""
    params = {"w": jax.numpy.ones(2), "b": jax.numpy.ones(2)}
    grads = {"w": jax.numpy.ones(2), "b": None}
    mine = remote("adam", lr=0.1, run_options={"flavor": "torch"})
    updates, _ = jax.jit(mine.update)(grads, mine.init(params), params)
    assert not updates["b"].any()
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-6)
    assert mine.run.get_state().steps == {"w": 1, "b": 0}
    strict = remote("adam", lr=0.1)
    with pytest.raises(stepwell.GradientRequired, match="'b'"):
        strict.update(grads, strict.init(params), params)


def test_init_can_be_traced(remote):
    params = network()
    mine = remote("adam", lr=0.02)
    shapes = jax.eval_shape(mine.init, params)
    assert shapes.version.shape == ()
    with pytest.raises(stepwell.InvalidValue, match="expected init"):
        _ = mine.run  # nothing was created
    state = jax.jit(mine.init)(params)
    assert mine.run.created
    assert same(mine.pull(), params)
    assert state.version == 0


def test_transports_give_equal_bits(remote):
    params, data, found = network(np.float32, 200), batches(5, np.float32, 200), []
    for transport in ("shared_memory", "stream"):
        mine = remote("adamw", lr=0.02, connect_options={"transport": transport})
        found += train(mine, params, data)[-1:]
        assert mine.run.transport == transport
    assert all(np.array_equal(found[1][name], value) for name, value in found[0].items())


def test_what_update_returned_does_not_change_with_later_steps(remote):
    """Outside of jit, too, where arrays could share the memory that the server writes."""
    params = {"w": jax.numpy.zeros(100_000)}
    mine = remote("sgd", lr=1.0, connect_options={"transport": "shared_memory"})
    state, seen = mine.init(params), []
    for number in range(4):
        updates, state = mine.update({"w": jax.numpy.ones(100_000)}, state, {"w": jax.numpy.zeros(100_000)})
        seen += [(updates["w"], -number - 1.0), (mine.pull()["w"], -number - 1.0)]
    for values, expected in seen:
        assert np.array_equal(values, np.full(100_000, expected))


# --- what goes wrong ---


@jitted_or_not
def test_what_changed_between_steps_is_named(remote, jit):
    params = network()
    mine = remote("adam", lr=0.02)
    state = mine.init(params)
    update = jax.jit(mine.update) if jit else mine.update
    wider = {**params, "scale": jax.numpy.ones(3)}
    for grads, now, message in (
        (params, wider, r"parameter 'scale' has shape \(3,\), expected \(\), as when init was called"),
        (params, {**params, "scale": np.float32(1)}, r"parameter 'scale' has dtype float32, expected float64"),
        (params, {**params, "more": np.ones(1)}, "got a parameter 'more', expected none"),
        (wider, params, r"gradient of 'scale' has shape \(3,\), expected \(\)"),
        ({**params, "scale": np.int32(1)}, params, "gradient of 'scale' has dtype int32, expected float64"),
        ({"layers": params["layers"]}, params, "got no gradient 'scale', expected one.*give None"),
        (params, None, r"got no params.*update\(grads, state, params\)"),
    ):
        with pytest.raises(stepwell.InvalidValue, match=message):
            update(grads, state, now)
    with pytest.raises(stepwell.InvalidValue, match=r"parameter 'scale' has shape \(3,\)"):
        mine.init(wider)
    assert mine.run.version == 0
    stepping(mine, jit)(params, state, batches(1)[0])
    assert mine.run.version == 1


def test_names_that_collide_and_what_is_no_parameter_are_refused(remote):
    with pytest.raises(stepwell.InvalidValue, match=r"two parameters named 'a/b', \['a'\]\['b'\] and \['a/b'\]"):
        remote().init({"a": {"b": np.ones(1)}, "a/b": np.ones(1)})
    with pytest.raises(stepwell.InvalidValue, match="parameter 'count' is int32, expected one of float64"):
        remote().init({"w": np.ones(1), "count": np.int32(0)})
    with pytest.raises(stepwell.InvalidValue, match="params without an array"):
        remote().init({"w": None})
    mine = remote()
    with pytest.raises(stepwell.InvalidValue, match="update before init"):
        mine.update(np.ones(1), None, np.ones(1))
    with pytest.raises(stepwell.InvalidValue, match="expected init"):
        mine.pull()
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(mine)


def test_the_servers_words_reach_the_program(remote):
    params = network()
    with pytest.raises(stepwell.UnknownOptimizer, match="'adamm'"):
        remote("adamm").init(params)
    with pytest.raises(stepwell.UnknownArgument, match="'b1'"):
        remote("adam", b1=0.9).init(params)
    with pytest.raises(stepwell.UnknownOptimizer, match="'adamm'"), remote("adamm") as mine:
        jax.jit(mine.init)(params)


def test_errors_come_typed_out_of_jit(remote):
    """JAX makes text of them; `error` has them, and the block raises them."""
    params, batch = network(), batches(1)[0]
    with (  # noqa: PT012  # the block is what is tested
        pytest.raises(stepwell.NonfiniteGradient, match="'layers/0/b' holds a NaN"),
        remote("adam", lr=0.1) as mine,
    ):
        step, state = stepping(mine, jit=True), mine.init(params)
        with pytest.raises(jax.errors.JaxRuntimeError, match=r"NonfiniteGradient: run .* holds a NaN") as caught:
            jax.block_until_ready(step(params, state, batch * np.nan))
        assert type(mine.error) is stepwell.NonfiniteGradient
        assert str(mine.error) in str(caught.value)
        params, state = step(params, state, batch)  # it goes on
        assert state.version == 1
        assert mine.error is None
        with pytest.raises(stepwell.NonfiniteGradient):
            stepping(mine, jit=False)(params, state, batch * np.nan)
        jax.block_until_ready(step(params, state, batch * np.nan))


def test_errors_that_are_not_ours_leave_the_block_as_they_are(remote):
    params, batch = network(), batches(1)[0]

    def fail(_: Any) -> Any:
        raise ValueError("of the program's own")

    fails = jax.jit(lambda x: jax.experimental.io_callback(fail, jax.ShapeDtypeStruct((), np.float64), x))
    with pytest.raises(jax.errors.JaxRuntimeError, match="own"), remote("adam", lr=0.1) as mine:  # noqa: PT012
        with pytest.raises(jax.errors.JaxRuntimeError):
            jax.block_until_ready(stepping(mine, jit=True)(params, mine.init(params), batch * np.nan))
        jax.block_until_ready(fails(1.0))
    with pytest.raises(ZeroDivisionError), remote("adam", lr=0.1):
        _ = 1 / 0
    state = mine.init(params)
    with pytest.raises(RuntimeError, match="closed run"):
        mine.update(params, state, params)


@jitted_or_not
def test_a_lost_server_is_reported_after_the_clients_patience(jit):
    import stepwell.jax

    params, batch = network(), batches(1)[0]
    with Server(kept_kernels()) as server:
        mine = stepwell.jax.remote("adam", lr=0.1, address=server.address, run="dies", connect_options=IMPATIENT)
        with pytest.raises(stepwell.ServerUnavailable, match="run 'dies': step"), mine:  # noqa: PT012
            step, state = stepping(mine, jit), mine.init(params)
            params, state = step(params, state, batch)
            server.kill()
            jax.block_until_ready(step(params, state, batch))


def test_a_run_that_went_back_goes_on_after_a_pull(server, remote, tmp_path):
    params, data = network(), batches(4)
    with Server(kept_kernels(), data_dir=tmp_path) as storing:
        import stepwell.jax

        with stepwell.jax.remote("adam", lr=0.1, address=storing.address, run="back") as mine:
            step, state = stepping(mine, jit=True), mine.init(params)
            now, state = step(params, state, data[0])
            jax.block_until_ready(now)
            with stepwell.connect(storing.address) as client:
                client.get_run("back").save_checkpoint("one")
                later, state = step(now, state, data[1])
                jax.block_until_ready(later)
                client.get_run("back").restore_checkpoint("one")
            with pytest.raises(jax.errors.JaxRuntimeError):
                jax.block_until_ready(step(later, state, data[2]))
            assert isinstance(mine.error, stepwell.RunRewound)
            assert same(mine.pull(), now)
            again, state = step(mine.pull(), state, data[1])
            assert same(again, later)
            assert state.version == 2


def test_without_jax_the_import_says_what_to_install():
    for missing in ("jax", "optax"):
        check = f"import sys; sys.modules['{missing}'] = None; import stepwell, stepwell.aio; import stepwell.jax"
        done = subprocess.run([sys.executable, "-c", check], check=False, capture_output=True, text=True, timeout=300)
        assert done.returncode == 1
        assert re.search(rf"ImportError: got no module '{missing}'.*pip install 'stepwell\[jax\]'", done.stderr)
    check = "import sys, stepwell, stepwell.aio; assert not {'jax', 'optax'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=300).returncode == 0


ENDS = """
import sys
import jax.numpy as jnp
import stepwell.jax
optimizer = stepwell.jax.remote("sgd", lr=0.1, address=sys.argv[1], run="ends")
params = jnp.zeros(3)
state = optimizer.init(params)
optimizer.update(jnp.ones(3), state, params)
"""


def test_a_program_that_ends_without_close_leaves_the_run(server):
    done = subprocess.run([sys.executable, "-c", ENDS, server.address], check=False, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with stepwell.connect(server.address) as client:
        described = client.get_run("ends").refresh()
        assert described.version == 1
        assert [worker.name for worker in described.workers] == []


# --- several workers, several devices ---

WORKER = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
import stepwell.jax
jax.config.update("jax_enable_x64", True)
address, half, result = sys.argv[1:]
rng = np.random.default_rng(1)
params = {"w": jnp.asarray(rng.normal(size=(8, 8))), "b": jnp.zeros(8)}
data = rng.normal(size=(30, 16, 8))
if address == "local":
    optimizer = optax.adamw(0.01)
    state = optimizer.init(params)
else:
    optimizer = stepwell.jax.remote("adamw", lr=0.01, address=address, run="halves", policy="sync")
    state = optimizer.init(params)
    print("joined", flush=True)
    sys.stdin.readline()
    data = data[:, :8] if half == "0" else data[:, 8:]

@jax.jit
def step(params, state, batch):
    grads = jax.grad(lambda p: jnp.mean((jnp.tanh(batch @ p["w"] + p["b"]) - batch[:, ::-1]) ** 2))(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

for batch in data:
    params, state = step(params, state, batch)
np.savez(result, **params)
"""


def test_two_workers_are_one_with_the_whole_batch(server, tmp_path):
    """The mean of the gradients of two halves is that of the whole."""
    first, second, whole = map(np.load, train_halves(WORKER, server.address, tmp_path))
    for name in ("w", "b"):
        assert np.array_equal(first[name], second[name])
        np.testing.assert_allclose(first[name], whole[name], rtol=1e-10, atol=1e-12)


DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import NamedSharding, PartitionSpec
import stepwell.jax
mesh = jax.make_mesh((2,), ("data",))
params = jax.device_put({"w": jnp.zeros((8, 2))}, NamedSharding(mesh, PartitionSpec()))
batch = jax.device_put(np.random.default_rng(1).normal(size=(16, 8)), NamedSharding(mesh, PartitionSpec("data")))
optimizer = stepwell.jax.remote("sgd", lr=0.1, address=sys.argv[1], run="devices")
state = optimizer.init(params)

@jax.jit
def step(params, state, batch):
    grads = jax.grad(lambda p: jnp.mean((batch @ p["w"] - 1) ** 2))(params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

for number in range(1, 4):
    params, state = step(params, state, batch)
    assert optimizer.run.version == state.version == number
assert np.array_equal(params["w"], optimizer.pull()["w"])
assert params["w"].any()
optimizer.close()
"""


def test_several_devices_are_one_worker(server):
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-c", DEVICES, server.address]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_example_learns_as_with_optax(server):
    """As it stands, and with the lines of local training in place of those that it shows; in JAX's own 32 bits."""
    script = (EXAMPLES / "jax_train.py").read_text(encoding="utf-8")
    (made,) = [line for line in script.splitlines(keepends=True) if "stepwell.jax.remote(" in line]
    local = script.replace(made, "    optimizer = optax.adamw(3e-3)\n").replace("    params = optimizer.pull()\n", "")
    assert len(local.splitlines()) == len(script.splitlines()) - 1
    losses = []
    for text in (script, local):
        command = [sys.executable, "-W", "error", "-c", text, "--steps", "120", "--address", server.address]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        losses.append([float(line.split()[-1]) for line in done.stdout.splitlines()])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < 0.8 * losses[0][0]
