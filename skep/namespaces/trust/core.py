"""Trust as a fold: the hive's keys, invites, certificates, what was revoked. No private key, and no secret.

What is random or made with a key comes with the line: hashes of secrets, public keys, CA certificates. A
certificate's serial follows from its line's id, which is never used again. The keys are keys.py's, the
signatures authority.py's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.fs.spiffe import ROLES, Spiffe
from skep.namespaces.order import HIVE_TENANT, Order, refusal
from skep.trace.clock import HOUR, MINUTE, SECOND, parse_duration, parse_rfc3339, rfc3339
from skep.trace.rules import Decision, Meta

ENROLLING: Final = "enrolling"  # the role of who has no certificate yet
QUEENS: Final = frozenset(role for role in ROLES if role.startswith("queen-"))
INVITED_ROLES: Final = tuple(sorted(ROLES - QUEENS))
"""What an invite may make of one. Clients believe any queen of this CA: hers is made where she serves."""

DAY: Final = 24 * HOUR
TTL_MIN_NS: Final = 10 * SECOND  # shorter, and a slow network uses it up
TTL_MAX_NS: Final = 7 * DAY  # of an invite and of a certificate: what is stolen ends by itself
QUEEN_TTL_MAX_NS: Final = 90 * DAY  # the hive's own, which it renews where its key is
INVITE_TTL: Final = "10m"  # when an invite says nothing
OVERLAP: Final = "24h"  # when a rotation says nothing: nodes renew themselves twice in it
OVERLAP_MAX_NS: Final = 90 * DAY
SKEW_NS: Final = 5 * MINUTE  # certificates begin so long ago: other machines' clocks may be behind
KEPT_NS: Final = HOUR  # how long a certificate is remembered after its end, for clocks that are behind

NODES_MAX: Final = 65536  # as many as /nodes has
INVITES_MAX: Final = 4096  # that may still be used
LIVE_MAX: Final = 16  # certificates of one node that are good at one time: it needs two
TENANTS_MAX: Final = 64  # of one node
TOKENS_MAX: Final = 65536  # revoked; rotating the token key ends them all, and forgets them
RETIRED_MAX: Final = 16  # keys of one kind remembered after their end
REASON_MAX: Final = 256  # characters

KINDS: Final = ("ca", "token", "merkle", "policy")  # of keys, each for one use alone

_NODE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){2}")
_TOKEN: Final = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{96})?")  # a block's revocation id, or its beginning
_ID: Final = re.compile(r"[0-9a-f]{64}")

INVITE: Final = Verb(
    "invite",
    (
        Arg("role", required=True, kind="|".join(INVITED_ROLES)),
        Arg("node", required=True, kind="name", help="what its certificate will call it"),
        Arg("ttl", kind="duration", help=f"how long it may be used, 10s to 168h, else {INVITE_TTL}"),
        Arg("tenant", help=f"org/project/env, or some with commas between; else {HIVE_TENANT}"),
    ),
    "invite role=drone-worker node=w7 ttl=10m",
    "let a node ask for a certificate, once; the reply is the invite, told only here",
)
REVOKE: Final = Verb(
    "revoke",
    (
        Arg("serial", kind="text", help="one certificate"),
        Arg("node", kind="name", help="all its certificates and invites; it has to be invited again"),
        Arg("token", kind="text", help="a capability token, by its revocation id"),
        Arg("reason"),
    ),
    "revoke node=w7 reason=stolen",
    "one of them, at once and for ever",
)
ROTATE: Final = Verb(
    "rotate",
    (
        Arg("what", required=True, kind="|".join(KINDS)),
        Arg("overlap", kind="duration", help=f"how long the old one is good too, else {OVERLAP}; 0s: not"),
    ),
    "rotate what=ca overlap=1h",
    "a new key; the reply is its id",
)
VERBS: Final = ctl.verbs(INVITE, REVOKE, ROTATE)

_KEY: Final = Arg("key", required=True)
_CERTIFICATE: Final = (Arg("certificate"), Arg("until"), Arg("cross"))  # of a CA: as Key has them
_TTL: Final = Arg("ttl", required=True, kind="duration")

# As written down: the door has made what is random, and says so.
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        INVITE._replace(args=(*INVITE.args, Arg("secret", required=True))),
        REVOKE,
        ROTATE._replace(args=(*ROTATE.args, _KEY, Arg("before", required=True), *_CERTIFICATE)),
    ),
    "*": ctl.verbs(
        Verb("enroll", (Arg("invite", required=True), Arg("secret", required=True), _KEY, _TTL)),
        Verb("renew", (Arg("serial", required=True), _KEY, _TTL)),
        # The hive's own, written to no file.
        Verb(
            "found",
            (
                Arg("hive", required=True, kind="name"),
                *(Arg(kind, required=True) for kind in KINDS),
                *_CERTIFICATE[:2],
            ),
        ),
        Verb("issue", (Arg("role", required=True), Arg("node", required=True), _KEY, _TTL)),
        Verb("retire", (Arg("what", required=True, kind="|".join(KINDS)), _KEY)),
    ),
}
OWN_VERBS: Final = ("found", "issue", "retire")


# what is remembered


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    """A public key of the hive. The one of its kind without an end is the one that signs.

    id: of a CA, SHA-256 of its SubjectPublicKeyInfo; of the others, the Ed25519 key itself: 64 hex digits.
    certificate: a CA's own, in base64 DER; cross: the same CA as the one before it saw it, signed by that."""

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
        """Whether the certificate is to be believed at this time."""
        found = self.certificates.get(serial)
        return (
            found is not None
            and not found.revoked_ns
            and found.begin_ns <= now_ns < found.end_ns
            and any(key.id == found.ca for key in self.trusted("ca"))
        )

    def good(self, node: str, now_ns: int) -> Iterator[Certificate]:
        """The node's certificates that are good."""
        for serial in self.nodes[node].serials if node in self.nodes else ():
            if self.is_good(serial, now_ns):
                yield self.certificates[serial]

    def tenants_of(self, node: str) -> tuple[str, ...]:
        """Which tenants a node with a certificate may attach to, its own first."""
        found = self.nodes.get(node)
        return () if found is None or found.barred else found.tenants

    def revoked(self, ca: str) -> list[Certificate]:
        """What the CA has to list."""
        return [found for found in self.certificates.values() if found.revoked_ns and found.ca == ca]


