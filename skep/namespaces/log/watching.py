"""A hive as the witness of others: those whose keys it was told, brought to it by whoever may.

Whom it watches is in the ledger; what it has seen and cosigned is on the disk beside it, as with any
witness, for it must not be longer in the ledger than that is synced, nor make it grow with every checkpoint
of another hive."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from skep.fs.errors import E, FsError, from_oserror
from skep.fs.node import Caller
from skep.namespaces.follow import AUDITORS
from skep.namespaces.live import Hive
from skep.namespaces.log.tree import check
from skep.namespaces.seen import Witness, WitnessError
from skep.namespaces.shown import added
from skep.trace.note import parse_vkey

PLACE: Final = Path("log", "trace", "witness")  # in the hive's directory


class Watching:
    """The witness that a hive is."""

    def __init__(self, hive: Hive) -> None:
        self.hive = hive
        self._found: Witness | None = None  # None: not needed yet
        self._adding = asyncio.Lock()

    def found(self, caller: Caller) -> Witness:
        """The witness, for who may look at it. Raises FsError."""
        check(caller)
        return self._witness()

    def _witness(self) -> Witness:
        if self._found is None:
            name = f"{self.hive.state.trust.hive or 'hive'}/witness"
            try:
                self._found = Witness(self.hive.directory / PLACE, name, self.hive.clock)
            except WitnessError as error:
                raise FsError(E.IO, str(error)) from error
        return self._found

    async def add(self, caller: Caller, said: bytes) -> str:
        """What is answered to an add-checkpoint. Raises FsError."""
        check(caller, AUDITORS)
        async with self._adding:
            witness, of = self._witness(), self.hive.state.log.witnesses
            return await asyncio.to_thread(_added, witness, of.watched.copy(), of.cleared.copy(), said)


def _added(
    witness: Witness, watched: Mapping[str, Sequence[str]], cleared: Collection[str], said: bytes
) -> str:
    try:
        for origin, keys in watched.items():
            witness.trust(origin, [parse_vkey(key) for key in keys])
        for id in cleared:
            if id in witness.splits and not witness.splits[id].cleared_s:
                witness.clear(id)
    except WitnessError as error:
        raise FsError(E.QUOTA, str(error)) from error
    except OSError as error:
        raise from_oserror(error) from error
    origin = said.partition(b"\n\n")[2].partition(b"\n")[0].decode("utf-8", "replace")
    if origin in witness.seen and origin not in watched:
        raise FsError(E.DENIED, f"rule=origins {origin}: not a log of this witness any more")
    return added(witness, said)
