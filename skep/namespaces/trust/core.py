"""Deciding about trust: who is invited, what an invite is good for, what is revoked, which keys are next.

What is random or made with a key comes with the line: hashes of secrets, public keys, CA certificates. A
certificate's serial follows from its line's id, which is never used again. The keys are keys.py's, the
signatures authority.py's, the state record.py's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from skep.fs.errors import E
from skep.fs.spiffe import Spiffe
from skep.namespaces.order import HIVE_TENANT, Order, refusal
from skep.namespaces.trust.record import (
    Enrolled,
    Event,
    Founded,
    Invite,
    Invited,
    Key,
    Retired,
    Revoked,
    Rotated,
    Trust,
)
from skep.namespaces.trust.verbs import INVITE_TTL, KINDS, OVERLAP, QUEENS
from skep.trace.clock import HOUR, MINUTE, SECOND, parse_duration, parse_rfc3339, rfc3339
from skep.trace.rules import Decision

DAY: Final = 24 * HOUR
TTL_MIN_NS: Final = 10 * SECOND  # shorter, and a slow network uses it up
TTL_MAX_NS: Final = 7 * DAY  # of an invite and of a certificate: what is stolen ends by itself
QUEEN_TTL_MAX_NS: Final = 90 * DAY  # the hive's own, which it renews where its key is
OVERLAP_MAX_NS: Final = 90 * DAY
SKEW_NS: Final = 5 * MINUTE  # certificates begin so long ago: other machines' clocks may be behind

NODES_MAX: Final = 65536  # as many as /nodes has
INVITES_MAX: Final = 4096  # that may still be used
LIVE_MAX: Final = 16  # certificates of one node that are good at one time: it needs two
TENANTS_MAX: Final = 64  # of one node
TOKENS_MAX: Final = 65536  # revoked; rotating the token key ends them all, and forgets them
REASON_MAX: Final = 256  # characters

_NODE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,63}){2}")
TOKEN_ID: Final = re.compile(r"[0-9a-f]{32}(?:[0-9a-f]{96})?")  # a block's revocation id, or its beginning
SERIAL: Final = re.compile(r"[0-9a-f]{1,32}")  # of 127 bits
_ID: Final = re.compile(r"[0-9a-f]{64}")


def secret_hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


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
    _check_same(trust, node, args["role"], tenants, order)
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
    _check_same(trust, invite.node, invite.role, invite.tenants, order)
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
    if TOKEN_ID.fullmatch(token) is None:
        raise refusal(E.USAGE, f"revoke: token={token}: expected a revocation id, {TOKEN_ID.pattern}")
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
    key = _key(what, args["key"], args if what in ("ca", "merkle") else {}, order)
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


def _check_same(trust: Trust, node: str, role: str, tenants: tuple[str, ...], order: Order) -> None:
    """A name stands for one thing as long as anybody could still show it as that: what one more tenant has
    would be there for whoever has the certificates of before."""
    found = trust.nodes.get(node)
    if found is None:
        return
    if found.role in QUEENS:
        raise refusal(E.CONFLICT, f"{node} is the queen")
    if not any(trust.good(node, order.time_ns)):
        return
    if found.role != role:
        raise refusal(E.CONFLICT, f"{node} is a {found.role}: revoke node={node} first")
    if not set(tenants) <= set(found.tenants):
        raise refusal(E.CONFLICT, f"{node} is of {','.join(found.tenants)}: revoke node={node} first")


def _key(what: str, id: str, args: Mapping[str, str], order: Order) -> Key:
    if _ID.fullmatch(id) is None:
        raise refusal(E.USAGE, f"{order.verb}: {what} {id}: expected 64 hex digits")
    if what != "ca":
        return Key(what, id, order.time_ns, cross=args.get("cross", ""))
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
