"""Memory for updates that arrive: who gets it, in which order, and who waits."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stepwell_server.core.devices.device import ALIGNMENT_BYTES
from stepwell_server.core.errors import MemoryExhausted
from stepwell_server.core.memory import Memory, Size
from stepwell_server.service.machine import Machine
from stepwell_server.service.turns import Turns

ONE = Size(1000, np.dtype(np.float32))


class Plain:
    """A device, as far as memory cares."""

    shared = None

    def allocate(self, elements: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        return np.empty(elements, dtype)


def machine(ones: int) -> Machine:
    """With memory for so many vectors."""
    device: Any = Plain()
    memory = Memory(device, ones * ONE.size_bytes)
    return Machine(memory, ThreadPoolExecutor(1), Turns(1))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_first_come_first_served() -> None:
    one = machine(2)
    held = await one.allocate([ONE, ONE], "held")
    order: list[str] = []

    async def take(name: str, count: int) -> None:
        vectors = await one.allocate([ONE] * count, name)
        order.append(name)
        one.memory.free(vectors)

    tasks = [asyncio.create_task(take(name, count)) for name, count in (("two", 2), ("one", 1), ("last", 1))]
    await settle()
    one.memory.free(held[:1])
    await settle()
    assert order == []  # the second one would fit, and does not overtake
    one.memory.free(held[1:])
    await asyncio.gather(*tasks)
    assert order == ["two", "one", "last"]


async def test_whoever_must_leave_room_holds_up_nobody() -> None:
    one = machine(3)
    held = await one.allocate([ONE], "held")
    room = {"patient": ONE.size_bytes * 2}
    patient = asyncio.create_task(one.allocate([ONE], "patient", lambda: room["patient"]))
    await settle()
    assert not patient.done()
    other = await one.allocate([ONE], "other")
    await settle()
    assert not patient.done()
    room["patient"] = 0  # its turn has come
    one.wake()
    vectors = await patient
    one.memory.free([*held, *other, *vectors])


async def test_who_gives_up_takes_nothing() -> None:
    one = machine(1)
    held = await one.allocate([ONE], "held")
    waiting = [asyncio.create_task(one.allocate([ONE], name)) for name in ("first", "second")]
    await settle()
    waiting[0].cancel()
    await settle()
    one.memory.free(held)
    vectors = await waiting[1]
    one.memory.free(vectors)
    third = asyncio.create_task(one.allocate([ONE], "third"))
    fourth = asyncio.create_task(one.allocate([ONE], "fourth"))
    await settle()
    fourth.cancel()
    one.memory.free(await third)
    await settle()
    assert one.memory.used_bytes <= ONE.size_bytes
    one.memory.free(await one.allocate([ONE], "again"))


async def test_what_can_never_be_had_is_refused() -> None:
    one = machine(2)
    with pytest.raises(MemoryExhausted, match="update needs"):
        await one.allocate([ONE] * 3, "update")
    held = await one.allocate([ONE], "held")
    waiting = asyncio.create_task(one.allocate([ONE, ONE], "update"))
    await settle()
    one.state_bytes = lambda: ONE.size_bytes + ALIGNMENT_BYTES  # the states have grown meanwhile
    one.wake()
    with pytest.raises(MemoryExhausted, match="update needs"):
        await waiting
    one.memory.free(held)
