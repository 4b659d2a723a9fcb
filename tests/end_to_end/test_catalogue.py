"""What a run can have around its optimizer, over the wire: transforms, wrappers, points, inputs, half precision."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import stepwell
from tests.core.local import LocalRun
from tests.end_to_end.server import Server
from tests.end_to_end.states import same_bits, same_state
from tests.end_to_end.test_restarts import crash, restart

START = {"w": np.linspace(-1, 1, 12).reshape(3, 4), "b": np.array(0.5)}


def draws(seed: int, like: Any = None) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=value.shape).astype(value.dtype) for name, value in (like or START).items()}


def test_transforms_wrappers_and_points(client: stepwell.Client, name: str, kernel_cache: Path) -> None:
    spec: dict[str, Any] = {
        "optimizer": "adamw",
        "transforms": [{"name": "centralize"}, {"name": "clip_by_global_norm", "max_norm": 0.5, "norm_type": math.inf}],
        "wrappers": [{"name": "lookahead", "sync_period": 2}, {"name": "ema", "decay": 0.5}],
    }
    run = client.create_run(name, START, **spec)
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
    local = LocalRun(START, kernel_directory=kernel_cache, **plain)
    for step in range(5):
        same_bits(run.step(draws(step)), local.step(draws(step)))
    for point in ("average", "lookahead", "parameters"):
        pulled = run.pull(of=point)
        assert pulled is not None
        same_bits(pulled, local.point(point))
    part = run.pull(["b"], of="average")
    assert part is not None
    assert part["b"].tobytes() == local.point("average")["b"].tobytes()
    assert run.pull(of="average", if_newer_than=5) is None
    description = run.refresh()
    assert description.points == ("average", "lookahead", "parameters")
    assert [each["name"] for each in description.wrappers] == ["lookahead", "ema"]
    assert description.transforms[1] == {"name": "clip_by_global_norm", "max_norm": 0.5, "norm_type": math.inf}
    with pytest.raises(stepwell.UnknownPoint, match="'evaluation'"):
        run.pull(of="evaluation")
    with pytest.raises(stepwell.RunDiffers, match="wrappers"):
        client.create_run(name, START, **(spec | {"wrappers": []}))


def test_readers_of_a_point_get_one_version_while_it_moves(client: stepwell.Client, name: str) -> None:
    run = client.create_run(
        name, {"w": np.zeros(70_000)}, optimizer="sgd", hyperparameters={"lr": 1.0}, wrappers=[{"name": "swa"}]
    )
    reader = client.get_run(name)
    for step in range(1, 20):
        run.push({"w": np.full(70_000, -1.0)})
        pulled = reader.pull(of="average")
        assert pulled is not None
        np.testing.assert_allclose(pulled["w"], np.full(70_000, (step + 1) / 2), rtol=1e-12)


def test_norms(client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, START, optimizer="sgd", hyperparameters={"lr": 0.0}, report_norms=True)
    grads = draws(1)
    run.push(grads)
    answer = run.last_answer
    assert answer is not None
    for norms, arrays in ((answer.gradient_norms, grads), (answer.parameter_norms, START)):
        assert norms is not None
        flat = np.concatenate([value.ravel() for value in arrays.values()])
        expected = [np.linalg.norm(flat, order) for order in (1, 2, np.inf)]
        np.testing.assert_allclose([norms.l1, norms.l2, norms.maximum], expected, rtol=1e-12)


def test_the_loss_scale_travels(client: stepwell.Client, name: str) -> None:
    run = client.create_run(
        name, START, optimizer="sgd", hyperparameters={"lr": 1.0},
        transforms=[{"name": "unscale", "init_scale": 8.0, "growth_interval": 2}],
    )  # fmt: skip
    assert run.loss_scale == 8.0
    grads = draws(2)
    got = run.step({key: value * 8 for key, value in grads.items()})
    for key, value in got.items():
        np.testing.assert_allclose(value, START[key] - grads[key], rtol=1e-12)
    run.push({key: np.full_like(value, np.inf) for key, value in START.items()})
    assert run.last_answer is not None
    assert run.last_answer.outcome is stepwell.Outcome.SKIPPED_NONFINITE
    assert (run.loss_scale, run.version) == (4.0, 1)
    for _ in range(2):
        run.push(grads)
    assert run.loss_scale == 8.0
    assert run.refresh().loss_scale == client.get_run(name).loss_scale == 8.0


def test_the_loss_and_further_inputs(client: stepwell.Client, name: str) -> None:
    run = client.create_run(name, START, optimizer="polyak_sgd", hyperparameters={"lr": 1.0})
    with pytest.raises(stepwell.InputRequired, match="loss"):
        run.push(START)
    got = run.step(START, loss=0.5)
    squares = sum(float((value**2).sum()) for value in START.values())
    for key, value in got.items():
        np.testing.assert_allclose(value, START[key] - 0.5 / squares * START[key], rtol=1e-12)
    with pytest.raises(stepwell.InvalidValue, match="loss is nan"):
        run.push(START, loss=math.nan)
    with pytest.raises(stepwell.UnknownArgument, match="'hessian'"):
        run.push(START, loss=1.0, inputs={"hessian": START})

    both = client.create_run(f"{name}-2", START, optimizer="nadam_lecture")
    one, other = draws(3), draws(4)
    got = both.step(one, inputs={"lookahead_grad": other})
    single = client.create_run(f"{name}-3", START, optimizer="nadam_lecture")
    assert (single.step(one)["w"] != got["w"]).all()
    with pytest.raises(stepwell.IncompleteUpdate, match="input 1"):
        both.push(one, inputs={"lookahead_grad": {"w": other["w"]}})
    with pytest.raises(stepwell.NonfiniteGradient):
        both.push(one, inputs={"lookahead_grad": {**other, "b": np.array(np.nan)}})
    assert both.version == 1


@pytest.mark.parametrize("half", [np.dtype("float16"), np.dtype(ml_dtypes.bfloat16)], ids=lambda dtype: dtype.name)
def test_half_precision(client: stepwell.Client, name: str, half: Any, kernel_cache: Path) -> None:
    start = {key: value.astype(half) for key, value in START.items()} | {"full": np.ones(3, "float32")}
    run = client.create_run(name, start, optimizer="adam")
    local = LocalRun(start, "adam", kernel_directory=kernel_cache)
    for step in range(4):
        grads = draws(step, start)
        if step == 2:  # of float32, which the state holds exactly
            grads = {key: value.astype("float32") for key, value in grads.items()}
        wide = local.step(grads)
        got = run.step(grads)
        same_bits(got, {key: value.astype(start[key].dtype) for key, value in wide.items()})
    state = run.get_state()
    same_bits(state.parameters, local.parameters())
    assert state.slots["w"]["exp_avg"].dtype == np.float32
    run.push(draws(9, start))
    run.set_state(state)
    same_state(run.get_state(), state)
    with pytest.raises(stepwell.InvalidGradient, match="float64"):
        run.push({key: value.astype("float64") for key, value in start.items()})
    joined = client.create_run(name, start, optimizer="adam")
    assert not joined.created
    assert joined.pull()["w"].dtype == half  # type: ignore[index]


def test_a_plateau_follows_reports(client: stepwell.Client, name: str) -> None:
    run = client.create_run(
        name, START, optimizer="sgd", hyperparameters={"lr": 1.0},
        schedules={"lr": {"name": "plateau", "patience": 1, "factor": 0.5}},
    )  # fmt: skip
    rates = [run.report({"val_loss": loss}).groups[0].hyperparameters["lr"] for loss in (3, 2, 2, 2, 2, 2, 1, 1, 1)]
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125]
    assert run.refresh().metrics == {"val_loss": 1.0}
    before = run.pull()
    after = run.step(START)
    assert before is not None
    np.testing.assert_array_equal(after["w"], before["w"] - 0.125 * START["w"])
    for wrong in ({}, {"loss": math.nan}, {"one": 1.0, "two": 2.0}):
        with pytest.raises(stepwell.InvalidValue):
            run.report(wrong)


TEXT = """
def mine(param, grad, velocity, *, step, lr=0.1, beta=0.9):
    velocity = beta * velocity + grad
    return param - lr * velocity, velocity