def secret_hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


# deciding


Decided = Decision[Event, str]


def decide(trust: Trust, order: Order) -> Decided:
    """What follows from an order to /trust; raises Refusal."""
    if not trust.hive and order.verb != "found":
        raise refusal(E.NOTSUP, f"{order.verb}: this hive has no certificates")
    return _DECIDE[order.verb](trust, order)


def _found(trust: Trust, order: Order) -> Decided:
    """Once. The name of a hive is in all its certificates, and stays."""
    args = order.args
    if trust.hive:
        raise refusal(E.EXISTS, f"the hive is {trust.hive}")
    _check_name("hive", args["hive"])
    keys = [_key(kind, args[kind], args if kind == "ca" else {}, order) for kind in KINDS]
    return Decision((Founded(args["hive"], tuple(keys)),), args["hive"])


def _invite(trust: Trust, order: Order) -> Decided:
    order.check_rev(trust.rev)
    args, node = order.args, order.args["node"]
    _check_name("node", node)
    ttl_ns = _ttl(order, args.get("ttl", INVITE_TTL))
    tenants = _tenants(order)
    _check_role(trust, node, args["role"], order)
    open_now = sum(invite.until_ns > order.time_ns for invite in trust.invites.values())
    if open_now >= INVITES_MAX:
        raise refusal(E.QUOTA, f"invites have={open_now} max={INVITES_MAX}")
    if node not in trust.nodes and len(trust.nodes) >= NODES_MAX:
        raise refusal(E.QUOTA, f"nodes have={len(trust.nodes)} max={NODES_MAX}")
    until_ns = order.time_ns + ttl_ns
    event = Invited(order.id, args["secret"], args["role"], node, tenants, until_ns)
    return Decision((event,), order.id)


