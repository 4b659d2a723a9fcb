"""RemoteOptimizer against torch.optim's own: the same script, the same numbers, wherever the state is."""

from __future__ import annotations

import argparse
import ast
import copy
import inspect
import logging
import statistics
import subprocess
import sys
import textwrap
import typing
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import stepwell
from tests.end_to_end.proxy import Proxy
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels
from tests.references.halves import train_halves

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # tests run side by side
pytestmark = [pytest.mark.references, pytest.mark.xdist_group("torch_remote")]

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "pytorch_train.py"
TRANSPORTS = ("shared_memory", "stream")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(kept_kernels()) as server:
        yield server


@pytest.fixture
def remote(server: Server, request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes optimizers of runs that no other test has."""
    from stepwell.torch import RemoteOptimizer

    made: list[Any] = []
    base = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)

    def make(params: Any, optimizer: str = "adamw", *, run: str | None = None, at: str = "", **options: Any) -> Any:
        run = run or f"{base}-{len(made)}"
        made.append(RemoteOptimizer(params, optimizer, address=at or server.address, run=run, **options))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


# --- a small transformer on the standard library's docstrings ---


def text() -> Any:
    """The docstrings of a few modules of the standard library, as bytes."""
    found: list[str] = []
    for module in (argparse, inspect, logging, statistics, textwrap, typing):
        nodes = ast.walk(ast.parse(inspect.getsource(module)))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [ast.get_docstring(node) or "" for node in nodes if isinstance(node, documented)]
    return torch.tensor(list("\n\n".join(found).encode("ascii", "replace")))


class Transformer(torch.nn.Module):  # type: ignore[misc, name-defined]
    """One layer of width 32 over bytes; the embedding and the output share their weights.

    Without biases: the gradient of attention's key bias is zero but for rounding, of which Adam makes whole steps. And
    smooth: where a hidden unit is near the kink of ReLU, rounding decides which way it goes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(128, 32)
        self.place = torch.nn.Embedding(32, 32)
        self.layer = torch.nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=False
        )
        self.output = torch.nn.Linear(32, 128, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        length = tokens.shape[1]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length, dtype=self.place.weight.dtype)
        hidden = self.embedding(tokens) + self.place(torch.arange(length))
        return self.output(self.layer(hidden, mask, is_causal=True))


def transformer(dtype: Any) -> Any:
    torch.manual_seed(7)
    return Transformer().to(dtype)


