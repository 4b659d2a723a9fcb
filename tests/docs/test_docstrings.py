"""Every public name says what it is, and what it takes where it takes something; so does all of the contract."""

import importlib
import re
from types import ModuleType

import pytest

import stepwell
import stepwell.aio
from tests.docs.public import faults_of, members_of, names_of


@pytest.mark.parametrize("module", [stepwell, stepwell.aio], ids=lambda module: module.__name__)
def test_public_names_are_explained(module: ModuleType):
    assert len(names_of(module)) >= 4
    assert not list(faults_of(module))


@pytest.mark.references
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_public_names_of_the_extras_are_explained(name: str):
    pytest.importorskip(name)
    module = importlib.import_module(f"stepwell.{name}")
    assert names_of(module)
    assert not list(faults_of(module))


def test_both_clients_have_the_same_members():
    for name in ("Client", "Run", "Update"):
        assert members_of(getattr(stepwell, name)).keys() == members_of(getattr(stepwell.aio, name)).keys()


def test_faults_are_found():
    class Bare: ...

    class Full:
        """It has members."""

        def nothing(self) -> None: ...

        def little(self, first: int, second: int) -> None:
            """Takes two."""

        def enough(self, first: int) -> None:
            """Takes one.

            first: in seconds.
            """

        @property
        def silent(self) -> int:
            return 1

    module = ModuleType("stepwell.imagined")
    for kind in (Bare, Full):
        kind.__module__ = "stepwell.imagined"
        setattr(module, kind.__name__, kind)
    assert list(faults_of(module)) == [
        "stepwell.imagined.Bare has no docstring of its own",
        "stepwell.imagined.Full.nothing has no docstring",
        "stepwell.imagined.Full.little takes first, second and has a docstring of one line",
        "stepwell.imagined.Full.silent has no docstring",
    ]


def test_the_tree_of_errors_has_them_all():
    errors = {
        name for name, value in names_of(stepwell).items() if isinstance(value, type) and issubclass(value, Exception)
    }
    assert len(errors) > 50
    assert errors <= set(re.findall(r"\w+", stepwell.errors.__doc__ or ""))
