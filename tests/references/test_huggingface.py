"""RemoteOptimizer under Hugging Face's Trainer: the same numbers as torch.optim's AdamW under it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.server import Server
from tests.kernels import kept_kernels
from tests.references.two_lines import train_both

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.references,
    pytest.mark.usefixtures("accelerate"),
    pytest.mark.xdist_group("huggingface"),
    pytest.mark.filterwarnings("ignore"),  # those of the frameworks
]


@pytest.fixture(scope="module")
def accelerate() -> Any:
    """What the Trainer needs. Imported here, because that takes longer than collecting all tests."""
    return pytest.importorskip("accelerate")


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

    def make(params: Any, optimizer: str = "adamw", *, run: str | None = None, **options: Any) -> Any:
        run = run or f"{base}-{len(made)}"
        made.append(RemoteOptimizer(params, optimizer, address=server.address, run=run, **options))
        return made[-1]

    yield make
    for optimizer in made:
        optimizer.close()


def test_the_example_learns_as_with_local_adamw(server, tmp_path):
    losses, mine, local_losses, local = train_both("huggingface_train.py", server.address, tmp_path, 60)
    assert len(losses) == 2
    assert losses[1] < 0.9 * losses[0]
    assert losses == pytest.approx(local_losses, rel=1e-4)
    assert (mine - local).norm() < 1e-5 * local.norm()


class Network(torch.nn.Module):  # type: ignore[misc, name-defined]
    """What a Trainer takes: it returns a loss; 0.bias and the norm's weight get no weight decay from it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        layers = torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Tanh(), torch.nn.Linear(8, 8)
        self.layers = torch.nn.Sequential(*layers).double()

    def forward(self, inputs: Any) -> Any:
        return {"loss": (self.layers(inputs) - inputs.flip(1)).pow(2).mean()}


def trainer_of(model: Any, directory: Path, optimizer: Any = None, steps: int = 12, **options: Any) -> Any:
    rng = torch.Generator().manual_seed(5)
    data = [{"inputs": row} for row in torch.randn(48, 8, generator=rng, dtype=torch.float64)]
    arguments = transformers.TrainingArguments(
        output_dir=directory,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        weight_decay=0.1,
        max_grad_norm=0.1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **{"save_strategy": "no", **options.pop("arguments", {})},
    )
    if optimizer is not None:
        options["optimizers"] = (optimizer, None)
    return transformers.Trainer(model, arguments, train_dataset=data, **options)


def same(one: Any, other: Any) -> None:
    for mine, local in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, local, rtol=1e-11, atol=1e-13)


def test_the_trainers_own_groups(server, tmp_path):
    """The Trainer makes the optimizer, and gives biases and norms no weight decay."""
    from stepwell.torch import RemoteOptimizer

    found = []
    for kind, more in (
        (torch.optim.AdamW, {}),
        (RemoteOptimizer, {"optimizer": "adamw", "address": server.address, "run": "groups"}),
    ):
        found.append(Network())
        trainer = trainer_of(found[-1], tmp_path, optimizer_cls_and_kwargs=(kind, {"lr": 0.05, **more}))
        trainer.train()
    same(found[1], found[0])
    optimizer = trainer.optimizer.optimizer
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.run.version == 12
    optimizer.close()


def test_a_trainers_checkpoint_goes_on(remote, tmp_path):
    expected, stopped, resumed = Network(), Network(), Network()
    arguments = {"save_strategy": "steps", "save_steps": 6, "gradient_accumulation_steps": 2}
    trainer_of(expected, tmp_path, torch.optim.AdamW(expected.parameters(), lr=0.05), arguments=arguments).train()
    directory = tmp_path / "remote"
    trainer_of(stopped, directory, remote(stopped, lr=0.05), arguments=arguments).train()
    same(stopped, expected)
    second = remote(resumed, lr=0.05)
    trainer = trainer_of(resumed, directory, second, arguments=arguments)
    trainer.train(resume_from_checkpoint=str(directory / "checkpoint-6"))
    same(resumed, expected)
    assert second.run.get_state().steps["layers.0.weight"] == 12
    assert second.run.get_state().version == 6  # what it made itself


def test_who_joins_does_not_set_the_run_back(remote, tmp_path):
    """The Trainer reads the optimizer's state and loads it again before it begins; other workers must not notice."""
    first, second = Network(), Network()
    mine = remote(first, run="joined", lr=0.05)
    joined = []

    class Joins(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
        """Another worker comes while this one trains."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                joined.append(remote(second, run="joined", lr=0.05))
                import_module("accelerate.optimizer").AcceleratedOptimizer(joined[0])  # as a Trainer does

    trainer_of(first, tmp_path, mine, steps=5, callbacks=[Joins()]).train()  # no RunRewound
    assert mine.run.version == 5
    (other,) = joined
    assert not other.run.created
    assert other.run.version == 3
    other.pull()
    same(second, first)


@pytest.mark.parametrize("optimizer", ["lion", "adafactor", "prodigy"])
def test_optimizers_that_torch_lacks(remote, tmp_path, optimizer):
    """Saved at step 6 and loaded into another run they go on as without."""
    arguments = {"save_strategy": "steps", "save_steps": 6}
    whole, resumed = Network(), Network()
    trainer_of(whole, tmp_path, remote(whole, optimizer, lr=0.01), arguments=arguments).train()
    trainer = trainer_of(resumed, tmp_path, remote(resumed, optimizer, lr=0.01), arguments=arguments)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    same(resumed, whole)
