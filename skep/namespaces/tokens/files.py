"""/trust/tokens: capabilities that narrow the session they are presented to, and can be narrowed further.

    clone      one open makes one token: W one line, R the token, base64, told only there
    key        R the public key that tokens are verified by, ed25519/<hex>
    channel    R how a token is bound to this session's TLS channel; empty without TLS
    <id>       R what was minted under that id, and how much of it is used, a JSON line

The line: mint ops=read,write paths=/jobs,/nodes/w1 ttl=1h [subject=<principal>] [uses=<number>]
[bind=channel | binding=<channel>] [tenant=org/project/env]. The verb may be left out.

    ops       of read write create remove, or all
    paths     the places and all below them, percent-encoded like a URL's path: a comma in a name as %2C
    subject   who alone may present it
    uses      how many commands may be written under it, by whomever
    bind      to this session's own channel; binding= to the one whose end read it from its ``channel``

A token narrows: what its bearer may not do without it stays refused with it, and a session can grant only
what it may do itself, in its own tenant. Who came with a token mints none; it is passed on by adding a
block, which needs no hive (skep token attenuate). A token is presented by writing it to the afid of Tauth,
and is revoked by its id, or that of any of its blocks: /trust/ctl.

    exec 3<>trust/tokens/clone; echo ops=read paths=/jobs ttl=1h >&3; cat <&3
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from skep.fs import ctl
from skep.fs.chan import View
from skep.fs.ctl import Arg, Command, Verb
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Handle, How
from skep.fs.shapes import CTL_MAX, File, Reply, Text
from skep.fs.tree import Listing
from skep.namespaces.live import Hive
from skep.namespaces.tokens.biscuit import OPS, Place, Terms, TokenError, parse_ops, parse_place, place_text
from skep.namespaces.tokens.core import Token
from skep.namespaces.tokens.desk import Desk
from skep.namespaces.tokens.grant import RIGHTS, channel_of
from skep.trace.clock import SECOND, parse_duration, rfc3339

CLONE: Final = "/trust/tokens/clone"
VERBS: Final = ctl.verbs(
    Verb(
        "mint",
        (
            Arg("ops", required=True, help=f"{','.join(OPS)}, or all"),
            Arg("paths", required=True, help="places, with commas between; all below them too"),
            Arg("ttl", required=True, kind="duration"),
            Arg("subject", help="the principal that alone may present it"),
            Arg("uses", kind="number", help="commands that may be written under it"),
            Arg("bind", help="channel: this session's own"),
            Arg("binding", help="the channel of another session, as its own channel file tells it"),
            Arg("tenant", help="this session's; no other is granted"),
        ),
        "mint ops=read paths=/jobs ttl=1h",
        "a token; the reply is told once",
    )
)


def files(hive: Hive) -> Listing:
    """The tree of /trust/tokens. A hive without keys has none of it."""
    fixed = {
        "clone": _Clone(hive),
        "key": Text(lambda: f"ed25519/{_desk(hive).public_key.hex()}\n"),
        "channel": Text(lambda caller: _channel(hive, caller)),
    }

    def names(caller: Caller) -> list[str]:
        if hive.tokens is None:
            return []
        minted = hive.state.tokens.by_id.items()
        return [*fixed, *(id for id, token in minted if token.minted.tenant == caller.tenant)]

    def walk(name: str, caller: Caller) -> Any:
        if hive.tokens is None:
            return None
        token = hive.state.tokens.by_id.get(name)
        if token is None or token.minted.tenant != caller.tenant:
            return fixed.get(name)
        return Text(lambda: _told(hive, token))

    return Listing(names, walk)


def _desk(hive: Hive) -> Desk:
    if hive.tokens is None:
        raise FsError(E.MISSING)
    return hive.tokens


def _channel(hive: Hive, caller: Caller) -> str:
    session = hive.sessions.of(caller)
    channel = "" if session is None else channel_of(session.binding())
    return f"{channel}\n" if channel else ""


def _told(hive: Hive, token: Token) -> str:
    minted = token.minted
    told = {
        "token": minted.token,
        "key": minted.key,
        "ops": minted.ops,
        "paths": minted.paths,
        "tenant": minted.tenant,
        "minted": rfc3339(token.time_ns),
        "until": rfc3339(minted.until),
        "by": minted.by,
        "subject": minted.subject,
        "channel": minted.channel,
        "uses": minted.uses,
        "used": token.used.get(minted.token, 0),
        "revoked": minted.token in hive.state.revoked_tokens,
    }
    return msgspec.json.encode(told).decode() + "\n"


class _Clone(File):
    def __init__(self, hive: Hive) -> None:
        super().__init__(0o666)
        self.hive = hive

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Minting(self.hive, caller)


class _Minting(Reply):
    """One open: usage before a line was written, then the token that it made."""

    tells_secrets = True

    def __init__(self, hive: Hive, caller: Caller) -> None:
        super().__init__(ctl.usage(VERBS).encode())
        self.hive = hive
        self.caller = caller
        self.done = False

    async def write(self, offset: int, data: memoryview) -> int:
        if len(data) > CTL_MAX:
            raise FsError(E.TOOBIG, f"max={CTL_MAX}")
        commands = [_whole(command) for command in ctl.parse(bytes(data))]
        if not commands:
            return len(data)
        if len(commands) > 1 or self.done:
            raise FsError(E.USAGE, "mint: one open makes one token")
        ctl.check(commands[0], VERBS)
        self.done = True
        self.reply(f"{await mint(self.hive, self.caller, commands[0].args)}\n".encode())
        return len(data)


def _whole(command: Command) -> Command:
    """The command with its verb: a line may begin with its arguments."""
    if "=" not in command.verb:
        return command
    return ctl.parse_line(f"mint {command.text}", command.number)


async def mint(hive: Hive, caller: Caller, args: Mapping[str, str]) -> str:
    """A new token, written down. Raises FsError."""
    desk = _desk(hive)
    if args.get("tenant", caller.tenant) != caller.tenant:
        raise FsError(E.DENIED, f"rule=token-tenant this session is {caller.tenant}")
    try:
        terms = _terms(hive, caller, args)
        _check_own(hive, caller, terms)
        fresh = desk.mint(terms)
    except TokenError as error:
        raise FsError(E.USAGE, f"mint: {error}") from None
    assert terms.ops is not None
    assert terms.places is not None
    assert terms.until_ns is not None
    said = {
        "id": fresh.id,
        "key": fresh.key,
        "ops": ",".join(sorted(terms.ops)),
        "paths": " ".join(sorted(map(place_text, terms.places))),
        "tenant": caller.tenant,
        "until": rfc3339(terms.until_ns),
        "subject": terms.subject,
        "uses": None if terms.uses is None else str(terms.uses),
        "channel": terms.channel,
    }
    line = ctl.line("mint", {name: value for name, value in said.items() if value is not None})
    await hive.command(caller, CLONE, (line,))
    return fresh.token


def _terms(hive: Hive, caller: Caller, args: Mapping[str, str]) -> Terms:
    until_ns = hive.clock.now_ns() + parse_duration(args["ttl"])
    return Terms(
        ops=parse_ops(args["ops"]),
        places=parse_places(args["paths"]),
        until_ns=until_ns // SECOND * SECOND,
        subject=args.get("subject"),
        channel=_bound(hive, caller, args),
        uses=int(args["uses"]) if "uses" in args else None,
        tenant=caller.tenant,
    )


def parse_places(text: str) -> frozenset[Place]:
    """Paths with commas between, with or without a slash at the end. Raises TokenError."""
    # An empty path would be the root's.
    paths = (path if path.endswith("/") or not path else f"{path}/" for path in text.split(","))
    return frozenset(map(parse_place, paths))


def _bound(hive: Hive, caller: Caller, args: Mapping[str, str]) -> str | None:
    """The channel to bind to; None: to none."""
    if "bind" not in args:
        return args.get("binding")
    if args["bind"] != "channel" or "binding" in args:
        raise TokenError("expected bind=channel, or binding=, or neither")
    session = hive.sessions.of(caller)
    channel = "" if session is None else channel_of(session.binding())
    if not channel:
        raise TokenError("bind=channel: this session has no TLS channel")
    return channel


def _check_own(hive: Hive, caller: Caller, terms: Terms) -> None:
    """Refuse to grant what the session itself may not do. Raises FsError."""
    if not caller.session:
        return  # in process: the hive's own
    session = hive.sessions.of(caller)
    if session is None:
        raise FsError(E.DENIED, "rule=token-rights the session has ended")
    assert terms.ops is not None
    assert terms.places is not None
    for place in terms.places:
        view: View | None = session.view
        for name in place:
            view = None if view is None else view.child(name)
        if view is None:
            raise FsError(E.MISSING)
        for op in sorted(terms.ops):
            if not view.rights & RIGHTS[op]:
                raise FsError(E.DENIED, f"rule=token-rights {op} {place_text(place)}")
