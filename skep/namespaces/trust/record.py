"""What the ledger says of trust: keys, invites, certificates, nodes, and how the events change them.

No private key is in here, and no secret; what follows from an order is core.py's.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from skep.fs.spiffe import parse
from skep.namespaces.order import HIVE_TENANT
from skep.trace.clock import HOUR
from skep.trace.rules import Meta

KEPT_NS: Final = HOUR  # how long a certificate is remembered after its end, for clocks that are behind
RETIRED_MAX: Final = 16  # keys of one kind remembered after their end


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    """A public key of the hive. The one of its kind without an end is the one that signs.

    id: of a CA, SHA-256 of its SubjectPublicKeyInfo; of the others, the Ed25519 key itself: 64 hex digits.
    certificate: a CA's own, in base64 DER; cross: the same CA as the one before it saw it, signed by that. Of
    a merkle key, cross is the signature of the one before it under the handover, in hex."""

    what: str
    id: str
    since_ns: int
    until_ns: int = 0  # trusted until then; 0: no end yet
    certificate: str = ""
    certificate_until_ns: int = 0
    cross: str = ""
    retired: bool = False


class Invite(msgspec.Struct, frozen=True):
    id: str
    secret: str  # SHA-256 of it, hex
    role: str
    node: str
    tenants: tuple[str, ...]
    until_ns: int
    serial: str = ""  # what it was used for; "": it was not


class Certificate(msgspec.Struct, frozen=True):
    """All that authority.py needs to make it, again and again. Times are whole seconds, in ns."""

    serial: str  # hex without leading zeros
    node: str
    role: str
    tenants: tuple[str, ...]
    key: str  # SubjectPublicKeyInfo, base64 DER
    begin_ns: int
    end_ns: int
    ca: str
    revoked_ns: int = 0  # 0: it is not
    reason: str = ""

    @property
    def spki(self) -> str:
        """SHA-256 of its public key, in hex."""
        return hashlib.sha256(b64decode(self.key)).hexdigest()


class Node(msgspec.Struct, frozen=True):
    """One name that has, or had, certificates. ``barred``: revoked, and not invited again since."""

    name: str
    role: str
    tenants: tuple[str, ...]
    serials: tuple[str, ...]
    barred: bool = False


# events


class Founded(msgspec.Struct, frozen=True, tag_field="type", tag="trust.founded"):
    hive: str
    keys: tuple[Key, ...]


class Invited(msgspec.Struct, frozen=True, tag_field="type", tag="trust.invited"):
    invite: str
    secret: str  # SHA-256 of it
    role: str
    node: str
    tenants: tuple[str, ...]
    until_ns: int


class Enrolled(msgspec.Struct, frozen=True, tag_field="type", tag="trust.enrolled", omit_defaults=True):
    """A certificate may be signed. ``invite``: "" for a renewal, and for the hive's own."""

    serial: str
    node: str
    role: str
    tenants: tuple[str, ...]
    key: str
    begin_ns: int
    end_ns: int
    ca: str
    invite: str = ""


class Revoked(msgspec.Struct, frozen=True, tag_field="type", tag="trust.revoked", omit_defaults=True):
    """``node``: barred; "" when one certificate or a token was meant."""

    serials: tuple[str, ...] = ()
    node: str = ""
    token: str = ""
    reason: str = ""


class Rotated(msgspec.Struct, frozen=True, tag_field="type", tag="trust.rotated"):
    """``key`` signs from now on; those before it are trusted until ``until_ns``."""

    key: Key
    until_ns: int


class Retired(msgspec.Struct, frozen=True, tag_field="type", tag="trust.retired"):
    what: str
    key: str


Event = Founded | Invited | Enrolled | Revoked | Rotated | Retired


