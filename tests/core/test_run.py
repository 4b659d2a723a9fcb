"""From one version to the next: what a commit changes, what it must not, and what readers keep."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stepwell_server.core.commit import Commit
from stepwell_server.core.compiler.definition import optimizer
from stepwell_server.core.errors import (
    ChangeRefused,
    EtagMismatch,
    GradientRequired,
    IncompleteUpdate,
    InvalidRange,
    InvalidSpec,
    InvalidValue,
    MemoryExhausted,
    NonfiniteGradient,
    UnknownArgument,
    UnknownGroup,
    VersionMismatch,
)
from stepwell_server.core.layout import ParameterSpec
from stepwell_server.core.run import GroupArrays, Run, RunLimits
from stepwell_server.core.spec import GroupSpec, RunSpec
from stepwell_server.core.workers import Answer, Outcome
from tests.core.local import LocalRun
from tests.textbook.cases import CASES, draw_run, run_textbook

SHAPES = {"a": (3, 2), "b": (), "c": (40,), "d": (0, 2), "e": (5,)}


def draw(seed, dtype="float64", shapes=SHAPES):
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def table(*values, **more):
    return {"name": "table", "values": list(values), **more}


def slots_of(local):
    return sorted({name for group in local.run.groups for name in group.vectors} - {""})


def everything(local):
    """The whole state, bit for bit, and what surrounds it."""
    run = local.run
    arrays = {
        (slot, name): array.tobytes() for slot in ["", *slots_of(local)] for name, array in local.arrays(slot).items()
    }
    books = [(group.steps.tolist(), {k: v.tolist() for k, v in group.scalars.items()}) for group in run.groups]
    return arrays, books, json.dumps(run.to_data()), run.etag


def owns(group):
    """The values of a group's own hyperparameters, without its schedules."""
    assert group.settings is not None
    return group.settings.own


def in_use(local):
    """Bytes that somebody has, without those that are kept for the next taker."""
    local.memory.drop_kept()
    return local.memory.used_bytes


# Gradients of None.


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "given"), [("adam", {"amsgrad": True}), ("nadam", {}), ("sgd", {"momentum": 0.9, "weight_decay": 0.1})]
)
def test_a_parameter_without_gradient_keeps_its_bits_its_slots_and_its_step(device, name, given, dtype):
    local = LocalRun(draw(1, dtype), name, device=device, hyperparameters=given)
    for seed in range(3):
        local.step(draw(seed, dtype))
    before = {slot: local.arrays(slot) for slot in ["", *slots_of(local)]}
    scalars = {key: values.copy() for key, values in local.run.groups[0].scalars.items()}
    local.step(draw(9, dtype) | {"a": None, "c": None, "d": None})
    for slot, arrays in before.items():
        after = local.arrays(slot)
        for key in ("a", "c"):
            assert after[key].tobytes() == arrays[key].tobytes()
        for key in ("b", "e"):
            assert (after[key] != arrays[key]).all(), (slot, key)
    (group,) = local.run.groups
    assert group.steps.tolist() == [3, 4, 3, 3, 4]
    for key, values in group.scalars.items():
        assert (values == scalars[key]).tolist() == [True, False, True, True, False]
    assert local.run.version == 4


PER_PARAMETER = [case for case in CASES if case.id in ("adam-torch", "nadam-torch", "sgd-torch", "adagrad-torch")]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "case",
    PER_PARAMETER,
    ids=lambda case: case.id,
)
def test_each_parameter_counts_its_own_steps_as_in_the_textbook(device, case, dtype):
    for seed in range(3):
        drawn = draw_run(case, seed, dtype, 30)
        dice = np.random.default_rng(seed)
        grads = [{name: grad if dice.random() < 0.6 else None for name, grad in row.items()} for row in drawn.grads]
        local = LocalRun(
            drawn.params, case.name, device=device, hyperparameters=drawn.hyper, schedules={"lr": table(*drawn.lrs)}
        )
        rtol, atol = case.tolerance(dtype)
        for step, expected in enumerate(run_textbook(case, drawn.hyper, drawn.params, grads, drawn.lrs)):
            after = local.step(grads[step])
            for name, value in expected.items():
                np.testing.assert_allclose(
                    after[name], value, rtol=rtol, atol=atol, err_msg=f"seed {seed}, step {step}, {name}"
                )
        (group,) = local.run.groups
        assert group.steps.tolist() == [sum(row[name] is not None for row in grads) for name in drawn.params]


