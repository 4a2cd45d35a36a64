"""How much a principal and a peer may do: limits.toml, and the buckets of those who are here.

    [principal.tls]         who comes by TLS, by its name; also unix, tcp
    calls = 1000000         requests a second
    walks = 200000          those among them that look for names
    bytes = 4000000000      a second, both ways
    commands = 2000         lines to ctl files a second
    sessions = 256          at a time
    fids = 65536            of one session
    tags = 4096             requests outstanding of one session
    artifact = 1099511627776  bytes of one artifact

    [peer.tls]              the same but fids, tags and artifact: of one host, of one user of this machine
    sessions = 1024

    [role.observer]         before principal.*, for who has this role
    calls = "unlimited"

What is not said is as in DEFAULTS. A word that is not known, as a key or a value, is an error: then what was
in force stays so. A bucket holds what comes in BURST_S: over ten seconds a limit is exact to half a percent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from skep.fs.conversation import Conversation, Peer
from skep.fs.errors import E, FsError
from skep.fs.limits import Bucket, Meter
from skep.fs.node import Caller
from skep.fs.session import FIDS_MAX, TAGS_MAX
from skep.namespaces.peers import network
from skep.namespaces.sessions.core import Session, Sessions

log = logging.getLogger("skep.limits")
FILE: Final = "limits.toml"
FILE_MAX: Final = 1 << 20  # bytes: some thousand roles
BURST_S: Final = 0.05
ARTIFACT_MAX: Final = 1 << 40  # bytes of one artifact: a larger file is a mistake.
RATES: Final = ("calls", "walks", "bytes", "commands")

Rate = Annotated[int, msgspec.Meta(gt=0, le=10**15)] | Literal["unlimited"] | None
Count = Annotated[int, msgspec.Meta(gt=0, le=10**9)] | None


class PeerLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Rates are a second's. None: not said here."""

    calls: Rate = None
    walks: Rate = None
    bytes: Rate = None
    commands: Rate = None
    sessions: Count = None