def train(model: Any, optimizer: Any, steps: int, at: tuple[int, ...] = ()) -> tuple[float, dict[int, Any]]:
    """Train; the mean loss of the last ten steps, and all parameters as one vector after some steps."""
    data, rng, losses, seen = text(), torch.Generator().manual_seed(11), [], {}
    for step in range(1, steps + 1):
        begins = torch.randint(len(data) - 33, (8,), generator=rng)
        batch = torch.stack([data[begin : begin + 33] for begin in begins])
        optimizer.zero_grad()
        logits = model(batch[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, 128), batch[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step in at:
            seen[step] = vector(model)
    return sum(losses[-10:]) / 10, seen


def vector(model: Any) -> Any:
    return torch.cat([parameter.detach().double().reshape(-1) for parameter in model.parameters()])


def distance(one: Any, other: Any) -> float:
    """Relative, L2."""
    return float((one - other).norm() / other.norm())


def test_float64_follows_local_adamw_for_300_steps(remote):
    mine, local = transformer(torch.float64), transformer(torch.float64)
    found, ours = train(mine, remote(mine, "adamw", lr=1e-3), 300, at=(300,))
    expected, theirs = train(local, torch.optim.AdamW(local.parameters(), lr=1e-3), 300, at=(300,))
    assert distance(ours[300], theirs[300]) < 1e-9
    assert found == pytest.approx(expected, rel=1e-9)


def test_float32_differs_no_more_than_torch_from_itself(remote):
    mine = transformer(torch.float32)
    found, ours = train(mine, remote(mine, "adamw", lr=1e-3), 300, at=(10, 300))
    results = {}
    for kind in ({"fused": True}, {"foreach": False}):
        model = transformer(torch.float32)
        results[next(iter(kind))] = train(model, torch.optim.AdamW(model.parameters(), lr=1e-3, **kind), 300, (10, 300))
    expected, theirs = results["foreach"]
    torch_itself = distance(results["fused"][1][300], theirs[300])
    assert distance(ours[10], theirs[10]) < 1e-5
    assert distance(ours[300], theirs[300]) <= 2 * torch_itself
    assert found == pytest.approx(expected, rel=0.01)


# --- what a torch.optim.Optimizer does ---


def network(dtype: Any = None, width: int = 8) -> Any:
    """Large enough for shared memory with width 300."""
    torch.manual_seed(3)
    layers = torch.nn.Linear(width, width), torch.nn.Tanh(), torch.nn.Linear(width, width)
    return torch.nn.Sequential(*layers).to(dtype or torch.float64)


def weights() -> Any:
    """Matrices alone: muon takes nothing else."""
    torch.manual_seed(3)
    layers = torch.nn.Linear(8, 8, bias=False), torch.nn.Tanh(), torch.nn.Linear(8, 8, bias=False)
    return torch.nn.Sequential(*layers).double()


def batches(count: int, width: int = 8, dtype: Any = None, seed: int = 5) -> list[Any]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(4, width, generator=rng, dtype=torch.float64).to(dtype or torch.float64) for _ in range(count)]


def loss_of(model: Any, batch: Any) -> Any:
    return (model(batch) - batch.flip(1)).pow(2).mean()


def descend(model: Any, optimizer: Any, data: list[Any], after: Callable[[], Any] = lambda: None) -> None:
    for batch in data:
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        after()


def same(one: Any, other: Any, tolerance: float = 1e-12) -> None:
    assert distance(vector(one), vector(other)) < tolerance


OPTIMIZERS: list[tuple[str, Any, dict[str, Any]]] = [
    ("adam", torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    ("adamw", torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.99), "amsgrad": True}),
    ("sgd", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("sgd", torch.optim.SGD, {"lr": 0.1}),
    ("rmsprop", torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5, "centered": True}),
    ("adagrad", torch.optim.Adagrad, {"lr": 0.05, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("adadelta", torch.optim.Adadelta, {"lr": 0.5}),
    ("adamax", torch.optim.Adamax, {"lr": 0.01}),
    ("nadam", torch.optim.NAdam, {"lr": 0.01, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("radam", torch.optim.RAdam, {"lr": 0.01}),
    ("asgd", torch.optim.ASGD, {"lr": 0.1, "t0": 3}),
]


@pytest.fixture
def float64_scalars() -> Iterator[None]:
    """nadam's and asgd's numbers are made in PyTorch's default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_scalars")
@pytest.mark.parametrize(("name", "kind", "arguments"), OPTIMIZERS, ids=lambda value: value if value is str else None)
def test_state_goes_local_remote_local(remote, name, kind, arguments):
    """Eight steps here, eight on a server, eight here again are 24 steps here."""
    data = batches(24)
    expected, mine = network(), network()
    local, first = kind(expected.parameters(), **arguments), kind(mine.parameters(), **arguments)
    descend(expected, local, data)
    descend(mine, first, data[:8])
    there = remote(mine, name, **arguments)
    there.load_state_dict(first.state_dict())
    descend(mine, there, data[8:16])
    last = kind(mine.parameters(), **arguments)
    last.load_state_dict(there.state_dict())
    descend(mine, last, data[16:])
    same(mine, expected)


def test_state_dict_is_in_torchs_layout(remote):
    model, other = network(), network()
    mine = remote(list(model.parameters()), "adam", lr=0.01)
    local = torch.optim.Adam(other.parameters(), lr=0.01)
    assert mine.state_dict()["state"] == local.state_dict()["state"] == {}
    descend(model, mine, batches(2))
    descend(other, local, batches(2))
    found, expected = mine.state_dict(), local.state_dict()
    assert found["param_groups"] == expected["param_groups"]
    assert found["state"].keys() == expected["state"].keys()
    for index, entry in expected["state"].items():
        assert found["state"][index].keys() == entry.keys()
        for key, value in entry.items():
            torch.testing.assert_close(found["state"][index][key], value)


@pytest.mark.parametrize("name", ["lion", "prodigy", "muon", "adafactor", "lbfgs"])
def test_state_of_other_optimizers_goes_from_run_to_run(remote, name):
    """Those that torch.optim lacks, or keeps otherwise: all that the run keeps, by its names."""
    expected, mine, data = weights(), weights(), batches(16)
    descend(expected, remote(expected, name, lr=1e-3), data)
    first = remote(mine, name, lr=1e-3)
    descend(mine, first, data[:8])
    saved = first.state_dict()
    second = remote(mine, name, lr=1e-3)
    second.load_state_dict(saved)
    descend(mine, second, data[8:])
    same(mine, expected)
    del saved["state"][0]["step"]
    with pytest.raises(stepwell.InvalidValue, match=r"state of '0\.weight' has no 'step', expected one"):
        second.load_state_dict(saved)


def test_loading_what_was_just_given_leaves_the_run_alone(remote):
    """Frameworks do that to move the state to a device; the run's other workers must not notice."""
    model, other = network(), network()
    mine = remote(model, "adamw", run="left-alone", lr=0.1)
    another = remote(other, "adamw", run="left-alone", lr=0.1)
    descend(model, mine, batches(2))
    another.pull()
    given = another.state_dict()
    descend(model, mine, batches(1))
    another.load_state_dict(copy.deepcopy(given))
    descend(model, mine, batches(1))  # no RunRewound
    assert mine.run.version == 4
    given = mine.state_dict()
    descend(model, mine, batches(1))
    mine.load_state_dict(given)  # steps lie in between, so it is a way back
    assert mine.run.get_state().steps["0.weight"] == 4
    given = mine.state_dict()
    given["state"][0]["exp_avg"].zero_()
    mine.load_state_dict(given)
    assert not mine.run.slots()["0.weight"]["exp_avg"].any()


def test_loading_what_was_just_given_after_going_back_sets_it(remote):
    model = network()
    mine = remote(model, "adamw", lr=0.1)
    before = mine.run.get_state()
    descend(model, mine, batches(2))
    given = mine.state_dict()
    mine.run.set_state(before)
    mine.load_state_dict(given)
    assert mine.run.get_state().steps["0.weight"] == 2


def test_state_of_another_shape_is_refused_and_nothing_changes(remote):
    model, other = network(), network(width=9)
    local = torch.optim.AdamW(other.parameters(), lr=0.5)
    descend(other, local, batches(1, 9))
    mine = remote(model, "adamw", lr=0.01)
    with pytest.raises(stepwell.InvalidValue, match=r"'exp_avg' of '0\.weight' has shape \(9, 9\), expected \(8, 8\)"):
        mine.load_state_dict(local.state_dict())
    assert mine.param_groups[0]["lr"] == 0.01
    amsgrad = torch.optim.AdamW(network().parameters(), amsgrad=True)
    with pytest.raises(stepwell.InvalidValue, match=r"param_groups\[0\]\['amsgrad'\] is True, expected False"):
        mine.load_state_dict(amsgrad.state_dict())


def test_learning_rate_schedulers_take_effect(remote):
    model, other, data = network(), network(), batches(20)
    optimizers = remote(model, "adamw", lr=0.05), torch.optim.AdamW(other.parameters(), lr=0.05)
    for network_, optimizer in zip((model, other), optimizers, strict=True):
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=25)
        descend(network_, optimizer, data, schedule.step)
    same(model, other)
    descend(model, optimizers[0], data[:1])
    (group,) = optimizers[0].run.refresh().groups
    assert group.hyperparameters["lr"] == optimizers[1].param_groups[0]["lr"]


def test_numbers_travel_only_when_they_changed(remote, monkeypatch):
    model = network()
    mine = remote(model, "adamw", lr=0.05)
    sent = []
    step = mine.run.step

    def note(_: Any, grads: Any, **options: Any) -> Any:
        sent.append(options["hyperparameters"])
        return step(grads, **options)

    monkeypatch.setattr(type(mine.run), "step", note)
    for lr in (0.05, 0.01, 0.01, 0.02):
        mine.param_groups[0]["lr"] = lr
        descend(model, mine, batches(1))
    assert sent == [None, {"default": {"lr": 0.01}}, None, {"default": {"lr": 0.02}}]


def test_groups_have_their_own_hyperparameters(remote):
    model, other, data = network(), network(), batches(10)
    runs = []
    for network_, make in ((model, remote), (other, torch.optim.AdamW)):
        named = list(network_.named_parameters())
        groups = [
            {"params": [pair for pair in named if pair[0].endswith("weight")]},
            {"params": [pair for pair in named if pair[0].endswith("bias")], "weight_decay": 0.0, "lr": 0.2},
        ]
        runs.append(make(groups, lr=0.01, weight_decay=0.5))
        schedule = torch.optim.lr_scheduler.LambdaLR(runs[-1], [lambda epoch: 0.9**epoch, lambda epoch: 0.5**epoch])
        descend(network_, runs[-1], data, schedule.step)
    same(model, other)
    assert set(runs[0].run.get_state().parameters) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_closure_is_called_once_and_its_loss_returned(remote):
    model, other = network(), network()
    mine, local = remote(model.parameters(), "sgd", lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    for batch in batches(5):
        losses = []
        for network_, optimizer in ((model, mine), (other, local)):

            def closure(network_: Any = network_, optimizer: Any = optimizer, batch: Any = batch) -> Any:
                optimizer.zero_grad()
                loss = loss_of(network_, batch)
                loss.backward()
                return loss

            losses.append(optimizer.step(closure).item())
        assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    same(model, other)
    assert mine.run.version == 5


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_accumulate(remote, set_to_none):
    model, other = network(width=300), network(width=300)
    mine = remote(model, "adamw", connect_options={"transport": "shared_memory"})
    local = torch.optim.AdamW(other.parameters())
    for start in range(4):
        for network_, optimizer in ((model, mine), (other, local)):
            optimizer.zero_grad(set_to_none=set_to_none)
            for batch in batches(3, 300, seed=start):
                loss_of(network_, batch).backward()
            torch.nn.utils.clip_grad_norm_(network_.parameters(), 0.01)
            optimizer.step()
    same(model, other)


def test_backward_writes_where_the_server_reads(remote):
    model = network(width=300)
    mine = remote(model, "adamw", connect_options={"transport": "shared_memory"})
    shared = mine.run.gradients()
    for _ in range(3):
        descend(model, mine, batches(1, 300))
        for name, parameter in model.named_parameters():
            assert parameter.grad.data_ptr() == shared[name].__array_interface__["data"][0]
    assert mine.run.transport == "shared_memory"


def test_parameters_without_gradient_stay_with_their_step(remote):
    model, other, data = network(), network(), batches(9)
    mine, local = remote(model, "adamw", lr=0.05), torch.optim.AdamW(other.parameters(), lr=0.05)
    for number, batch in enumerate(data):
        for network_, optimizer in ((model, mine), (other, local)):
            optimizer.zero_grad()
            (loss_of(network_, batch) if number % 3 else network_[0](batch).sum()).backward()
            optimizer.step()
    same(model, other)
    assert mine.run.get_state().steps == {"0.weight": 9, "0.bias": 9, "2.weight": 6, "2.bias": 6}
    mine.zero_grad()
    before = vector(model)
    mine.step()
    assert torch.equal(vector(model), before)


def test_tied_parameters_are_one(remote):
    def tied() -> Any:
        model = network()
        model[2].weight = model[0].weight
        return model

    model, other = tied(), tied()
    pairs = [pair for pair in model.named_parameters(remove_duplicate=False)]  # noqa: C416
    mine = remote(pairs, "adamw", lr=0.05)
    descend(model, mine, batches(5))
    descend(other, torch.optim.AdamW(other.parameters(), lr=0.05), batches(5))
    same(model, other)
    assert set(mine.run.get_state().parameters) == {"0.weight", "0.bias", "2.bias"}


def test_frozen_parameters_stay_out(remote):
    model, other = network(), network()
    for network_ in (model, other):
        network_[0].requires_grad_(False)
    mine = remote(model, "adamw", lr=0.05)
    descend(model, mine, batches(5))
    descend(other, torch.optim.AdamW(other.parameters(), lr=0.05), batches(5))
    same(model, other)
    assert set(mine.run.get_state().parameters) == {"2.weight", "2.bias"}
    assert mine.state_dict()["state"].keys() == {2, 3}
    model[0].requires_grad_(True)
    with pytest.raises(stepwell.InvalidValue, match=r"parameter '0\.weight' has a gradient, expected none"):
        descend(model, mine, batches(1))


def test_grad_scaler_unscales_and_skips(remote):
    model, other = network(torch.float32), network(torch.float32)
    mine, local = remote(model, "adamw", lr=0.01), torch.optim.AdamW(other.parameters(), lr=0.01)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=3) for _ in range(2)]
    for number, batch in enumerate(batches(10, dtype=torch.float32)):
        for network_, optimizer, scaler in ((model, mine, scalers[0]), (other, local, scalers[1])):
            optimizer.zero_grad()
            loss = loss_of(network_, batch) * (float("inf") if number == 4 else 1.0)
            scaler.scale(loss).backward()
            if number % 2:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(network_.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
    same(model, other, 1e-5)
    assert scalers[0].get_scale() == scalers[1].get_scale()
    assert mine.run.version == 9  # one was skipped


def test_transports_give_equal_bits(remote):
    found = []
    for transport in TRANSPORTS:
        model = network(torch.float32, 300)
        mine = remote(model, "adamw", connect_options={"transport": transport})
        descend(model, mine, batches(10, 300, torch.float32))
        assert mine.run.transport == transport
        found.append(vector(model))
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_kept_as_32_on_the_server(remote, dtype):
    """Steps too small for the trainer's own 16 bits add up on the server."""
    model = network(dtype)
    mine = remote(model, "sgd", lr=1e-6)
    start = {name: array.copy() for name, array in mine.run.get_state().parameters.items()}
    for _ in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        mine.step()
    for name, array in mine.run.get_state().parameters.items():
        assert array.dtype == "float32"
        assert (start[name] - array) == pytest.approx(4e-6, rel=0.05)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


# --- gradients that go while backward still runs ---


def rates(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_overlap_gives_equal_bits(remote, transport, monkeypatch):
    added: list[str] = []
    add = stepwell.Update.add

    def noted(update: stepwell.Update, name: str, gradient: Any) -> None:
        added.append(name)
        add(update, name, gradient)

    monkeypatch.setattr(stepwell.Update, "add", noted)
    found = []
    for overlap in (False, True):
        model = network(torch.float32, 700)  # layers of more than a message
        mine = remote(model, "adamw", overlap=overlap, connect_options={"transport": transport})
        schedule = rates(mine)
        for number, batch in enumerate(batches(9, 700, torch.float32)):
            mine.zero_grad()
            # At every third step the second layer has no gradient.
            (loss_of(model, batch) if number % 3 else model[0](batch).sum()).backward()
            gone = sorted(added)
            if overlap and transport == "stream":
                assert gone == (["0.bias", "0.weight", "2.bias", "2.weight"] if number % 3 else ["0.bias", "0.weight"])
            else:
                assert gone == []
            mine.step()
            added.clear()
            schedule.step()
        assert mine.run.version == 9
        assert mine.run.get_state().steps == {"0.weight": 9, "0.bias": 9, "2.weight": 6, "2.bias": 6}
        found.append(vector(model))
    assert torch.equal(*found)


def test_what_does_not_fit_overlap_is_refused_and_given_up(remote):
    model, other = network(), network()
    mine = remote(model, "adamw", overlap=True, connect_options={"transport": "stream"})
    local = torch.optim.AdamW(other.parameters())
    first, second = batches(2)

    loss_of(model, first).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    with pytest.raises(stepwell.InvalidValue, match=r"the gradient of parameter '.*' was changed after backward"):
        mine.step()

    mine.zero_grad()
    loss_of(model, first).backward()
    with pytest.raises(stepwell.InvalidValue, match="got a second gradient before the step"):
        loss_of(model, second).backward()

    mine.zero_grad()  # and gives up what has gone
    loss_of(model, first).backward()
    with pytest.raises(stepwell.InvalidValue, match="samples after the gradients had gone"):
        mine.step(samples=3)

    assert mine.run.refresh().version == 0
    descend(model, mine, [first, second])
    descend(other, local, [first, second])
    same(model, other)
    assert mine.run.refresh().version == 2


@pytest.mark.parametrize("overlap", [False, True])
def test_an_optimizer_that_was_dropped_is_gone(server, overlap):
    """As when a cell of a notebook is run again: neither its signs of life go on nor its hooks."""
    from stepwell.torch import RemoteOptimizer

    model = network()
    options = {"overlap": overlap, "address": server.address, "connect_options": {"transport": "stream"}}
    first = RemoteOptimizer(model, "adamw", run=f"dropped-first-{overlap}", **options)
    descend(model, first, batches(2))
    found, run = weakref.ref(first), first.run
    del first
    assert found() is None, "nothing keeps it, and no collector is waited for"
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())
    with RemoteOptimizer(model, "adamw", run=f"dropped-second-{overlap}", **options) as second:
        descend(model, second, batches(2))
        assert second.run.version == 2
    assert run.refresh().version == 2


def test_overlap_through_a_network_that_cuts(remote, server):
    model, other = network(width=700), network(width=700)
    with Proxy(server.address, 5, bytes_mean=6_000_000) as proxy:
        name = "overlap-through-cuts"
        options = {"transport": "stream", "retry_seconds": 0.01, "silence_seconds": 10.0}
        mine = remote(model, "adamw", overlap=True, run=name, at=proxy.address, connect_options=options)
        local = torch.optim.AdamW(other.parameters())
        data = batches(12, 700)
        descend(model, mine, data)
        descend(other, local, data)
        assert proxy.cuts_count > 1
        same(model, other)
        assert mine.run.version == 12
        mine.close()


# --- what goes wrong ---


def test_what_changed_between_steps_is_named(remote):
    model = network()
    mine = remote(model, "adamw")
    bias = model[0].bias
    values = bias.data
    for changed, message in (
        (torch.zeros(9, dtype=torch.float64), r"'0\.bias' has shape \(9,\), expected \(8,\)"),
        (values.float(), r"'0\.bias' has dtype torch\.float32, expected torch\.float64"),
    ):
        bias.data = changed
        with pytest.raises(stepwell.InvalidValue, match=message):
            mine.step()
    bias.data = values
    (place,) = [place for place in mine._places if place.name == "0.bias"]
    place.device = torch.device("meta")  # there is one device here, so what is expected is made another
    with pytest.raises(stepwell.InvalidValue, match=r"'0\.bias' has device cpu, expected meta"):
        mine.step()
    place.device = bias.device
    descend(model, mine, batches(1))


def test_values_written_between_steps_are_noticed_and_can_be_sent(remote):
    model, other = network(), network()
    mine, local = remote(model, "adamw", lr=0.05), torch.optim.AdamW(other.parameters(), lr=0.05)
    descend(model, mine, batches(3))
    descend(other, local, batches(3))
    for network_ in (model, other):
        with torch.no_grad():
            network_[0].weight.clamp_(-0.01, 0.01)
    with pytest.raises(stepwell.InvalidValue, match=r"'0\.weight' was written to.*send_parameters"):
        descend(model, mine, batches(1))
    mine.send_parameters()
    descend(model, mine, batches(3))
    descend(other, local, batches(3))
    same(model, other)


def test_a_dead_server_is_reported_after_the_clients_patience():
    from stepwell.torch import RemoteOptimizer

    model = network()
    patient = {"patience_seconds": 1.0, "silence_seconds": 1.0, "retry_seconds": 0.01}
    with Server(kept_kernels()) as server:
        mine = RemoteOptimizer(model, "adamw", address=server.address, run="dies", connect_options=patient)
        descend(model, mine, batches(1))
        before = vector(model)
        server.kill()
        with pytest.raises(stepwell.ServerUnavailable, match="run 'dies': step"):
            descend(model, mine, batches(1))
    assert torch.equal(vector(model), before)
    mine.close()


def test_the_client_itself_needs_no_torch():
    check = "import sys, stepwell, stepwell.aio; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=300).returncode == 0


def test_sparse_gradients_copies_and_more_groups_are_refused(remote):
    model = torch.nn.Embedding(4, 3, sparse=True)
    mine = remote(model, "adamw")
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(stepwell.InvalidValue, match=r"'weight' has a gradient of layout torch\.sparse_coo"):
        mine.step()
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(mine)
    with pytest.raises(stepwell.InvalidValue, match="got another group"):
        mine.add_param_group({"params": [torch.zeros(1, requires_grad=True)]})
    with pytest.raises(stepwell.InvalidValue, match="no parameter that needs a gradient"):
        remote([torch.zeros(1)])


FORK = """
import os, sys, torch
from stepwell.torch import RemoteOptimizer
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Linear(400, 400)
mine = RemoteOptimizer(model, "sgd", lr=1.0, address=sys.argv[1], run="forks",
                       connect_options={"transport": "shared_memory"})
for parameter in model.parameters():
    parameter.grad = torch.zeros_like(parameter)
mine.step()
model(torch.ones(1, 400)).sum().backward()
before = [parameter.grad.clone() for parameter in model.parameters()]
child = os.fork()
if child == 0:
    model(torch.full((1, 400), 7.0)).sum().backward()  # would land in what the server reads for the parent
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert all(torch.equal(parameter.grad, grad) for parameter, grad in zip(model.parameters(), before))
mine.step()
assert mine.run.version == 2
mine.close()
"""


def test_a_forked_child_does_not_touch_the_parents_gradients(server):
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FORK, server.address]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


ENDS = """
import sys, torch
from stepwell.torch import RemoteOptimizer
model = torch.nn.Linear(3, 3)
optimizer = RemoteOptimizer(model, "sgd", address=sys.argv[1], run="ends")
model(torch.ones(3)).sum().backward()
optimizer.step()
"""


def test_a_script_that_ends_without_close_leaves_the_run(server):
    done = subprocess.run([sys.executable, "-c", ENDS, server.address], check=False, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with stepwell.connect(server.address) as client:
        described = client.get_run("ends").refresh()
        assert described.version == 1
        assert [worker.name for worker in described.workers] == []


# --- two ways to use it ---

WORKER = """
import sys, torch
from stepwell.torch import RemoteOptimizer
torch.set_num_threads(1)
torch.manual_seed(0)
address, half, result = sys.argv[1:]
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8)).double()
rng = torch.Generator().manual_seed(1)
data = torch.randn(30, 16, 8, generator=rng, dtype=torch.float64)
if address == "local":
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
else:
    optimizer = RemoteOptimizer(model, "adamw", lr=0.01, address=address, run="halves", policy="sync")
    print("joined", flush=True)
    sys.stdin.readline()
    data = data[:, :8] if half == "0" else data[:, 8:]
for batch in data:
    optimizer.zero_grad()
    (model(batch) - batch.flip(1)).pow(2).mean().backward()
    optimizer.step()
torch.save(model.state_dict(), result)
"""


def test_two_workers_are_one_with_the_whole_batch(server, tmp_path):
    """The mean of the gradients of two halves is that of the whole."""
    first, second, whole = map(torch.load, train_halves(WORKER, server.address, tmp_path))
    for name, expected in whole.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], expected, rtol=1e-10, atol=1e-12)


def test_a_trainer_without_state_can_be_replaced(remote):
    """Moments, steps and values are on the server: another process goes on where the first one ended."""
    model, other, data = network(), network(), batches(10)
    first = remote(model, "adamw", run="kept", lr=0.05)
    descend(model, first, data[:5])
    assert not first.state
    first.close()
    torch.manual_seed(99)
    fresh = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8)).double()
    second = remote(fresh, "adamw", run="kept", lr=0.05)
    assert not second.run.created
    descend(fresh, second, data[5:])
    descend(other, torch.optim.AdamW(other.parameters(), lr=0.05), data)
    same(fresh, other)


def test_two_changed_lines(server):
    """The example as it stands, and with the two lines of local training in place of the two that it shows."""
    remote_script = SCRIPT.read_text(encoding="utf-8")
    imported, made = "from stepwell.torch import RemoteOptimizer\n", ""
    (made,) = [line for line in remote_script.splitlines() if line.lstrip().startswith("optimizer = RemoteOptimizer(")]
    local_script = remote_script.replace(imported, "from torch.optim import AdamW\n")
    local_script = local_script.replace(made, "    optimizer = AdamW(model.parameters(), lr=1e-3)")
    changed = [
        one for one, other in zip(remote_script.splitlines(), local_script.splitlines(), strict=True) if one != other
    ]
    assert len(changed) == 2
    losses = []
    for script in (remote_script, local_script):
        command = [sys.executable, "-W", "error", "-c", script, "--steps", "20", "--address", server.address]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        losses.append([float(line.split()[-1]) for line in done.stdout.splitlines()])
    assert len(losses[0]) == 2
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
