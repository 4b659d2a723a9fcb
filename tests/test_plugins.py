"""Plug-ins as the server finds them: by the metadata of what is installed."""

import sys
from unittest.mock import patch

import pytest
from structlog.testing import capture_logs

from stepwell_server import plugin
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.schedules import SCHEDULES
from stepwell_server.plugins import load_plugins

RULE = """
from stepwell_server.plugin import optimizer, schedule

@optimizer(reference="a test", flavors={"torch": {}})
def NAME(param, grad, *, step, lr=0.5):
    '''A rule.'''
    return param - lr * grad
"""
SCHEDULE = """
from stepwell_server.plugin import schedule

@schedule(reference="a test")
def NAME(t: float, initial: float, *, gamma: float) -> float:
    '''A schedule.'''
    return initial * gamma**t
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a package with one module and its entry points on the path; what it registers is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = set(sys.modules)

    def install(package: str, source: str, *groups: str) -> None:
        module = package.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        metadata = tmp_path / f"{module}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        points = "".join(f"[{group}]\nits = {module}\n" for group in groups or ("stepwell.optimizers",))
        (metadata / "entry_points.txt").write_text(points)

    with patch.dict(OPTIMIZERS), patch.dict(SCHEDULES):
        yield install
    for name in set(sys.modules) - modules:
        if name.startswith("plug_"):
            del sys.modules[name]


def load():
    """What was loaded, by package, and the log."""
    with capture_logs() as events:
        loaded = {each.package: each for each in load_plugins()}
    return loaded, events


def test_there_are_no_plugins_unless_they_are_installed():
    assert load() == ({}, [])


def test_a_plugin_adds_optimizers_and_schedules(install):
    install("plug-a", RULE.replace("NAME", "rule_of_a") + SCHEDULE.replace("NAME", "schedule_of_a"))
    install("plug-b", SCHEDULE.replace("NAME", "schedule_of_b"), "stepwell.schedules")
    loaded, events = load()
    assert loaded["plug-a"].optimizers == ("rule_of_a",)
    assert loaded["plug-a"].schedules == ("schedule_of_a",)
    assert loaded["plug-b"].schedules == ("schedule_of_b",)
    assert OPTIMIZERS["rule_of_a"](1.0, 1.0) == (0.5,)
    assert SCHEDULES["schedule_of_b"].function(2.0, 1.0, gamma=0.5) == 0.25
    said = [(event["event"], event["package"]) for event in events]
    assert said == [("plug-in loaded", "plug-a"), ("plug-in loaded", "plug-b")]


def test_one_module_may_stand_in_both_groups(install):
    source = RULE.replace("NAME", "rule_of_both") + SCHEDULE.replace("NAME", "schedule_of_both")
    install("plug-both", source, "stepwell.optimizers", "stepwell.schedules")
    _, events = load()
    assert {event["event"] for event in events} == {"plug-in loaded"}
    assert "rule_of_both" in OPTIMIZERS
    assert "schedule_of_both" in SCHEDULES


BROKEN = {
    "a name of the server's": (RULE.replace("NAME", "adam"), "ValueError: two optimizers are called 'adam'; call one"),
    "a schedule of the server's": (SCHEDULE.replace("NAME", "cosine"), "ValueError: two schedules are called 'cosine'"),
    "no Python": ("def", "SyntaxError: invalid syntax"),
    "an import that is missing": ("import there_is_no_such_module", "ModuleNotFoundError: No module named 'there_is"),
    "an exit": ("import sys\nsys.exit(3)", "SystemExit: 3"),
    "another signature": (
        RULE.replace("NAME", "odd").replace("(param, grad,", "(grad, param,"),
        "AssertionError: odd: param, grad come first",
    ),
    "a body that cannot be compiled": (
        RULE.replace("NAME", "odd").replace("lr * grad", "lr * grad.T"),
        "grad.T: Attribute has no place in an optimizer",
    ),
    "one good and one bad": (
        RULE.replace("NAME", "good") + SCHEDULE.replace("NAME", "fine") + RULE.replace("NAME", "adam"),
        "two optimizers are called 'adam'",
    ),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_refused_as_a_whole_and_the_others_are_loaded(install, source, reason):
    optimizers, schedules = dict(OPTIMIZERS), dict(SCHEDULES)
    install("plug-bad", source)
    install("plug-good", RULE.replace("NAME", "rule_of_good"))
    loaded, events = load()
    assert reason in loaded["plug-bad"].refused
    refused, _ = events
    assert refused["event"] == "plug-in refused"
    assert refused["log_level"] == "error"
    assert refused["package"] == "plug-bad"
    assert refused["entry_point"] == "stepwell.optimizers: its = plug_bad"
    assert reason in refused["reason"]
    assert loaded["plug-good"].optimizers == ("rule_of_good",)
    assert optimizers.keys() | {"rule_of_good"} == OPTIMIZERS.keys()
    assert OPTIMIZERS["adam"] is optimizers["adam"]
    assert schedules == SCHEDULES


def test_the_public_surface_is_what_it_was():
    public = {name for name in vars(plugin) if not name.startswith("_")}
    values = {"ANY", "COUNT", "DECAY_RATE", "FRACTION", "NON_NEGATIVE", "POSITIVE", "REQUIRED", "Range"}
    functions = {"cbrt", "exp", "log", "maximum", "minimum", "sign", "sqrt", "where"}
    reductions = {"max_abs", "norm", "size", "sum_all"}
    assert public == values | functions | reductions | {"Definition", "optimizer", "schedule", "tensorwise"}
