"""/trust: who is who in this hive, by certificates that it signs itself.

    ca.pem              R the CAs that are trusted, the one that signs first; two while a rotation overlaps
    crl.pem             R a CRL of each: what is revoked
    spki                R the pin: SHA-256 of the public key of the CA that signs, in hex
    keys                R a line for each public key: its use, active, overlap or retired, its id, times
    addresses           R a line for each address that this queen serves by TLS; 0.0.0.0 is each of its hosts
    ctl                 W invite, revoke, rotate; R usage. The reply to invite is the invite, told only here
    enroll              transaction: W {"invite": id, "secret": text, "csr": PEM}, R {"certificate": PEM,
                        "bundle": PEM}. Once; asked again with the same key, the answer is the same
    renew               transaction: W {"csr": PEM}, R as enroll, to the holder of a certificate that is good:
                        the next one, of the same name
    certificates.jsonl  R a JSON line for each certificate that is remembered: until it has expired
    invites.jsonl       R the same of invites, without their secrets

What is told of a secret here is nothing: the ledger has its SHA-256. Of a request the key alone is taken. Who
guesses at invites waits, longer each time.

    echo invite role=drone-worker node=w7 ttl=10m > trust/ctl
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.doorway import network_of
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Text, Transaction
from skep.namespaces.live import Hive
from skep.namespaces.lockout import Lockout
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.trust.authority import CSR_MAX, Authority, read_request
from skep.namespaces.trust.core import SERIAL, TOKEN_ID, opened, secret_hash
from skep.namespaces.trust.record import Certificate, Key
from skep.namespaces.trust.verbs import VERBS
from skep.trace.clock import rfc3339
from skep.trace.rules import Refusal
from skep.trace.turn import Refused

PREFIX: Final = "skep1."  # of an invite's text
REQUEST_MAX: Final = CSR_MAX + 1024  # bytes of what is written to enroll
SECRET_SIZE: Final = 32

T = TypeVar("T")


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    invite: str
    secret: str
    csr: str


class Renewal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    csr: str


def files(hive: Hive) -> Mapping[str, Any]:
    """The files of /trust."""
    lockout = Lockout(hive.clock, "invite-lockout")
    return {
        "ca.pem": Text(lambda: _authority(hive).bundle()),
        "crl.pem": Text(lambda: _authority(hive).crl()),
        "spki": Text(lambda: f"{_authority(hive).pin}\n"),
        "keys": Text(lambda: _keys(hive)),
        "addresses": Text(lambda caller: _addresses(hive, caller)),
        "ctl": Ctl(VERBS, lambda caller, commands: _order(hive, caller, commands)),
        "enroll": Transaction(lambda caller, data: _enroll(hive, lockout, caller, data), secret=True),
        "renew": Transaction(lambda caller, data: _renew(hive, caller, data)),
        "certificates.jsonl": Text(lambda caller: _told(caller, _certificates(hive))),
        "invites.jsonl": Text(lambda caller: _told(caller, _invites(hive))),
    }


def _authority(hive: Hive) -> Authority:
    """Raises FsError when the hive has none."""
    if hive.authority is None:
        raise FsError(E.NOTSUP, "this hive has no certificates")
    return hive.authority


# commands


async def _order(hive: Hive, caller: Caller, commands: list[Command]) -> list[str]:
    """Write the commands, with what has to be made for them; the replies."""
    authority = _authority(hive)
    lines, told, made = [], [], []
    for command in commands:
        secret, more = "", {}
        match command.verb:
            case "revoke":
                # Here first: a token written in the place of its id would be in the ledger for all to read.
                _check_ids(command.args)
            case "invite":
                if command.args["role"] not in authority.roles:
                    raise FsError(E.USAGE, f"invite: role={command.args['role']} has no manifest")
                secret = secrets.token_urlsafe(SECRET_SIZE)
                more = {"secret": secret_hash(secret)}
            case "rotate":
                more = authority.rotation(command.args["what"])
                made.append((command.args["what"], more["key"]))
        lines.append(ctl.line(command.verb, command.args | more))
        told.append(secret)
    try:
        replies = await hive.command(caller, "/trust/ctl", lines)
    except (FsError, asyncio.CancelledError) as error:
        # Not when the turn has stopped: then the ledger may have it all the same.
        if isinstance(error, asyncio.CancelledError) or isinstance(error.__cause__, Refused):
            for what, id in made:
                authority.discard(what, id)
        raise
    await authority.tend()
    await hive.keep_policy_keys(anew=any(what == "policy" for what, _ in made))
    return [_with_invite(hive, reply, secret) for reply, secret in zip(replies, told, strict=True)]


def _check_ids(args: Mapping[str, str]) -> None:
    """Refuse what is no id, and do not quote it."""
    for name, what, pattern in (("token", "revocation id", TOKEN_ID), ("serial", "serial number", SERIAL)):
        if name in args and pattern.fullmatch(args[name]) is None:
            raise FsError(E.USAGE, f"revoke: {name}=: expected a {what}, {pattern.pattern}")


def _with_invite(hive: Hive, reply: str, secret: str) -> str:
    """The reply to ``invite`` begins with the invite instead of its id."""
    if not secret:
        return reply
    id, _, rest = reply.partition(" ")
    trust = hive.state.trust
    invite = trust.invites[id]
    said = {
        "hive": trust.hive, "id": id, "secret": secret, "spki": trust.active("ca").id,
        "role": invite.role, "node": invite.node,
    }  # fmt: skip
    return f"{PREFIX}{urlsafe_b64encode(msgspec.json.encode(said)).decode().rstrip('=')} {rest}"


# certificates


async def _enroll(hive: Hive, lockout: Lockout, caller: Caller, data: bytes) -> bytes:
    authority, peer = _authority(hive), _peer(hive, caller)
    lockout.check(peer)
    said = _decoded(data, Enrolment)
    hashed = secret_hash(said.secret)
    # Asked here first: what anybody may write, as often as they like, is no line of the ledger.
    try:
        opened(hive.state.trust, said.invite, hashed)
    except Refusal as error:
        lockout.failed(peer)
        raise FsError(E[error.code], error.text.partition(": ")[2]) from error
    args = {"invite": said.invite, "secret": hashed, "key": _requested(said.csr), "ttl": authority.ttl}
    try:
        answer = await _certified(hive, caller, "/trust/enroll", ctl.line("enroll", args))
    except FsError:
        lockout.failed(peer)
        raise
    lockout.passed(peer)
    return answer


async def _renew(hive: Hive, caller: Caller, data: bytes) -> bytes:
    authority = _authority(hive)
    if not caller.certificate:
        # Asked here first, too: no line of the ledger for who may be anybody.
        raise FsError(E.UNAUTHENTICATED, "renew: the session has shown no certificate of this hive")
    key = _requested(_decoded(data, Renewal).csr)
    args = {"serial": caller.certificate, "key": key, "ttl": authority.ttl}
    return await _certified(hive, caller, "/trust/renew", ctl.line("renew", args))


async def _certified(hive: Hive, caller: Caller, path: str, line: str) -> bytes:
    """The answer to a request, once the ledger has that it is granted."""
    authority = _authority(hive)
    serial = (await hive.command(caller, path, (line,)))[0].partition(" ")[0]
    record = hive.state.trust.certificates[serial]
    answer = {"certificate": authority.sign(record).decode(), "bundle": authority.bundle().decode()}
    return msgspec.json.encode(answer)


def _decoded(data: bytes, kind: type[T]) -> T:
    if len(data) > REQUEST_MAX:
        raise FsError(E.TOOBIG, f"max={REQUEST_MAX}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FsError(E.SCHEMA, str(error)) from None


def _requested(csr: str) -> str:
    try:
        return read_request(csr)
    except ValueError as error:
        raise FsError(E.UNSIGNED, str(error)) from error


def _peer(hive: Hive, caller: Caller) -> str:
    """Whom a wrong guess is held against."""
    session = hive.sessions.of(caller)
    if session is None:
        return caller.principal
    kind, _, address = session.peer.partition(":")
    return network_of(address) if kind == "tls" else session.peer


# tables


def _keys(hive: Hive) -> str:
    keys = [key for keys in hive.state.trust.keys.values() for key in keys]
    return "".join(f"{_key_line(key)}\n" for key in keys)


def _key_line(key: Key) -> str:
    state = "retired" if key.retired else "overlap" if key.until_ns else "active"
    until = f" until={rfc3339(key.until_ns)}" if key.until_ns else ""
    return f"{key.what} {state} {key.id} since={rfc3339(key.since_ns)}{until}"


def _addresses(hive: Hive, caller: Caller) -> str:
    return "".join(f"{address}\n" for address in hive.reached_at) if caller.tenant == HIVE_TENANT else ""


def _told(caller: Caller, rows: Iterable[Mapping[str, object]]) -> bytes:
    """A JSON line for each, for those who run the hive."""
    if caller.tenant != HIVE_TENANT:
        return b""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)


def _certificates(hive: Hive) -> Iterable[Mapping[str, object]]:
    now_ns = hive.clock.now_ns()
    for found in hive.state.trust.certificates.values():
        yield {
            "serial": found.serial, "node": found.node, "role": found.role, "tenants": found.tenants,
            "from": rfc3339(found.begin_ns), "until": rfc3339(found.end_ns), "ca": found.ca,
            "state": _state(found, now_ns), "reason": found.reason,
        }  # fmt: skip


def _state(found: Certificate, now_ns: int) -> str:
    if found.revoked_ns:
        return f"revoked {rfc3339(found.revoked_ns)}"
    return "good" if now_ns < found.end_ns else "expired"


def _invites(hive: Hive) -> Iterable[Mapping[str, object]]:
    for invite in hive.state.trust.invites.values():
        yield {
            "id": invite.id, "node": invite.node, "role": invite.role, "tenants": invite.tenants,
            "until": rfc3339(invite.until_ns), "serial": invite.serial,
        }  # fmt: skip
