"""Who may attach to a hive, and as what: decided by the socket they came through, never by what they say.

    socket             who                                             role
    hive.sock          the queen's own user, and root                  operator
    worker.sock        the same; the uname names the node              drone-worker
    a validators' one  the same                                        validator
    an annexes' one    the same; the uname names the node              cuda-annex
    TCP on loopback    anybody on this machine                         observer, unless the queen was told
    TLS                whom the certificate names                      the certificate's
    TLS, no certificate, at the door for enrolment: nobody yet         enrolling

A Unix peer is its kernel credentials; a uname or n_uname that says otherwise is refused, for a client that
is mistaken about who it is would be mistaken about what it may do. Workers of one user cannot be told apart
by credentials, so between them the uname is believed: a node's name belongs to the user that had it first
(/nodes), and to one process at a time. TCP knows nobody, so everybody there is the same stranger. A
certificate knows everybody: its name is the principal, whatever the client calls itself is held against it,
and it may be here more than once, since a node that renews itself opens its next session before it ends
this one.

The aname picks the tenant, org/project/env. Certificates are of the tenants that the hive wrote down when it
signed them; operators of the hive's own tenant may attach to any; whoever else is of the hive's own. A tenant
that one may not attach to is answered like one that does not exist. Everything not said here is refused.

A capability token, written to the afid of Tauth, narrows what all this gives, and is no part of who one is.
An afid is given where tokens are to be expected: over TLS, and in a hive that has minted any.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from skep.fs.chan import Chan, View
from skep.fs.conversation import Conversation, Peer
from skep.fs.errors import E, FsError
from skep.fs.messages import NONUNAME
from skep.fs.node import Caller, Node
from skep.fs.owners import user_name
from skep.fs.spiffe import parse
from skep.namespaces.hive import OPERATOR
from skep.namespaces.live import Hive
from skep.namespaces.order import HIVE_TENANT, actor_of
from skep.namespaces.peers import network, peer_text
from skep.namespaces.sessions.core import Session
from skep.namespaces.tokens.afid import Afids, written
from skep.namespaces.tokens.desk import Bearer
from skep.namespaces.tokens.grant import Grant
from skep.roles.manifest import Manifest, load
from skep.roles.sealed import ENROLLING, ManifestError
from skep.roles.view import Names

TENANT_NAMES: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){2}")
NO_ANAME: Final = ("", "/")  # "/" is what some clients say for nothing
ANNEX: Final = "cuda-annex"
SESSIONS_MAX: Final = 64  # of one connection: tenants, and tokens
UNAMES_MISSING: Final = ("", "nobody")  # v9fs says nobody when it was told nothing
NODE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Who(NamedTuple):
    """Somebody at the door, as far as the transport has proved it."""

    principal: str
    user: str  # its short name
    manifest: Manifest
    node: str  # "": it is no node
    tenants: tuple[str, ...]  # that it may attach to, its own first
    every_tenant: bool = False  # whether to any other one too


class Doorkeeper:
    """The gate of one listener: every connection through it gets the role of ``manifest``.

    None: the role of its certificate."""

    def __init__(self, hive: Hive, root: Node, manifest: Manifest | None) -> None:
        self.hive = hive
        self.root = root
        self.manifest = manifest

    def greet(self, conversation: Conversation) -> Door:
        """The gate of one connection."""
        conversation.witness = self.hive.denials.witness(conversation.peer)
        self.hive.limits.greet(conversation)
        self.hive.tapes.greet(conversation)
        return Door(self, conversation)


class Door:
    """One connection: however often its client attaches, it is one session in each tenant, and one more
    under each token that it shows there."""

    def __init__(self, keeper: Doorkeeper, conversation: Conversation) -> None:
        self.keeper = keeper
        self.conversation = conversation
        self.sessions: dict[tuple[str, str], Session] = {}  # by tenant and Grant.token, "": none
        self.node = ""  # of the first attach; "": no node's, or nobody has attached
        self.ended = False
        self._attaching = asyncio.Lock()
        self._afids = Afids()
        self._held: dict[tuple[str, str], Callable[[], None]] = {}  # how to let go of a session's token

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        """An afid to write a token to."""
        desk = self.keeper.hive.tokens
        if desk is None or peer.enrolling or not (peer.kind == "tls" or desk.needed):
            # ENOENT is what diod's clients take for it.
            why = "authentication is not required: the socket tells who you are"
            raise FsError(E.NOTSUP, why, errno=errno.ENOENT)
        return self._afids.chan()

    async def attach(
        self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None
    ) -> Chan:
        """The hive's root, as the role sees it. Raises FsError."""
        who = self._who(peer, uname, n_uname)
        tenant = _tenant(who, aname)
        if who.node:
            self._check_node(peer, who)
        whole = who.manifest.view(names(self.keeper.hive, who.node, who.principal))
        async with self._attaching:
            if self.ended:
                raise FsError(E.CANCELLED, "the connection has ended")
            # Looked at here: nothing may come between believing a token and being told of its end.
            grant = None if afid is None else self._believed(peer, who, tenant, afid)
            view = whole if grant is None else grant.view(whole)
            session = self.sessions.get((tenant, "" if grant is None else grant.token))
            session = session or await self._begin(peer, who, tenant, aname, view, grant)
        if self.ended:
            raise FsError(E.CANCELLED, "the connection has ended")
        root = Chan(self.keeper.root, session.caller, view, witness=self.conversation.witness)
        return await who.manifest.enter(root, whole)

    def _believed(self, peer: Peer, who: Who, tenant: str, afid: Chan) -> Grant:
        desk = self.keeper.hive.tokens
        assert desk is not None, "auth gave an afid"
        binding = self.conversation.channel_binding()
        return desk.believe(written(afid), Bearer(_wary_of(peer), who.principal, tenant, binding))

    def _who(self, peer: Peer, uname: str, n_uname: int) -> Who:
        manifest = self.keeper.manifest
        if peer.kind == "tls":
            return _enrolling() if peer.enrolling else _certified(self.keeper.hive, peer, uname)
        assert manifest is not None, "only TLS tells roles"
        if peer.kind == "tcp":
            return Who("tcp:anonymous", "anonymous", manifest, "", (HIVE_TENANT,))
        user = _unix_user(peer)
        if _is_nodes(manifest):
            return Who(f"unix:{user}", user, manifest, _node_name(uname), (HIVE_TENANT,))
        _check_uname(peer, uname, n_uname)
        return Who(f"unix:{user}", user, manifest, "", (HIVE_TENANT,), manifest.role == OPERATOR)

    def _check_node(self, peer: Peer, who: Who) -> None:
        """Refuse a node that another process is now. One certificate is one node, however often it comes."""
        if self.node not in ("", who.node):
            raise FsError(E.DENIED, f"rule=one-node this connection is {self.node}")
        mine = peer_text(self.conversation.peer)
        for session in self.keeper.hive.sessions.by_id.values():
            if session.caller.node != who.node or session.peer == mine:
                continue
            if peer.kind != "tls" or session.caller.principal != who.principal:
                raise FsError(E.BUSY, f"holder={session.peer} node={who.node}")

    async def _begin(
        self, peer: Peer, who: Who, tenant: str, aname: str, view: View, grant: Grant | None
    ) -> Session:
        hive, key = self.keeper.hive, (tenant, "" if grant is None else grant.token)
        if len(self.sessions) >= SESSIONS_MAX:
            raise FsError(E.QUOTA, f"sessions of this connection have={SESSIONS_MAX} max={SESSIONS_MAX}")
        hive.limits.admit(self.conversation, who.principal, who.manifest.role)
        id = hive.clock.new_id()
        uid, gid = (peer.uid, peer.gid) if peer.kind == "unix" else (os.getuid(), os.getgid())
        caller = Caller(
            who.principal, who.manifest.role, tenant, uid, gid, who.user, id, who.node, key[1], peer.serial
        )
        session = Session(
            id,
            caller,
            peer_text(peer),
            hive.clock.now_ns(),
            lambda: len(self.conversation.session.fids),
            who.manifest.ns,
            self.conversation.hang_up,
            view,
            self.conversation.channel_binding,
            0 if grant is None else grant.until_ns,
            network(peer),
            aname,
            self.conversation,
        )
        # At once, so that the name is taken while the hive writes down that the node is here.
        hive.sessions.add(session)
        hive.limits.attach(self.conversation, caller)
        self.sessions[key] = session
        self.node = who.node
        if grant is not None and hive.tokens is not None:
            self._held[key] = hive.tokens.held.hold(grant, self.conversation.hang_up)
        if who.node:
            try:
                await hive.join(caller)
            except BaseException:
                self._forget(key)
                raise
        return session

    def left(self) -> None:
        """The connection has ended. A node that holds a lease is waited for, as long as the lease lasts."""
        self.ended = True
        self.keeper.hive.limits.left(self.conversation)
        for key in list(self.sessions):
            self._forget(key)

    def _forget(self, key: tuple[str, str]) -> None:
        session = self.sessions.pop(key, None)
        if session is None:
            return
        if key in self._held:
            self._held.pop(key)()
        hive, node = self.keeper.hive, session.caller.node
        hive.sessions.remove(session.id)
        others = any(other.caller.node == node for other in hive.sessions.by_id.values())
        if node and not others and not hive.state.count_held(node):
            hive.later(hive.leave(node))


