"""Rows against the textbook's loops, which were written from the catalogue alone and know nothing of tables.

In lazy mode under the torch flavor each row is a parameter that most updates leave out; in exact mode it is one whose
gradient is zero in them.
"""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from stepwell_server.core.errors import RowsNotSupported
from stepwell_server.core.optimizers import OPTIMIZERS, find_optimizer
from stepwell_server.core.settings import make_settings
from stepwell_server.core.tables.rules import check_rows
from tests.core.tables.local import START, LocalTable, load
from tests.textbook.cases import CASES, Case, draw_run, run_textbook

WIDTH = 3
IDS = [-(1 << 63), -7, 0, 5, 6, 1 << 40, (1 << 63) - 1]
STEPS = 60


def firsts(cases):
    """The row of each optimizer and flavor that draws everything."""
    found: dict[tuple[str, str], Case] = {}
    for case in cases:
        found.setdefault((case.name, case.flavor), case)
    return [pytest.param(case, id=case.id) for case in found.values()]


def works_on_rows(case):
    given = {"lr": 0.1} if "lr" in find_optimizer(case.name).arguments else {}
    try:
        check_rows(make_settings(case.name, case.flavor, given, {}, START), "lazy", "table 'user'")
    except RowsNotSupported:
        return False
    return not case.takes_loss


LAZY = firsts(case for case in CASES if works_on_rows(case) and case.flavor == "torch" and case.name != "sparse_adam")
# Untouched rows stay as they are in ftrl's table, and go to zero in a dense ftrl: it has a test of its own.
EXACT = firsts(case for case in CASES if find_optimizer(case.name).idle and case.name != "ftrl")


def hash_of(*parts):
    return zlib.crc32(" ".join(parts).encode())


def make(case, hyper, lrs, device, mode, dtype):
    schedules = {} if case.name == "adadelta_ratio" else {"lr": {"name": "table", "values": list(lrs)}}
    return LocalTable(
        device,
        width=WIDTH,
        dtype=dtype,
        optimizer=case.name,
        flavor=case.flavor,
        hyperparameters=hyper,
        schedules=schedules,
        sparse_mode=mode,
        initializer={"name": "normal", "std": case.start},
        seed=hash_of(case.id),
    )


def draw(case, dtype):
    return draw_run(replace(case, shapes={str(number): (WIDTH,) for number in IDS}), hash_of(case.id), dtype, STEPS)


def present_ids(random):
    """Some ids, in any order; sometimes none."""
    return [number for number in random.permutation(IDS) if random.random() < 0.4]


def expect(actual, expected, case, dtype, what):
    rtol, atol = case.tolerance(dtype)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol, err_msg=f"{case.id} {what}")


@pytest.mark.parametrize("case", LAZY)
def test_lazy_rows_are_parameters_that_updates_leave_out(case, device):
    run = draw(case, "float64")
    table = make(case, run.hyper, run.lrs, device, "lazy", "float64")
    params = {str(number): table.pull([number])[0] for number in IDS}
    random = np.random.default_rng(hash_of(case.id))
    rows, actual = [], []
    for grads in run.grads:
        ids = present_ids(random)
        rows.append({str(number): grads[str(number)] if number in ids else None for number in IDS})
        table.push(ids, np.array([grads[str(number)] for number in ids]).reshape(-1, WIDTH))
        actual.append(table.pull(IDS))
    expected = run_textbook(case, run.hyper, params, rows, run.lrs)
    for step, (found, wanted) in enumerate(zip(actual, expected, strict=True)):
        expect(found, [wanted[str(number)] for number in IDS], case, "float64", f"step {step}")


