"""A trainer in PyTorch, by itself or with a remote optimizer: what a step takes, and what the trainer's memory holds.

Needs PyTorch. As a program it trains a few steps and prints, in MB, what it has more than before the model was made.
"""

import ctypes
import json
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from stepwell.torch import RemoteOptimizer
from stepwell_server.benchmarks.options import as_tensors, random_vector

LOCAL = "local"

_STEPS = 4
_WARMUP_SIZE = 1000


class TorchTrainer:
    """Fused AdamW in this process, or AdamW on the server at `address`; of random parameters with a linear loss.

    master: beside weights of 16 bits, a float32 copy of them here, which the optimizer updates.
    """

    def __init__(
        self,
        size: int,
        address: str,
        run: str = "",
        *,
        transport: str = "auto",
        dtype: Any = torch.float32,
        master: bool = False,
    ) -> None:
        # Copies: a view of the whole vector would keep it.
        self._parameters = [
            torch.from_numpy(part.copy()).to(dtype).requires_grad_()
            for part in as_tensors(random_vector(size)).values()
        ]
        self._masters = [each.detach().float().requires_grad_() for each in self._parameters] if master else []
        self._slopes = [torch.full_like(each, 0.5, requires_grad=False) for each in self._parameters]
        self.optimizer: Any
        if address == LOCAL:
            self.optimizer = torch.optim.AdamW(self._masters or self._parameters, fused=True)
        else:
            self.optimizer = RemoteOptimizer(
                self._parameters, "adamw", address=address, run=run, connect_options={"transport": transport}
            )
        self.backward()

    def backward(self) -> None:
        """Gradients, made anew: those from before are dropped."""
        for parameter in self._parameters:
            parameter.grad = None
        losses = [torch.dot(each, slope) for each, slope in zip(self._parameters, self._slopes, strict=True)]
        torch.stack(losses).sum().backward()

    def step(self) -> None:
        """The optimizer's alone."""
        for master, parameter in zip(self._masters, self._parameters, strict=False):
            master.grad = parameter.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(self._masters, self._parameters, strict=False):
                master.grad = None
                parameter.copy_(master)

    def train(self) -> None:
        """A step with its gradients."""
        self.backward()
        self.step()

    def forget_slopes(self) -> None:
        """Drop what stands in for a loss, and is no part of any trainer."""
        self._slopes = []

    def close(self) -> None:
        """Leave the run."""
        if isinstance(self.optimizer, RemoteOptimizer):
            self.optimizer.close()


def _memory() -> dict[str, float]:
    ctypes.CDLL(None).malloc_trim(0)  # what was freed is nobody's
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].removesuffix("kB")) * 1024 / 1e6 for name in ("RssAnon", "RssShmem")}


def main(size: int, address: str, run: str, transport: str, dtype: str, master: str) -> None:
    def make(size: int, run: str) -> TorchTrainer:
        kind = getattr(torch, dtype)
        return TorchTrainer(size, address, run, transport=transport, dtype=kind, master=master == "master")

    # Modules, threads and pools are there whatever the size.
    with closing(make(_WARMUP_SIZE, f"{run}-warm")) as trainer:
        trainer.train()
    before = _memory()
    with closing(make(size, run)) as trainer:
        for _ in range(_STEPS):
            trainer.train()
        trainer.forget_slopes()
        after = _memory()
    print(json.dumps({name: after[name] - before[name] for name in after}))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:7])
