"""A small transformer learns the standard library's docstrings, its optimizer on a Stepwell server.

Against training with torch.optim alone two lines differ:

    from torch.optim import AdamW
    optimizer = AdamW(model.parameters(), lr=1e-3)

Start a server (`stepwell serve`), then this program; started again, it goes on where it ended.
"""

import argparse
import ast
import pathlib

import torch

from stepwell.torch import RemoteOptimizer

WIDTH, LENGTH, BATCH = 32, 32, 8


def docstrings():
    """Those of the modules at the top of the standard library, as one tensor of bytes."""
    found = []
    for path in sorted(pathlib.Path(ast.__file__).parent.glob("[ac]*.py")):
        tree = ast.parse(path.read_bytes())
        definitions = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, definitions)]
    return torch.tensor(list("\n\n".join(found).encode("ascii", "replace")))


class Transformer(torch.nn.Module):
    """Predicts each next byte from those before it. tokens: integers (batch, length); returns (batch, length, 128)."""

    def __init__(self):
        super().__init__()
        self.token, self.place = torch.nn.Embedding(128, WIDTH), torch.nn.Embedding(LENGTH, WIDTH)
        self.layer = torch.nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.output = torch.nn.Linear(WIDTH, 128)

    def forward(self, tokens):
        mask = torch.nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.output(self.layer(self.token(tokens) + self.place.weight, mask, is_causal=True))


def train(address, run, steps):
    torch.manual_seed(0)
    data, model = docstrings(), Transformer()
    optimizer = RemoteOptimizer(model, "adamw", lr=1e-3, address=address, run=run)
    for step in range(1, steps + 1):
        batch = torch.stack([data[at : at + LENGTH + 1] for at in torch.randint(len(data) - LENGTH - 1, (BATCH,))])
        loss = torch.nn.functional.cross_entropy(model(batch[:, :-1]).transpose(1, 2), batch[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // 2) == 0:
            print(f"step {step}: loss {loss.item():.4f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Train a small transformer with a remote optimizer.")
    options.add_argument("--address", default="127.0.0.1:50051")
    options.add_argument("--run", default="docstrings")
    options.add_argument("--steps", type=int, default=300)
    given = options.parse_args()
    train(given.address, given.run, given.steps)
