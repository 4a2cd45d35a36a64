"""The hive's token desk: where tokens are made, and where those shown at the gate are believed or not."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple, Protocol

from biscuit_auth import Biscuit

from skep.fs.errors import E, FsError
from skep.namespaces.lockout import Lockout
from skep.namespaces.tokens import biscuit
from skep.namespaces.tokens.biscuit import Asked, Terms, TokenError
from skep.namespaces.tokens.core import Tokens, doubt_of
from skep.namespaces.tokens.grant import Grant, channel_of, granted
from skep.namespaces.tokens.held import Held
from skep.trace.clock import Clock


class Keys(NamedTuple):
    """The hive's token keys, Ed25519, 32 raw bytes each. ``public``: those that are believed, its own first;
    more than one while keys are rotated."""

    private: bytes
    public: tuple[bytes, ...]


class Bearer(NamedTuple):
    """Who shows a token, as the transport tells. ``peer``: what failures are counted by; ``tenant``: which
    is attached to; ``binding``: of the TLS channel, empty where there is none."""

    peer: str
    principal: str
    tenant: str
    binding: bytes


class World(Protocol):
    @property
    def tokens(self) -> Tokens:
        """Those that were minted."""

    @property
    def revoked_tokens(self) -> Container[str]:
        """The ids of revoked blocks."""


class Desk:
    """``keys`` is asked each time, so that a rotation needs no telling; ``world`` is the durable state."""

    def __init__(self, clock: Clock, keys: Callable[[], Keys], world: Callable[[], World]) -> None:
        self._clock = clock
        self._keys = keys
        self._world = world
        self.lockout = Lockout(clock, "token-lockout")
        self.held = Held(clock)

    @property
    def public_key(self) -> bytes:
        return self._keys().public[0]

    @property
    def needed(self) -> bool:
        """Whether there is any token to be shown."""
        return bool(self._world().tokens.by_id)

    def mint(self, terms: Terms) -> tuple[str, str]:
        """What the new token's first block goes by, and the token as base64. Raises TokenError."""
        keys = self._keys()
        id = biscuit.key_id(keys.public[0])
        token = biscuit.mint(biscuit.private_key(keys.private), id, terms)
        return biscuit.ids_of(token)[0], token.to_base64()

    def believe(self, written: bytes, bearer: Bearer) -> Grant:
        """The grant of a token that was shown. Raises FsError, whose text names the reason, and never holds
        any of the token; THROTTLED, unlooked at, when the peer has shown too many bad ones."""
        self.lockout.check(bearer.peer)
        try:
            grant = self._believed(written, bearer)
        except FsError:
            self.lockout.failed(bearer.peer)
            raise
        self.lockout.passed(bearer.peer)
        return grant

    def _believed(self, written: bytes, bearer: Bearer) -> Grant:
        try:
            token, grant = self._read(written)
        except TokenError as error:
            raise FsError(E.UNSIGNED, str(error)) from None
        now_ns = self._clock.now_ns()
        grant.check(bearer.principal, bearer.binding, now_ns)
        world = self._world()
        doubt = doubt_of(world.tokens, grant.revocation_ids, world.revoked_tokens, now_ns)
        if doubt is not None:
            kind = E[doubt.code]
            raise FsError(kind, doubt.text.removeprefix(f"{kind.value.text}: "))
        if grant.tenant != bearer.tenant:
            raise FsError(E.DENIED, f"rule=token-tenant token={grant.revocation_ids[0]}")
        if grant.ops and grant.places:
            # We read the sentences ourselves, for views; the library that knows their meaning agrees, or no.
            asked = Asked(
                grant.tenant,
                min(grant.ops),
                min(grant.places),
                now_ns,
                bearer.principal,
                channel_of(bearer.binding),
                use=0,
            )
            if not biscuit.allows(token, asked):
                raise FsError(E.UNSIGNED, "its checks fail")
        return grant

    def _read(self, written: bytes) -> tuple[Biscuit, Grant]:
        keys = {biscuit.key_id(raw): biscuit.public_key(raw) for raw in self._keys().public}
        token = biscuit.verify(biscuit.decode(written), keys)
        return token, granted(biscuit.ids_of(token), biscuit.read(token))