def test_neighbours_with_equal_steps_may_have_different_scalars(device):
    values = {"a": np.ones(4), "b": np.ones(4)}
    local = LocalRun(values, "nadam", device=device)
    alone = {name: LocalRun({name: values[name]}, "nadam", device=device) for name in values}
    for present, beta1 in (("a", 0.5), ("b", 0.9), ("ab", 0.8), ("ab", 0.8)):
        gradients = {name: np.full(4, 0.5) if name in present else None for name in values}
        carried = {"": {"beta1": beta1}}
        after = local.step(gradients, hyperparameters=carried)
        for name, run in alone.items():
            expected = run.step({name: gradients[name]}, hyperparameters=carried)[name]
            assert after[name].tobytes() == expected.tobytes()
    (group,) = local.run.groups
    assert group.steps.tolist() == [3, 3]
    assert group.scalars["mu_product"][0] != group.scalars["mu_product"][1]


def test_a_commit_without_any_gradient_is_a_version_all_the_same(device):
    local = LocalRun(draw(1), "adam", device=device)
    arrays = everything(local)[0]
    local.step(dict.fromkeys(SHAPES), samples=5.0)
    assert (local.run.version, local.run.samples) == (1, 5.0)
    assert everything(local)[0] == arrays
    assert local.run.groups[0].steps.tolist() == [0] * 5


@pytest.mark.parametrize("flavor", ["keras", "optax"])
def test_where_one_step_counts_for_all_every_gradient_is_required(device, flavor):
    local = LocalRun(draw(1), "adam", device=device, flavor=flavor, hyperparameters={"lr": 0.1})
    before = everything(local)
    with pytest.raises(GradientRequired, match=rf"\['b'\].*adam in flavor {flavor}"):
        local.step(draw(2) | {"b": None})
    assert everything(local) == before
    local.step(draw(2))
    assert local.run.groups[0].steps.tolist() == [1] * 5


# Hyperparameters that an update carries.


GROUPS = (GroupSpec("first", ("a",)), GroupSpec("second", ("b", "e"), hyperparameters={"lr": 0.25}))
ONES = {name: np.ones(shape) for name, shape in SHAPES.items()}


def rates(local, **more):
    """The learning rate that each group's next step has, by plain SGD's change."""
    before = local.parameters()
    after = local.step(ONES, **more)
    return [float((before[name] - after[name]).flat[0]) for name in ("a", "b", "c")]


def test_carried_hyperparameters_are_kept_for_good_by_group(device):
    zeros = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    local = LocalRun(zeros, device=device, groups=GROUPS, hyperparameters={"lr": 0.5})
    assert rates(local) == [0.5, 0.25, 0.5]
    assert rates(local, hyperparameters={"second": {"lr": 2.0}}) == [0.5, 2.0, 0.5]
    assert rates(local) == [0.5, 2.0, 0.5]
    assert rates(local, hyperparameters={"default": {"lr": 4.0}, "first": {"lr": 8.0}}) == [8.0, 2.0, 4.0]
    assert rates(local, hyperparameters={"": {"lr": 1.0}}) == [1.0, 1.0, 1.0]
    assert rates(local) == [1.0, 1.0, 1.0]
    assert [owns(group)["lr"] for group in local.run.groups] == [1.0, 1.0, 1.0]


def test_hyperparameters_of_an_update_that_is_not_committed_are_not_kept(device):
    local = LocalRun(ONES, device=device, hyperparameters={"lr": 0.5})
    before = everything(local)
    with pytest.raises(IncompleteUpdate):
        local.commit(local.stage({"a": ONES["a"]}, {"": {"lr": 9.0}}))
    with pytest.raises(NonfiniteGradient):
        local.commit(local.stage({**ONES, "b": np.array(np.nan)}, {"": {"lr": 9.0}}))
    assert everything(local) == before
    assert rates(local) == [0.5, 0.5, 0.5]


