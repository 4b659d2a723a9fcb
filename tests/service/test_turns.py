"""Turns: a few at a time, in order, and never for long."""

import asyncio

import pytest

from stepwell_server.service.turns import Turns

LONG, SHORT = 1000.0, 0.001


async def settle():
    """Let everything that is ready go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_few_have_a_turn_and_the_rest_follow_in_order():
    turns = Turns(2, LONG)
    order = []

    async def work(name):
        turn = await turns.take()
        order.append(name)
        return turn

    tasks = [asyncio.create_task(work(name)) for name in "abcde"]
    await settle()
    assert order == ["a", "b"]
    (await tasks[1]).release()
    await settle()
    assert order == ["a", "b", "c"]
    (await tasks[1]).release()  # the second time it is not its own any more
    await settle()
    assert order == ["a", "b", "c"]
    (await tasks[0]).release()
    (await tasks[2]).release()
    await settle()
    assert order == ["a", "b", "c", "d", "e"]


async def test_whoever_takes_long_goes_on_without_a_turn():
    turns = Turns(1, SHORT)
    slow = await turns.take()
    following = await turns.take()  # waits until time has taken the first one's
    slow.release()
    third = asyncio.create_task(turns.take())
    await settle()
    assert not third.done()
    following.release()
    await third


@pytest.mark.parametrize("chosen", [False, True], ids=["while it waits", "as it is chosen"])
async def test_a_caller_that_goes_away_leaves_the_turn_to_others(chosen):
    turns = Turns(1, LONG)
    first = await turns.take()
    gone, following = asyncio.create_task(turns.take()), asyncio.create_task(turns.take())
    await settle()
    if chosen:
        first.release()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    first.release()
    await asyncio.wait_for(following, 10)
