import pytest

from stepwell_server.core.barriers import Barriers, Release
from stepwell_server.core.errors import InvalidValue, SequenceTooOld

LIVE = ["a", "b", "c"]


def arrive(barriers, worker, call=1, name="x", live=LIVE):
    return barriers.arrive(name, worker, call, live)


def test_all_go_when_the_last_one_has_arrived():
    barriers = Barriers()
    assert arrive(barriers, "a") == arrive(barriers, "b") == []
    assert barriers.waiting() == {"a": "x", "b": "x"}
    assert arrive(barriers, "c") == [Release("x", ("a", "b", "c"))]
    assert barriers.waiting() == {}


def test_a_retry_changes_nothing_before_and_goes_at_once_after():
    barriers = Barriers()
    assert arrive(barriers, "a") == arrive(barriers, "a") == arrive(barriers, "b") == []
    arrive(barriers, "c")
    assert arrive(barriers, "a") == [Release("x", ("a",))]
    assert barriers.waiting() == {}
    # The same name again is another use.
    assert arrive(barriers, "a", call=2) == []


def test_the_dead_do_not_count():
    barriers = Barriers()
    arrive(barriers, "a")
    arrive(barriers, "b")
    assert barriers.gone(["c"], ["a", "b"]) == [Release("x", ("a", "b"))]
    arrive(barriers, "a", 2)
    assert barriers.gone(["a"], ["b"]) == []
    assert barriers.waiting() == {}


def test_whoever_joins_meanwhile_is_waited_for_and_whoever_comes_back_arrives_anew():
    barriers = Barriers()
    arrive(barriers, "a")
    arrive(barriers, "b")
    assert arrive(barriers, "c", live=[*LIVE, "d"]) == []
    barriers.forget("a")
    assert arrive(barriers, "d", live=[*LIVE, "d"]) == []
    assert arrive(barriers, "a", live=[*LIVE, "d"]) == [Release("x", ("b", "c", "d", "a"))]


def test_names_are_apart_and_a_worker_may_give_one_up():
    barriers = Barriers()
    arrive(barriers, "a", 1, "x")
    arrive(barriers, "b", 1, "y")
    arrive(barriers, "c", 1, "y")
    with pytest.raises(SequenceTooOld, match="number 1, expected 2, or 1 at barrier 'x', where it waits"):
        arrive(barriers, "a", 1, "y")
    assert arrive(barriers, "a", 2, "y") == [Release("y", ("b", "c", "a"))]
    assert barriers.waiting() == {}
    with pytest.raises(InvalidValue, match="number 0, expected 1 or more"):
        arrive(barriers, "a", 0)


def test_a_call_that_was_given_up_is_told_so():
    barriers = Barriers()
    arrive(barriers, "a", 1, "x")
    arrive(barriers, "a", 2, "y")
    with pytest.raises(SequenceTooOld):
        arrive(barriers, "a", 1, "x")


def test_what_was_released_outlives_a_restart():
    barriers = Barriers()
    for worker in LIVE:
        arrive(barriers, worker)
    arrive(barriers, "b", 2)
    again = Barriers()
    again.restore(barriers.to_data())
    assert arrive(again, "a") == [Release("x", ("a",))]
    assert arrive(again, "b", 2) == []


def test_a_worker_that_joins_again_counts_its_calls_from_one():
    barriers = Barriers()
    for worker in LIVE:
        arrive(barriers, worker)
    barriers.forget("a")
    assert arrive(barriers, "a") == []
    assert barriers.waiting() == {"a": "x"}