def opened(trust: Trust, id: str, secret: str) -> Invite:
    """The invite that ``secret``, the hash of one, opens. Raises Refusal.

    That there is none and that the secret is another answer alike."""
    invite = trust.invites.get(id)
    known = invite.secret if invite is not None else secret_hash("")
    if not hmac.compare_digest(known.encode(), secret.encode()) or invite is None:
        raise refusal(E.DENIED, "rule=invite there is no such invite")
    return invite


def _enroll(trust: Trust, order: Order) -> Decided:
    args = order.args
    invite = opened(trust, args["invite"], args["secret"])
    if order.time_ns >= invite.until_ns:
        raise refusal(E.EXPIRED, f"invite until={rfc3339(invite.until_ns)}")
    if invite.serial:
        used = trust.certificates.get(invite.serial)
        # Its answer may have been lost; whoever has the key may hear it again.
        if used is None or used.key != args["key"] or used.revoked_ns:
            raise refusal(E.DENIED, "rule=invite-once it was used")
        return Decision((), invite.serial)
    _check_role(trust, invite.node, invite.role, order)
    return _issued(trust, order, invite.node, invite.role, invite.tenants, TTL_MAX_NS, invite.id)


def _renew(trust: Trust, order: Order) -> Decided:
    """The next certificate of who shows one that is good. The names stay, whatever was asked for."""
    serial = order.args["serial"]
    found = trust.certificates.get(serial)
    if found is None:
        raise refusal(E.UNAUTHENTICATED, "renew: the session has shown no certificate of this hive")
    node = trust.nodes[found.node]
    if order.actor.partition("#")[0] != str(Spiffe(trust.hive, found.role, found.node)):
        raise refusal(E.DENIED, "rule=own-certificate")
    if found.revoked_ns:
        raise refusal(E.REVOKED, f"serial={serial}")
    if node.barred:
        raise refusal(E.REVOKED, f"node={node.name}")
    if not trust.is_good(serial, order.time_ns):
        raise refusal(E.EXPIRED, f"serial={serial} until={rfc3339(found.end_ns)}")
    for other in trust.good(node.name, order.time_ns):
        # The answer to the last request was lost.
        young = order.time_ns < other.begin_ns + (other.end_ns - other.begin_ns) // 2
        if other.key == order.args["key"] and young and other.ca == trust.active("ca").id:
            return Decision((), other.serial)
    return _issued(trust, order, node.name, node.role, node.tenants, TTL_MAX_NS)


def _issue(trust: Trust, order: Order) -> Decided:
    """The queen's own."""
    args, name = order.args, order.args["node"]
    _check_name("node", name)
    if args["role"] not in QUEENS:
        raise refusal(E.USAGE, f"issue: role={args['role']}: expected one of {' '.join(sorted(QUEENS))}")
    if name in trust.nodes and trust.nodes[name].role not in QUEENS:
        raise refusal(E.CONFLICT, f"{name} is a {trust.nodes[name].role}")
    return _issued(trust, order, name, args["role"], (HIVE_TENANT,), QUEEN_TTL_MAX_NS)


def _issued(
    trust: Trust,
    order: Order,
    node: str,
    role: str,
    tenants: tuple[str, ...],
    ttl_max_ns: int,
    invite: str = "",
) -> Decided:
    ttl_ns = _ttl(order, order.args["ttl"], ttl_max_ns)
    live = len(list(trust.good(node, order.time_ns)))
    if live >= LIVE_MAX:
        raise refusal(E.QUOTA, f"certificates node={node} have={live} max={LIVE_MAX}")
    ca = trust.active("ca")
    serial = _serial(order.id)
    end_ns = min(_whole(order.time_ns + ttl_ns), ca.certificate_until_ns)
    begin_ns = _whole(order.time_ns - SKEW_NS)
    key = order.args["key"]
    return Decision((Enrolled(serial, node, role, tenants, key, begin_ns, end_ns, ca.id, invite),), serial)


