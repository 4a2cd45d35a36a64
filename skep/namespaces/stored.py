"""A hive's state as bytes, and the snapshots that a hive may begin from.

The bytes are MessagePack of what the types say; what is only remembered to be quick (``compare=False``) is
no part of them, and is made anew. They are understood by the very rules that folded them: a release that
folds otherwise has another fingerprint, passes them over and folds the ledger from its beginning.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import MISSING, Field, fields, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, get_origin

import msgspec

from skep.namespaces.hive import HiveState
from skep.namespaces.policy.core import lives
from skep.namespaces.policy.engine import Engine, engine
from skep.trace.checkpoint import origin_of
from skep.trace.digest import digest
from skep.trace.ledger import Ledger
from skep.trace.note import NoteError, Vkey
from skep.trace.snapshot import Head, Snapshot, SnapshotError, listed, read_snapshot, state_hash

log = logging.getLogger("skep.snapshot")
ROOMS: Final = ("trace", "namespaces")  # whose code a fold runs through

T = TypeVar("T")


class Begun(NamedTuple):
    """A state to go on from: what the first ``seq`` entries mean."""

    state: HiveState
    seq: int


class OtherCode(SnapshotError):
    """It may be what the ledger meant to the code that made it."""


# bytes


def pack_state(state: HiveState) -> bytes:
    # An OrderedDict is packed in the order in which its keys first came: in a copy that is the right one.
    state = state.copy()
    nouns = {each.name: _bare(getattr(state, each.name)) for each in fields(state)}
    return _encoder.encode(replace(state, **nouns))


def unpack_state(packed: bytes) -> HiveState:
    """A state that decides and folds as the one that was packed. Raises SnapshotError."""
    try:
        state = _decoder.decode(packed)
    except msgspec.DecodeError as error:
        raise SnapshotError(f"its state: {error}") from error
    state.policy.live = engine(lives(state.policy))
    return state


def _bare(noun: T) -> T:
    """A noun's part of the state, or a plain value, without what is only remembered."""
    if not hasattr(noun, "__dataclass_fields__"):
        return noun
    anew = {each.name: _fresh(each) for each in fields(noun) if not each.compare}  # type: ignore[arg-type]
    return replace(noun, **anew) if anew else noun  # type: ignore[type-var]


def _fresh(of: Field[Any]) -> Any:
    assert of.default_factory is not MISSING, of.name
    return of.default_factory()


def _encoded(value: Any) -> Any:
    if isinstance(value, Engine):
        return None  # of what is live, which is beside it
    raise NotImplementedError(f"{type(value)}: no snapshot can hold it")


def _decoded(kind: Any, value: Any) -> Any:
    if get_origin(kind) is OrderedDict:
        return OrderedDict(value)
    if kind is Engine:
        return engine(())
    raise NotImplementedError(f"{kind}: no snapshot can hold it")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_encoded)
_decoder: Final = msgspec.msgpack.Decoder(HiveState, dec_hook=_decoded)


@cache
def fingerprint() -> str:
    """Of the code that folds, in hex: of all that it could run through."""
    hashed = sha256()
    top = Path(__file__).parent.parent
    paths = sorted(path for room in ROOMS for path in (top / room).rglob("*.py"))
    assert Path(__file__) in paths, "a release comes with its sources"
    for path in paths:
        name, text = str(path.relative_to(top)).encode(), path.read_bytes()
        hashed.update(b"%d:%s%d:" % (len(name), name, len(text)) + text)
    return hashed.hexdigest()


# snapshots


def head_of(state: HiveState, ledger: Ledger) -> tuple[Head, bytes]:
    """What is to be signed of a state that all of the ledger's entries were folded to, and its bytes."""
    packed = pack_state(state)
    hashes = state_hash(packed), digest(state), fingerprint()
    return Head(origin_of(state.trust.hive), ledger.size, ledger.root, *hashes), packed


def snapshots(
    directory: Path, ledger: Ledger, keys: Collection[bytes], upto: int | None = None
) -> Iterator[tuple[Snapshot, HiveState]]:
    """The good ones of a hive's directory up to entry ``upto``, the newest first: signed by one of ``keys``,
    public ones, made by this code, of this ledger as it says it is. Others are passed over with a line in the
    log. The ledger's tail has yet to verify the root."""
    for size, path in listed(directory):
        if upto is not None and size > upto:
            continue
        try:
            found = read_snapshot(path)
            state = believed(found, size, ledger, keys)
        except SnapshotError as error:
            log.warning("%s is passed over: %s", path, error)
            continue
        yield found, state


def newest(directory: Path, ledger: Ledger, keys: Collection[bytes], upto: int | None = None) -> Begun | None:
    """Where to begin; None: at the ledger's beginning."""
    for found, state in snapshots(directory, ledger, keys, upto):
        return Begun(state, found.head.size)
    return None


def believed(found: Snapshot, size: int, ledger: Ledger, keys: Collection[bytes]) -> HiveState:
    """The state of a snapshot that is good. Raises SnapshotError, OtherCode."""
    head = found.head
    if head.size != size:
        raise SnapshotError(f"it is of entry {head.size}")
    if head.rules != fingerprint():
        raise OtherCode("it was made by other code than this")
    if ledger.committed_root(size) != head.root:
        raise SnapshotError("it is not of this ledger")
    try:
        found.note.signers(Vkey(head.origin, key) for key in keys)
    except NoteError as error:
        raise SnapshotError(str(error)) from error
    state = unpack_state(found.packed)
    if origin_of(state.trust.hive) != head.origin:
        raise SnapshotError(f"it is of {state.trust.hive}, and signed for {head.origin}")
    return state