def test_a_carried_value_under_a_schedule_changes_its_start(device):
    local = LocalRun(
        {name: np.zeros(shape) for name, shape in SHAPES.items()},
        device=device,
        hyperparameters={"lr": 8.0},
        schedules={"lr": {"name": "exponential", "gamma": 0.5}},
    )
    assert rates(local)[0] == 8.0
    assert rates(local, hyperparameters={"": {"lr": 4.0}})[0] == 2.0
    assert rates(local)[0] == 1.0


@pytest.mark.parametrize(
    ("carried", "error", "message"),
    [
        ({"": {"momentum": 0.9}}, ChangeRefused, r"would make the slots \['momentum_buffer'\], expected \[\]"),
        ({"": {"lr": -1.0}}, InvalidValue, "'lr' is -1.0"),
        ({"": {"beta1": 0.5}}, UnknownArgument, "no group's optimizer has an argument 'beta1'"),
        ({"first": {"beta1": 0.5}}, UnknownArgument, "'beta1' is not known"),
        ({"third": {"lr": 0.5}}, UnknownGroup, "no group 'third' .* one of default, first, second"),
    ],
)
def test_carried_hyperparameters_are_refused_before_the_first_byte(device, carried, error, message):
    local = LocalRun(ONES, device=device, groups=GROUPS)
    before = everything(local)
    with pytest.raises(error, match=message):
        local.stage(ONES, carried)
    assert everything(local) == before


# Readers.


MIXED = {"a": (3, 2), "b": (), "wide": (1000,), "wider": (7,)}


def mixed(seed):
    return {
        name: value.astype("f4" if name.startswith("w") else "f8") for name, value in draw(seed, shapes=MIXED).items()
    }


def held_bits(hold):
    return [{name: held.vector.tobytes() for name, held in group.items()} for group in hold.groups]


@pytest.mark.parametrize("absent", [(), ("a",), ("wide", "b")])
@pytest.mark.parametrize("whole", [False, True])
def test_a_held_version_stays_while_commits_go_on(device, whole, absent):
    """absent: in every other update these have no gradient, so that commits write parts of a vector."""
    local, free = (LocalRun(mixed(1), "adam", device=device) for _ in range(2))
    initial = in_use(local)
    holds = []
    for seed in range(6):
        if seed != 3:
            hold = local.run.hold(whole)
            holds.append((hold, seed, held_bits(hold), local.parameters()))
        gradients = mixed(seed + 10) | (dict.fromkeys(absent) if seed % 2 else {})
        here, there = local.step(gradients), free.step(gradients)
        for name in MIXED:
            assert here[name].tobytes() == there[name].tobytes(), "holding changes what is computed"
    assert everything(local)[0] == everything(free)[0]
    assert in_use(local) > initial
    for hold, version, bits, parameters in holds:
        assert hold.version == version
        assert held_bits(hold) == bits
        assert [list(group) for group in hold.groups] == [["", "exp_avg", "exp_avg_sq"] if whole else [""]] * 2
        for index, placed in enumerate(local.run.layout.parameters):
            vector = hold.groups[placed.group][""].vector
            begin = placed.vector_offset // vector.itemsize
            expected = parameters[placed.spec.name]
            assert vector[begin : begin + placed.spec.elements].tobytes() == expected.tobytes(), index
    # In any order, and twice.
    for position in (2, 0, 4, 1, 3, 2):
        holds[position][0].release()
    assert in_use(local) == initial
    local.step(mixed(3))
    assert in_use(local) == initial


def test_a_version_that_nobody_holds_is_written_in_place(device):
    local = LocalRun(draw(1), "adam", device=device)
    vectors = {name: held.vector for name, held in local.run.groups[0].vectors.items()}
    hold = local.run.hold()
    hold.release()
    local.step(draw(2))
    assert all(held.vector is vectors[name] for name, held in local.run.groups[0].vectors.items())
    hold = local.run.hold()
    local.step(draw(3))
    assert [name for name, held in local.run.groups[0].vectors.items() if held.vector is not vectors[name]] == [""]
    local.step(draw(4))
    second = local.run.groups[0].vectors[""].vector
    hold.release()
    local.step(draw(5))
    assert local.run.groups[0].vectors[""].vector is second


