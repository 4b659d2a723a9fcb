"""The replay of an update log finds what a wrong server would write."""

import json
from typing import Any

import pytest

from stepwell_server.core.policies import parse_policy
from tests.simulator.checker import Violation
from tests.simulator.log_replay import LogReplay


class Log:
    """Lines as a server writes them; each version's updates are taken at the one before, unless said otherwise."""

    def __init__(self, policy: dict[str, Any]) -> None:
        self.version = 0
        self.lines: list[str] = []
        self.event("open", policy=parse_policy(policy).spec, uid="00", live=[])

    def event(self, kind: str, **more: Any) -> "Log":
        line = {"time": 0.0, "run": "it", "generation": 0, "version": self.version, "kind": kind, **more}
        self.lines.append(json.dumps(line))
        return self

    def join(self, worker: str, epoch: int = 1) -> "Log":
        return self.event("join", worker=worker, epoch=epoch, lease_seconds=1.0)

    def expire(self, worker: str, epoch: int = 1) -> "Log":
        return self.event("expire", worker=worker, epoch=epoch)

    def commit(self, *updates: tuple[str, int, int], base: int | None = None, kind: str = "commit") -> "Log":
        """updates: worker, epoch, sequence."""
        base = self.version if base is None else base
        outcome = {"commit": "committed", "drop": "dropped_late", "skip": "skipped_nonfinite"}.get(kind, "folded")
        self.version += kind == "commit"
        rows = [[worker, epoch, sequence, outcome, base, 1.0] for worker, epoch, sequence in updates]
        return self.event(kind, damping=1.0, contributions=rows)

    def replay(self) -> LogReplay:
        return LogReplay(self.lines, "it")


def both(policy: dict[str, Any]) -> Log:
    return Log(policy).join("a").join("b")


SYNC, BOUNDED, TWICE = {"name": "sync"}, {"name": "bounded", "lead_max": 1}, {"name": "async", "accumulate": 2}


def test_a_right_log_tells_what_each_version_was_made_of() -> None:
    log = both(SYNC).commit(("a", 1, 1), ("b", 1, 1)).expire("b").commit(("a", 1, 2)).join("b", 2)
    log.commit(("a", 1, 3)).commit(("b", 2, 1), kind="drop", base=1).commit(("a", 1, 4), ("b", 2, 2))
    replay = log.replay()
    assert {version: [row.worker for row in rows] for version, rows in replay.versions.items()} == {
        1: ["a", "b"],
        2: ["a"],
        3: ["a"],
        4: ["a", "b"],
    }
    assert [row.worker for row in replay.dropped] == ["b"]
    assert replay.live[3] == {"a", "b"}
    assert [(change.kind, change.worker, change.epoch) for change in replay.changes[2:]] == [
        ("expire", "b", 1),
        ("join", "b", 2),
    ]


def test_folded_updates_belong_to_the_next_version() -> None:
    replay = both(TWICE).commit(("a", 1, 1), kind="fold").commit(("b", 1, 1), base=0).replay()
    assert [row.worker for row in replay.versions[1]] == ["a", "b"]


def test_what_is_folded_early_counts_whatever_becomes_of_its_worker() -> None:
    log = both(SYNC).commit(("a", 1, 1), ("b", 1, 1)).commit(("a", 1, 2), kind="early").expire("a")
    log.commit(("b", 1, 2), base=1).commit(("b", 1, 3))
    replay = log.replay()
    assert [row.worker for row in replay.versions[2]] == ["a", "b"]
    assert [row.worker for row in replay.versions[3]] == ["b"]


def test_of_a_round_that_fails_what_is_folded_is_for_the_next_version() -> None:
    log = both(SYNC).commit(("a", 1, 1), kind="early").commit(kind="fold").commit(("a", 1, 2), ("b", 1, 1), base=0)
    assert [row.sequence for row in log.replay().versions[1]] == [1, 2, 1]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (both(SYNC).commit(("a", 1, 1), ("b", 1, 1)).commit(("a", 1, 2)), "a round goes without"),
        (both(SYNC).commit(("b", 1, 1), ("a", 1, 1)), "folded in the order"),
        (both(SYNC).expire("b").commit(("a", 1, 1), ("b", 1, 1)), "is answered, live are"),
        (both(SYNC).join("b", 2).commit(("a", 1, 1), ("b", 1, 1)), "is answered, live are"),
        (both(SYNC).commit(("a", 1, 1), ("b", 1, 1)).commit(("a", 1, 1), ("b", 1, 2)), "follows on sequence 1"),
        (both(SYNC).commit(("a", 1, 1), ("b", 1, 1)).commit(("a", 1, 2), ("b", 1, 3)), "follows on sequence 1"),
        (both(SYNC).commit(("a", 1, 1), ("b", 1, 1)).commit(("a", 1, 2), ("b", 1, 2), base=0), "has gradients of"),
        (both(SYNC).commit(("a", 1, 1), ("b", 1, 1), kind="fold"), "applies False"),
        (both(SYNC).commit(("b", 1, 1), kind="early"), "is folded before a"),
        (both(SYNC).commit(("a", 1, 1), kind="early").commit(("a", 1, 2), ("b", 1, 1)), "two updates of a worker"),
        (both(SYNC).join("b", 1), "joins in epoch 1 after 1"),
        (both(SYNC).expire("c"), "is live in"),
        (both(SYNC).event("lost", lines=1), "nothing follows"),
        (both(SYNC).commit(("a", 1, 1), kind="drop"), "has an update with outcome"),
        (both(BOUNDED).commit(("a", 1, 1)).commit(("a", 1, 2)), "1 steps ahead goes on"),
        (
            both({"name": "async", "staleness_max": 0}).commit(("a", 1, 1)).commit(("b", 1, 1), base=0),
            "1 versions stale",
        ),
        (both({"name": "async", "workers_min": 3}).commit(("a", 1, 1)), "made by 2 workers"),
        (both(TWICE).commit(("a", 1, 1)), "applies True"),
    ],
)
def test_a_wrong_one_is_found(log: Log, words: str) -> None:
    with pytest.raises(Violation, match=words):
        log.replay()


def test_a_version_that_is_left_out_is_found() -> None:
    log = both(SYNC).commit(("a", 1, 1), ("b", 1, 1)).commit(("a", 1, 2), ("b", 1, 2))
    del log.lines[3]
    with pytest.raises(Violation, match="follows on version 0"):
        log.replay()
