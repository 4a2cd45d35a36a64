"""Being told to stop, or to look again at one's files."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Final

STOPPING: Final = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def told_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOPPING:
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in STOPPING:
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def on_hangup(do: Callable[[], object]) -> Iterator[None]:
    """Within it, SIGHUP does this, and ends nothing."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, do)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
