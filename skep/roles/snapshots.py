"""Snapshots of a hive: made by a process of their own, signed with the hive's keys.

The hive's loop folds nothing twice and waits for nothing: a process beside it, which has nothing but the
ledger and the snapshot before, folds on, and has the queen sign what it came to. It may be killed at any
time, and find no space: then there is no new snapshot, and the next start takes longer.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable, Collection
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from skep.namespaces.evidence import KEY_FILE, Evidence
from skep.namespaces.hive import Event, HiveRules
from skep.namespaces.live import Hive
from skep.namespaces.policy.keys import load
from skep.namespaces.stored import Begun, fingerprint, head_of, newest
from skep.namespaces.trust.keys import Keys, KeyStoreError
from skep.trace.entry import entry_decoder
from skep.trace.fold import apply_entry, tail_entries
from skep.trace.ledger import Ledger, LedgerError
from skep.trace.note import Signing, sign_note
from skep.trace.snapshot import (
    TEXT_MAX,
    SnapshotError,
    parse_head,
    write_snapshot,
)

log = logging.getLogger("skep.snapshot")
EVERY: Final = 100_000  # entries from one to the next: a second or two of a start.
LATE: Final = 2  # times that many, and the hive need not be idle.
LOOK_S: Final = 5.0  # between two looks; no entry came meanwhile: it is idle.
LIMIT_S: Final = 3600  # for one: some ten million entries from the first.
END: Final = b"\n\n"  # of a text that is to be signed, an empty line behind it
LOCK: Final = "snapshot.lock"  # in the hive's directory

Sign = Callable[[str], bytes]
"""The signed note of a head's text. Raises SnapshotError."""


def own_keys(directory: Path, kms: str) -> dict[bytes, Signing]:
    """The hive's keys of tree heads whose private halves are here, by the public ones: what they have signed
    nobody else has. Raises KeyStoreError, BadKey."""
    found = []
    if (directory / "keys").is_dir():
        with closing(Keys.open(directory / "keys", kms)) as keys:
            found = [Signing.of(keys.plain("merkle", id)) for id in keys.ids("merkle")]
    elif (directory / KEY_FILE).exists():
        signer = load(directory / KEY_FILE)
        found = [Signing(bytes.fromhex(signer.public), lambda said: bytes.fromhex(signer.sign(said)))]
    return {key.public: key for key in found}


def make(directory: Path, ledger: Ledger, keys: Collection[bytes], sign: Sign) -> Path | None:
    """Fold the ledger, from the newest snapshot that one of ``keys`` has signed, and write down what it comes
    to; None: nothing has come since that one. For one process at a time, that does nothing else.

    Raises LedgerError, SnapshotError, OSError."""
    gc.disable()
    rules = HiveRules()
    state, seq = newest(directory, ledger, keys) or Begun(rules.fresh(), 0)
    for entry in tail_entries(ledger, entry_decoder(Event), seq):
        apply_entry(rules, state, entry)
    if ledger.size == seq:
        return None
    head, packed = head_of(state, ledger)
    return write_snapshot(directory, sign(head.text()), packed)


class Maker:
    """Has snapshots of a running hive made, one at a time. ``command``: the program that makes one, without
    the keys that it may believe; ``last``: the entry up to which there is one."""

    def __init__(self, hive: Hive, command: list[str], every: int, last: int = 0) -> None:
        self.hive = hive
        self.every = every
        self._command = command
        self._evidence = Evidence(hive)
        self._last = last
        self._seen = -1  # the hive's last entry at the look before

    async def run(self) -> None:
        """Make those that are due, until cancelled."""
        while True:
            if self.is_due():
                await self.make()
            await asyncio.sleep(LOOK_S)

    def is_due(self) -> bool:
        """Whether enough has come since the last, and the hive is idle or more than enough has come."""
        behind, idle = self.hive.turn.seq - self._last, self.hive.turn.seq == self._seen
        self._seen = self.hive.turn.seq
        return behind >= self.every * (1 if idle or not self._last else LATE)

    async def make(self) -> bool:
        """Whether there is a new one. One that fails is not tried again before the next is due."""
        self._last = self.hive.turn.seq
        try:
            said = await self._made()
        except (OSError, LedgerError, KeyStoreError) as error:
            said = str(error)
        if said:
            log.warning("no snapshot: %s", said)
        return not said

    async def _made(self) -> str:
        """Have a process make one; what went wrong, or ""."""
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *(word for key in self._evidence.signing() for word in ("--ask", key.public.hex())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(LIMIT_S):
                return await self._answered(process)
        except TimeoutError:
            return f"not in {LIMIT_S} s"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _answered(self, process: asyncio.subprocess.Process) -> str:
        """Sign what the process comes to, and let it end; what went wrong, or ""."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        note, said = b"", ""
        with suppress(asyncio.IncompleteReadError):
            text = await process.stdout.readuntil(END)
            try:
                note = self.signed(text[:-1].decode("utf-8", "replace"))
            except SnapshotError as error:
                said = str(error)
        _, complaint = await process.communicate(note)
        if said or not process.returncode:
            return said
        return complaint.decode("utf-8", "replace").strip()[-TEXT_MAX:] or f"ended with {process.returncode}"

    def signed(self, text: str) -> bytes:
        """The note of a head that is of this hive's ledger. Raises SnapshotError."""
        head = parse_head(text)
        root = self.hive.turn.ledger.committed_root(head.size)
        if head.rules != fingerprint():
            raise SnapshotError("other code was installed since this hive was started: start it again")
        if (head.origin, head.root) != (self._evidence.origin, root):
            raise SnapshotError(f"entry {head.size} of {head.origin} is not this hive's")
        return sign_note(text, head.origin, self._evidence.signing())


def asked(text: str) -> bytes:
    """The note that who started this process makes of the text. Raises SnapshotError."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    note = sys.stdin.buffer.read()
    if not note:
        raise SnapshotError("nobody signs it")
    return note


def signing_by(keys: dict[bytes, Signing]) -> Sign:
    """What signs with the keys of a hive that nobody serves."""

    def sign(text: str) -> bytes:
        if not keys:
            raise SnapshotError("the hive's keys are not here")
        return sign_note(text, parse_head(text).origin, list(keys.values()))

    return sign
