"""Being told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
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