def _revoke(trust: Trust, order: Order) -> Decided:
    order.check_rev(trust.rev)
    named = [name for name in ("serial", "node", "token") if name in order.args]
    if len(named) != 1:
        raise refusal(E.USAGE, "revoke: expected one of serial= node= token=")
    reason = order.args.get("reason", "")
    if len(reason) > REASON_MAX:
        raise refusal(E.TOOBIG, f"max={REASON_MAX} characters of reason")
    return _REVOKE[named[0]](trust, order, order.args[named[0]], reason)


def _revoke_serial(trust: Trust, order: Order, serial: str, reason: str) -> Decided:
    found = trust.certificates.get(serial)
    if found is None:
        raise refusal(E.USAGE, f"revoke: serial={serial}: there is no such certificate")
    if found.revoked_ns:
        return Decision((), serial)
    return Decision((Revoked((serial,), reason=reason),), serial)


def _revoke_node(trust: Trust, order: Order, name: str, reason: str) -> Decided:
    """Every certificate it has, and every invite that could bring it another one."""
    node = trust.nodes.get(name)
    if node is None and not any(invite.node == name for invite in trust.invites.values()):
        raise refusal(E.USAGE, f"revoke: node={name}: there is no such node")
    if node is not None and node.role in QUEENS:
        raise refusal(E.CONFLICT, f"{name} is the queen: revoke its serial, and it takes a new key")
    serials = node.serials if node is not None else ()
    live = tuple(serial for serial in serials if not trust.certificates[serial].revoked_ns)
    return Decision((Revoked(live, name, reason=reason),), name)


def _revoke_token(trust: Trust, order: Order, token: str, reason: str) -> Decided:
    if _TOKEN.fullmatch(token) is None:
        raise refusal(E.USAGE, f"revoke: token={token}: expected a revocation id, {_TOKEN.pattern}")
    token = token[:32]  # what a block goes by in lines
    if token in trust.tokens:
        return Decision((), token)
    if len(trust.tokens) >= TOKENS_MAX:
        raise refusal(E.QUOTA, f"tokens have={len(trust.tokens)} max={TOKENS_MAX}: rotate what=token")
    return Decision((Revoked(token=token, reason=reason),), token)


_REVOKE: Final[Mapping[str, Callable[[Trust, Order, str, str], Decided]]] = {
    "serial": _revoke_serial, "node": _revoke_node, "token": _revoke_token,
}  # fmt: skip


def _rotate(trust: Trust, order: Order) -> Decided:
    """One overlap at a time: a chain from the old to the new has one link. Without an overlap, at once."""
    order.check_rev(trust.rev)
    args, what = order.args, order.args["what"]
    overlap_ns = parse_duration(args.get("overlap", OVERLAP))
    if overlap_ns > OVERLAP_MAX_NS:
        raise refusal(E.USAGE, f"rotate: overlap={args['overlap']}: expected at most 2160h")
    old = trust.trusted(what)
    if overlap_ns and len(old) > 1:
        until = rfc3339(old[1].until_ns)
        raise refusal(E.CONFLICT, f"what={what} overlaps until={until}; overlap=0s ends that, too")
    if old[0].id != args["before"]:  # which has signed the new one's cross certificate
        raise refusal(E.CONFLICT, f"what={what} was rotated meanwhile")
    if any(key.id == args["key"] for key in trust.keys[what]):
        raise refusal(E.EXISTS, f"key={args['key']}")
    key = _key(what, args["key"], args if what == "ca" else {}, order)
    retired = [] if overlap_ns else [Retired(what, before.id) for before in old]
    return Decision((Rotated(key, order.time_ns + overlap_ns), *retired), key.id)


