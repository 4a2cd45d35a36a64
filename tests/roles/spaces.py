"""A server whose every client is in the namespace of one manifest."""

from __future__ import annotations

from skep.fs.chan import Chan
from skep.fs.conversation import Gate, Peer
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Node
from skep.roles.manifest import Manifest
from skep.roles.view import Names


class Space(Gate):
    """The gate of ``root``; ``names``: what the manifest's variables stand for."""

    def __init__(self, root: Node, manifest: Manifest, names: Names | None = None) -> None:
        self.root = root
        self.manifest = manifest
        self.names = names or {}

    async def attach(
        self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None
    ) -> Chan:
        chan = Chan(self.root, Caller("test", "test"), self.manifest.view(self.names))
        return await self.manifest.enter(chan)

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        raise FsError(E.NOTSUP)