class Limit(PeerLimit, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    fids: Count = None
    tags: Count = None
    artifact: Annotated[int, msgspec.Meta(gt=0, le=ARTIFACT_MAX)] | None = None  # bytes of one


class Principals(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    unix: Limit = Limit()
    tcp: Limit = Limit()
    tls: Limit = Limit()


class Peers(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    unix: PeerLimit = PeerLimit()
    tcp: PeerLimit = PeerLimit()
    tls: PeerLimit = PeerLimit()


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """limits.toml, or what stands for it."""

    principal: Principals = Principals()
    peer: Peers = Peers()
    role: dict[str, Limit] = {}


# Who is on this machine may use all of it. Over a network: more than one connection at full speed does.
_NETWORK: Final = Limit(
    calls=1_000_000,
    walks=200_000,
    bytes=4_000_000_000,
    commands=2_000,
    sessions=256,
    fids=FIDS_MAX,
    tags=TAGS_MAX,
)
_LOCAL: Final = Limit("unlimited", "unlimited", "unlimited", "unlimited", 16_384, FIDS_MAX, TAGS_MAX)
_HOST: Final = PeerLimit(2_000_000, 400_000, 8_000_000_000, 4_000, 1024)
_USER: Final = PeerLimit("unlimited", "unlimited", "unlimited", "unlimited", 16_384)
# Anybody may come to enrol, and what is open is memory of ours: two files at a time are what it takes.
_ENROLLING: Final = Limit(fids=16, tags=16)
DEFAULTS: Final = Limits(
    Principals(_LOCAL, _LOCAL, _NETWORK), Peers(_USER, _USER, _HOST), {"enrolling": _ENROLLING}
)


def load(path: Path) -> Limits:
    """What the file says; one that is not there says nothing. Raises FsError(E.SCHEMA)."""
    if not path.exists():
        return Limits()
    data = path.read_bytes()
    if len(data) > FILE_MAX:
        raise FsError(E.TOOBIG, f"max={FILE_MAX} {path.name}")
    try:
        return msgspec.toml.decode(data, type=Limits)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FsError(E.SCHEMA, f"{path.name}: {error}") from error


class Source:
    """The buckets of one peer or one principal, which all its connections draw from."""

    def __init__(self, limit: Callable[[], Mapping[str, int]]) -> None:
        self.limit = limit  # what is in force: the finite ones, by name
        self.buckets: dict[str, Bucket] = {}
        self.users = 0

    def fit(self, now_ns: int) -> None:
        """Have the buckets that the limits in force ask for; what was used up stays so."""
        limit, before = self.limit(), self.buckets
        self.buckets = {}
        for name in RATES:
            if name in limit:
                burst = max(1.0, limit[name] * BURST_S)
                self.buckets[name] = bucket = Bucket(limit[name], burst, now_ns)
                if name in before:
                    before[name].fill(now_ns)
                    bucket.left = min(before[name].left, burst)

    def full(self, now_ns: int) -> bool:
        for bucket in self.buckets.values():
            bucket.fill(now_ns)
        return all(bucket.left >= bucket.burst for bucket in self.buckets.values())


class Held:
    """One connection: its peer's source, and when it has attached its principal's."""

    def __init__(self, conversation: Conversation, peer: Source) -> None:
        self.conversation = conversation
        self.peer = peer
        self.principal: Source | None = None
        self.sessions: set[str] = set()
        self.throttled = 0  # by meters it had before, and of commands

    @property
    def sources(self) -> list[Source]:
        return [self.peer] if self.principal is None else [self.peer, self.principal]


class Limiter:
    """The limits of one hive. ``now``: ns of a clock that never goes back.

    Raises FsError when the file at ``path`` is not good."""

    def __init__(self, path: Path, sessions: Sessions, now: Callable[[], int]) -> None:
        self.path = path
        self.limits = load(path)
        self.sessions = sessions
        self.now = now
        self._sources: dict[tuple[str, ...], Source] = {}
        self._held: dict[Conversation, Held] = {}
        self._by_session: dict[str, Held] = {}

    # what is in force

    def of_peer(self, peer: Peer) -> dict[str, int]:
        return _in_force(PeerLimit, peer.kind, self.limits.peer, DEFAULTS.peer)

    def of_principal(self, peer: Peer, role: str) -> dict[str, int]:
        own = [each.role.get(role, Limit()) for each in (self.limits, DEFAULTS)]
        return _in_force(Limit, peer.kind, self.limits.principal, DEFAULTS.principal, *own)

    def check(self) -> None:
        """Raises FsError when the file is not good."""
        load(self.path)

    def reload(self) -> None:
        """Take what the file says now; when it is not good, what was in force stays."""
        try:
            self.limits = load(self.path)
        except (FsError, OSError) as error:
            log.error("limits stay as they were: %s", error)
            return
        for source in self._sources.values():
            source.fit(self.now())
        for held in self._held.values():
            self._fit(held)

    # connections

    def greet(self, conversation: Conversation) -> None:
        """A connection has been made."""
        peer = conversation.peer
        source = self._source(("peer", network(peer)), lambda: self.of_peer(peer))
        self._held[conversation] = held = Held(conversation, source)
        self._fit(held)

    def admit(self, conversation: Conversation, principal: str, role: str) -> None:
        """Refuse one more session, with FsError(E.QUOTA), when there are too many."""
        peer = conversation.peer
        counts = (
            ("principal", self.sessions.of_principal[principal], self.of_principal(peer, role)),
            ("peer", self.sessions.of_network[network(peer)], self.of_peer(peer)),
        )
        for whose, have, limit in counts:
            if have >= limit.get("sessions", have + 1):
                raise FsError(E.QUOTA, f"sessions of this {whose} have={have} max={limit['sessions']}")

    def attach(self, conversation: Conversation, caller: Caller) -> None:
        """The connection's client has attached; whoever it is, it is for all of its attaches."""
        held, peer = self._held.get(conversation), conversation.peer
        if held is None:  # gone meanwhile
            return
        if held.principal is None:
            role = caller.role
            name = ("principal", peer.kind, caller.principal, role)
            held.principal = self._source(name, lambda: self.of_principal(peer, role))
            self._fit(held)
        held.sessions.add(caller.session)
        self._by_session[caller.session] = held

    def left(self, conversation: Conversation) -> None:
        """The connection is gone."""
        held = self._held.pop(conversation, None)
        if held is not None:
            for id in held.sessions:
                self._by_session.pop(id, None)
            for source in held.sources:
                source.users -= 1

    def sweep(self) -> None:
        """Forget who is not here and owes nothing."""
        now_ns = self.now()
        for name in [n for n, s in self._sources.items() if not s.users and s.full(now_ns)]:
            del self._sources[name]

    def _source(self, name: tuple[str, ...], limit: Callable[[], Mapping[str, int]]) -> Source:
        source = self._sources.get(name)
        if source is None:
            source = self._sources[name] = Source(limit)
            source.fit(self.now())
        source.users += 1
        return source

    def _fit(self, held: Held) -> None:
        """Give the connection what is in force for it now."""
        session = held.conversation.session
        if session.meter is not None:
            held.throttled += session.meter.throttled
        buckets = [source.buckets for source in held.sources]
        metered = any(name in found for found in buckets for name in ("calls", "walks", "bytes"))
        limit = {} if held.principal is None else held.principal.limit()
        meter = Meter(self.now, buckets) if metered else None
        held.conversation.limit(limit.get("fids", FIDS_MAX), limit.get("tags", TAGS_MAX), meter)

    # commands

    def command(self, caller: Caller, count: int) -> None:
        """The caller writes so many lines. Raises FsError(E.THROTTLED) when it has written too many."""
        held = self._by_session.get(caller.session)
        if held is None:  # it calls in process
            return
        now_ns = self.now()
        buckets = [source.buckets["commands"] for source in held.sources if "commands" in source.buckets]
        wait_ns = max((bucket.wait_ns(1, now_ns) for bucket in buckets), default=0)
        if wait_ns:
            held.throttled += 1
            raise FsError(E.THROTTLED, f"retry-ms={-(-wait_ns // 1_000_000)}")
        for bucket in buckets:
            bucket.draw(count, now_ns)

    def artifact_max(self, caller: Caller) -> int:
        """Bytes of the largest artifact that the caller may stage."""
        held = self._by_session.get(caller.session)
        limit = {} if held is None or held.principal is None else held.principal.limit()
        return limit.get("artifact", ARTIFACT_MAX)

    def text(self, session: Session) -> str:
        """What /sessions/<id>/limits tells: of each limit how much is left, and how often it refused."""
        held = self._by_session.get(session.id)
        if held is None:
            return ""
        now_ns = self.now()
        lines = []
        for whose, source in zip(("peer", "principal"), held.sources, strict=False):
            for name in RATES:
                bucket = source.buckets.get(name)
                if bucket is None:
                    lines.append(f"{whose} {name} unlimited")
                else:
                    bucket.fill(now_ns)
                    lines.append(f"{whose} {name} limit={bucket.rate:.0f} left={max(0, int(bucket.left))}")
        nine_p = held.conversation.session
        counts = (
            ("peer sessions", self.sessions.of_network[session.network], held.peer.limit().get("sessions")),
            (
                "principal sessions",
                self.sessions.of_principal[session.caller.principal],
                held.principal and held.principal.limit().get("sessions"),
            ),
            ("session fids", len(nine_p.fids), nine_p.fids_max),
            ("session tags", nine_p.outstanding, nine_p.tags_max),
            ("artifact bytes", 0, held.principal and held.principal.limit().get("artifact")),
        )
        lines += [
            f"{name} limit={limit} left={max(0, limit - have)}" for name, have, limit in counts if limit
        ]
        throttled = held.throttled + (nine_p.meter.throttled if nine_p.meter is not None else 0)
        return "\n".join([*lines, f"throttled {throttled}"]) + "\n"


def _in_force(
    kind: type[PeerLimit],
    transport: str,
    said: Principals | Peers,
    default: Principals | Peers,
    *before: PeerLimit,
) -> dict[str, int]:
    """The finite limits, by name, of who comes by ``transport``: the first that says something is right.

    Who is in this process has none."""
    if transport == "local":
        return {}
    levels = (*before, getattr(said, transport), getattr(default, transport))
    found = {}
    for name in kind.__struct_fields__:
        value = next((v for level in levels if (v := getattr(level, name)) is not None), "unlimited")
        if value != "unlimited":
            found[name] = int(value)
    return found