def test_many_readers_of_one_version_share_one_copy(device):
    local = LocalRun(draw(1), device=device)
    initial = in_use(local)
    holds = [local.run.hold() for _ in range(5)]
    local.step(draw(2))
    (size,) = Run.state_sizes(local.run.layout, [local.run.groups[0].settings])[0].values()
    assert in_use(local) - initial == size[0] * 8 + 64
    for number, hold in enumerate(holds):
        hold.release()
        hold.release()  # once too often, which counts once
        assert (in_use(local) > initial) == (number < 4)


def test_a_commit_that_writes_nothing_copies_nothing(device):
    local = LocalRun({"a": np.zeros(3), "w": np.zeros(2, "f4")}, device=device)
    initial = in_use(local)
    hold = local.run.hold(whole=True)
    local.step({"a": None, "w": None})
    assert in_use(local) == initial
    staged = local.stage({"a": np.ones(3), "w": None})
    planned = local.run.prepare(staged)
    assert isinstance(planned, Commit)
    assert [group.group.layout.dtype.name for group, _ in planned.copies_needed()] == ["float64"]
    local.commit(staged)
    hold.release()
    assert in_use(local) == initial


def test_a_reader_that_lets_go_during_a_commit_leaves_nothing_behind(device):
    local, free = (LocalRun(draw(1), "adam", device=device) for _ in range(2))
    initial = in_use(local)
    hold = local.run.hold(whole=True)
    staged = local.stage(draw(2))
    planned = local.run.prepare(staged)
    assert isinstance(planned, Commit)
    for group, name in planned.copies_needed():
        (group.copies[name],) = local.memory.allocate([group.group.size(name)], "test")
    hold.release()
    planned.ready_and_apply(local.memory)
    local.run.finish(planned)
    local.memory.free(staged.vectors)
    free.step(draw(2))
    assert everything(local)[0] == everything(free)[0]
    assert in_use(local) == initial


def test_a_reader_outlives_the_deletion_of_its_run(device):
    local = LocalRun(draw(1), "adam", device=device)
    hold = local.run.hold()
    bits = held_bits(hold)
    local.run.free()
    assert in_use(local) == sum(held.vector.nbytes + 64 for group in hold.groups for held in group.values())
    assert held_bits(hold) == bits
    hold.release()
    assert in_use(local) == 0


# What fails changes nothing.


def with_extra(local):
    staged = local.stage({**ONES, "c": None})
    placed = local.run.layout.parameters[local.run.layout.indices["c"]]
    staged.admit(placed.group, placed.packed_offset, 16)
    staged.place(local.memory.device, placed.group, placed.packed_offset, bytes(16))
    return staged


def without_memory(local):
    staged = local.stage(ONES)
    local.run.hold(whole=True)
    local.memory.bytes_max = local.memory.used_bytes
    return staged


