"""Tokens as a fold: which were minted and on what terms, and how often each was used.

The tokens themselves are not here: they were told once, to who asked, and the ledger never has them. A block
goes by the beginning of its revocation id. What a line was written under stands in the line (Grant.token),
so that quotas and revocations are decided like everything else, and decided alike in a replay. Which blocks
are revoked is for who keeps /trust/ctl to say.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.clock import HOUR, MINUTE, duration, parse_rfc3339, rfc3339
from skep.trace.rules import Decision, Meta, Refusal

TTL_MAX_NS: Final = 720 * HOUR  # what is stolen ends by itself
TOKENS_MAX: Final = 65536  # alive at one time
COUNTED_MAX: Final = 1024  # blocks of one token that have quotas of their own: each has a number in memory
SWEEP_NS: Final = HOUR  # between two forgettings of what has expired

# As the ledger has them. What people write to clone is in files.py: the hive puts the id and the time in.
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "*/clone": ctl.verbs(
        Verb(
            "mint",
            (
                Arg("id", required=True, kind="name"),
                Arg("key", required=True, kind="sha256"),
                Arg("ops", required=True),
                Arg("paths", required=True),
                Arg("tenant", required=True),
                Arg("until", required=True),
                Arg("subject"),
                Arg("uses", kind="number"),
                Arg("channel"),
            ),
        )
    ),
}


class Minted(msgspec.Struct, frozen=True, tag_field="type", tag="token.minted", omit_defaults=True):
    """``key``: the public one it is verified by, hex; ``until``: ns. ``uses`` 0: any number; ``subject``,
    ``channel`` "": whoever, over whatever."""

    token: str
    key: str
    ops: tuple[str, ...]
    paths: tuple[str, ...]
    tenant: str
    until: int
    by: str
    subject: str = ""
    uses: int = 0
    channel: str = ""


class Used(msgspec.Struct, frozen=True, tag_field="type", tag="token.used"):
    """One command was written under ``token``; ``counted`` are its blocks that have quotas."""

    token: str
    counted: tuple[str, ...]


Event = Minted | Used


class Token(msgspec.Struct, frozen=True):
    """One that was minted and has not expired. ``used``: how often each block that has a quota was."""

    minted: Minted
    time_ns: int
    rev: int
    used: dict[str, int] = {}  # never changed, only replaced


@dataclass
class Tokens:
    by_id: dict[str, Token] = field(default_factory=dict)
    swept_ns: int = 0

    def copy(self) -> Tokens:
        return Tokens(self.by_id.copy(), self.swept_ns)


Decided = Decision[Event, str]


class World(Protocol):
    @property
    def revoked_tokens(self) -> Container[str]:
        """The ids of revoked blocks."""

    @property
    def retired_token_keys(self) -> Container[str]:
        """Public keys, hex, that no token is believed by any more."""


# what a line is written under


class Block(NamedTuple):
    """One word of a line's token. ``uses`` None: it has no quota."""

    id: str
    uses: int | None


def blocks_of(token: str) -> list[Block]:
    """The blocks of a line's token; those of none, of ""."""
    words = (word.partition("=") for word in token.split())
    return [Block(id, int(uses) if equals else None) for id, equals, uses in words]


def admit(tokens: Tokens, token: str, world: World, time_ns: int) -> Used | None:
    """What a command written under ``token`` uses up, if anything. Raises Refusal."""
    blocks = blocks_of(token)
    if not blocks:
        return None
    doubt = doubt_of(tokens, [block.id for block in blocks], world, time_ns)
    if doubt is not None:
        raise doubt
    counted = [block for block in blocks if block.uses is not None]
    if not counted:
        return None
    found = tokens.by_id[blocks[0].id]
    for id, uses in counted:
        have = found.used.get(id, 0)
        if uses is not None and have >= uses:
            raise refusal(E.QUOTA, f"token uses have={have} max={uses}")
    ids = tuple(block.id for block in counted)
    blocks_counted = len(found.used.keys() | ids)
    if blocks_counted > COUNTED_MAX:
        raise refusal(E.QUOTA, f"token blocks have={blocks_counted} max={COUNTED_MAX}")
    return Used(blocks[0].id, ids)


def doubt_of(tokens: Tokens, ids: Sequence[str], world: World, time_ns: int) -> Refusal | None:
    """Why the token whose blocks go by ``ids`` is good for nothing now; None: it is good."""
    for id in ids:
        if id in world.revoked_tokens:
            return refusal(E.REVOKED, f"token={id}")
    found = tokens.by_id.get(ids[0])
    if found is None:
        return refusal(E.UNSIGNED, f"token={ids[0]} is none that this hive minted, or expired long ago")
    if found.minted.key in world.retired_token_keys:
        return refusal(E.REVOKED, f"the key of token={ids[0]}")
    if time_ns >= found.minted.until:
        return refusal(E.EXPIRED, f"token={ids[0]} until={rfc3339(found.minted.until)}")
    return None


# deciding


def decide(tokens: Tokens, order: Order) -> Decided:
    """What follows from an order to mint; raises Refusal.

    That it grants no more than its minter has, the door has checked, which knows the session's view."""
    args, now_ns = order.args, order.time_ns
    if order.token:
        raise refusal(E.DENIED, "rule=token-mints what a token grants is passed on by narrowing the token")
    if args["tenant"] != order.tenant:
        raise refusal(E.DENIED, f"rule=token-tenant this session is {order.tenant}")
    until_ns = parse_rfc3339(args["until"])
    if not now_ns < until_ns <= now_ns + TTL_MAX_NS:
        raise refusal(E.USAGE, f"mint: expected a ttl of at most {duration(TTL_MAX_NS)}")
    if args["id"] in tokens.by_id:
        raise refusal(E.EXISTS, args["id"])
    alive = sum(token.minted.until > now_ns for token in tokens.by_id.values()) if _full(tokens) else 0
    if alive >= TOKENS_MAX:
        raise refusal(E.QUOTA, f"tokens have={alive} max={TOKENS_MAX}")
    minted = Minted(
        args["id"],
        args["key"],
        tuple(args["ops"].split(",")),
        tuple(args["paths"].split(" ")),
        args["tenant"],
        until_ns,
        order.actor,
        args.get("subject", ""),
        int(args.get("uses", "0")),
        args.get("channel", ""),
    )
    return Decision((minted,), minted.token)


def _full(tokens: Tokens) -> bool:
    return len(tokens.by_id) >= TOKENS_MAX


# applying


def apply(tokens: Tokens, event: Event, meta: Meta) -> None:
    """Change ``tokens`` by ``event``."""
    match event:
        case Minted():
            _sweep(tokens, meta.time_ns)
            tokens.by_id[event.token] = Token(event, meta.time_ns, meta.seq)
        case Used(id, counted):
            found = tokens.by_id[id]
            used = found.used | {block: found.used.get(block, 0) + 1 for block in counted}
            tokens.by_id[id] = msgspec.structs.replace(found, used=used, rev=meta.seq)


def _sweep(tokens: Tokens, now_ns: int) -> None:
    """Forget what has expired, if that was not done lately."""
    if now_ns - tokens.swept_ns < SWEEP_NS:
        return
    tokens.swept_ns = now_ns
    # A minute more: a line may have been begun just before its token's end, and be written down after it.
    for id in [id for id, token in tokens.by_id.items() if token.minted.until + MINUTE <= now_ns]:
        del tokens.by_id[id]
