"""The examples of PyTorch's frameworks as they stand, and with the two lines of local training that they show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"


def train_both(name: str, address: str, directory: Path, steps: int) -> tuple[list[float], Any, list[float], Any]:
    """The losses that the example prints, and its model's parameters as one float64 vector; then those of torch.optim.

    The lines of local training are taken from the example's own docstring.
    """
    import torch

    script = (EXAMPLES / name).read_text(encoding="utf-8")
    imported, made = (re.search(rf"^ *{line}.*\n", script, re.MULTILINE) for line in SHOWN)
    assert imported
    assert made
    (shown,) = re.findall(r"^ +optimizer = AdamW\(.*\n", script, re.MULTILINE)
    indent = made[0][: -len(made[0].lstrip())]
    local = script.replace(imported[0], "from torch.optim import AdamW\n")
    local = local.replace(made[0], indent + shown.lstrip())
    changed = [one for one, other in zip(script.splitlines(), local.splitlines(), strict=True) if one != other]
    assert len(changed) == 2
    found: list[Any] = []
    for number, text in enumerate((script, local)):
        saved = directory / f"{number}.pt"
        keep = f"\ntorch.save([parameter.detach() for parameter in trained.parameters()], {str(saved)!r})\n"
        command = [sys.executable, "-c", text + keep, "--steps", str(steps), "--address", address]
        # No download, no telemetry, and two tests at once share two cores.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=300, env=environment, cwd=directory
        )
        assert done.returncode == 0, done.stderr
        losses = [float(loss) for loss in re.findall(r"steps?\b.*: loss ([0-9.]+)$", done.stdout, re.MULTILINE)]
        found += [losses, torch.cat([tensor.double().reshape(-1) for tensor in torch.load(saved)])]
    return found[0], found[1], found[2], found[3]


SHOWN = (r"from stepwell\.torch import RemoteOptimizer", r"optimizer = RemoteOptimizer\(")
