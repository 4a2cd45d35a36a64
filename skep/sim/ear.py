"""Somebody in a simulated hive who listens: a tenant's events from the first one on, whatever is cut."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.messages import Dialect
from skep.sim.queen import OPERATORS

AGAIN_S: Final = 0.5  # before it begins again where it was


class Ear:
    """``heard``: entry, type and job of each event of a job; ``seq``: what it has heard up to."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.heard: list[tuple[int, str, str]] = []
        self.seq = 0

    async def listen(self) -> None:
        while True:
            try:
                client = await Client.connect(OPERATORS, aname=self.tenant, uname="root", dialect=Dialect.U)
                async for piece in client.follow(f"/events@{self.seq}"):
                    for line in piece.splitlines():
                        self._hear(msgspec.json.decode(line))
            except (OSError, FsError):
                await asyncio.sleep(AGAIN_S)

    def _hear(self, event: dict[str, Any]) -> None:
        """A line is an event, or says up to where there was none."""
        self.seq = event["seq"]
        if event.get("type", "").startswith("job."):
            self.heard.append((self.seq, event["type"], event["job"]))
