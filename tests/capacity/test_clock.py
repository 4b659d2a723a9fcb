import pytest

from stepwell_server.capacity.clock import Clock, Cores, Queue


def run(clock):
    while clock.advance():
        pass


def test_work_that_needs_no_more_than_there_is_goes_on_side_by_side():
    clock, ends = Clock(), []
    cores = Cores(clock, 2)
    for _ in range(2):
        cores.work(3.0, 1.0, lambda: ends.append(clock.now))
    run(clock)
    assert ends == [3.0, 3.0]
    assert cores.busy_seconds == 6.0


def test_cores_are_shared_in_proportion_by_whatever_is_at_work():
    clock = Clock()
    ends: dict[str, float] = {}
    cores = Cores(clock, 1)
    cores.work(2.0, 1.0, lambda: ends.setdefault("first", clock.now))
    clock.after(1.0, lambda: cores.work(2.0, 1.0, lambda: ends.setdefault("second", clock.now)))
    run(clock)
    # One second alone, then half the speed for two; the other has one second left, and the core for itself.
    assert ends == {"first": 3.0, "second": 4.0}
    assert cores.busy_seconds == 4.0


def test_work_for_more_cores_than_there_are_takes_longer():
    clock, ends = Clock(), []
    cores = Cores(clock, 2)
    cores.work(1.0, 3.0, lambda: ends.append(clock.now))
    run(clock)
    assert ends == [pytest.approx(1.5)]
    assert cores.busy_seconds == pytest.approx(3.0)


def test_a_queue_serves_one_at_a_time_in_order_after_what_goes_first():
    clock, ends = Clock(), []
    queue = Queue(clock)

    def serve(number, seconds):
        def begin(done):
            def end():
                ends.append((number, clock.now))
                done()

            clock.after(seconds, end)

        return begin

    queue.take(serve(0, 2.0))
    queue.take(serve(1, 1.0))
    queue.take(serve(2, 1.0), first=True)
    clock.after(5.0, lambda: queue.take(serve(3, 1.0)))
    run(clock)
    assert ends == [(0, 2.0), (2, 3.0), (1, 4.0), (3, 6.0)]
    assert queue.busy_seconds == 5.0
