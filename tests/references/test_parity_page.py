"""The page that is committed is complete and within tolerance; needs no framework. `make parity` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.schedules import list_schedules
from stepwell_server.core.transforms import TRANSFORMS
from stepwell_server.core.wrappers import WRAPPERS
from tests.references.parity_page import COLUMNS, Measurement, read_tables, write_table

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"


@pytest.fixture(scope="module")
def tables() -> dict[str, list[dict[str, str]]]:
    return read_tables(PAGE.read_text())


def names(rows: list[dict[str, str]], *columns: str) -> set[tuple[str, ...]]:
    return {tuple(row[column].strip("`") for column in columns) for row in rows}


def test_every_optimizer_and_flavor_has_its_lines(tables: dict[str, list[dict[str, str]]]) -> None:
    registered = {
        (name, flavor, dtype)
        for name, definition in OPTIMIZERS.items()
        for flavor in definition.flavors
        for dtype in ("float64", "float32")
    }
    cpu = [row for row in tables["optimizers"] if row["device"] == "cpu"]
    assert names(cpu, "optimizer", "flavor", "dtype") == registered, "make parity"


def test_every_schedule_transform_and_wrapper_has_a_line(tables: dict[str, list[dict[str, str]]]) -> None:
    assert names(tables["schedules"], "schedule") == {(entry.name,) for entry in list_schedules()}, "make parity"
    # Noise has no reference to compare numbers with.
    assert names(tables["transforms"], "transform") == {(name,) for name in TRANSFORMS.keys() - {"add_noise"}}
    assert names(tables["wrappers"], "wrapper") == {(name,) for name in WRAPPERS}


def test_every_line_is_within_tolerance(tables: dict[str, list[dict[str, str]]]) -> None:
    for table in COLUMNS:
        for row in tables[table]:
            assert float(row["error / tolerance"]) <= 1, row


def test_what_is_out_of_tolerance_is_bold() -> None:
    def measured(error: float, variant: str = "", rtol: float = 1e-11) -> Measurement:
        hyper = (("beta1", 0.5), ("amsgrad", variant == "amsgrad"))
        where = ("optimizers", "adam", "torch", "float64", "cpu", "torch 2", variant)
        return Measurement(*where, hyper, 3, 100, (rtol, 1e-13), error)

    (row,) = read_tables("\n".join(write_table("optimizers", [measured(0.25), measured(0.5, "amsgrad", 1e-9)])))[
        "optimizers"
    ]
    assert row["error / tolerance"] == "0.5"
    assert (row["variants"], row["runs"], row["seeds"], row["steps"]) == ("2", "2", "3", "100")
    assert row["tolerance"] == "1e-11, 1e-13; amsgrad: 1e-9, 1e-13"
    assert row["tried"] == "amsgrad off/on, beta1 0.5"
    for error in (1.01, float("inf")):
        (row,) = read_tables("\n".join(write_table("optimizers", [measured(0.25), measured(error)])))["optimizers"]
        assert re.fullmatch(r"\*\*.*\*\* \(drawn, seed 3\)", row["error / tolerance"])
