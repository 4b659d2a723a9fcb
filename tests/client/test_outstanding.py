"""Steps that go on while the caller computes."""

import asyncio
import threading

import numpy as np
import pytest

import stepwell
import stepwell.aio
from stepwell._outstanding import Tasks, Threaded

ONES = {"w": np.ones(4, np.float32)}
SECONDS_MAX = 60


@pytest.fixture
def held():
    """Work that waits until it may go on."""
    event = threading.Event()
    yield event
    event.set()


def test_operations_follow_one_another_in_order(held):
    outstanding, seen = Threaded("r", 4), []

    def work(number):
        held.wait(SECONDS_MAX)
        seen.append(number)
        return number

    futures = [outstanding.start(work, number) for number in range(4)]
    assert not any(future.done() for future in futures)
    held.set()
    assert [future.result(SECONDS_MAX) for future in futures] == seen == [0, 1, 2, 3]
    outstanding.finish()


def test_more_than_allowed_are_refused_before_anything_happens(held):
    outstanding = Threaded("r", 2)
    begun: list[int] = []
    futures = [outstanding.start(held.wait, SECONDS_MAX) for _ in range(2)]
    with pytest.raises(stepwell.LimitExceeded, match=r"'r'.*2 are under way, expected at most 2; wait for one"):
        outstanding.start(begun.append, 1)
    held.set()
    assert [future.result(SECONDS_MAX) for future in futures] == [True, True]
    outstanding.start(begun.append, 2).result(SECONDS_MAX)
    assert begun == [2]
    outstanding.finish()


def test_a_run_that_went_back_cancels_what_waits(held):
    outstanding = Threaded("r", 4)

    def rewound():
        held.wait(SECONDS_MAX)
        raise stepwell.RunRewound("went back")

    first, *others = [outstanding.start(rewound), *(outstanding.start(int) for _ in range(3))]
    held.set()
    with pytest.raises(stepwell.RunRewound):
        first.result(SECONDS_MAX)
    outstanding.finish()
    assert all(other.cancelled() for other in others)
    assert outstanding.start(int).result(SECONDS_MAX) == 0
    outstanding.finish()


def test_another_failure_concerns_its_own_step_alone():
    outstanding = Threaded("r", 4)

    def fail():
        raise stepwell.NonfiniteGradient("NaN")

    failing, following = outstanding.start(fail), outstanding.start(int)
    with pytest.raises(stepwell.NonfiniteGradient):
        failing.result(SECONDS_MAX)
    assert following.result(SECONDS_MAX) == 0
    outstanding.finish()


def test_tasks_are_bounded_and_cancelled_likewise():
    async def main():
        outstanding, gate = Tasks("r", 2), asyncio.Event()

        async def rewound():
            await gate.wait()
            raise stepwell.RunRewound("went back")

        first, second = outstanding.start(rewound()), outstanding.start(gate.wait())
        with pytest.raises(stepwell.LimitExceeded):
            outstanding.start(rewound())
        gate.set()
        with pytest.raises(stepwell.RunRewound):
            await first
        await outstanding.finish()
        assert second.done()

    asyncio.run(main())


def test_steps_of_a_run(server):
    with (
        stepwell.connect(server.address) as client,
        client.create_run("m", {"w": np.zeros(4, np.float32)}, optimizer="sgd", hyperparameters={"lr": 1.0}) as run,
    ):
        futures = [run.step_async(ONES, samples=1) for _ in range(3)]
        for count, future in enumerate(futures, 1):
            np.testing.assert_array_equal(future.result(SECONDS_MAX)["w"], np.full(4, -count, np.float32))
        got = run.pull_async(["w"]).result(SECONDS_MAX)
        assert got is not None
        np.testing.assert_array_equal(got["w"], np.full(4, -3, np.float32))
        last = run.push({"w": np.zeros(4, np.float32)})
        pending = run.step_async(ONES)
    assert pending.done(), "leaving the block waits for what is under way"
    assert last == 4


def test_steps_of_an_awaited_run(server):
    async def main():
        async with stepwell.aio.connect(server.address) as client:
            run = await client.create_run(
                "m", {"w": np.zeros(4, np.float32)}, optimizer="sgd", hyperparameters={"lr": 1.0}
            )
            async with run:
                tasks = [run.step_async(ONES) for _ in range(3)]
                results = await asyncio.gather(*tasks)
                assert [got["w"][0] for got in results] == [-1, -2, -3]

    asyncio.run(main())


@pytest.mark.parametrize("count", [0, -1])
def test_a_bound_below_one_makes_no_sense(count):
    with pytest.raises(stepwell.InvalidValue, match="outstanding_updates_max"):
        stepwell.connect("127.0.0.1:1", outstanding_updates_max=count)
