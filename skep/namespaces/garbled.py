"""The door of writes that nobody can read: kept among the dead letters, if their writer may have them kept.

The writer is told what is wrong, whatever becomes of that.
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import suppress
from hashlib import sha256

from skep.fs import ctl
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.jobs.undecodable import KEEP, KEPT_MAX
from skep.namespaces.live import Hive


async def keep(hive: Hive, caller: Caller, data: bytes, error: FsError) -> None:
    """Keep what the caller wrote instead of a request. What is too large, or one too many, is not kept."""
    if error.kind is not E.USAGE or hive.state.undecodable.is_full(caller.tenant):
        return
    args = {
        "data": b64encode(data[:KEPT_MAX]).decode(),
        "size": str(len(data)),
        "sha256": sha256(data).hexdigest(),
        "why": error.text,
    }
    with suppress(FsError):
        await hive.command(caller, "/dlq/ctl", [ctl.line(KEEP.name, args)])
