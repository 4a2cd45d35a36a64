"""Snapshots held against what their ledger means: a snapshot and the tail must be the fold of it all."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from skep.namespaces.evidence import KEY_FILE
from skep.namespaces.hive import HiveState
from skep.namespaces.policy.keys import BadKey, load
from skep.namespaces.stored import Begun, OtherCode, believed, newest
from skep.trace.digest import digest
from skep.trace.ledger import Ledger
from skep.trace.snapshot import SnapshotError, listed, read_snapshot
from skep.validator.verify.sources import LedgerSource

SAME: Final = "the same"


class Checked(msgspec.Struct, frozen=True):
    """A snapshot up to entry ``size``: what was found, and whether that is ``wrong``."""

    size: int
    said: str
    wrong: bool


class Checks:
    """The snapshots beside a ledger, each to be held against the state that is folded to its size."""

    def __init__(self, directory: Path, ledger: Ledger, keys: Collection[bytes]) -> None:
        self._found: list[Checked] = []
        self._paths = dict(listed(directory))
        for size in self._paths:
            # As where a ledger was put back that is older than they are.
            if ledger.committed_root(size) is None:
                self._found.append(Checked(size, "no commit of the ledger ends there", wrong=True))
        self._ledger = ledger
        self._keys = keys

    @property
    def found(self) -> list[Checked]:
        """By their sizes."""
        return sorted(self._found, key=lambda each: each.size)

    def hold(self, seq: int, state: HiveState) -> None:
        """The ledger's first ``seq`` entries mean ``state``."""
        path = self._paths.get(seq)
        if path is None:
            return
        try:
            said = self._compared(path, seq, state)
        except OtherCode as error:
            self._found.append(Checked(seq, f"passed over: {error}", wrong=False))
        except SnapshotError as error:
            self._found.append(Checked(seq, str(error), wrong=True))
        else:
            self._found.append(Checked(seq, said, said != SAME))

    def _compared(self, path: Path, seq: int, state: HiveState) -> str:
        found = read_snapshot(path)
        theirs = believed(found, seq, self._ledger, self._keys)
        ours = digest(state)
        for there in (digest(theirs), found.head.digest):
            if there != ours:
                return f"it has state {there}, folded is {ours}"
        # The order in which things came decides too, and is no part of a state's digest.
        if digest(theirs, ordered=True) != digest(state, ordered=True):
            return "it has the same state in another order"
        return SAME


class Beside:
    """The snapshots beside the ledger in the file at ``path``."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self._path = path
        self._ledger = ledger

    def before(self, first: int) -> Begun | None:
        """The newest of what is before entry ``first``; None: there is none. Raises Finding."""
        directory = self._path.parent
        if not any(size < first for size, _ in listed(directory)):
            return None
        return newest(directory, self._ledger, _known_keys(self._path), first - 1)

    def checks(self) -> Checks:
        """Raises Finding."""
        return Checks(self._path.parent, self._ledger, _known_keys(self._path))


def _known_keys(path: Path) -> set[bytes]:
    """The public keys of which the ledger in a file says that they sign for it; of a hive without
    certificates the one beside it. Raises Finding."""
    named = LedgerSource(path).keys()
    found = {key.public for key in named}
    if not found:
        with suppress(OSError, BadKey):
            found.add(bytes.fromhex(load(path.with_name(KEY_FILE)).public))
    return found