REFUSALS = {
    "incomplete": (lambda local: local.stage({"a": ONES["a"]}), IncompleteUpdate),
    "more than declared": (with_extra, InvalidRange),
    "not finite": (lambda local: local.stage({**ONES, "c": np.full(40, np.inf)}), NonfiniteGradient),
    "scheduled out of range": (lambda local: local.stage(ONES, {"": {"lr": 1.0}}), InvalidValue),
    "no finite coefficients": (lambda local: local.stage(ONES, {"": {"offset": 1.0}}), InvalidValue),
    "a slot less": (lambda local: local.stage(ONES, {"": {"damping": 0.0}}), ChangeRefused),
    "no such group": (lambda local: local.stage(ONES, {"x": {"lr": 1.0}}), UnknownGroup),
    "no such argument": (lambda local: local.stage(ONES, {"": {"x": 1.0}}), UnknownArgument),
    "samples": (lambda local: local.stage(ONES, samples=-1.0), InvalidValue),
    "no memory for a copy": (without_memory, MemoryExhausted),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refused_update_changes_nothing(device, registry, case):
    @optimizer(reference="a test", flavors={"torch": {}}, scalars={"total": 1.0})
    def fragile(param, grad, slow, fast, total, *, step, lr=0.5, damping=1.0, offset=0.0):
        """Divides by zero at the second step if offset is 1."""
        total = total + 1 / (step - 2 * offset)
        slow = slow + grad
        if damping:
            fast = fast + grad * total
            return param - lr * damping * fast, slow, fast, total
        return param - lr * slow, slow, fast, total

    stage, error = REFUSALS[case]
    schedules = {"lr": table(1.0, -1.0)} if case == "scheduled out of range" else {}
    local = LocalRun(draw(1), "fragile", device=device, schedules=schedules)
    local.step(draw(2), samples=2.0)
    before, used, staged = everything(local), in_use(local), None
    with pytest.raises(error):  # noqa: PT012  # some are refused when they are staged, some when they are committed
        staged = stage(local)
        local.commit(staged)
    assert everything(local) == before
    assert staged is None or in_use(local) == used
    # The refusal has not used the sequence up: the worker may send another update under it.
    assert local.run.recall(local.identity(2)) is None
    local.memory.bytes_max = 1 << 30
    local.run.set_settings(local.run.change("", {}, {}, ("lr",), False, ""))
    local.step(ONES)
    assert local.run.version == 2


def test_a_change_is_refused_whole(device):
    local = LocalRun(ONES, device=device, groups=(GroupSpec("other", ("a",), "adam"),))
    before = everything(local)
    for group, hyperparameters, schedules, error in [
        ("", {"lr": 0.5, "momentum": 0.9}, {}, ChangeRefused),
        ("", {"lr": 0.5}, {"beta1": table(2.0)}, InvalidValue),
        ("other", {"momentum": 0.9}, {}, UnknownArgument),
        ("", {"beta3": 0.9}, {}, UnknownArgument),
        ("x", {"lr": 0.9}, {}, UnknownGroup),
    ]:
        with pytest.raises(error):
            local.run.change(group, hyperparameters, schedules, (), False, "")
        assert everything(local) == before


def test_a_change_reaches_the_groups_that_have_what_it_names(device):
    groups = (GroupSpec("other", ("a",), "adam"), GroupSpec("fixed", ("c",), frozen=True))
    local = LocalRun(ONES, device=device, groups=groups, hyperparameters={"momentum": 0.5})
    run = local.run
    run.set_settings(run.change("", {"lr": 0.25, "beta1": 0.5, "momentum": 0.75}, {}, (), False, ""))
    other, fixed, default = run.groups
    assert fixed.settings is None
    assert (owns(other)["lr"], owns(other)["beta1"]) == (0.25, 0.5)
    assert (owns(default)["lr"], owns(default)["momentum"]) == (0.25, 0.75)
    with pytest.raises(UnknownGroup, match="no group 'fixed' to optimize, expected one of default, other"):
        run.change("fixed", {"lr": 0.5}, {}, (), False, "")


def test_an_etag_guards_a_change(device):
    run = LocalRun(ONES, device=device).run
    etag = run.etag
    changed = run.change("", {"lr": 0.5}, {}, (), False, etag)
    assert run.etag == etag
    run.set_settings(changed)
    assert run.etag != etag
    with pytest.raises(EtagMismatch, match=f"has etag {run.etag}, expected {etag}"):
        run.change("", {"lr": 0.25}, {}, (), False, etag)
    run.change("", {"lr": 0.25}, {}, (), False, "")


# Specs.


def spec(parameters=SHAPES, dtype="float64", optimizer="adam", **more):
    return RunSpec(
        tuple(ParameterSpec(name, shape, np.dtype(dtype)) for name, shape in parameters.items()), optimizer, **more
    )


SCHEDULE = {"name": "sequential", "milestones": [3], "schedules": [table(1.0), {"name": "step", "step_size": 2}]}
FULL = spec(
    flavor="torch",
    hyperparameters={"lr": 0.5, "beta1": 0.8, "beta2": 0.9},
    schedules={"lr": SCHEDULE, "eps": table(1e-3)},
    groups=(
        GroupSpec("first", ("a", "b"), hyperparameters={"weight_decay": 0.5, "lr": 0.25}),
        GroupSpec("second", ("c",), "sgd", "keras", {"momentum": 0.5}),
        GroupSpec("third", ("e",), frozen=True),
    ),
)


@pytest.mark.parametrize(
    "other",
    [
        FULL,
        replace(FULL, parameters=FULL.parameters[::-1]),
        replace(FULL, groups=FULL.groups[::-1]),
        replace(FULL, flavor="", hyperparameters={"betas": [0.8, 0.9], "amsgrad": False, "lr": 0.5}),
        replace(FULL, hyperparameters={"beta2": 0.9, "lr": 0.5, "beta1": 0.8, "eps": 1e-8}),
        replace(FULL, schedules={"eps": table(0.001), "lr": dict(reversed(SCHEDULE.items()))}),
        replace(FULL, groups=(replace(FULL.groups[0], parameters=("[ab]",)), *FULL.groups[1:])),
        RunSpec.from_data(json.loads(json.dumps(FULL.data))),
    ],
)
def test_specs_that_say_the_same_do_not_differ(other):
    assert FULL.differences(other) == other.differences(FULL) == []


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (replace(FULL, nonfinite="skip"), ["nonfinite is skip, the run has reject"]),
        (replace(FULL, samples_per_epoch=5.0), ["samples_per_epoch is 5.0, the run has None"]),
        (
            replace(FULL, hyperparameters={"lr": 0.5, "beta1": 0.8, "beta2": 0.91}),
            ["group 'default': beta2 is 0.91, the run has 0.9", "group 'first': beta2 is 0.91, the run has 0.9"],
        ),
        (
            replace(FULL, parameters=(*FULL.parameters[1:], ParameterSpec("a", (2, 3), np.dtype("f8")))),
            ["parameter 'a' is float64 (2, 3) in group 'first', the run has float64 (3, 2) in group 'first'"],
        ),
        (
            replace(FULL, parameters=(*FULL.parameters, ParameterSpec("z", (), np.dtype("f4")))),
            ["parameter 'z' is float32 () in group 'default', the run has (absent)"],
        ),
        (
            replace(FULL, parameters=tuple(p for p in FULL.parameters if p.name != "b")),
            ["parameter 'b' is (absent), the run has float64 () in group 'first'"],
        ),
        (
            replace(FULL, groups=(*FULL.groups[:2], replace(FULL.groups[2], name="fourth"))),
            [
                "group 'fourth' is frozen, the run has (absent)",
                "group 'third' is (absent), the run has frozen",
                "parameter 'e' is float64 (5,) in group 'fourth', the run has float64 (5,) in group 'third'",
            ],
        ),
        (
            replace(FULL, schedules={"lr": SCHEDULE}),
            [
                f"group '{group}': schedule of eps is (absent), the run has table(values=(0.001,)) on updates"
                for group in ("default", "first")
            ],
        ),
    ],
)
def test_differences_are_named(other, expected):
    assert FULL.differences(other) == expected
    assert len(other.differences(FULL)) == len(expected)


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (spec(nonfinite="ignore"), InvalidValue, "nonfinite is 'ignore', expected one of reject, skip, allow"),
        (spec(samples_per_epoch=0.0), InvalidValue, "samples_per_epoch is 0.0"),
        (spec(samples_per_epoch=float("inf")), InvalidValue, "samples_per_epoch is inf"),
        (spec(groups=(GroupSpec("all", ("*",), frozen=True),)), InvalidSpec, "every parameter is frozen"),
        (
            spec(groups=(GroupSpec("g", ("a",), hyperparameters={"lr": 1.0}, frozen=True),)),
            InvalidSpec,
            "group 'g' is frozen and has",
        ),
    ],
)
def test_what_is_wrong_with_a_spec_is_said(broken, error, message):
    with pytest.raises(error, match=message):
        broken.settings(broken.layout())


