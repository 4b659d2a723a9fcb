import pytest

from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.policies import parse_policy
from stepwell_server.core.schedules import Schedule, preview
from stepwell_server.demo import recipe
from stepwell_server.demo.options import TrainingOptions


@pytest.mark.parametrize("name", recipe.SCHEDULES)
@pytest.mark.parametrize("updates", [1, 2, 3, 10, 1600])
def test_every_schedule_is_one_that_the_server_takes(name, updates):
    schedule = Schedule.parse(recipe.SCHEDULES[name](0.5, updates))
    values = preview(schedule, 0.5, updates)
    assert values.min() >= 0
    assert values.max() <= 0.5 * (1 + 1e-12)


@pytest.mark.parametrize("name", recipe.SCHEDULES)
def test_every_schedule_reaches_the_learning_rate(name):
    schedule = Schedule.parse(recipe.SCHEDULES[name](0.5, 1600))
    assert preview(schedule, 0.5, 1600).max() == pytest.approx(0.5)


def test_a_late_worker_does_not_climb_the_next_wave():
    late = preview(Schedule.parse(recipe.SCHEDULES["warmup_cosine"](0.5, 100)), 0.5, 120)[100:]
    assert late.max() == 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_learning_rate_is_given_to_whom_takes_one(optimizer):
    takes = "lr" in OPTIMIZERS[optimizer].arguments
    arguments = recipe.create_run_arguments(TrainingOptions(optimizer=optimizer))
    assert set(arguments["hyperparameters"]) == set(arguments["schedules"]) == ({"lr"} if takes else set())


def test_a_given_learning_rate_wins():
    options = TrainingOptions(lr=0.25, schedule="triangular")
    arguments = recipe.create_run_arguments(options)
    assert arguments["hyperparameters"] == {"lr": 0.25}
    assert arguments["schedules"]["lr"]["eta_max"] == 0.25


@pytest.mark.parametrize("policy", recipe.POLICIES)
def test_every_policy_is_one_that_the_server_takes(policy):
    spec = recipe.create_run_arguments(TrainingOptions(policy=policy, bound=7))["policy"]
    parsed = parse_policy(spec)
    assert parsed.name == policy
    assert parsed.spec.get("lead_max") == (7 if policy == "bounded" else None)


def test_a_schedule_spans_the_versions_that_there_will_be():
    for policy, versions in (("async", 400), ("bounded", 400), ("sync", 100)):
        schedule = recipe.schedule(TrainingOptions(policy=policy, schedule="cosine", workers=4, steps=100))
        assert schedule is not None
        assert schedule["t_max"] == versions


@pytest.mark.parametrize(
    ("options", "objection"),
    [
        ({"schedule": "cosin"}, "got schedule 'cosin', expected one of warmup_cosine, "),
        ({"workers": 0}, "got workers 0, expected 1 or more"),
        ({"workers": 65}, "got workers 65, expected 64 or fewer"),
        ({"steps": 0}, "got steps 0, expected 1 or more"),
        ({"steps": 50_001}, "got 2 workers with 50,001 steps, expected 100,000 in all or fewer"),
        ({"batch_size": 0}, "got batch_size 0, expected 1 or more"),
        ({"bound": 0}, "got bound 0, expected 1 or more"),
        ({"policy": "asynch"}, "got policy 'asynch', expected one of async, bounded, sync"),
        ({"slow": 0.5}, "got slow 0.5, expected 1 to 1000"),
        ({"slow": float("nan")}, "got slow nan, expected 1 to 1000"),
    ],
)
def test_objects_to_what_the_server_never_sees(options, objection):
    assert recipe.find_objection(TrainingOptions()) is None
    assert (recipe.find_objection(TrainingOptions(**options)) or "").startswith(objection)
