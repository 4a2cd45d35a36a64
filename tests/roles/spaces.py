"""A server whose every client is in the namespace of one manifest, narrowed by the token it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from biscuit_auth import Biscuit

from skep.fs.chan import Chan
from skep.fs.conversation import Gate, Peer
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Node
from skep.namespaces.tokens import biscuit
from skep.namespaces.tokens.afid import Afids, written
from skep.namespaces.tokens.biscuit import Terms
from skep.namespaces.tokens.core import Minted, Tokens, apply
from skep.namespaces.tokens.desk import Bearer, Desk
from skep.roles.manifest import Manifest
from skep.roles.view import Names
from skep.trace.clock import Clock
from skep.trace.rules import Meta
from tests.namespaces.token_terms import PAIR, TENANT, keys

USER = "test"


@dataclass
class Minting:
    """A hive that mints tokens: what its ledger says of them, and its desk."""

    clock: Clock
    tokens: Tokens = field(default_factory=Tokens)
    revoked_tokens: set[str] = field(default_factory=set)
    retired_token_keys: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.desk = Desk(self.clock, keys, lambda: self)

    def mint(self, first: Terms, more: Sequence[Terms] = ()) -> bytes:
        """A token of that first block, which its holder has narrowed by the others."""
        fresh = self.desk.mint(first)
        assert first.until_ns is not None
        said = Minted(fresh.id, fresh.key, (), (), TENANT, first.until_ns, USER)
        apply(self.tokens, said, Meta(1, self.clock.now_ns(), USER))
        token = Biscuit.from_base64(fresh.token, PAIR.public_key)
        for terms in more:
            token = biscuit.attenuate(token, terms)
        return token.to_base64().encode()


class Space(Gate):
    """The gate of ``root``; ``names``: what the manifest's variables stand for. ``minting``: whose tokens are
    believed; None: nobody's. ``ended``: whether a session was ended because its token did."""

    def __init__(
        self, root: Node, manifest: Manifest, names: Names | None = None, minting: Minting | None = None
    ) -> None:
        self.root = root
        self.manifest = manifest
        self.names = names or {}
        self.minting = minting
        self.afids = Afids()
        self.ended = False

    async def attach(
        self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None
    ) -> Chan:
        view = whole = self.manifest.view(self.names)
        if afid is not None:
            assert self.minting is not None, "auth gave an afid"
            desk = self.minting.desk
            grant = desk.believe(written(afid), Bearer(USER, USER, TENANT, b""))
            desk.held.hold(grant, self._end)
            view = grant.view(whole)
        return await self.manifest.enter(Chan(self.root, Caller(USER, USER), view), whole)

    def _end(self) -> None:
        self.ended = True

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        if self.minting is None:
            raise FsError(E.NOTSUP)
        return self.afids.chan()