# Groups.


def test_each_group_is_optimized_as_a_run_of_its_own_would_be(device):
    groups = (
        GroupSpec("first", ("a", "b"), hyperparameters={"lr": 0.25, "weight_decay": 0.5}),
        GroupSpec("second", ("c",), "sgd", "keras", {"momentum": 0.5}, {"momentum": table(0.5, 0.25)}),
        GroupSpec("third", ("e",), frozen=True),
        GroupSpec("fourth", ("f",), flavor="keras"),
    )
    shapes = {**SHAPES, "f": (4,)}
    common: dict[str, Any] = {"hyperparameters": {"lr": 0.5, "beta1": 0.8}, "schedules": {"lr": table(0.5, 0.25)}}
    values = draw(1, shapes=shapes)
    local = LocalRun(values, "adam", device=device, groups=groups, **common)
    alone = {
        ("a", "b"): LocalRun(
            {name: values[name] for name in "ab"},
            "adam",
            device=device,
            hyperparameters={"lr": 0.25, "beta1": 0.8, "weight_decay": 0.5},
        ),
        ("c",): LocalRun(
            {"c": values["c"]},
            device=device,
            flavor="keras",
            hyperparameters={"momentum": 0.5},
            schedules={"momentum": table(0.5, 0.25)},
        ),
        ("d",): LocalRun({"d": values["d"]}, "adam", device=device, **common),
        ("f",): LocalRun({"f": values["f"]}, "adam", device=device, flavor="keras", **common),
    }
    for seed in range(4):
        gradients = draw(seed + 5, shapes=shapes)
        del gradients["e"]
        after = local.step(gradients)
        assert after["e"].tobytes() == values["e"].tobytes()
        for names, run in alone.items():
            expected = run.step({name: gradients[name] for name in names})
            for name in names:
                assert after[name].tobytes() == expected[name].tobytes()
    assert local.arrays("momentum_buffer").keys() == {"c"}
    assert local.arrays("exp_avg").keys() == {"a", "b", "d", "f"}


