"""A file reached, opened and used in one flight: a walk, an open and one request more, sent together.

Calls on one fid keep their order at the server (intro(5)), so that nothing need be waited for but the last
answer. Where the walk fails, what was sent behind it is refused, for its fid is none's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from skep.fs import idiom
from skep.fs.dial import Client, names_of
from skep.fs.errors import FsError
from skep.fs.messages import WALK_MAX, Message, Rwalk, Twalk

CREATED: Final = 0o644  # permissions of a new file


class Flight:
    """These requests, under way; ``last`` is the one that they are for. To be waited for once."""

    def __init__(
        self, client: Client, path: str, mode: str, last: Callable[[int], Message], create: str = ""
    ) -> None:
        """``path`` has at most WALK_MAX names; ``last`` makes a request of the fid, which fits a message.
        ``create``: the name of a new file in the directory ``path``, in place of the file ``path``. Raises
        FsError when nothing can be asked."""
        self.client = client
        self.path = path
        names = names_of(path)
        assert len(names) <= WALK_MAX, path
        connection = client.connection
        fid = connection.session.take_fid()
        self._names = len(names)
        how, dialect = idiom.how(mode), connection.dialect
        open_ = (
            idiom.create_request(dialect, fid, create, CREATED, how, os.getgid())
            if create
            else idiom.open_request(dialect, fid, how)
        )
        requests = Twalk(client.root.fid, fid, names), open_, last(fid)
        self._walk, self._open, self.last = connection.start_all(requests)

    async def wait(self) -> Message:
        """The answer to ``last``; the fid is given back then. Raises FsError: what the first one that failed
        met with."""
        connection = self.client.connection
        try:
            return await connection.wait(self.last)
        except FsError:
            if isinstance(self._walk.reply, Rwalk) and len(self._walk.reply.wqid) < self._names:
                # Rwalk does not say why it ends early.
                await (await self.client.walk(self.path)).close()
            for call in (self._walk, self._open):
                if call.error is not None:
                    raise call.error from None
            raise
        finally:
            connection.forsake(self._walk)
