"""Turns a generator, written once, into a method that blocks or a method that is awaited.

    class RunOperations(Driven):
        @operation
        def refresh(self) -> Steps[int]: ...

    class Run(RunOperations, Blocking): ...       # run.refresh() -> int
    class Run(RunOperations, Awaiting): ...       # await run.refresh() -> int

The two overloads of Operation.__get__ tell type checkers the same.
"""

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from stepwell._requests import Request, Steps

P = ParamSpec("P")
R = TypeVar("R")


class Connection(Protocol):
    """What fulfils requests: at once in the blocking driver, as an awaitable in the other."""

    def perform(self, request: Request) -> Any: ...


class Driven:
    """An object whose operations are driven by Blocking or Awaiting, over a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def _drive(self, steps: Steps[Any], alone: bool) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> object:
        raise TypeError(f"a {type(self).__name__} cannot be copied or pickled: connect in each process")

    def _moved(self, forked: bool) -> None:
        """Called once where the object finds itself in a forked child, or in another event loop."""


class Blocking(Driven):
    """Drives operations in the calling thread."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._pid = os.getpid()
        self._lock = threading.Lock()

    def _drive(self, steps: Steps[R], alone: bool) -> R:
        with self._alone() if alone else nullcontext():
            try:
                request = next(steps)
                while True:
                    try:
                        result = self._connection.perform(request)
                    except BaseException as error:  # noqa: BLE001 (the generator cleans up and raises it again)
                        request = steps.throw(error)
                    else:
                        request = steps.send(result)
            except StopIteration as stop:
                value: R = stop.value
                return value

    def _alone(self) -> threading.Lock:
        if self._pid != os.getpid():
            # Another thread of the parent may have held the lock, and it does not live here.
            self._pid, self._lock = os.getpid(), threading.Lock()
            self._moved(forked=True)
        return self._lock


class Awaiting(Driven):
    """Drives operations in the running event loop."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._home: tuple[int, asyncio.AbstractEventLoop | None] = (os.getpid(), None)
        self._lock = asyncio.Lock()

    async def _drive(self, steps: Steps[R], alone: bool) -> R:
        async with self._alone() if alone else nullcontext():
            try:
                request = next(steps)
                while True:
                    try:
                        result = await self._connection.perform(request)
                    except BaseException as error:  # noqa: BLE001 (the generator cleans up and raises it again)
                        request = steps.throw(error)
                    else:
                        request = steps.send(result)
            except StopIteration as stop:
                value: R = stop.value
                return value

    def _alone(self) -> asyncio.Lock:
        home = (os.getpid(), asyncio.get_running_loop())
        if self._home != home:
            before, self._home, self._lock = self._home, home, asyncio.Lock()
            if before[1] is not None:
                self._moved(forked=before[0] != home[0])
        return self._lock


class Operation(Generic[P, R]):
    """The descriptor behind `operation` and `exclusive`."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[R]], *, alone: bool) -> None:
        @functools.wraps(steps)
        def blocking(owner: Blocking, *args: P.args, **kwargs: P.kwargs) -> R:
            return owner._drive(steps(owner, *args, **kwargs), alone)

        @functools.wraps(steps)
        async def awaiting(owner: Awaiting, *args: P.args, **kwargs: P.kwargs) -> R:
            return await owner._drive(steps(owner, *args, **kwargs), alone)

        # What the generator yields concerns the drivers alone: help() shall name what it returns.
        returned = getattr(steps.__annotations__.get("return"), "__args__", (Any,))[-1]
        signature = inspect.signature(steps).replace(return_annotation=returned)
        for method in (blocking, awaiting):
            vars(method)["__signature__"] = signature
        self.__doc__ = steps.__doc__
        self._blocking, self._awaiting = blocking, awaiting

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Blocking, owner: type) -> Callable[P, R]: ...
    @overload
    def __get__(self, instance: Awaiting, owner: type) -> Callable[P, Coroutine[Any, Any, R]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        method = self._awaiting if issubclass(owner, Awaiting) else self._blocking
        return method if instance is None else MethodType(method, instance)


def operation(steps: Callable[Concatenate[Any, P], Steps[R]]) -> Operation[P, R]:
    """A method of a class that is either Blocking or Awaiting."""
    return Operation(steps, alone=False)


def exclusive(steps: Callable[Concatenate[Any, P], Steps[R]]) -> Operation[P, R]:
    """The same, one at a time on an object: exchanges on a worker's stream must not interleave."""
    return Operation(steps, alone=True)
