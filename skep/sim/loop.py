"""An event loop whose time is made up, and the processes that run on it side by side.

Every handle belongs to a process, told by its context. A process that is paused keeps its handles, as one
that was sent SIGSTOP; one that is killed never runs again, not even its ``finally``. Of the processes that
could go on, chance picks the next to take a step, so a seed is an interleaving; nothing else is left to
chance, nor to the machine: the same seed runs the same steps.

Time moves when nobody can go on. Work that asyncio gives to threads is a step of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from hashlib import sha256
from heapq import heappop, heappush
from random import Random
from typing import Any, Final, cast

from skep.trace.clock import SECOND, ulid

BEGIN_NS: Final = 1_700_000_000 * SECOND  # the wall clock when a run begins
STEPS_MAX: Final = 20_000_000  # of one run: beyond, it goes round in circles
TASKS_KEPT: Final = 256  # ended tasks of a process that are not looked for yet


class Stuck(Exception):
    """The run cannot come to an end."""


class Process:
    """Something that is killed, paused and set to a wrong time as one."""

    def __init__(self, loop: SimLoop, name: str, number: int) -> None:
        self.loop = loop
        self.name = name
        self.number = number  # its pid
        self.ready: deque[asyncio.Handle] = deque()
        self.paused = False
        self.dead = False
        self.blown_up = False  # it was killed; else it has ended by itself
        self.skew_ns = 0  # how far its wall clock is off
        self.fuse = 0  # steps until ``blown``; 0: there is no such step
        self.blown: Callable[[], None] = lambda: None
        self.on_end: list[Callable[[], None]] = []  # what the kernel does when it has ended
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)
        self.chance = Random(f"{loop.seed} {name} {number}")
        self._tasks: list[asyncio.Task[Any]] = []
        self._looked = TASKS_KEPT

    def start(self, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``main``; the process ends with it."""
        task = self.spawn(main)
        task.add_done_callback(lambda _: self.end(), context=self.context)
        return task

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run ``work`` within it."""
        # A copy: who asks may be running in the context itself.
        return self.context.copy().run(self.loop.create_task, work)

    def keep(self, task: asyncio.Task[Any]) -> None:
        """What a dead process was doing must not be tidied up by Python."""
        self._tasks.append(task)
        if len(self._tasks) > self._looked:
            self._tasks = [task for task in self._tasks if not task.done()]
            self._looked = 2 * len(self._tasks) + TASKS_KEPT

    def end(self) -> None:
        """Now, wherever it is."""
        if self.dead:
            return
        self.dead = True
        self.ready.clear()
        self.loop.stands_still(self)
        for act in self.on_end:
            act()

    def pause(self) -> None:
        self.paused = True
        self.loop.stands_still(self)

    def go_on(self) -> None:
        self.paused = False
        if self.ready:
            self.loop.can_go_on(self)

    def bury(self) -> bool:
        """Let go of what it was doing, the run is over; whether there was anything."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            if not task.done():
                # Its ``finally`` may wait, which nobody can any more.
                with suppress(BaseException):
                    task.get_coro().close()
        return bool(tasks)

    # its clock

    def now_ns(self) -> int:
        return BEGIN_NS + self.loop.now_ns + self.skew_ns

    def monotonic_ns(self) -> int:
        return self.loop.now_ns

    def new_id(self) -> str:
        return ulid(self.now_ns(), self.chance.getrandbits(80))


PROCESS: Final[contextvars.ContextVar[Process]] = contextvars.ContextVar("PROCESS")


class _Owned(asyncio.Future[Any]):
    """A future that knows whose it is."""

    process: Process