@dataclass
class Trust:
    """``hive``: "" until it is founded. ``rev``: the ledger number of the last change."""

    hive: str = ""
    rev: int = 0
    keys: dict[str, tuple[Key, ...]] = field(default_factory=dict)  # kind -> the newest first
    invites: dict[str, Invite] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)  # by serial
    nodes: dict[str, Node] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)  # revoked: revocation id -> when, ns

    def copy(self) -> Trust:
        return Trust(
            self.hive,
            self.rev,
            self.keys.copy(),
            self.invites.copy(),
            self.certificates.copy(),
            self.nodes.copy(),
            self.tokens.copy(),
        )

    def active(self, what: str) -> Key:
        """The key of a founded hive that signs."""
        return self.keys[what][0]

    def trusted(self, what: str) -> list[Key]:
        """Those that are believed, the one that signs first; an overlap ends when its line is written."""
        return [key for key in self.keys.get(what, ()) if not key.retired]

    def is_good(self, serial: str, now_ns: int) -> bool:
        """Whether the certificate is to be believed at this time. One of a retired CA is forgotten."""
        found = self.certificates.get(serial)
        return found is not None and not found.revoked_ns and found.begin_ns <= now_ns < found.end_ns

    def good(self, node: str, now_ns: int) -> Iterator[Certificate]:
        """The node's certificates that are good."""
        for serial in self.nodes[node].serials if node in self.nodes else ():
            if self.is_good(serial, now_ns):
                yield self.certificates[serial]

    def tenants_of(self, node: str) -> tuple[str, ...]:
        """Which tenants a node with a certificate may attach to, its own first."""
        found = self.nodes.get(node)
        return () if found is None or found.barred else found.tenants

    def why_gone(self, principal: str, tenant: str) -> str:
        """Why nobody may speak for the principal in the tenant any more; "": as far as is known one may.

        A certificate that has run out says nothing: its holder may be away, and renews it when it is back."""
        try:
            name = parse(principal)
        except ValueError:
            return ""  # another's word: the kernel's, of a user of this machine
        node = self.nodes.get(name.node) if name.hive == self.hive else None
        if node is None:
            return ""
        if node.barred or (node.serials and all(self.certificates[s].revoked_ns for s in node.serials)):
            return f"{name.node} was revoked"
        if node.role != name.role:
            return f"{name.node} is no {name.role} any more"
        # Who runs the hive may speak in any tenant.
        if tenant not in node.tenants and HIVE_TENANT not in node.tenants:
            return f"{name.node} is not of the tenant any more"
        return ""

    def revoked(self, ca: str) -> list[Certificate]:
        """What the CA has to list."""
        return [found for found in self.certificates.values() if found.revoked_ns and found.ca == ca]


# believing


def apply(trust: Trust, event: Event, meta: Meta) -> None:
    """Change ``trust`` by ``event``."""
    trust.rev = meta.seq
    match event:
        case Founded():
            trust.hive = event.hive
            trust.keys = {key.what: (key,) for key in event.keys}
        case Invited():
            _forget_invites(trust, meta.time_ns)
            trust.invites[event.invite] = Invite(
                event.invite, event.secret, event.role, event.node, event.tenants, event.until_ns
            )
        case Enrolled():
            _enrolled(trust, event, meta)
        case Revoked():
            _revoked(trust, event, meta)
        case Rotated():
            what = event.key.what
            ended = tuple(_ended(key, event.until_ns) for key in trust.keys[what])
            trust.keys[what] = (event.key, *ended[:RETIRED_MAX])
        case Retired():
            _retired(trust, event)


def _forget_invites(trust: Trust, now_ns: int) -> None:
    for id in [id for id, invite in trust.invites.items() if invite.until_ns <= now_ns]:
        del trust.invites[id]


def _enrolled(trust: Trust, event: Enrolled, meta: Meta) -> None:
    before = trust.nodes.get(event.node)
    serials = () if before is None else before.serials
    over = [s for s in serials if trust.certificates[s].end_ns + KEPT_NS <= meta.time_ns]
    for serial in over:
        del trust.certificates[serial]
    trust.certificates[event.serial] = Certificate(
        event.serial, event.node, event.role, event.tenants, event.key, event.begin_ns, event.end_ns, event.ca
    )
    kept = (*(serial for serial in serials if serial not in over), event.serial)
    # A node that was thrown out has nothing to renew: an invite has let it in again.
    trust.nodes[event.node] = Node(event.node, event.role, event.tenants, kept)
    if event.invite:
        used = trust.invites[event.invite]
        trust.invites[used.id] = msgspec.structs.replace(used, serial=event.serial)


def _revoked(trust: Trust, event: Revoked, meta: Meta) -> None:
    for serial in event.serials:
        found = trust.certificates[serial]
        trust.certificates[serial] = msgspec.structs.replace(
            found, revoked_ns=meta.time_ns, reason=event.reason
        )
    if event.node:
        for id in [i.id for i in trust.invites.values() if i.node == event.node and not i.serial]:
            del trust.invites[id]
        if event.node in trust.nodes:
            node = trust.nodes[event.node]
            trust.nodes[event.node] = msgspec.structs.replace(node, barred=True)
    if event.token:
        trust.tokens[event.token] = meta.time_ns


def _ended(key: Key, until_ns: int) -> Key:
    return key if key.until_ns else msgspec.structs.replace(key, until_ns=until_ns)


def _retired(trust: Trust, event: Retired) -> None:
    """What it has signed is worth nothing any more, so there is nothing of it to revoke."""
    keys = trust.keys[event.what]
    trust.keys[event.what] = tuple(
        msgspec.structs.replace(key, retired=True) if key.id == event.key else key for key in keys
    )
    if event.what == "ca":
        for found in [c for c in trust.certificates.values() if c.ca == event.key]:
            del trust.certificates[found.serial]
            node = trust.nodes[found.node]
            kept = tuple(serial for serial in node.serials if serial != found.serial)
            trust.nodes[node.name] = msgspec.structs.replace(node, serials=kept)
    if event.what == "token" and len(trust.trusted("token")) == 1:
        since_ns = trust.active("token").since_ns
        trust.tokens = {id: at for id, at in trust.tokens.items() if at >= since_ns}
