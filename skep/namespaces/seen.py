"""A witness, without what it listens on: its key, what it has seen, and what it keeps when a log has lied.

    <directory>/witness.key            Ed25519; it cosigns and nothing else
    <directory>/name                   what the key goes by
    <directory>/origins/<hash>.json    of each log: whose keys are believed, the last checkpoint that was
    cosigned <directory>/splits/<id>.json       two checkpoints that cannot both be true

<hash> is SHA-256 of the log's origin, in hex. A cosignature leaves after it is on the disk: whoever has it
can hold the witness to it, and killed at any moment it knows what it has signed.
"""

from __future__ import annotations

import contextlib
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from skep.namespaces.policy.keys import load_or_create
from skep.trace.clock import SECOND, Clock
from skep.trace.cosignature import cosign, cosignatures
from skep.trace.note import COSIGNER, PREFIX, NoteError, Signing, Vkey, parse_note
from skep.trace.whole import write_whole
from skep.trace.witness import (
    Answer,
    Contradiction,
    Declined,
    Seen,
    Shown,
    Split,
    check,
    is_evidence,
    parse_shown,
)

KEY: Final = "witness.key"
ORIGINS: Final = "origins"
SPLITS: Final = "splits"
ORIGINS_MAX: Final = 1024  # logs of one witness
SPLITS_MAX: Final = 64  # kept of one log: one says enough


class Frozen(Exception):
    """Nothing of the log is cosigned until an operator has looked at ``split``."""

    def __init__(self, split: Split) -> None:
        super().__init__(f"split={split.id} {split.why}: nothing of {split.origin} is cosigned any more")
        self.split = split


class WitnessError(Exception):
    """The witness cannot begin; the text says why and what to do."""


def named(origin: str) -> str:
    """What a log's files go by."""
    return sha256(origin.encode()).hexdigest()


class Witness:
    """What is known of every log, in memory and on the disk. Calls come one at a time, and each that changes
    something returns when that is on the disk."""

    def __init__(self, directory: Path, name: str, clock: Clock) -> None:
        """``name``: of a new witness; an older one has its own. Raises WitnessError, OSError."""
        for folder in (ORIGINS, SPLITS):
            (directory / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        self.clock = clock
        signer = load_or_create(directory / KEY)
        self._key = Signing(bytes.fromhex(signer.public), lambda said: bytes.fromhex(signer.sign(said)))
        self.vkey = Vkey(self._name(name), self._key.public, COSIGNER)
        self.seen: dict[str, Seen] = {}
        self.splits: dict[str, Split] = {}
        try:
            for path in (directory / ORIGINS).glob("*.json"):
                seen = msgspec.json.decode(path.read_bytes(), type=Seen)
                self.seen[seen.origin] = seen
            for path in (directory / SPLITS).glob("*.json"):
                split = msgspec.json.decode(path.read_bytes(), type=Split)
                self.splits[split.id] = split
        except (msgspec.DecodeError, NoteError) as error:
            raise WitnessError(f"{path}: {error}: what this witness has signed is not known") from error

    def _name(self, name: str) -> str:
        path = self.directory / "name"
        with contextlib.suppress(FileNotFoundError):
            return path.read_text("utf-8").strip()
        write_whole(path, f"{name}\n".encode())
        return name

    # whom it believes

    def trust(self, origin: str, keys: Sequence[Vkey]) -> None:
        """Believe these keys, too, to be those of the log ``origin``. Raises WitnessError, OSError."""
        if any(key.name != origin for key in keys):
            raise WitnessError(f"{keys[0]}: its name is not {origin}")
        seen = self.seen.get(origin, Seen(origin, ()))
        more = [str(key) for key in keys if str(key) not in seen.keys]
        if origin not in self.seen and len(self.seen) >= ORIGINS_MAX:
            raise WitnessError(f"{origin}: this witness has {ORIGINS_MAX} logs already")
        if more:
            self._keep(msgspec.structs.replace(seen, keys=(*seen.keys, *more)))

    # what it is shown

    def add_checkpoint(self, body: bytes) -> str:
        """The line of our cosignature, when what is shown may be cosigned. Raises Declined, Frozen, OSError;
        and Contradiction, whose split is kept by then."""
        shown = parse_shown(body)
        seen = self.seen.get(shown.checkpoint.origin)
        if seen is None:
            raise Declined(Answer.UNKNOWN, f"{shown.checkpoint.origin}: not a log of this witness")
        if (split := self.frozen(seen.origin)) is not None:
            raise Frozen(split)
        try:
            check(seen, shown)
        except Contradiction as error:
            self.keep_split(error.split)
            raise
        cosignature = cosign(shown.note.text, self.vkey.name, self._key, self._time_s(seen))
        note = f"{shown.note.text}\n{_signatures(shown, seen)}{cosignature.line()}"
        self._keep(msgspec.structs.replace(seen, note=note))
        return cosignature.line()

    def _time_s(self, seen: Seen) -> int:
        """Now, but never earlier than the last time."""
        last = cosignatures(parse_note(seen.note.encode()), [self.vkey]) if seen.note else []
        return max([self.clock.now_ns() // SECOND, *(each.time_s for each in last)])

    def _keep(self, seen: Seen) -> None:
        write_whole(self.directory / ORIGINS / f"{named(seen.origin)}.json", msgspec.json.encode(seen))
        self.seen[seen.origin] = seen

    # what it holds against a log

    def frozen(self, origin: str) -> Split | None:
        """Why nothing of the log is cosigned; None: it is."""
        return next((each for each in self._of(origin) if not each.cleared_s), None)

    def _of(self, origin: str) -> list[Split]:
        return [split for split in self.splits.values() if split.origin == origin]

    def keep_split(self, split: Split) -> None:
        """Cosign nothing of its log from now on. Known already, it is as it was. Raises OSError."""
        if split.id in self.splits or len(self._of(split.origin)) >= SPLITS_MAX:
            return
        self._write_split(msgspec.structs.replace(split, time_s=self.clock.now_ns() // SECOND, cleared_s=0))

    def adopt(self, split: Split) -> bool:
        """Whether what another witness has found was news, proves itself and is kept. Raises OSError."""
        seen = self.seen.get(split.origin)
        if seen is None or not is_evidence(split, seen.vkeys) or split.id in self.splits:
            return False
        self.keep_split(split)
        return True

    def clear(self, id: str) -> None:
        """Go on with its log, from what we cosigned last; the notes stay. Raises KeyError, OSError."""
        self._write_split(msgspec.structs.replace(self.splits[id], cleared_s=self.clock.now_ns() // SECOND))

    def _write_split(self, split: Split) -> None:
        write_whole(self.directory / SPLITS / f"{split.id}.json", msgspec.json.encode(split))
        self.splits[split.id] = split


def _signatures(shown: Shown, seen: Seen) -> str:
    """The lines of the log's own keys: others' have not been verified."""
    known = {(key.name, key.id) for key in seen.vkeys}
    return "".join(
        f"{PREFIX}{name} {b64encode(data).decode()}\n"
        for name, data in shown.note.signatures
        if (name, data[:4]) in known
    )