# who


def _enrolling() -> Who:
    return Who("tls:anonymous", ENROLLING, load(ENROLLING), "", (HIVE_TENANT,))


def _certified(hive: Hive, peer: Peer, uname: str) -> Who:
    """Whom the certificate names. The handshake has proved that it is theirs, and good."""
    name = parse(peer.spiffe)
    trust = hive.state.trust
    if name.hive != trust.hive:
        raise FsError(E.UNAUTHENTICATED, f"{name} is of another hive than {trust.hive}")
    granted = trust.certificates.get(peer.serial)
    shown = (name.role, name.node, peer.spki)
    if (
        granted is None
        or shown != (granted.role, granted.node, granted.spki)
        or not trust.is_good(peer.serial, hive.clock.now_ns())
    ):
        # Whoever has the CA's key can sign, by any number; what the ledger has not granted is nothing here.
        raise FsError(E.UNAUTHENTICATED, f"serial={peer.serial} is no certificate that this hive granted")
    if not name.is_called(uname):
        raise FsError(E.UNAUTHENTICATED, f"uname {uname!r}: the certificate says {name.node!r}")
    try:
        manifest = load(name.role)
    except ManifestError as error:
        raise FsError(E.UNAUTHENTICATED, str(error)) from error
    tenants = trust.tenants_of(name.node)
    if not tenants:
        raise FsError(E.REVOKED, f"node={name.node}")
    operator = name.role == OPERATOR and HIVE_TENANT in tenants
    return Who(str(name), name.node, manifest, name.node if _is_nodes(manifest) else "", tenants, operator)


