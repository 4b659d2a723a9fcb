import pytest

import stepwell
from stepwell_server.demo.record import Accuracy, Record, WorkerRecord
from stepwell_server.demo.report import Histogram, Step, bucket_names, read_line


@pytest.mark.parametrize("said", [Step(3, 17, 0.25, 4), Histogram((1, 0, 5), 3), Histogram()])
def test_a_line_says_what_it_was_made_of(said):
    assert read_line(said.to_line()) == said


def test_a_histogram_is_what_the_tally_counts():
    tally = stepwell.Tally(
        5, 1, 0, 0, 0, 0, 0, staleness_last=2, staleness_max=9, staleness_counts=(4, 1, 0, 0, 1), gradient_norm_last=0.0
    )
    assert Histogram.of(tally) == Histogram((4, 1, 0, 0, 1), 9)
    assert Histogram.of(tally).total == 6


def test_buckets_have_names():
    assert list(bucket_names(6)) == ["0", "1", "2–3", "4–7", "8–15", "16–31"]
    assert list(bucket_names(1)) == ["0"]


def test_time_counts_from_the_first_step_that_was_heard_of():
    record = Record([WorkerRecord(), WorkerRecord()])
    record.add(1, Step(1, 1, 0.5, 0), 10.0)
    record.add(0, Step(1, 2, 0.5, 0), 12.0)
    record.accuracies = [Accuracy(0, 0.1, 9.0), Accuracy(1, 0.5, 11.5), Accuracy(2, 0.4, 13.0)]
    assert record.seconds_to(0.1) == 0
    assert record.seconds_to(0.45) == 1.5
    assert record.seconds_to(0.6) is None
    assert record.seconds == 2
    assert record.steps_per_second == 1
