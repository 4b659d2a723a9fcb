"""A small network learns the standard library's docstrings under PyTorch Lightning, its optimizer on a Stepwell server.

Against training with torch.optim alone two lines differ:

    from torch.optim import AdamW
        optimizer = AdamW(self.parameters(), lr=3e-3)

Start a server (`stepwell serve`), then this program; started again, it goes on where it ended.
"""

import argparse
import ast
import pathlib

import lightning
import torch

from stepwell.torch import RemoteOptimizer

WIDTH, LENGTH, BATCH = 32, 16, 32


def docstrings():
    """Those of the modules at the top of the standard library: bytes, and the one that follows (count, LENGTH + 1)."""
    found = []
    for path in sorted(pathlib.Path(ast.__file__).parent.glob("[ac]*.py")):
        tree = ast.parse(path.read_bytes())
        definitions = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, definitions)]
    return torch.tensor(list("\n\n".join(found).encode("ascii", "replace"))).unfold(0, LENGTH + 1, 7)


class Network(lightning.LightningModule):
    """Predicts a byte from those before it."""

    def __init__(self, address, run, steps):
        super().__init__()
        self.address, self.run, self.steps, self.losses = address, run, steps, []
        self.layers = torch.nn.Sequential(
            torch.nn.Embedding(128, WIDTH),
            torch.nn.Flatten(),
            torch.nn.Linear(LENGTH * WIDTH, 4 * WIDTH),
            torch.nn.Tanh(),
            torch.nn.Linear(4 * WIDTH, 128),
        )

    def training_step(self, tokens):
        loss = torch.nn.functional.cross_entropy(self.layers(tokens[:, :-1]), tokens[:, -1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = RemoteOptimizer(self, "adamw", lr=3e-3, address=self.address, run=self.run)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(address, run, steps):
    lightning.seed_everything(0, verbose=False)
    network = Network(address, run, steps)
    data = torch.utils.data.DataLoader(docstrings(), BATCH, shuffle=True)
    trainer = lightning.Trainer(
        max_steps=steps,
        gradient_clip_val=1.0,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, data)
    for half in (network.losses[: steps // 2], network.losses[steps // 2 :]):
        print(f"{len(half)} steps: loss {sum(half) / len(half):.4f}")
    return network


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Train a small network under Lightning with a remote optimizer.")
    options.add_argument("--address", default="127.0.0.1:50051")
    options.add_argument("--run", default="docstrings-lightning")
    options.add_argument("--steps", type=int, default=200)
    given = options.parse_args()
    trained = train(given.address, given.run, given.steps)
