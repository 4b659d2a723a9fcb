from stepwell_server.core.tally import Tally
from stepwell_server.core.workers import Outcome


def test_staleness_is_counted_by_powers_of_two():
    tally = Tally()
    for staleness in [0, 0, 1, 2, 3, 4, 7, 8, 1000, 5]:
        tally.count(Outcome.COMMITTED, staleness)
    assert tally.staleness_counts == [2, 1, 2, 3, 1, 0, 0, 0, 0, 0, 1]
    assert (tally.staleness_last, tally.staleness_max, tally.commits) == (5, 1000, 10)


def test_only_what_had_an_effect_has_a_staleness():
    tally = Tally()
    tally.count(Outcome.FOLDED, 1)
    tally.count(Outcome.DROPPED_LATE, 9)
    tally.count(Outcome.SKIPPED_NONFINITE, 9)
    assert (tally.folded, tally.dropped, tally.skipped, tally.staleness_max) == (1, 1, 1, 1)
    assert tally.staleness_counts == [0, 1]


def test_the_total_is_the_sum_and_its_own_data():
    one, two = Tally(refused=2, duplicates=1), Tally(withdrawn=3)
    one.count(Outcome.COMMITTED, 0)
    two.count(Outcome.COMMITTED, 6)
    total = Tally.total([one, two])
    assert total == Tally(
        commits=2, refused=2, withdrawn=3, duplicates=1, staleness_max=6, staleness_counts=[1, 0, 0, 1]
    )
    assert Tally.from_data(total.to_data()) == total
    assert Tally.total([]) == Tally()