# Whole states.


def stored(run):
    """What a snapshot holds: JSON and arrays."""
    arrays = [
        GroupArrays(
            {name: held.vector.copy() for name, held in group.vectors.items()},
            group.steps.copy(),
            {name: values.copy() for name, values in group.scalars.items()},
        )
        for group in run.groups
    ]
    return json.dumps(run.to_data()), arrays


def test_a_run_that_comes_back_continues_bit_for_bit(device):
    local = LocalRun(
        mixed(1),
        "nadam",
        device=device,
        hyperparameters={"beta1": 0.8},
        schedules={"lr": {"name": "exponential", "gamma": 0.5, "clock": "samples"}},
        groups=(GroupSpec("other", ("wide",), "sgd", hyperparameters={"momentum": 0.5}),),
        nonfinite="skip",
    )
    for seed in range(3):
        local.step(mixed(seed) | ({"a": None} if seed else {}), samples=0.5, hyperparameters={"other": {"lr": 0.25}})
    local.run.set_settings(local.run.change("", {}, {"beta2": table(0.5, 0.75, 0.875)}, (), False, ""))
    local.step(mixed(4) | {"b": np.array(np.inf)})
    data, arrays = stored(local.run)

    run, settings = Run.from_data(json.loads(data), local.memory, RunLimits())
    run.compile(settings)
    run.take_arrays(settings, arrays)
    again = object.__new__(LocalRun)
    again.__dict__ |= {**local.__dict__, "run": run}
    assert everything(again) == everything(local)
    assert (run.version, run.samples, run.skipped_count, run.changes) == (3, 1.5, 1, 4)
    for seed in range(4):
        gradients = mixed(seed + 20) | ({"wide": None} if seed % 2 else {})
        here, there = local.step(gradients, samples=0.5), again.step(gradients, samples=0.5)
        for name in MIXED:
            assert here[name].tobytes() == there[name].tobytes()
        assert everything(again) == everything(local)
    # It also remembers its answers.
    assert run.recall(again.identity(4)) == Answer(Outcome.SKIPPED_NONFINITE, 3)
    assert run.recall(again.identity(5)) == Answer(Outcome.COMMITTED, 4)