class SimLoop:
    """What asyncio's tasks, futures and timers ask of an event loop, and no more of it.

    ``now_ns`` counts from the run's beginning. ``mistakes``: exceptions that nobody caught.

    Connections and servers are the network's, which sets ``dial`` and ``serve``."""

    dial: Callable[..., Any]
    serve: Callable[..., Any]

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.now_ns = 0
        self.steps = 0
        self.digest = sha256()
        self.mistakes: list[str] = []
        self.processes: list[Process] = []
        self._random = Random(f"{seed} loop").random
        self._timers: list[tuple[int, int, asyncio.TimerHandle]] = []
        self._timer_number = 0
        self._able: list[Process] = []  # who can take a step
        self._over = False
        self.fate = self.process("fate")  # what nobody planned to die

    def process(self, name: str) -> Process:
        made = Process(self, name, len(self.processes) + 1)
        self.processes.append(made)
        return made

    def note(self, what: str) -> None:
        """Part of what two runs of a seed must have in common."""
        self.digest.update(f"{self.now_ns} {what}\n".encode())

    # running

    def run(self, main: Coroutine[Any, Any, Any]) -> Any:
        """What ``main``, of the process ``fate``, gives; everything stops with it."""
        hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(cast(Any, self))
        sys.set_asyncgen_hooks(finalizer=self._finish)
        try:
            task = self.fate.spawn(main)
            while not task.done():
                self._step()
            return task.result()
        finally:
            self._over = True
            # What is let go of may begin something as it goes.
            while sum(process.bury() for process in self.processes):
                pass
            sys.set_asyncgen_hooks(*hooks)
            events._set_running_loop(None)

    def _step(self) -> None:
        """Let one process take a step; move the time on when none can."""
        able = self._able
        if not able:
            self._pass_time()
            return
        process = able[int(self._random() * len(able))] if len(able) > 1 else able[0]
        handle = process.ready.popleft()
        if not process.ready:
            able.remove(process)
        if handle._cancelled:
            return
        self.steps += 1
        self.digest.update(b"%d %d\n" % (self.now_ns, process.number))
        handle._run()
        if process.fuse:
            process.fuse -= 1
            if not process.fuse:
                process.blown()
        if self.steps > STEPS_MAX:
            raise Stuck(f"{self.steps} steps, and no end")

    def _pass_time(self) -> None:
        timers = self._timers
        if not timers:
            raise Stuck("everybody waits, and nothing will come")
        self.now_ns = max(self.now_ns, timers[0][0])
        while timers and timers[0][0] <= self.now_ns:
            handle = heappop(timers)[2]
            if not handle._cancelled:
                self._put(handle, handle._context)  # type: ignore[attr-defined]

    def _put(self, handle: asyncio.Handle, context: contextvars.Context) -> None:
        process = context.get(PROCESS) or self.fate
        if process.dead:
            return
        process.ready.append(handle)
        if len(process.ready) == 1 and not process.paused:
            self._able.append(process)

    def can_go_on(self, process: Process) -> None:
        if process not in self._able:
            self._able.append(process)

    def stands_still(self, process: Process) -> None:
        if process in self._able:
            self._able.remove(process)

    # what asyncio asks of a loop

    def time(self) -> float:
        return self.now_ns / SECOND

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, cast(Any, self), context)
        if not self._over:
            self._put(handle, context)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_in(round(delay * SECOND), callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_in(round(when * SECOND) - self.now_ns, callback, *args, context=context)

    def call_in(
        self,
        delay_ns: int,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """``call_later`` in ns."""
        when_ns = self.now_ns + max(delay_ns, 0)
        context = contextvars.copy_context() if context is None else context
        handle = asyncio.TimerHandle(when_ns / SECOND, callback, args, cast(Any, self), context)
        self._timer_number += 1
        if not self._over:
            heappush(self._timers, (when_ns, self._timer_number, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def create_future(self) -> asyncio.Future[Any]:
        future = _Owned(loop=cast(Any, self))
        future.process = PROCESS.get(self.fate)
        return future

    def create_task(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: object = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=cast(Any, self), context=context)
        (PROCESS.get(self.fate) if context is None else context[PROCESS]).keep(task)
        return task

    def run_in_executor(self, executor: object, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_soon(work)
        return future

    async def create_connection(self, factory: Callable[[], Any], *where: Any, **how: Any) -> Any:
        return await self.dial(factory, *where)

    async def create_server(self, factory: Callable[[], Any], *where: Any, **how: Any) -> Any:
        return self.serve(factory, *where)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._over:
            return
        future, error = context.get("future"), context.get("exception")
        if isinstance(future, _Owned) and future.process.dead:
            return  # who was to look at it, did not live to
        self.mistakes.append(f"{context.get('message')}: {error!r}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return not self._over

    def is_closed(self) -> bool:
        return self._over

    def _finish(self, generator: AsyncGenerator[Any, Any]) -> None:
        """An async generator that nobody reads to its end."""
        if not self._over and not PROCESS.get(self.fate).dead:
            self.create_task(generator.aclose())
