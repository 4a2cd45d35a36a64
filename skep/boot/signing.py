"""Who answers for a boot: a signed note over its manifest and every file that the manifest names.

    skep boot manifest
    name worker
    counter 7
    expires 2026-12-20T00:00:00.000000000Z
    manifest sha256:<64 hex digits> 412 boot.toml
    kernel sha256:<64 hex digits> 18812 kernel
    module sha256:<64 hex digits> 4096 rootserver

    — worker <base64>

The note (trace/note.py) stands beside the manifest, NAME.sig; its key is called as the manifest's name. There
is one text for one meaning: a note that is not what would be written for what it says, is none. Reading the
files is staging.py's."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from skep.trace.clock import parse_rfc3339, rfc3339
from skep.trace.note import NoteError, Signing, Vkey, parse_note, sign_note
from skep.trace.whole import write_whole

SUFFIX: Final = ".sig"  # after the whole name of the manifest
HEAD: Final = "skep boot manifest"
NEVER: Final = "never"
COUNTER_MAX: Final = 2**53 - 1  # a JSON number that every reader takes whole
_LINE: Final = re.compile(r"([a-z]+) sha256:([0-9a-f]{64}) (0|[1-9][0-9]{0,18}) ([^\n]+)")


class SignatureError(Exception):
    """What is there is not what was signed, or not by whom it must be; the text names it."""


class Item(NamedTuple):
    """A file. ``path`` is relative to the manifest's directory, ``sha256`` in hex."""

    kind: str
    sha256: str
    size: int
    path: str

    def __str__(self) -> str:
        return f"{self.kind} sha256:{self.sha256} {self.size} {self.path}"


class Statement(NamedTuple):
    """What is signed. ``counter`` rises with each release of ``name``; ``expires_ns`` None: never.
    The first item is the manifest."""

    name: str
    counter: int
    expires_ns: int | None
    items: tuple[Item, ...]

    def __str__(self) -> str:
        expires = NEVER if self.expires_ns is None else rfc3339(self.expires_ns)
        head = [HEAD, f"name {self.name}", f"counter {self.counter}", f"expires {expires}"]
        return "".join(f"{line}\n" for line in (*head, *self.items))


def sign(statement: Statement, key: Ed25519PrivateKey) -> bytes:
    """The note. Raises SignatureError when it could not be read back, as for a path with a control character
    or for too many files."""
    text = str(statement)
    note = sign_note(text, statement.name, [Signing.of(key)])
    try:
        parse_note(note)
    except NoteError as error:
        raise SignatureError(str(error)) from error
    if parse(text) != statement:
        raise SignatureError(f"{statement.name}: it has a path that no signature can name")
    return note


def parse(text: str) -> Statement:
    """Raises SignatureError."""
    lines = text.split("\n")
    said = [line.partition(" ") for line in lines[1:4]]
    items = tuple(Item(m[1], m[2], int(m[3]), m[4]) for m in map(_LINE.fullmatch, lines[4:-1]) if m)
    try:
        counter = int(said[1][2])
        expires = None if said[2][2] == NEVER else parse_rfc3339(said[2][2])
        found = Statement(said[0][2], counter, expires, items)
    except (IndexError, ValueError) as error:
        raise SignatureError("the signature is of no boot manifest") from error
    if str(found) != text or not items or not 0 < counter <= COUNTER_MAX:
        raise SignatureError("the signature is of no boot manifest")
    return found


def check(note: bytes, trusted: Sequence[Ed25519PublicKey], now_ns: int) -> Statement:
    """What one of ``trusted`` has signed, if it holds now. Raises SignatureError."""
    try:
        found = parse_note(note)
        statement = parse(found.text)
        found.signers([Vkey(statement.name, key.public_bytes_raw()) for key in trusted])
    except NoteError as error:
        raise SignatureError(str(error)) from error
    if statement.expires_ns is not None and now_ns >= statement.expires_ns:
        raise SignatureError(f"the signature of {statement.name} expired at {rfc3339(statement.expires_ns)}")
    return statement


def compare(signed: Iterable[Item], found: Iterable[Item]) -> None:
    """Raises SignatureError for the first file that is not as it was signed, or not there."""
    expected, here = ({item.path: item for item in items} for items in (signed, found))
    for path in [*expected, *here]:
        if path not in here:
            raise SignatureError(f"{path}: signed, and not named by the manifest")
        if path not in expected:
            raise SignatureError(f"{path}: named by the manifest, and not signed")
        if here[path] != expected[path]:
            raise SignatureError(f"{path}: not what was signed: it is {here[path]}, signed: {expected[path]}")


class _Last(msgspec.Struct, frozen=True):
    """The highest counter of a name, and the digest of the statement that had it."""

    counter: int
    statement: str


class Seen:
    """What was admitted before, in a file: so that what was replaced for a reason does not come back."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def admit(self, statement: Statement) -> None:
        """Remember it, on the disk when this returns. Raises SignatureError when a later one was admitted, or
        another with its counter; OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._admit(statement)
        finally:
            os.close(lock)

    def _admit(self, statement: Statement) -> None:
        known = self._known()
        now = _Last(statement.counter, sha256(str(statement).encode()).hexdigest())
        last = known.get(statement.name)
        if last == now:
            return
        if last is not None and last.counter == now.counter:
            raise SignatureError(f"{statement.name}: counter {now.counter} was of another statement before")
        if last is not None and last.counter > now.counter:
            raise SignatureError(
                f"{statement.name}: replayed: its counter is {now.counter}, {last.counter} was seen"
            )
        write_whole(self._path, msgspec.json.encode(known | {statement.name: now}, order="sorted"))

    def _known(self) -> dict[str, _Last]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Last])
        except FileNotFoundError:
            return {}
        except msgspec.DecodeError as error:
            raise SignatureError(f"{self._path}: not the counters that were seen: {error}") from error