def test_another_state_is_taken_over_in_a_new_generation(device):
    local = LocalRun(draw(1), "adam", device=device)
    initial = in_use(local)
    local.step(draw(2), samples=2.0)
    after_one = everything(local)[0]
    arrays = [
        GroupArrays(
            dict(zip(sizes, local.memory.allocate(list(sizes.values()), "test"), strict=True)), group.steps.copy(), {}
        )
        for sizes, group in zip(
            Run.state_sizes(local.run.layout, [local.run.groups[0].settings]), local.run.groups, strict=True
        )
    ]
    for group, taken in zip(local.run.groups, arrays, strict=True):
        for name, vector in taken.vectors.items():
            np.copyto(vector, group.vectors[name].vector)
    hold = local.run.hold(whole=True)
    local.step(draw(3))
    expected = local.step(draw(4))
    late = local.run.hold()
    bits = held_bits(hold), held_bits(late)

    with pytest.raises(VersionMismatch, match="is at version 3, expected 4"):
        local.run.check_version(4)
    local.run.check_version(3)
    local.run.check_version(None)
    etag = local.run.etag
    local.run.replace_state(5, 1, 2.0, arrays, None)
    assert (local.run.generation, local.run.version, local.run.samples) == (5, 1, 2.0)
    assert local.run.etag != etag
    assert everything(local)[0] == after_one
    assert (held_bits(hold), held_bits(late)) == bits
    hold.release()
    late.release()
    assert in_use(local) == initial

    local.membership, local.sequence = local.run.workers.join("worker", 1), 0
    local.step(draw(3))
    again = local.step(draw(4))
    for name in SHAPES:
        assert again[name].tobytes() == expected[name].tobytes()


# What is easy to get wrong.


def default_spec(**schedule):
    return spec(schedules={"lr": {"name": "step", "step_size": 10, **schedule}})


@pytest.mark.parametrize("default", [{"gamma": 0.1}, {"clock": "updates"}])
def test_a_schedule_s_defaults_count_as_given(default):
    assert default_spec().differences(default_spec(**default)) == []


@pytest.mark.parametrize(("outer", "inner"), [({"beta1": 0.8}, {"betas": [0.7]}), ({"betas": [0.7]}, {"beta1": 0.8})])
def test_a_group_s_betas_win_over_the_run_s(outer, inner):
    described = spec(hyperparameters=outer, groups=(GroupSpec("g", ("a",), hyperparameters=inner),))
    described.settings(described.layout())


def test_betas_are_changed_in_the_groups_that_have_them(device):
    local = LocalRun(ONES, "adam", device=device, groups=(GroupSpec("other", ("a",), "sgd"),))
    changed = local.run.change("", {"betas": [0.5, 0.75]}, {}, (), False, "")
    assert [settings.own.get("beta1") for settings in changed.groups if settings] == [None, 0.5]


def test_a_required_value_may_be_given_by_every_group_for_itself():
    described = spec(optimizer="adagrad", flavor="optax", groups=(GroupSpec("g", ("*",), hyperparameters={"lr": 0.1}),))
    described.settings(described.layout())


def test_scalars_that_come_back_in_another_order_are_the_same(device, registry):
    @optimizer(reference="a test", flavors={"torch": {}}, scalars={"second": 1.0, "first": 10.0})
    def counting(param, grad, second, first, *, step, lr=1.0):
        """Two scalars that advance in different ways."""
        second = second * 2
        first = first + 1
        return param - lr * second * grad, second, first

    local = LocalRun(ONES, "counting", device=device)
    local.step(ONES)
    arrays = stored(local.run)[1]
    local.step(ONES)
    expected = local.run.groups[0].scalars["first"].tolist()
    reversed_scalars = [replace(group, scalars=dict(reversed(group.scalars.items()))) for group in arrays]
    local.run.take_arrays([local.run.groups[0].settings], reversed_scalars)
    local.step(ONES)
    assert local.run.groups[0].scalars["first"].tolist() == expected


def test_a_coefficient_beyond_float32_is_refused(device):
    local = LocalRun({"w": np.ones(3, "f4")}, device=device, hyperparameters={"lr": 1e39})
    with pytest.raises(InvalidValue):
        local.commit(local.stage({"w": np.ones(3, "f4")}))


# Bugs.


def test_the_bytes_of_a_state_are_those_that_it_takes_from_the_memory(device):
    local = LocalRun(ONES, "adam", device=device)
    assert local.run.state_bytes == in_use(local)


def test_a_difference_is_short():
    long = spec(schedules={"lr": table(*range(1, 50_000))})
    assert max(len(difference) for difference in spec().differences(long)) < 1000
