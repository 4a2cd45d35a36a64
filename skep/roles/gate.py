"""Who may attach to a hive, and as what: decided by the socket they came through, never by what they say.

    socket             who                                             role
    hive.sock          the queen's own user, and root                  operator
    worker.sock        the same; the uname names the node              drone-worker
    TCP on loopback    anybody on this machine                         observer, unless the queen was told

A Unix peer is its kernel credentials; a uname or n_uname that says otherwise is refused, for a client that
is mistaken about who it is would be mistaken about what it may do. Workers of one user cannot be told apart
by credentials, so between them the uname is believed: a node's name belongs to the user that had it first
(/nodes), and to one process at a time. TCP knows nobody, so everybody there is the same stranger.

Everything not said here is refused. TLS, which knows everybody, comes with its own listener.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from typing import Final

from skep.fs.chan import Chan
from skep.fs.conversation import Conversation, Peer
from skep.fs.errors import E, FsError
from skep.fs.messages import NONUNAME
from skep.fs.node import Caller, Node
from skep.fs.owners import user_name
from skep.namespaces.hive import WORKER
from skep.namespaces.live import Hive
from skep.namespaces.sessions.core import Session
from skep.roles.manifest import Manifest, Names

TENANT: Final = "default/default/default"  # the only one, until tenants come
TREE_NAMES: Final = ("", "/", TENANT)  # the anames that mean it; "/" is what some clients say for nothing
ANNEX: Final = "cuda-annex"
UNAMES_MISSING: Final = ("", "nobody")  # v9fs says nobody when it was told nothing
NODE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Doorkeeper:
    """The gate of one listener: every connection through it gets the role of ``manifest``."""

    def __init__(self, hive: Hive, root: Node, manifest: Manifest) -> None:
        self.hive = hive
        self.root = root
        self.manifest = manifest

    def greet(self, conversation: Conversation) -> Door:
        """The gate of one connection."""
        return Door(self, conversation)


class Door:
    """One connection: however often its client attaches, it is one session."""

    def __init__(self, keeper: Doorkeeper, conversation: Conversation) -> None:
        self.keeper = keeper
        self.conversation = conversation
        self.session: Session | None = None  # None: nobody has attached yet, or the connection has ended
        self._attaching = asyncio.Lock()

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        # ENOENT is what diod's clients take for it.
        why = "authentication is not required: the socket tells who you are"
        raise FsError(E.NOTSUP, why, errno=errno.ENOENT)

    async def attach(
        self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None
    ) -> Chan:
        """The hive's root, as the role sees it. Raises FsError."""
        assert afid is None, "auth gives none"
        principal, user = _principal(peer)
        if aname not in TREE_NAMES:
            raise FsError(E.MISSING, aname)
        node = ""
        if self.keeper.manifest.role == WORKER:
            node = self._node(uname)
        elif peer.kind == "unix":
            _check_uname(peer, uname, n_uname)
        async with self._attaching:
            if self.session is None:
                await self._begin(peer, principal, user, node)
        session = self.session
        if session is None:
            raise FsError(E.CANCELLED, "the connection has ended")
        if session.caller.node != node:
            raise FsError(E.DENIED, f"rule=one-node this connection is {session.caller.node}")
        view = self.keeper.manifest.view(names(self.keeper.hive, node, principal))
        return Chan(self.keeper.root, session.caller, view)

    def _node(self, name: str) -> str:
        """The node that ``name`` names, if no other process is that node now."""
        if NODE_NAME.fullmatch(name) is None:
            raise FsError(E.UNAUTHENTICATED, f"uname {name!r}: expected a node's name, {NODE_NAME.pattern}")
        mine = _peer_text(self.conversation.peer)
        for session in self.keeper.hive.sessions.by_id.values():
            if session.caller.node == name and session.peer != mine:
                raise FsError(E.BUSY, f"holder={session.peer} node={name}")
        return name

    async def _begin(self, peer: Peer, principal: str, user: str, node: str) -> None:
        hive, manifest = self.keeper.hive, self.keeper.manifest
        id = hive.clock.new_id()
        uid, gid = (peer.uid, peer.gid) if peer.kind == "unix" else (os.getuid(), os.getgid())
        caller = Caller(principal, manifest.role, TENANT, uid, gid, user, id, node)
        self.session = session = Session(
            id,
            caller,
            _peer_text(peer),
            hive.clock.now_ns(),
            lambda: len(self.conversation.session.fids),
            manifest.ns,
            self.conversation.hang_up,
        )
        # At once, so that the name is taken while the hive writes down that the node is here.
        hive.sessions.add(session)
        if node:
            try:
                await hive.join(caller)
            except BaseException:
                self.left()
                raise

    def left(self) -> None:
        """The connection has ended. A node that holds a lease is waited for, as long as the lease lasts."""
        session, self.session = self.session, None
        if session is None:
            return
        hive, node = self.keeper.hive, session.caller.node
        hive.sessions.remove(session.id)
        others = any(other.caller.node == node for other in hive.sessions.by_id.values())
        if node and not others and not hive.state.count_held(node):
            hive.later(hive.leave(node))


def names(hive: Hive, node: str, principal: str) -> Names:
    """What a manifest's variables stand for, for a session of ``principal`` and ``node`` ("": of no node)."""

    def leased(name: str) -> bool:
        job = hive.state.jobs.by_id.get(name)
        return job is not None and bool(node) and job.was_held_by(node)

    def held(name: str) -> bool:
        return bool(node) and any(sha256 == name for _, sha256 in hive.state.artifacts_held(node))

    def own(name: str) -> bool:
        job = hive.state.jobs.by_id.get(name)
        return job is not None and job.request.actor == principal

    def annex(name: str) -> bool:
        other = hive.state.nodes.by_id.get(name)
        return other is not None and other.role == ANNEX

    return {
        "node": lambda name: bool(node) and name == node,
        "leased": leased,
        "input": held,
        "own": own,
        "annex": annex,
    }


def _principal(peer: Peer) -> tuple[str, str]:
    """Who the transport says it is, and its short name. Raises FsError when that is nobody we know."""
    if peer.kind == "tcp":
        return "tcp:anonymous", "anonymous"
    if peer.kind == "unix" and peer.uid in (os.getuid(), 0):
        return f"unix:{user_name(peer.uid)}", user_name(peer.uid)
    raise FsError(E.UNAUTHENTICATED, f"uid {peer.uid} is neither the hive's user nor root")


def _check_uname(peer: Peer, uname: str, n_uname: int) -> None:
    """Refuse what contradicts the kernel's word on who the peer is."""
    user = user_name(peer.uid)
    if uname not in (*UNAMES_MISSING, user):
        raise FsError(E.UNAUTHENTICATED, f"uname {uname!r}: the socket says {user!r}")
    if n_uname not in (NONUNAME, peer.uid):
        raise FsError(E.UNAUTHENTICATED, f"n_uname {n_uname}: the socket says {peer.uid}")


def _peer_text(peer: Peer) -> str:
    return f"unix:pid={peer.pid}" if peer.kind == "unix" else f"tcp:{peer.address}"
