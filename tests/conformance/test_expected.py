"""The cases' numbers, computed again: by NumPy for all of them, and by PyTorch for the optimizers that are its."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from tests.conformance.reference import Reference
from tests.conformance.runner import CaseFailed, Tolerance, array, compare, load_cases

CASES = load_cases()
# What the reference must know wherever a case expects it.
COMPUTED = {
    *("parameters", "rows", "slots", "values", "steps", "gradient_norms", "parameter_norms"),
    *("version", "committed_version", "returned", "samples", "loss_scale"),
}

Json = Any


def expectations(case: Mapping[str, Json]) -> Iterator[tuple[int, Mapping[str, Json], dict[str, Json]]]:
    """Each step's number, the step, and what the reference says."""
    reference = Reference()
    for number, step in enumerate(case["steps"], 1):
        yield number, step, reference.follow(step)


@pytest.mark.parametrize("file", CASES)
def test_numbers(file: str) -> None:
    for number, step, computed in expectations(CASES[file]):
        expected = step.get("expect", step.get("until", {}))
        if "hyperparameters" in expected:
            computed = dict(computed)
            told = computed.pop("hyperparameters")
            for group, numbers in expected["hyperparameters"].items():
                assert numbers["lr"] == told[group]["lr"], f"step {number}"
        wanted = {name: expected[name] for name in COMPUTED & expected.keys()}
        if "stand" in step:
            continue
        try:
            compare(computed, wanted, Tolerance(step.get("tolerance", {})))
        except CaseFailed as failure:
            pytest.fail(f"step {number}: {failure}")


@pytest.mark.references
@pytest.mark.parametrize("file", ["adagrad", "adam", "adamw_float32", "sgd_momentum", "sgd_nesterov_float32"])
def test_torch(file: str) -> None:
    import torch

    classes = {
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
    }
    create, *steps = CASES[f"{file}.json"]["steps"]
    spec = create["with"]
    numbers = dict(spec["hyperparameters"])
    if "beta1" in numbers:
        numbers["betas"] = (numbers.pop("beta1"), numbers.pop("beta2"))
    parameters = {
        name: torch.tensor(array(each).astype(np.float64), requires_grad=True)
        for name, each in spec["parameters"].items()
    }
    optimizer = classes[spec["optimizer"]](parameters.values(), **numbers)
    assert steps
    for step in steps:
        for name, gradient in step["with"]["gradients"].items():
            grad = None if gradient is None else torch.tensor(array(gradient).astype(np.float64))
            parameters[name].grad = grad
        optimizer.step()
        for name, expected in step["expect"]["parameters"].items():
            tolerance = {"rtol": step["tolerance"]["relative"], "atol": step["tolerance"]["absolute"]}
            got = parameters[name].detach().numpy()
            np.testing.assert_allclose(array(expected).astype(np.float64), got, **tolerance)


def test_every_optimizer_of_torch_is_compared() -> None:
    sources = {file for file, case in CASES.items() if "torch.optim.Adam" in case["expected_from"]}
    assert sources == {"adam.json", "adamw_float32.json"}
