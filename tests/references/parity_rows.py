"""What the page of parity measures: every row of the reference tests, by the implementation and by its reference."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from random import Random
from typing import Any

import numpy as np

from stepwell_server.core.schedules import list_schedules
from tests.core.schedules.walks import ROWS, walk
from tests.references import (
    test_keras_optimizers as keras,
)
from tests.references import (
    test_keras_schedules as keras_schedules,
)
from tests.references import (
    test_optax_optimizers as optax,
)
from tests.references import (
    test_optax_schedules as optax_schedules,
)
from tests.references import (
    test_prodigyopt as prodigyopt,
)
from tests.references import (
    test_schedulefree as schedulefree,
)
from tests.references import (
    test_torch_optimizers as torch,
)
from tests.references import (
    test_torch_schedules as torch_schedules,
)
from tests.references import (
    test_transformers_schedules as transformers_schedules,
)
from tests.references import (
    test_transforms as transforms,
)
from tests.references import (
    test_wrappers as wrappers,
)
from tests.references.comparison import (
    STEPS,
    Float,
    draw,
    error_over_tolerance,
    follow_implementation,
    follow_textbook,
    seeds_of,
    worst_error,
)
from tests.references.implementation import evaluate_schedule, step_transformed, step_unscaled
from tests.references.parity_page import Measurement
from tests.references.schedule_cases import ATOL, ScheduleCase, follow
from tests.references.versions import version
from tests.textbook.cases import CASES, Case, Params
from tests.textbook.transforms import TRANSFORM_CASES, draw_transform, run_transform

DTYPES: tuple[Float, ...] = (np.float64, np.float32)
Follow = Callable[[Case, int, Float], list[Params]]
Tolerance = Callable[[Case, Float], tuple[float, float]]

# The framework that each flavor is named after, how to run it, and what it is held to.
FRAMEWORKS: Mapping[str, tuple[str, Follow, Tolerance]] = {
    "torch": ("torch", torch.follow_torch, Case.tolerance),
    "optax": ("optax", optax.follow_optax, optax.tolerance),
    "keras": ("keras", keras.follow_keras, keras.tolerance),
    "schedulefree": ("schedulefree", lambda *run: schedulefree.follow_framework(*run)[0], Case.tolerance),
    "prodigyopt": ("prodigyopt", prodigyopt.follow_prodigyopt, Case.tolerance),
}
# What the flavors without a framework are written from.
WRITTEN = {
    "lecture": "the lecture notes, written out",
    "lecture_schedule": "the lecture notes, written out",
    "mcmahan": "McMahan et al. 2013, written out",
}
SCHEDULES: Mapping[str, Any] = {
    "torch": (torch_schedules, torch_schedules.run_torch),
    "optax": (optax_schedules, optax_schedules.run_optax),
    "keras": (keras_schedules, keras_schedules.run_keras),
    "transformers": (transformers_schedules, transformers_schedules.run_transformers),
}


def jobs() -> list[tuple[str, str, str]]:
    """What can be measured apart: (table, name, flavor), what takes longest first."""
    optimizers = sorted({(case.name, case.flavor) for case in CASES}, key=lambda key: -len(_cases(*key)))
    return [
        *(("optimizers", *key) for key in optimizers),
        ("optimizers", "sophia", "optax"),
        *(("wrappers", row.split("-")[0], framework) for row, framework in wrappers.REFERENCES),
        *(("transforms", name, "") for name in sorted({case.name for case in TRANSFORM_CASES} | {"unscale"})),
        *(("schedules", framework, "") for framework in (*SCHEDULES, "walks")),
    ]


def measure(job: tuple[str, str, str], seed: int, device: str) -> list[Measurement]:
    """All runs of a job. Its seeds count from `seed` and its name, so that not all of them draw the same numbers."""
    table, name, flavor = job
    if table != "schedules":
        seed += zlib.crc32("-".join(job).encode()) % 1000
    if table == "schedules":
        return list(_walks(seed) if name == "walks" else _schedules(name, seed))
    if table == "optimizers":
        found = _sophia(seed, device) if name == "sophia" else _optimizer(name, flavor, seed, device)
    elif table == "transforms":
        found = _unscale(seed, device) if name == "unscale" else _transform(name, seed, device)
    else:
        found = _wrapper(name, flavor, seed, device)
    return list(found)


def _cases(name: str, flavor: str) -> list[Case]:
    return [case for case in CASES if (case.name, case.flavor) == (name, flavor)]


def _optimizer(name: str, flavor: str, seed: int, device: str) -> Iterator[Measurement]:
    for case in _cases(name, flavor):
        for dtype in DTYPES:
            for number in seeds_of(case):
                run = draw(case, seed + number, dtype)
                tolerance = case.tolerance(dtype)
                if flavor in FRAMEWORKS and case.in_framework:
                    framework, follow_framework, tolerance_of = FRAMEWORKS[flavor]
                    if name.startswith("schedule_free") and flavor == "optax":
                        follow_framework, tolerance_of = FRAMEWORKS["schedulefree"][1:]
                    expected, tolerance = follow_framework(case, seed + number, dtype), tolerance_of(case, dtype)
                    reference = f"{framework} {version(framework)}"
                else:
                    expected = follow_textbook(case, run)
                    reference = WRITTEN.get(flavor, f"what {flavor} lacks, written out")
                error = worst_error(follow_implementation(case, run), expected, tolerance)
                hyper = tuple(run.hyper.items())
                yield Measurement(
                    "optimizers",
                    name,
                    flavor,
                    np.dtype(dtype).name,
                    device,
                    reference,
                    case.variant,
                    hyper,
                    seed + number,
                    len(run.lrs),
                    tolerance,
                    error,
                )


def _sophia(seed: int, device: str) -> Iterator[Measurement]:
    for dtype in DTYPES:
        for number in range(3):
            run = optax.draw_sophia(seed + number, dtype)
            yield Measurement(
                "optimizers",
                "sophia",
                "optax",
                np.dtype(dtype).name,
                device,
                f"optax {version('optax')}",
                "",
                tuple(run.hyper.items()),
                seed + number,
                STEPS,
                optax.SOPHIA.tolerance(dtype),
                worst_error(
                    optax.sophia_by_implementation(run), optax.sophia_by_optax(run), optax.SOPHIA.tolerance(dtype)
                ),
            )


def _schedules(framework: str, seed: int) -> Iterator[Measurement]:
    module, run = SCHEDULES[framework]
    rtol, atol = module.RTOL, getattr(module, "ATOL", ATOL)
    cases: list[ScheduleCase] = module.CASES
    for case in cases:
        for number in module.SEEDS:
            got = follow(case, seed + number, run, module.STEPS)
            error = error_over_tolerance(got.actual, got.expected, rtol, atol * got.initial)
            variant = case.id.removeprefix(got.spec["name"]).strip("-")
            yield _scheduled(got.spec, framework, variant, seed + number, module.STEPS, (rtol, atol), error)
    if framework == "torch":
        for number in range(50):
            arguments, initial, actual, expected = module.follow_plateau(seed + number)
            error = error_over_tolerance(np.array(actual), np.array(expected), rtol, atol * initial)
            spec = {"name": "plateau", **arguments}
            yield _scheduled(spec, framework, "", seed + number, module.STEPS, (rtol, atol), error)


def _walks(seed: int) -> Iterator[Measurement]:
    """Those that no framework has, against a walk along the clock that was written from the catalogue."""
    drawn = {case.draw(np.random.default_rng(0))["name"] for module, _ in SCHEDULES.values() for case in module.CASES}
    for name in sorted({entry.name for entry in list_schedules()} - drawn - {"plateau"}):
        for number in range(8):
            random = Random(f"{name}-{seed + number}")
            spec, initial = {"name": name, **ROWS[name][0](random)}, random.uniform(0.01, 1)
            expected = np.array(list(islice(walk(initial, **spec), 1000)))
            error = error_over_tolerance(evaluate_schedule(spec, initial, 1000), expected, 1e-9, 1e-12 * initial)
            yield _scheduled(spec, "", "", seed + number, 1000, (1e-9, 1e-12), error)


def _scheduled(
    spec: dict[str, Any],
    framework: str,
    variant: str,
    seed: int,
    steps: int,
    tolerance: tuple[float, float],
    error: float,
) -> Measurement:
    hyper = tuple((key, "drawn" if key == "schedules" else value) for key, value in spec.items() if key != "name")
    reference = f"{framework} {version(framework)}" if framework else "the closed form, written out"
    return Measurement(
        "schedules", spec["name"], "", "float64", "host", reference, variant, hyper, seed, steps, tolerance, error
    )


def _transform(name: str, seed: int, device: str) -> Iterator[Measurement]:
    for case in (case for case in TRANSFORM_CASES if case.name == name):
        frameworks = [framework for row, framework in transforms.REFERENCES if row == case.id]
        for dtype in DTYPES:
            tolerance = transforms.tolerance(dtype)
            for number in range(seed, seed + 3):
                run = draw_transform(case, number, dtype, STEPS)
                actual = step_transformed(case, run)
                for framework in frameworks or [""]:
                    if framework:
                        expected = transforms.follow_framework(case.id, framework, dtype, number)
                    else:
                        expected = run_transform(case, run)
                    yield Measurement(
                        "transforms",
                        name,
                        "",
                        np.dtype(dtype).name,
                        device,
                        f"{framework} {version(framework)}" if framework else "written out",
                        case.variant,
                        tuple(run.arguments.items()),
                        number,
                        STEPS,
                        tolerance,
                        worst_error(actual, expected, tolerance),
                    )


def _unscale(seed: int, device: str) -> Iterator[Measurement]:
    for dtype in DTYPES:
        tolerance = transforms.tolerance(dtype)
        for number in range(seed, seed + 3):
            arguments, grads = transforms.draw_overflows(dtype, number)
            expected, scales = transforms.follow_scaler(arguments, grads)
            seen, scales_here = step_unscaled(grads, **arguments)
            # Which steps are skipped and each scale are equal, or nothing is.
            same = scales == scales_here and [row is None for row in seen] == [row is None for row in expected]
            error = (
                worst_error([row for row in seen if row], [row for row in expected if row], tolerance)
                if same
                else math.inf
            )
            yield Measurement(
                "transforms",
                "unscale",
                "",
                np.dtype(dtype).name,
                device,
                f"torch {version('torch')}",
                "",
                tuple(arguments.items()),
                number,
                STEPS,
                tolerance,
                error,
            )


def _wrapper(name: str, framework: str, seed: int, device: str) -> Iterator[Measurement]:
    rows = [row for row, theirs in wrappers.REFERENCES if row.split("-")[0] == name and theirs == framework]
    for row in rows:
        for dtype in DTYPES:
            tolerance = wrappers.tolerance(dtype)
            for number in range(seed, seed + 3):
                run = wrappers.follow_framework(row, framework, dtype, number)
                yield Measurement(
                    "wrappers",
                    name,
                    "",
                    np.dtype(dtype).name,
                    device,
                    f"{framework} {version(framework)}",
                    row.partition("-")[2],
                    (*run.arguments.items(), ("around", run.rule)),
                    number,
                    STEPS,
                    tolerance,
                    worst_error(wrappers.follow_implementation(run), run.expected, tolerance),
                )
