"""How this process of the hive began: with which settings, through which stages, how long each took.

What it was told is no state of the hive: another process may be told something else, and the next start too.
So it is kept beside the ledger, which has the entry of each start:

    <directory>/boot.jsonl   a line for each stage that has ended, of the last starts
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from skep.fs.ctl import quote
from skep.trace.clock import Clock, rfc3339
from skep.trace.whole import write_whole

log = logging.getLogger("skep.boot")
FILE: Final = "boot.jsonl"
STAGES: Final = ("preboot", "boot", "online", "shutdown")
LINES_MAX: Final = 64 * len(STAGES)  # kept of the starts before
_SECRET: Final = re.compile(r"(?<=//)([^/@:]*):[^/@]*@|(?<=[?&;])(pin-value|password)=[^&;]*")


class Setting(msgspec.Struct, frozen=True):
    """``origin``: an environment variable, a file's name, an option, ``default``."""

    name: str
    value: str
    origin: str


class Starts:
    """The start of this process, and the log of those before it. ``began_ns``: when the process was told to
    begin. ``path`` None: nothing is kept."""

    def __init__(
        self,
        path: Path | None,
        clock: Clock,
        version: str = "",
        settings: Sequence[Setting] = (),
        began_ns: int = 0,
    ) -> None:
        self._path = path
        self._clock = clock
        self._began_ns = self._since_ns = began_ns or clock.now_ns()
        self._next = 0  # of STAGES
        shown = sorted((each.name, _shown(each.value), each.origin) for each in settings)
        self.config = "".join(f"{name} {value} {origin}\n" for name, value, origin in shown)
        values = "".join(f"{name} {value}\n" for name, value, _ in shown)
        self.transcript = f"skep {version}\n{values}" + "".join(f"stage {stage}\n" for stage in STAGES)
        self.hash = f"sha256:{sha256(self.transcript.encode()).hexdigest()}"
        self._trim()

    @property
    def phase(self) -> str:
        """The stage that it is in."""
        return STAGES[min(self._next, len(STAGES) - 1)]

    def ended(self, stage: str) -> None:
        """The stage is over, and the next one begins. They come in their order, each once."""
        assert stage == STAGES[self._next], (stage, self._next)
        now_ns = self._clock.now_ns()
        said = {
            "start": rfc3339(self._began_ns), "stage": stage, "from": rfc3339(self._since_ns),
            "ms": round((now_ns - self._since_ns) / 1e6, 3), "transcript": self.hash,
        }  # fmt: skip
        self._since_ns = now_ns
        self._next += 1
        if self._path is None:
            return
        # A full disk keeps no hive from beginning, nor from ending.
        try:
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(said) + b"\n")
        except OSError as error:
            log.warning("%s: %s", FILE, error)

    def log(self) -> str:
        """The lines of the last starts."""
        try:
            return "" if self._path is None else self._path.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    def _trim(self) -> None:
        lines = self.log().splitlines(keepends=True)
        if self._path is not None and len(lines) > LINES_MAX:
            with contextlib.suppress(OSError):
                write_whole(self._path, "".join(lines[-LINES_MAX:]).encode())


def _shown(value: str) -> str:
    """As one word, without what is secret in a URL."""
    return quote(_SECRET.sub(lambda m: f"{m[1]}:***@" if m[1] is not None else f"{m[2]}=***", value))
