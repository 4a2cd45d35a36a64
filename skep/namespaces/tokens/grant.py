"""What a token gives the session it is presented to: its own view, narrowed; until when, and for whom.

A place is inside when one of the granted places is it or leads to it, name by name. On the way to a granted
place only the names that lead there exist, and can be listed if they could be without the token; whatever
else is outside does not exist. A token that comes to nothing leaves the root, where nothing may be done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import reduce
from hmac import compare_digest
from typing import Final, NamedTuple

from skep.fs.chan import ALL_RIGHTS, Right, View
from skep.fs.errors import E, FsError
from skep.namespaces.tokens.biscuit import Place, Terms
from skep.trace.clock import rfc3339

RIGHTS: Final = {
    "read": Right.READ,
    "write": Right.WRITE,
    "create": Right.CREATE,
    "remove": Right.REMOVE,
}
_LISTED: Final = Right.READ | Right.LIST  # either lets a directory's names be seen


class Grant(NamedTuple):
    """All blocks of a token, taken together.

    ``revocation_ids``: what each block goes by; ``uses``: how many commands may be written under it, None:
    any number. ``places`` are none inside another."""

    revocation_ids: tuple[str, ...]
    uses: tuple[int | None, ...]
    tenant: str
    ops: frozenset[str]
    places: frozenset[Place]
    until_ns: int
    subjects: frozenset[str]  # the principals it names: whoever presents it must be each of them
    channels: frozenset[str]  # sha256 of bindings, likewise

    @property
    def token(self) -> str:
        """What the ledger tells of it with each line: ``id[=uses]`` of each block."""
        pairs = zip(self.revocation_ids, self.uses, strict=True)
        return " ".join(id if uses is None else f"{id}={uses}" for id, uses in pairs)

    @property
    def rights(self) -> Right:
        return reduce(Right.__or__, map(RIGHTS.__getitem__, self.ops), Right(0))

    def check(self, principal: str, binding: bytes, now_ns: int) -> None:
        """Refuse who may not present it here and now. ``binding``: of the channel it came through; empty:
        not encrypted. Raises FsError."""
        if now_ns >= self.until_ns:
            raise FsError(E.EXPIRED, f"token={self.revocation_ids[0]} until={rfc3339(self.until_ns)}")
        if not self.subjects <= {principal}:
            raise FsError(E.DENIED, f"rule=token-subject token={self.revocation_ids[0]}")
        channel = channel_of(binding)
        if not all(compare_digest(bound, channel) for bound in self.channels):
            raise FsError(E.DENIED, f"rule=token-channel token={self.revocation_ids[0]}")

    def view(self, base: View) -> View:
        """``base``, the session's view from its root, narrowed."""
        return _narrowed(base, tuple(self.places), self.rights) or _Nothing()


def channel_of(binding: bytes) -> str:
    """How a token names a TLS channel; "" where there is none."""
    return hashlib.sha256(binding).hexdigest() if binding else ""


def granted(ids: Sequence[str], blocks: Sequence[Terms]) -> Grant:
    """The grant of a token whose blocks go by ``ids`` and say ``blocks``."""
    first = blocks[0]
    assert first.tenant is not None
    assert first.ops is not None
    assert first.places is not None
    ops, places = first.ops, innermost(first.places)
    for terms in blocks[1:]:
        ops &= terms.ops if terms.ops is not None else ops
        places = meet(places, terms.places) if terms.places is not None else places
    return Grant(
        tuple(ids),
        tuple(terms.uses for terms in blocks),
        first.tenant,
        ops,
        places,
        min(terms.until_ns for terms in blocks if terms.until_ns is not None),
        frozenset(terms.subject for terms in blocks if terms.subject is not None),
        frozenset(terms.channel for terms in blocks if terms.channel is not None),
    )


def is_inside(place: Place, places: Iterable[Place]) -> bool:
    """Whether one of ``places`` is ``place`` or leads to it."""
    return any(place[: len(above)] == above for above in places)


def meet(one: frozenset[Place], other: frozenset[Place]) -> frozenset[Place]:
    """The places whose insides are inside both."""
    both = {place for place in one if is_inside(place, other)}
    return innermost(both | {place for place in other if is_inside(place, one)})


def innermost(places: Iterable[Place]) -> frozenset[Place]:
    """``places`` without those inside others: together they hold the same."""
    every = set(places)
    return frozenset(place for place in every if not is_inside(place, every - {place}))


# the view


class _Nothing:
    rights = Right(0)

    def child(self, name: str) -> View | None:
        return None


class _Way:
    """A place on the way to granted ones. ``ahead``: what is left of each path, none of them empty."""

    __slots__ = ("_ahead", "_base", "_granted", "rights")

    def __init__(self, base: View, ahead: tuple[Place, ...], granted: Right) -> None:
        self._base = base
        self._ahead = ahead
        self._granted = granted
        self.rights = Right.LIST if base.rights & _LISTED else Right(0)

    def child(self, name: str) -> View | None:
        ahead = tuple(place[1:] for place in self._ahead if place[0] == name)
        below = self._base.child(name) if ahead else None
        return None if below is None else _narrowed(below, ahead, self._granted)


class _Inside:
    """A place inside a granted one: less may be done than without the token."""

    __slots__ = ("_base", "_granted", "rights")

    def __init__(self, base: View, granted: Right) -> None:
        self._base = base
        self._granted = granted
        self.rights = base.rights & granted | (Right.LIST if base.rights & _LISTED else Right(0))

    def child(self, name: str) -> View | None:
        below = self._base.child(name)
        if below is None:
            return None
        return self if below is self._base else _Inside(below, self._granted)


def _narrowed(base: View, ahead: tuple[Place, ...], granted: Right) -> View | None:
    """The view from a place with these paths ahead; None: nothing is granted there or below."""
    if not ahead or not granted:
        return None
    if () not in ahead:
        return _Way(base, ahead, granted)
    return base if granted == ALL_RIGHTS else _Inside(base, granted)
