"""What a person sees while something goes on: a bar on stderr, and colours, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final

BAR_MIN: Final = 1 << 20  # bytes below which a copy is over before a bar is read


@contextlib.contextmanager
def copying(what: str, size: int) -> Iterator[Callable[[int], None]]:
    """A function to be told of bytes copied: it moves a bar when stderr is a terminal and ``size`` (0: not
    known) makes one worth while."""
    if size < BAR_MIN or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=size)
        yield lambda count: progress.advance(task, count)