def _retire(trust: Trust, order: Order) -> Decided:
    what, id = order.args["what"], order.args["key"]
    key = next((key for key in trust.trusted(what) if key.id == id), None)
    if key is None:
        return Decision((), id)
    if not key.until_ns or order.time_ns < key.until_ns:
        raise refusal(E.CONFLICT, f"what={what} key={id} is good still")
    return Decision((Retired(what, id),), id)


def due(trust: Trust, now_ns: int) -> Iterator[tuple[str, str]]:
    """Kind and id of each key whose overlap is over."""
    for what in KINDS:
        for key in trust.trusted(what):
            if key.until_ns and now_ns >= key.until_ns:
                yield what, key.id


# parts


def _tenants(order: Order) -> tuple[str, ...]:
    tenants = tuple(dict.fromkeys(order.args.get("tenant", HIVE_TENANT).split(",")))
    if len(tenants) > TENANTS_MAX:
        raise refusal(E.TOOBIG, f"max={TENANTS_MAX} tenants")
    for tenant in tenants:
        if _TENANT.fullmatch(tenant) is None:
            raise refusal(E.USAGE, f"{order.verb}: tenant={tenant}: expected org/project/env")
    return tenants


def _ttl(order: Order, text: str, max_ns: int = TTL_MAX_NS) -> int:
    ttl_ns = parse_duration(text)
    if not TTL_MIN_NS <= ttl_ns <= max_ns:
        raise refusal(E.USAGE, f"{order.verb}: ttl={text}: expected 10s to {max_ns // HOUR}h")
    return ttl_ns


def _check_name(what: str, name: str) -> None:
    if _NODE.fullmatch(name) is None:
        raise refusal(E.USAGE, f"{what}={name}: expected {_NODE.pattern}")


def _check_role(trust: Trust, node: str, role: str, order: Order) -> None:
    """A name stands for one thing as long as anybody could still show it as that."""
    found = trust.nodes.get(node)
    if found is None:
        return
    if found.role in QUEENS:
        raise refusal(E.CONFLICT, f"{node} is the queen")
    if found.role != role and any(trust.good(node, order.time_ns)):
        raise refusal(E.CONFLICT, f"{node} is a {found.role}: revoke node={node} first")


def _key(what: str, id: str, args: Mapping[str, str], order: Order) -> Key:
    if _ID.fullmatch(id) is None:
        raise refusal(E.USAGE, f"{order.verb}: {what} {id}: expected 64 hex digits")
    if what != "ca":
        return Key(what, id, order.time_ns)
    certificate, cross = args.get("certificate", ""), args.get("cross", "")
    try:
        until_ns = _whole(parse_rfc3339(args.get("until", "")))
    except ValueError as error:
        raise refusal(E.USAGE, f"{order.verb}: until: {error}") from error
    return Key(what, id, order.time_ns, 0, certificate, until_ns, cross)


def _serial(id: str) -> str:
    """A serial of 127 bits: as unlikely to be guessed as the line's id, and as surely never used again."""
    return f"{int.from_bytes(hashlib.sha256(id.encode()).digest()[:16]) >> 1:x}"


def _whole(time_ns: int) -> int:
    """Certificates know seconds."""
    return time_ns // SECOND * SECOND


_DECIDE: Final[Mapping[str, Callable[[Trust, Order], Decided]]] = {
    "found": _found, "invite": _invite, "enroll": _enroll, "renew": _renew, "issue": _issue,
    "revoke": _revoke, "rotate": _rotate, "retire": _retire,
}  # fmt: skip


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
    # Only an invite lets a node in again that was thrown out.
    barred = before is not None and before.barred and not event.invite
    trust.nodes[event.node] = Node(event.node, event.role, event.tenants, kept, barred)
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
