"""The update log itself; what is in it is tested in end_to_end/test_policy_faults.py."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stepwell_server.core.errors import InvalidValue
from stepwell_server.core.policies import Commit, Contribution
from stepwell_server.core.workers import Answer, Identity, Outcome
from stepwell_server.service.update_log import UpdateLog

RUN: Any = SimpleNamespace(name="mnist", generation=2, version=7)


@contextmanager
def opened(path: Path) -> Iterator[UpdateLog]:
    update_log = UpdateLog(path)
    try:
        yield update_log
    finally:
        update_log.close()


@contextmanager
def file_bytes_max(size_bytes: int) -> Iterator[None]:
    """The kernel cuts what is written at this size, and refuses the rest, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def identity(worker: str) -> Identity:
    return Identity("mnist", bytes(16), 2, worker, 3, 4, bytes(16), 6)


def test_a_commit_is_one_line_with_its_updates_in_order(tmp_path: Path) -> None:
    path = tmp_path / "updates.jsonl"
    contributions = (Contribution(8, "c", 6), Contribution(10, "b", 6, 2.0), Contribution(9, "a", 5))
    committed = Answer(Outcome.COMMITTED, 7)
    answers = {8: committed, 9: Answer(Outcome.SKIPPED_NONFINITE, 6), 10: committed}
    commit = Commit(contributions, 0.5, folded=1)  # the first has had its line
    with opened(path) as update_log:
        update_log.answers(RUN, commit, {10: identity("b"), 9: identity("a")}, answers)
        update_log.answers(RUN, commit, {}, {})  # one that has failed
    (line,) = read(path)
    assert line.pop("time") > 1.7e9
    assert line == {
        "run": "mnist",
        "generation": 2,
        "version": 7,
        "kind": "commit",
        "damping": 0.5,
        "contributions": [["b", 3, 4, "committed", 6, 2.0], ["a", 3, 4, "skipped_nonfinite", 5, 0.0]],
    }


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(Outcome.FOLDED, "fold"), (Outcome.DROPPED_LATE, "drop"), (Outcome.SKIPPED_NONFINITE, "skip")],
)
def test_what_makes_no_version_says_so(tmp_path: Path, outcome: Outcome, kind: str) -> None:
    path = tmp_path / "updates.jsonl"
    with opened(path) as update_log:
        commit = Commit((Contribution(1, "a", 6),))
        update_log.answers(RUN, commit, {1: identity("a")}, {1: Answer(outcome, 7)})
    assert [line["kind"] for line in read(path)] == [kind]


def test_what_is_folded_early_has_a_line_although_it_has_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "updates.jsonl"
    with opened(path) as update_log:
        commit = Commit((Contribution(1, "a", 6),), applies=False, answers=False)
        update_log.answers(RUN, commit, {1: identity("a")}, {1: Answer(Outcome.FOLDED, 7)})
    (line,) = read(path)
    assert (line["kind"], line["contributions"]) == ("early", [["a", 3, 4, "folded", 6, 0.0]])


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "updates.jsonl"
    for kind in ("open", "delete"):
        with opened(path) as update_log:
            update_log.event(RUN, kind)
    assert [line["kind"] for line in read(path)] == ["open", "delete"]


def test_a_full_disk_leaves_a_gap_that_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "updates.jsonl"
    with opened(path) as update_log:
        update_log.event(RUN, "open")
        with file_bytes_max(path.stat().st_size + 20):
            for _ in range(3):  # the first is cut short
                update_log.event(RUN, "join", worker="a", epoch=1)
        update_log.event(RUN, "leave", worker="a", epoch=1)
    lines = path.read_text().splitlines()
    torn = [line for line in lines if not line.endswith("}")]
    assert len(torn) == 1
    whole = [json.loads(line) for line in lines if line not in torn]
    assert [line["kind"] for line in whole] == ["open", "lost", "leave"]
    assert whole[1]["lines"] == 3
    assert capsys.readouterr().out.count("update log has gaps; training goes on") == 1


def test_half_a_line_of_before_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "updates.jsonl"
    path.write_text('{"time": 12')
    with opened(path) as update_log:
        update_log.event(RUN, "open")
    assert json.loads(path.read_text().splitlines()[1])["kind"] == "open"


@pytest.mark.parametrize("path", ["/", "/nowhere/updates.jsonl"])
def test_what_cannot_be_opened_is_refused(path: str) -> None:
    with pytest.raises(InvalidValue, match=r"update log '/.*' cannot be opened: .*; expected a file"):
        UpdateLog(Path(path))
