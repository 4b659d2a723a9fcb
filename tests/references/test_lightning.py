"""RemoteOptimizer under PyTorch Lightning: the same numbers as torch.optim's AdamW under it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.server import Server
from tests.kernels import kept_kernels
from tests.references.two_lines import train_both

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.references,
    pytest.mark.xdist_group("lightning"),
    pytest.mark.filterwarnings("ignore"),  # Lightning's own, of which there are many
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(kept_kernels()) as server:
        yield server


@pytest.fixture(scope="module")
def lightning() -> Any:
    """Imported here, because it takes ten times as long as collecting all tests."""
    return pytest.importorskip("lightning")


@pytest.mark.usefixtures("lightning")
def test_the_example_learns_as_with_local_adamw(server, tmp_path):
    losses, mine, local_losses, local = train_both("lightning_train.py", server.address, tmp_path, 60)
    assert len(losses) == 2
    assert losses[1] < 0.9 * losses[0]
    assert losses == pytest.approx(local_losses, rel=1e-4)
    assert (mine - local).norm() < 1e-5 * local.norm()


def network(lightning: Any, make: Any) -> Any:
    """make: the optimizer of its parameters."""

    class Network(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            layers = torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 8)
            self.layers = torch.nn.Sequential(*layers).double()

        def training_step(self, batch: Any) -> Any:
            return (self.layers(batch) - batch.flip(1)).pow(2).mean()

        def configure_optimizers(self) -> Any:
            optimizer = make(self)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]

    return Network()


def test_checkpoints_accumulation_clipping_and_schedulers(server, lightning, tmp_path):
    """Trained for two epochs, saved, loaded into a fresh model with a run of its own, trained for two more."""
    from stepwell.torch import RemoteOptimizer

    rng = torch.Generator().manual_seed(5)
    data = torch.randn(24, 8, generator=rng, dtype=torch.float64)
    runs = iter(("first", "second"))

    def local(network: Any) -> Any:
        return torch.optim.AdamW(network.parameters(), lr=0.05)

    def remote(network: Any) -> Any:
        return RemoteOptimizer(network, "adamw", lr=0.05, address=server.address, run=next(runs))

    def fit(network: Any, epochs: int, resume: Path | None = None) -> Any:
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accumulate_grad_batches=2,
            gradient_clip_val=0.01,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(network, torch.utils.data.DataLoader(data, 4), ckpt_path=resume)
        return trainer

    expected, stopped, resumed = network(lightning, local), network(lightning, remote), network(lightning, remote)
    fit(expected, 4)
    trainer = fit(stopped, 2)
    (first,) = trainer.optimizers
    assert first.run.version == 6  # 24 samples, 4 in a batch, 2 batches in an update, 2 epochs
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    first.close()
    (second,) = fit(resumed, 4, tmp_path / "saved.ckpt").optimizers
    assert second.run.version == 6
    second.close()
    for mine, theirs in zip(resumed.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-13)