def _is_nodes(manifest: Manifest) -> bool:
    """Whether the role is that of a node: whether its own place in the hive's tree is its to write."""
    return any("<node>" in rule.path for rule in manifest.rules)


def _unix_user(peer: Peer) -> str:
    """The user that the kernel says it is. Raises FsError when that is nobody we know."""
    if peer.kind == "unix" and peer.uid in (os.getuid(), 0):
        return user_name(peer.uid)
    raise FsError(E.UNAUTHENTICATED, f"uid {peer.uid} is neither the hive's user nor root")


def _node_name(uname: str) -> str:
    if NODE_NAME.fullmatch(uname) is None:
        raise FsError(E.UNAUTHENTICATED, f"uname {uname!r}: expected a node's name, {NODE_NAME.pattern}")
    return uname


def _check_uname(peer: Peer, uname: str, n_uname: int) -> None:
    """Refuse what contradicts the kernel's word on who the peer is."""
    user = user_name(peer.uid)
    if uname not in (*UNAMES_MISSING, user):
        raise FsError(E.UNAUTHENTICATED, f"uname {uname!r}: the socket says {user!r}")
    if n_uname not in (NONUNAME, peer.uid):
        raise FsError(E.UNAUTHENTICATED, f"n_uname {n_uname}: the socket says {peer.uid}")


def _tenant(who: Who, aname: str) -> str:
    """The tenant that is attached to. Raises FsError(E.MISSING)."""
    if aname in NO_ANAME:
        return who.tenants[0]
    if aname in who.tenants or (who.every_tenant and TENANT_NAMES.fullmatch(aname)):
        return aname
    raise FsError(E.MISSING, aname)


def _wary_of(peer: Peer) -> str:
    """Whose bad tokens are counted together: what the transport has proved, so that none pays for another."""
    if peer.kind == "tls":
        return peer.spiffe
    return f"unix:{peer.uid}" if peer.kind == "unix" else f"tcp:{peer.address.rpartition(':')[0]}"


# what exists


def names(hive: Hive, node: str, principal: str) -> Names:
    """What a manifest's variables stand for, for a session of ``principal`` and ``node`` ("": of no node)."""

    def leased(name: str) -> bool:
        found = hive.found(name) if node else None
        return found is not None and found.job.was_held_by(node)

    def held(name: str) -> bool:
        return bool(node) and any(sha256 == name for _, sha256 in hive.state.artifacts_held(node))

    actor = actor_of(principal, node)

    def own(name: str) -> bool:
        found = hive.found(name)
        return found is not None and found.job.request.actor == actor

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
