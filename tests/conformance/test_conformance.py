"""Every case, through both Python clients; and that the runner objects where a case is broken."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import stepwell
import stepwell.aio
from tests.conformance.runner import WHOLE, CaseFailed, Runner, check_step, is_array, load_cases
from tests.end_to_end.pushing import new_seed

CASES = load_cases()
SAMPLE = 12

Json = Any
Step = Mapping[str, Json]


@pytest.fixture(scope="module", params=[stepwell, stepwell.aio], ids=["stepwell", "stepwell.aio"])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    with Runner(request.param) as runner:
        yield runner


@pytest.mark.parametrize("file", CASES)
def test_case(runner: Runner, file: str) -> None:
    """As it is; then with each of its expectations changed in turn, against what came the first time."""
    came: list[tuple[Step, Any]] = []

    def check(step: Step, found: Any) -> None:
        check_step(step, found)
        came.append((step, found))

    runner.carry_out(file, CASES[file], check)
    changed = [(broken, found) for step, found in came for broken in broken_steps(step)]
    assert changed, "it expects nothing"
    for broken, found in changed:
        with pytest.raises(CaseFailed):
            check_step(broken, found)


def test_a_broken_case_fails(runner: Runner) -> None:
    """A sample of them, carried out anew; those that would wait for something that never comes are left out."""
    seed = new_seed()
    print(f"seed {seed}")  # noqa: T201
    choose = random.Random(seed)
    here = {file: case for file, case in CASES.items() if "server" not in case}
    for _ in range(SAMPLE):
        file = choose.choice(list(here))
        steps = list(here[file]["steps"])
        number = choose.choice([n for n, step in enumerate(steps) if "until" not in step and broken_steps(step)])
        steps[number] = choose.choice(broken_steps(steps[number]))
        with pytest.raises(CaseFailed, match=rf"{file}: step {number + 1}: (.|\n)*got (.|\n)*expected"):
            runner.carry_out(file, here[file] | {"steps": steps})


def broken_steps(step: Step) -> list[dict[str, Json]]:
    """The step with each of its expectations changed, and with an error in place of an answer, or the other way."""
    rest = {key: value for key, value in step.items() if key not in ("expect", "error")}
    if "error" in step:
        error = step["error"]
        reason = "INTERNAL" if error["reason"] != "INTERNAL" else "TIMED_OUT"
        changes = [error | {"reason": reason}]
        changes += [error | {"message": changed} for changed in changed_values(error.get("message", []))]
        changes += [error | {"details": changed} for changed in changed_values(error.get("details", {}))]
        return [rest | {"error": changed} for changed in changes if changed != error] + [rest]
    changes = [rest | {"expect": changed} for changed in changed_values(step.get("expect", {}))]
    is_operation = not {"stand", "begin"} & step.keys()
    return [*changes, rest | {"error": {"reason": "INTERNAL"}}] if is_operation else changes


def changed_values(value: Json, name: str = "") -> list[Json]:
    """The value with one of its parts changed, for each part. name: the field that it is in."""
    if is_array(value):
        other = "float64" if value["dtype"] == "float32" else "float32"
        count = "fill" if "fill" in value else "values"
        changes = [value | {"dtype": other}, value | {"shape": [*value["shape"], 1]}]
        return changes + [value | {count: changed} for changed in changed_values(value[count])]
    if isinstance(value, dict):
        changes = [value | {key: changed} for key, part in value.items() for changed in changed_values(part, key)]
        if name in WHOLE:
            changes += [{key: value[key] for key in value if key != left} for left in value]
        return changes
    if isinstance(value, list):
        return [
            [*value[:place], changed, *value[place + 1 :]]
            for place, part in enumerate(value)
            for changed in changed_values(part)
        ]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    return ["something else"] if value not in ("nan", "inf", "-inf") else [0]


def test_what_a_case_may_say() -> None:
    """Titles and sources are there, and every reason is provoked, or README.md says why not."""
    readme = (Path(__file__).parent / "README.md").read_text()
    told = readme.partition("## Reasons that no case provokes")[2].partition("## Bytes")[0]
    provoked = set()
    for case in CASES.values():
        assert {"title", "shows", "expected_from", "steps"} == case.keys() - {"server"}
        provoked |= {step["error"]["reason"] for step in case["steps"] if "error" in step}
    for reason in stepwell.errors.BY_REASON.values():
        assert (reason.reason in provoked) != (f"{reason.reason}," in told or f"{reason.reason} |" in told)
