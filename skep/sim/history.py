"""What everybody asked of the hive and was told: all that the checkers know besides the ledger.

A moment is a number that rises with each thing that happens, so that "before" has a meaning between
processes. An answer that never came leaves open whether the thing was done.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from skep.fs.connection import ConnectionLost
from skep.fs.errors import E, FsError
from skep.sim.linear import NEVER

REPLY: Final = re.compile(r"(\S+) (?:fence=(\d+) device=(\S+) )?rev=(\d+) trace=(\S+)")
# Answers of which nobody can say what they mean for what was asked.
UNSURE: Final = (E.IO, E.CANCELLED, E.INTR)


@dataclass
class Said:
    """One thing asked. ``about``: the job, lock or file; ``line`` as it was written, "": nothing was.

    answer: ``ok``, a refusal's class, "": there was none; reply: the first word, or what was read.
    rev, trace: of the entry, as told; 0 and "": not told."""

    who: str
    verb: str
    about: str
    line: str
    called: int
    tenant: str = ""
    fence: int = 0
    answered: int = NEVER
    answer: str = ""
    reply: str = ""
    rev: int = 0
    trace: str = ""
    text: str = ""  # of a refusal
    more: dict[str, Any] = field(default_factory=dict)


class History:
    """Everything said, in the order it was asked."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self._moment = 0

    def moment(self) -> int:
        self._moment += 1
        return self._moment

    def ask(self, who: str, verb: str, about: str, line: str = "", **more: Any) -> Said:
        known = {name: more.pop(name) for name in ("tenant", "fence") if name in more}
        said = Said(who, verb, about, line, self.moment(), more=more, **known)
        self.said.append(said)
        return said

    def answered(self, said: Said, reply: str = "") -> None:
        """It was done."""
        said.answered, said.answer, said.reply = self.moment(), "ok", reply

    def leased(self, said: Said, job: str, fence: int, attempt: int) -> None:
        """A read of a pool's next gave a lease."""
        said.about, said.fence, said.more = job, fence, {"attempt": attempt}
        self.answered(said)

    def refused(self, said: Said, error: FsError) -> None:
        """It was refused; of some errors nobody can say whether it was."""
        if not isinstance(error, ConnectionLost) and error.kind not in UNSURE:
            said.answered, said.answer, said.text = self.moment(), error.kind.name, error.text
            said.trace = error.trace or ""

    @staticmethod
    def told(said: Said, reply: str) -> None:
        """Take what a ctl file replies: what was made, the entry's number, its trace; of a lease its fence
        and device."""
        found = REPLY.match(reply)
        if found is not None:
            said.reply, said.rev, said.trace = found[1], int(found[4]), found[5]
            if found[2]:
                said.fence, said.more["device"] = int(found[2]), found[3]