def without_l2(case, hyper):
    """Exact mode refuses decay that goes through an optimizer's state."""
    decoupled = hyper.get("decoupled_weight_decay", case.flavor == "keras")
    return hyper if decoupled or "weight_decay" not in hyper else {**hyper, "weight_decay": 0.0}


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
@pytest.mark.parametrize("case", EXACT)
def test_exact_rows_are_parameters_with_gradients_of_zero(case, dtype, device):
    run = draw(case, dtype)
    hyper = without_l2(case, run.hyper)
    table = make(case, hyper, run.lrs, device, "exact", dtype)
    params = {str(number): table.pull([number])[0] for number in IDS}
    random = np.random.default_rng(hash_of(case.id))
    rows, actual = [], []
    for step, grads in enumerate(run.grads):
        ids = present_ids(random)
        rows.append({str(number): grads[str(number)] * (number in ids) for number in IDS})
        table.push(ids, np.array([grads[str(number)] for number in ids]).reshape(-1, WIDTH))
        actual.append(table.pull(IDS) if step % 3 else None)
        if step == STEPS // 2:
            # A stored state has every row up to date, and goes on from there.
            hold = table.table.hold()
            table.release(hold)
            table = load(table, hold, device)
    expected = run_textbook(case, hyper, params, rows, run.lrs)
    for step, (found, wanted) in enumerate(zip(actual, expected, strict=True)):
        if found is not None:
            expect(found, [wanted[str(number)] for number in IDS], case, dtype, f"step {step} {hyper}")


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_exact_rows_catch_up_over_more_steps_than_one_level_of_the_history_has(momentum, device):
    """Closed form against the plain recurrence, with a learning rate and a momentum that change all the time."""
    steps, random = 9000, np.random.default_rng(3)
    lrs, momenta = random.uniform(0.01, 0.1, steps), random.uniform(0.5, 0.999, steps) if momentum else None
    schedules = {"lr": {"name": "table", "values": lrs.tolist()}}
    if momenta is not None:
        schedules["momentum"] = {"name": "table", "values": momenta.tolist()}
    table = LocalTable(
        device,
        width=1,
        dtype="float64",
        optimizer="sgd",
        hyperparameters={"momentum": momentum},
        schedules=schedules,
        sparse_mode="exact",
        initializer={"name": "constant", "value": 1.0},
    )
    param, buffer = np.ones(5), np.zeros(5)
    for step in range(steps):
        number = int(random.integers(0, 4)) if step % 1000 < 3 else 4
        table.push([number], 1.0)
        if step:
            buffer = buffer * (momenta[step] if momenta is not None else 0.0)
        buffer[number] += 1.0
        param = param - lrs[step] * buffer
        if step % 517 == 0 or step > steps - 3:
            np.testing.assert_allclose(table.pull(range(5))[:, 0], param, rtol=1e-11, atol=1e-13)


def test_exact_ftrl_leaves_rows_alone_until_they_are_touched(device):
    """A dense ftrl takes a parameter without any gradient to zero. From the first touch on, rows do as the textbook."""
    case = next(case for case in CASES if case.name == "ftrl" and case.flavor == "keras")
    hyper = {"l1": 0.01, "l2": 0.02, "initial_accumulator_value": 0.1}
    random = np.random.default_rng(1)
    lrs, grads = [0.1] * 20 + [0.03] * 20, random.normal(size=(40, WIDTH))
    table = make(case, hyper, lrs, device, "exact", "float64")
    before = table.pull([1, 2])
    present = [step for step in range(40) if step >= 5 and step % 3]
    for step in range(40):
        table.push([1] if step in present else [], grads[step : step + 1] if step in present else np.zeros((0, WIDTH)))
    rows = [{"1": grads[step] * (step in present)} for step in range(5, 40)]
    expected = run_textbook(case, hyper, {"1": before[0]}, rows, lrs[5:])
    expect(table.pull([1])[0], expected[-1]["1"], case, "float64", "after 40 steps")
    np.testing.assert_array_equal(table.pull([2])[0], before[1])


def test_lazy_rows_under_a_flavor_with_one_step_for_all_take_its_clock(device):
    """optax's Adam, by its equation: corrections by the table's step, moments that only touched rows move."""
    table = LocalTable(
        device, width=WIDTH, dtype="float64", optimizer="adam", flavor="optax", hyperparameters={"lr": 0.1}
    )
    assert table.table.counts_without_rows
    params = {number: table.pull([number])[0] for number in IDS}
    means = {number: (np.zeros(WIDTH), np.zeros(WIDTH)) for number in IDS}
    random = np.random.default_rng(5)
    for step in range(1, STEPS):
        ids = present_ids(random)
        grads = random.normal(size=(len(ids), WIDTH))
        table.push(ids, grads)
        for number, grad in zip(ids, grads, strict=True):
            first, second = means[number]
            first, second = 0.9 * first + 0.1 * grad, 0.999 * second + 0.001 * grad**2
            means[number] = first, second
            params[number] = params[number] - 0.1 * (first / (1 - 0.9**step)) / (
                np.sqrt(second / (1 - 0.999**step)) + 1e-8
            )
        np.testing.assert_allclose(table.pull(IDS), [params[number] for number in IDS], rtol=1e-11, atol=1e-13)


def test_every_optimizer_works_on_rows_or_says_why_not():
    works = {case.values[0].name for case in (*LAZY, *EXACT)}
    exact = {case.values[0].name for case in EXACT} | {"ftrl"}
    for name, definition in OPTIMIZERS.items():
        settings = make_settings(name, None, {"lr": 0.1} if "lr" in definition.arguments else {}, {}, START)
        tensors = definition.arrays is not None or settings.program_with(()).scope
        if tensors:
            with pytest.raises(RowsNotSupported, match=r"whole tensors.*dense parameter"):
                check_rows(settings, "lazy", "table 'user'")
            assert name not in works
        elif name != "sophia":
            check_rows(settings, "lazy", "table 'user'")
        if name in exact:
            check_rows(settings, "exact", "table 'user'")
        else:
            with pytest.raises(RowsNotSupported, match="dense parameter"):
                check_rows(settings, "exact", "table 'user'")
