"""Coroutines begun at once: what needs no waiting is finished without a task.

``start`` takes the first step in the caller's stead. Most file operations end in it; the others become an
asyncio task that takes over where the coroutine first waited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Finished(Generic[T]):
    """The result of a coroutine that never waited."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value


class _Rest(Generic[T]):
    """A begun coroutine, from the future it waits for on."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], waiting: Any) -> None:
        self.coroutine = coroutine
        self.waiting = waiting

    def __await__(self) -> Generator[Any, Any, T]:
        waiting = self.waiting
        while True:
            thrown: BaseException | None = None
            try:
                yield waiting
            except BaseException as error:
                thrown = error
            try:
                waiting = self.coroutine.throw(thrown) if thrown else self.coroutine.send(None)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]


async def _finish(rest: _Rest[T]) -> T:
    return await rest


def start(coroutine: Coroutine[Any, Any, T]) -> Finished[T] | asyncio.Task[T]:
    """Run ``coroutine`` until it first waits. What it raises before that is raised here."""
    try:
        waiting = coroutine.send(None)
    except StopIteration as stop:
        return Finished(stop.value)
    return asyncio.get_running_loop().create_task(_finish(_Rest(coroutine, waiting)))


def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task that ``start`` gave. Its first step is let run before, so that the cancellation reaches
    the coroutine: a task cancelled before its first step would never touch it."""
    task.get_loop().call_soon(task.cancel)
