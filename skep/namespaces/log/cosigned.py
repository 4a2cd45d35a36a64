"""The witnesses of this hive as files: agreed, and /log/trace/witness. What they mean is quorum.py's."""

from __future__ import annotations

from typing import Any, Final

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Stream, Text, Transaction
from skep.namespaces.follow import AUDITORS
from skep.namespaces.log.quorum import Quorum
from skep.namespaces.log.tree import check
from skep.namespaces.log.watching import Watching
from skep.namespaces.log.witnesses import TABLES
from skep.namespaces.rows import Followed
from skep.namespaces.shown import files

CTL: Final = "/log/trace/witness/ctl"


class Offered:
    """The checkpoints that a witness is offered, one after the other: each a whole add-checkpoint."""

    def __init__(self, quorum: Quorum, after: int) -> None:
        self.quorum = quorum
        self.after = after

    async def next(self) -> bytes:
        said = await self.quorum.wait_offered(self.after)
        self.after = int(said.partition(b"\n\n")[2].split(b"\n")[1])
        return said

    def close(self, undelivered: bytes | None) -> None:
        """Nothing is taken by reading."""


def witness_files(quorum: Quorum) -> dict[str, Any]:
    """What stands in /log/trace for witnesses and their readers, and for hives that this one witnesses."""
    watching = Watching(quorum.hive)

    def agreed(caller: Caller) -> bytes:
        check(caller)
        if note := quorum.agreed():
            return note
        raise FsError(E.MISSING, "agreed")

    def status(caller: Caller) -> str:
        check(caller)
        return quorum.status()

    def offered(after: int) -> Stream:
        def begun(caller: Caller) -> Offered:
            check(caller)
            return Offered(quorum, after)

        return Stream(begun)

    async def take(caller: Caller, said: bytes) -> str:
        check(caller, AUDITORS)
        return await quorum.take(said)

    served = files(watching.found, watching.add) | {
        "ctl": Ctl(TABLES["*/witness/ctl"], quorum.hive.writes(CTL)),
        "status": Text(status),
        "offered": offered(0),
        "add-cosignature": Transaction(take),
    }
    return {"agreed": Text(agreed), "witness": Followed(served, {"offered": offered})}
