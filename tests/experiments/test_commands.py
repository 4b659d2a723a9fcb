import matplotlib.image
import pytest
import typer
from typer.testing import CliRunner

from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.schedules import list_schedules
from stepwell_server.experiments.commands import add_commands

SCHEDULES = [entry.name for entry in list_schedules()]


@pytest.fixture(scope="module")
def stepwell():
    app = typer.Typer(pretty_exceptions_enable=False)
    add_commands(app)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_lists_have_every_name(stepwell):
    schedules, optimizers = stepwell("schedule", "list"), stepwell("optimizer", "list")
    assert schedules.exit_code == optimizers.exit_code == 0
    assert set(SCHEDULES) == set(first_words(schedules.stdout)) - {"schedule"}
    assert set(OPTIMIZERS) == set(first_words(optimizers.stdout)) - {"optimizer"}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_optimizer_s_form(stepwell, name):
    done = stepwell("optimizer", "show", name)
    assert done.exit_code == 0, done.output
    definition = OPTIMIZERS[name]
    for word in (*definition.flavors, *definition.arguments_of(next(iter(definition.flavors)))):
        assert word in done.stdout


def test_defaults_stand_under_their_flavor(stepwell):
    rows = {
        line.split()[0]: line.split()
        for line in stepwell("optimizer", "show", "adamw").stdout.splitlines()
        if line.split()
    }
    assert rows["argument"][1:4] == ["torch", "optax", "keras"]
    assert rows["lr"][1:4] == ["0.001", "required", "0.001"]
    assert rows["weight_decay"][1:4] == ["0.01", "0.0001", "0.004"]
    assert rows["eps_hat"][1:4] == ["false", "false", "true"]


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_s_form(stepwell, name):
    done = stepwell("schedule", "show", name)
    assert done.exit_code == 0, done.output
    entry = next(entry for entry in list_schedules() if entry.name == name)
    assert entry.summary[:40] in done.stdout
    assert all(argument.name in done.stdout for argument in entry.arguments)


def test_a_schedule_s_values(stepwell):
    done = stepwell(
        "schedule", "show", "step", "step_size=10", "gamma=0.5", "--initial", 0.8, "--steps", 31, "--every", 10
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    values = [(int(line[0]), float(line[1])) for line in lines if len(line) == 2 and line[0].isdigit()]
    assert values == [(0, 0.8), (10, 0.4), (20, 0.2), (30, 0.1)]


def test_schedules_are_drawn_into_one_picture(stepwell, tmp_path):
    path = tmp_path / "schedule.png"
    spec = '{"name": "warmup", "num_warmup_steps": 50, "schedules": [{"name": "constant"}]}'
    words = ["plot", "cosine", "t_max=100", "step", "step_size=9", "step", "step_size=9", "--steps", "100"]
    done = stepwell("schedule", *words, "--spec", spec, "--output", path)
    assert done.exit_code == 0, done.output
    assert str(path) in done.stdout.replace("\n", "")
    assert matplotlib.image.imread(path).shape[:2] == (460, 900)


def test_a_comparison(stepwell, tmp_path):
    path = tmp_path / "compare.png"
    words = ["adam@keras", "hot=sgd", "--problem", "ravine", "--steps", "400", "--set", "hot.lr=1"]
    done = stepwell("compare", *words, "--schedule", 'adam@keras.lr={"name":"constant"}', "--output", path)
    assert done.exit_code == 0, done.output
    assert matplotlib.image.imread(path).shape[:2] == (800, 1100)
    assert "hot" in done.stdout
    assert "left the finite numbers in step" in done.stdout
    assert done.stderr == ""


BAD = [
    (("schedule", "show", "cosin"), "did you mean 'cosine'"),
    (("schedule", "show"), "no schedule is named"),
    (("schedule", "show", "cosine", "t_max=0"), "t_max"),
    (("schedule", "show", "cosine", "tmax=5"), "did you mean 't_max'"),
    (("schedule", "show", "cosine", "eta_min=5"), "'t_max' is missing"),
    (("schedule", "plot"), "0 schedules"),
    (("schedule", "plot", "cosine"), "'t_max' is missing"),
    (("schedule", "plot", "cosine", "t_max=[1"), "does not end"),
    (("schedule", "plot", "cosine", "t_max=[1]"), "t_max"),
    (("schedule", "plot", "constant", "--initial", "nan"), "initial is nan"),
    (("schedule", "plot", "constant", "--steps", "10000000"), "steps"),
    (("schedule", "plot", "exponential", "gamma=1e300"), "not finite"),
    (("schedule", "plot", "--spec", "{"), "no JSON"),
    (("schedule", "plot", "--spec", "{}"), "name"),
    (("schedule", "plot", "--spec", '{"name": "warmup", "num_warmup_steps": 5}'), "schedules"),
    (("schedule", "plot", *["constant"] * 13), "expected 1 to 12"),
    (("schedule", "plot", "constant", "--output", "/nowhere/at/all.png"), "cannot write"),
    (("optimizer", "show", "adm"), "did you mean 'adam'"),
    (("compare", "adm"), "did you mean 'adam'"),
    (("compare", "adam", "--problem", "rosenbrok"), "did you mean 'rosenbrock'"),
    (("compare", "adam", "--flavor", "jax"), "flavor 'jax'"),
    (("compare", "adam", "--set", "lr"), "expected name=value"),
    (("compare", "adam", "--set", "lr=often"), "'lr' is 'often'"),
    (("compare", "adam", "--schedule", "lr=step"), "no JSON"),
    (("compare", "adam", "--steps", "1000000"), "steps is 1000000"),
    (("compare", "adam", "--steps", "5", "--output", "/nowhere/at/all.png"), "cannot write"),
    (("experiments", "--output", "/proc/nowhere/experiments.md"), "cannot write"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_wrong_input_gets_the_message_and_status_2(stepwell, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    done = stepwell(*words)
    assert done.exit_code == 2, done.output
    assert says in done.stderr
    assert done.stderr.startswith("stepwell: ")
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("compare",), ("schedule", "plot", "--steps", "0"), ("schedule",), ("nothing",)])
def test_what_the_command_line_itself_refuses(stepwell, words):
    done = stepwell(*words)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def first_words(text):
    return [
        line.split()[0] for line in text.splitlines() if line.startswith(" ") and line[1:2].strip() and "─" not in line
    ]
