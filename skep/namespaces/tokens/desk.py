"""The hive's token desk: where tokens are made, and where those shown at the gate are believed or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from biscuit_auth import Biscuit

from skep.fs.errors import E, FsError
from skep.namespaces.lockout import Lockout
from skep.namespaces.tokens import biscuit
from skep.namespaces.tokens.biscuit import Asked, Terms, TokenError
from skep.namespaces.tokens.core import Tokens, World, doubt_of
from skep.namespaces.tokens.grant import Grant, channel_of, granted
from skep.namespaces.tokens.held import Held
from skep.trace.clock import Clock
from skep.trace.rules import Refusal


class Keys(NamedTuple):
    """The hive's token keys, Ed25519, 32 raw bytes each. ``public``: those that are believed, its own first;
    more than one while keys are rotated."""

    private: bytes
    public: tuple[bytes, ...]


class Fresh(NamedTuple):
    """A token just made: what it goes by, the public key it is verified by, and itself, in base64."""

    id: str
    key: str
    token: str


class Bearer(NamedTuple):
    """Who shows a token, as the transport tells. ``peer``: what failures are counted by; ``tenant``: which
    is attached to; ``binding``: of the TLS channel, empty where there is none."""

    peer: str
    principal: str
    tenant: str
    binding: bytes


class State(World, Protocol):
    @property
    def tokens(self) -> Tokens:
        """Those that were minted."""


class Desk:
    """``keys`` is asked each time, so that a rotation needs no telling; ``state`` is the durable one."""

    def __init__(self, clock: Clock, keys: Callable[[], Keys], state: Callable[[], State]) -> None:
        self._clock = clock
        self._keys = keys
        self._state = state
        self.lockout = Lockout(clock, "token-lockout")
        self.held = Held(clock)

    @property
    def public_key(self) -> bytes:
        return self._keys().public[0]

    @property
    def needed(self) -> bool:
        """Whether there is any token to be shown."""
        return bool(self._state().tokens.by_id)

    def mint(self, terms: Terms) -> Fresh:
        """A token that no one knows yet. Raises TokenError."""
        keys = self._keys()
        public = keys.public[0]
        token = biscuit.mint(biscuit.private_key(keys.private), biscuit.key_id(public), terms)
        return Fresh(biscuit.ids_of(token)[0], public.hex(), token.to_base64())

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
        doubt = self._doubt(grant)
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

    def recheck(self) -> None:
        """Something was revoked, or a key retired: end the sessions that live under what is good no more."""
        self.held.keep(lambda grant: self._doubt(grant) is None)

    def _doubt(self, grant: Grant) -> Refusal | None:
        state = self._state()
        return doubt_of(state.tokens, grant.revocation_ids, state, self._clock.now_ns())

    def _read(self, written: bytes) -> tuple[Biscuit, Grant]:
        keys = {biscuit.key_id(raw): biscuit.public_key(raw) for raw in self._keys().public}
        token = biscuit.verify(biscuit.decode(written), keys)
        return token, granted(biscuit.ids_of(token), biscuit.read(token))