"""


def test_an_optimizer_as_text(client: stepwell.Client, name: str, kernel_cache: Path) -> None:
    run = client.create_run(name, START, definition=TEXT, hyperparameters={"beta": 0.5})
    known = LocalRun(START, "sgd", hyperparameters={"lr": 0.1, "momentum": 0.5}, kernel_directory=kernel_cache)
    for step in range(5):
        got, expected = run.step(draws(step)), known.step(draws(step))
        for key, value in got.items():
            np.testing.assert_allclose(value, expected[key], rtol=1e-13)
    assert set(run.slots()["w"]) == {"velocity"}
    assert client.create_run(name, START, definition=f"# a comment\n{TEXT}", hyperparameters={"beta": 0.5}).version == 5
    with pytest.raises(stepwell.InvalidSpec, match="line 3") as refused:
        client.create_run(f"{name}-2", START, definition=TEXT.replace("beta * velocity", "beta * open('x')"))
    assert refused.value.details["line"] == "3"
    with pytest.raises(stepwell.UnknownRun):
        client.get_run(f"{name}-2")


def test_the_parts_are_listed(client: stepwell.Client) -> None:
    transforms = {each.name: each for each in client.list_transforms()}
    wrappers = {each.name: each for each in client.list_wrappers()}
    assert {"clip_by_global_norm", "unscale", "sparsity_lr", "add_noise"} <= transforms.keys()
    assert [argument.name for argument in transforms["clip_by_global_norm"].arguments] == [
        "max_norm",
        "norm_type",
        "eps",
    ]
    assert transforms["clip_by_norm"].arguments[1].infinite
    assert wrappers.keys() == {"ema", "lookahead", "schedule_free", "swa"}
    assert wrappers["schedule_free"].points == ("evaluation",)


MIXED: dict[str, Any] = {
    "optimizer": "adafactor",
    "groups": [
        {"name": "matrices", "parameters": ["m*"], "optimizer": "muon"},
        {"name": "prodigious", "parameters": ["p*"], "optimizer": "prodigy", "flavor": "prodigyopt"},
        {"name": "text", "parameters": ["t*"], "definition": TEXT, "hyperparameters": {"lr": 0.01}},
        {"name": "half", "parameters": ["h*"], "optimizer": "adam", "flavor": "optax", "hyperparameters": {"lr": 0.1}},
    ],
    "schedules": {"lr": {"name": "plateau", "patience": 0}},
    "transforms": [{"name": "unscale", "init_scale": 2.0, "growth_interval": 2}, {"name": "grad_ema"}],
    "wrappers": [{"name": "ema"}, {"name": "lookahead", "sync_period": 3}],
}


def test_every_kind_of_state_survives_restarts(
    start: Callable[..., Server], connect: Callable[..., stepwell.Client], tmp_path: Path
) -> None:
    server = start("--snapshot-seconds", 0, data_dir=tmp_path / "data")
    shapes = {"m1": (4, 3), "m2": (2, 6), "p1": (5,), "p2": (2, 2), "t": (3,), "a": (4, 4), "v": (7,), "e": (0,)}
    first = {key: np.random.default_rng(1).normal(size=shape) for key, shape in shapes.items()}
    first |= {"h": np.ones((3, 3), ml_dtypes.bfloat16), "h2": np.ones(5, "float16")}
    client = connect(server, on_rewind="continue")
    run, undisturbed = (client.create_run(each, first, **MIXED) for each in ("run", "undisturbed"))
    for each in (run, undisturbed):
        for step in range(4):
            each.push(draws(step, first))
            each.report({"loss": 1.0})
    state = run.get_state()
    assert {slot.shape for slot in state.slots["a"].values()} > {(4, 1), (4, 4)}
    restart(server)
    same_state(run.get_state(), state)
    for each in (run, undisturbed):
        for step in range(4, 8):
            each.push(draws(step, first))
            each.report({"loss": 1.0})
    same_state(run.get_state(), undisturbed.get_state())
    assert run.loss_scale == undisturbed.loss_scale
    run.save_checkpoint("eight")
    after = run.get_state()
    run.push(draws(8, first))
    crash(server)
    run.restore_checkpoint("eight")
    same_state(run.get_state(), after)
    changed = run.get_state()
    run.set_state(changed)
    same_state(run.get_state(), changed)
    for of in ("average", "lookahead"):
        assert run.pull(of=of) is not None


MATRIX = {"w": np.ones((4, 3)), "b": np.ones(3)}
BAD: dict[str, tuple[dict[str, Any], type[stepwell.StepwellError], str]] = {
    "argument": ({"optimizer": "adam", "hyperparameters": {"momentum": 0.9}}, stepwell.UnknownArgument, "'momentum'"),
    "nesterov": ({"optimizer": "sgd", "hyperparameters": {"nesterov": True}}, stepwell.InvalidSpec, "momentum > 0"),
    "shape": ({"optimizer": "muon"}, stepwell.InvalidSpec, "parameter 'b' has shape \\(3,\\), expected two dimensions"),
    "flavor": ({"optimizer": "lion", "flavor": "torch"}, stepwell.UnknownFlavor, "keras, optax"),
    "transform": ({"transforms": [{"name": "clip_by_norm"}]}, stepwell.InvalidValue, "'max_norm' is missing"),
    "wrapper": ({"wrappers": [{"name": "ema", "decay": 1.0}]}, stepwell.InvalidValue, "'decay'"),
    "negative length": (
        {"schedules": {"lr": {"name": "linear", "total_iters": -1}}}, stepwell.InvalidValue, "'total_iters'",
    ),
    "child missing": (
        {"schedules": {"lr": {"name": "warmup", "num_warmup_steps": 3}}}, stepwell.InvalidSpec, "'schedules'",
    ),
    "attribute": ({"definition": TEXT.replace("grad\n", "grad.T\n")}, stepwell.InvalidSpec, "line 3"),
    "subscript": ({"definition": TEXT.replace("grad\n", "grad[0]\n")}, stepwell.InvalidSpec, "line 3"),
    "import": ({"definition": "import os\n" + TEXT}, stepwell.InvalidSpec, "line 1"),
    "loop": ({"definition": TEXT.replace("    velocity =", "    while 1: velocity =")}, stepwell.InvalidSpec, "line 3"),
    "infinite": ({"definition": TEXT.replace("lr * velocity", "lr * velocity / 0")}, stepwell.InvalidSpec, ""),
    "log of less than 0": (
        {"definition": TEXT.replace("- lr * velocity", "- lr * log(-exp(grad))")}, stepwell.InvalidSpec, "line 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "error", "message"), BAD.values(), ids=BAD)
def test_what_makes_no_sense_makes_no_run(
    client: stepwell.Client, name: str, spec: dict[str, Any], error: type[stepwell.StepwellError], message: str
) -> None:
    if "definition" not in spec and "optimizer" not in spec:
        spec = {"optimizer": "sgd", **spec}
    with pytest.raises(error) as refused:
        client.create_run(name, MATRIX, **spec)
    assert re.search(message, str(refused.value)), str(refused.value)
    assert name not in {run.name for run in client.list_runs()}
    # The name is free, and what was begun is gone.
    assert client.create_run(name, MATRIX, optimizer="sgd").created
