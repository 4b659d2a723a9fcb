"""Figures that pages quote are those of docs/benchmarks.md: measured, and not yet measured again."""

import itertools
import re
from typing import Final

from tests.docs.pages import ROOT

LOCAL: Final = "PyTorch fused Adam in the trainer itself; no service"
COPIED_NOT: Final = "Stepwell, shared memory: gradients() in, parameters() out, nothing copied"
COPIED: Final = "Stepwell, shared memory: run.step(grads), ordinary arrays in and out"
STREAM: Final = "Stepwell, stream: run.step(grads), Adam, finite check on"
RPC: Final = "torch.distributed.rpc (TensorPipe) with fused Adam; no finite check"


def text_of(page: str) -> str:
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def table(page: str, heading: str) -> dict[str, dict[str, str]]:
    """The rows of the first table with such a first column, by their cell in it: the other cells by column."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    begin = next(at for at, line in enumerate(lines) if cells(line)[0] == heading)
    columns, rows = cells(lines[begin]), {}
    for line in itertools.takewhile(lambda line: line.startswith("|"), lines[begin + 2 :]):
        what, *values = cells(line)
        rows[what] = dict(zip(columns[1:], values, strict=True))
    return rows


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_comparison_quotes_the_table_of_steps():
    measured, quoted = table("docs/benchmarks.md", "what"), table("docs/comparison.md", "what")
    assert len(quoted) == 6
    for what, row in quoted.items():
        assert row == {column: measured[what][column] for column in ("median ms", "x local")}, what


def test_prose_quotes_it_too():
    measured = table("docs/benchmarks.md", "what")
    readme, comparison = text_of("README.md"), text_of("docs/comparison.md")
    ratios = {what: measured[what]["x local"] for what in (COPIED_NOT, COPIED, STREAM)}
    assert f"costs {ratios[COPIED_NOT]} times PyTorch's fused one in the trainer" in readme
    assert f"{ratios[COPIED]} times with arrays of your own" in readme
    assert f"costs {ratios[STREAM]} times the local one" in readme
    assert f"{ratios[COPIED_NOT]} times the step is the best" in comparison
    assert "three quarters of the time of our stream" in comparison
    part = float(measured[RPC]["median ms"]) / float(measured[STREAM]["median ms"])
    assert abs(part - 0.75) < 0.05
    (day,) = re.findall(r"all rows in one run, (\d{4}-\d\d-\d\d)", comparison)
    assert day in text_of("docs/benchmarks.md")
