"""Refusals on their way to the ledger: each counted, floods as one record a window, memory bounded.

The first of a kind (whose, from where, which operation, rule and path) is recorded at once. Its repeats are
one record at the end of a window: 1 s at first, twice as long while they go on, 60 s at the most. All of one
window are told the same id, which is the record's. A kind that was not seen for a window is forgotten.

A peer has so many kinds at a time and so many new ones a minute; what is beyond is its catch-all's, recorded
once a minute; peers beyond the most share one catch-all. So what a peer can have written is bounded, and
every refusal is in exactly one record. A hive that is killed loses the windows that had not ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from skep.fs import ctl
from skep.fs.chan import Witness
from skep.fs.conversation import Peer
from skep.fs.errors import E, FsError
from skep.fs.limits import Bucket
from skep.fs.node import Caller
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.peers import host_of, network, peer_text
from skep.trace.clock import SECOND, Clock, rfc3339

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.trust import Refusal

log = logging.getLogger("skep.denials")
WINDOW_NS: Final = SECOND
WINDOW_MAX_NS: Final = 60 * SECOND
KINDS_PER_PEER: Final = 16  # at a time, beside its catch-all
KINDS_MAX: Final = 512  # of all peers: some 500 KiB
PEERS_MAX: Final = 256
PEER_RATE: Final = 1 / 30  # new kinds of one peer a second; with their windows some 20 MB a day at the most
ALL_RATE: Final = 1.0  # new kinds of all peers a second
MISSED_MAX: Final = 512  # names not found that wait to be counted, in some milliseconds
SOON_S: Final = 0.05  # from a refusal to its record: what comes meanwhile shares the commit
TEXT_MAX: Final = 512  # characters of a path; a quarter for each other word
BATCH_MAX: Final = 8 << 10  # bytes of lines in one entry, which says them twice, and quoted
WAITS: Final = frozenset({E.NOSPACE, E.THROTTLED, E.BUSY, E.IO})  # what may be better the next time
ANY: Final = "*"


class What(NamedTuple):
    """A kind of refusal; ``peer`` without its port. ANY stands for many."""

    peer: str
    principal: str = ANY
    role: str = ""
    node: str = ""
    tenant: str = HIVE_TENANT
    op: str = ANY
    code: str = ANY
    rule: str = ANY
    canonical: str = ANY


class Record(NamedTuple):
    """What one window held; times in ns. ``peer``, ``given``, ``why``: of the first in it."""

    what: What
    trace: str
    times: int
    first_ns: int
    last_ns: int
    peer: str
    given: str
    why: str


class _Kind:
    """One kind's open window. ``count`` 0: nothing yet."""

    __slots__ = (
        "count",
        "due_ns",
        "first_ns",
        "given",
        "last_ns",
        "peer",
        "trace",
        "what",
        "why",
        "window_ns",
    )

    def __init__(self, what: What, due_ns: int, window_ns: int) -> None:
        self.what = what
        self.due_ns = due_ns
        self.window_ns = window_ns  # of the next window
        self.count = 0
        self.first_ns = self.last_ns = 0
        self.trace = self.peer = self.given = self.why = ""


class _Peer:
    """One network: its kinds alive, and how soon it may have new ones."""

    __slots__ = ("bucket", "caught", "kinds")

    def __init__(self, now_ns: int) -> None:
        self.bucket = Bucket(PEER_RATE, KINDS_PER_PEER, now_ns)
        self.kinds = 0  # without its catch-all
        self.caught = False  # whether it has a catch-all


class Kinds:
    """The kinds of refusals alive. Pure: the clock is asked for names alone."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._kinds: dict[What, _Kind] = {}
        self._peers: dict[str, _Peer] = {}
        self._bucket = Bucket(ALL_RATE, KINDS_MAX, clock.now_ns())

    def note(self, what: What, peer: str, given: str, why: str, now_ns: int) -> str:
        """Count one; the id of the record that it will be in."""
        kind = self._kinds.get(what) or self._admit(what, now_ns)
        if not kind.count:
            kind.trace, kind.first_ns = self.clock.new_id(), now_ns
            many = kind.what.op == ANY
            kind.peer, kind.given, kind.why = (kind.what.peer, ANY, "") if many else (peer, given, why)
        kind.count += 1
        kind.last_ns = now_ns
        return kind.trace

    def _admit(self, what: What, now_ns: int) -> _Kind:
        """The kind that counts the first ``what``: its own, or a catch-all."""
        peer = self._peers.get(what.peer)
        if peer is None and len(self._peers) < PEERS_MAX:
            peer = self._peers[what.peer] = _Peer(now_ns)
        if peer is None:
            return self._catch_all(ANY, now_ns)
        peer.bucket.fill(now_ns)
        if peer.kinds >= KINDS_PER_PEER or peer.bucket.left < 1 or not self._bucket.take(1, now_ns):
            peer.caught = True
            return self._catch_all(what.peer, now_ns)
        peer.bucket.draw(1, now_ns)
        peer.kinds += 1
        kind = self._kinds[what] = _Kind(what, now_ns, WINDOW_NS)
        return kind

    def _catch_all(self, peer: str, now_ns: int) -> _Kind:
        what = What(peer)
        if what not in self._kinds:
            self._kinds[what] = _Kind(what, now_ns + WINDOW_MAX_NS, WINDOW_MAX_NS)
        return self._kinds[what]

    def due(self, now_ns: int, everything: bool = False) -> list[Record]:
        """Close the windows that have ended, or all; what was in them."""
        records = []
        for kind in list(self._kinds.values()):
            # A clock set back must not keep a window open.
            if not everything and now_ns < kind.due_ns <= now_ns + WINDOW_MAX_NS:
                continue
            if not kind.count:
                self._forget(kind)
                continue
            records.append(
                Record(
                    kind.what,
                    kind.trace,
                    kind.count,
                    kind.first_ns,
                    kind.last_ns,
                    kind.peer,
                    kind.given,
                    kind.why,
                )
            )
            kind.count = 0
            kind.due_ns = now_ns + kind.window_ns
            kind.window_ns = min(2 * kind.window_ns, WINDOW_MAX_NS)
        for name, peer in list(self._peers.items()):
            peer.bucket.fill(now_ns)
            if not peer.kinds and not peer.caught and peer.bucket.left >= peer.bucket.burst:
                del self._peers[name]
        return records

    def _forget(self, kind: _Kind) -> None:
        del self._kinds[kind.what]
        peer = self._peers.get(kind.what.peer)  # None: the catch-all of all has none
        if peer is not None and kind.what.op == ANY:
            peer.caught = False
        elif peer is not None:
            peer.kinds -= 1

    def __len__(self) -> int:
        return len(self._kinds)


class _Missed(NamedTuple):
    what: What
    peer: str
    given: str
    hidden: bool


class Denials:
    """The refusals of one hive. ``write`` puts lines of one tenant into the ledger; raises FsError."""

    def __init__(self, clock: Clock, write: Callable[[str, list[str]], Awaitable[None]]) -> None:
        self.clock = clock
        self.kinds = Kinds(clock)
        # Names that do not exist take the same way as hidden ones, so that nobody can tell them by the time
        # that is spent on them. What they come to is thrown away.
        self._shadow = Kinds(clock)
        self._missed: deque[_Missed] = deque()
        self._write = write
        self._unwritten: list[Record] = []  # windows that have ended; while there are any, no other ends
        self._writing = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def witness(self, peer: Peer) -> Witness:
        """Records what is refused to one connection."""
        return _PeerWitness(self, peer)

    def note(
        self,
        op: str,
        peer: str,
        code: str,
        rule: str,
        *,
        path: str = "",
        canonical: str = "",
        why: str = "",
        principal: str = "",
        role: str = "",
        node: str = "",
        tenant: str = HIVE_TENANT,
        origin: str = "",
    ) -> str:
        """Count one refusal; its trace id. ``origin``: what peers are counted together by, else ``peer``."""
        what = What(
            _cut(origin or peer), _cut(principal), role, node, tenant, op, code, _cut(rule),
            _cut(canonical or path, TEXT_MAX),
        )  # fmt: skip
        self._soon()
        return self.kinds.note(what, _cut(peer), _cut(path, TEXT_MAX), _cut(why), self.clock.now_ns())

    def refused(self, refusal: Refusal) -> None:
        """A connection was refused by its handshake, or ended for its certificate."""
        host = host_of(refusal.address)
        rule = refusal.reason.name.lower()
        self.note(
            "connect", f"tls:{refusal.address}", E.UNAUTHENTICATED.name, rule,
            why=f"{refusal.reason.value}: {refusal.detail}".removesuffix(": "), origin=f"tls:{host}",
        )  # fmt: skip

    def missed(
        self, op: str, peer: str, origin: str, given: str, canonical: str, caller: Caller, hidden: bool
    ) -> None:
        """A name was not found; ``hidden``: so it was refused."""
        what = What(
            origin, _cut(caller.principal), caller.role, caller.node, caller.tenant, op, E.MISSING.name,
            "namespace", _cut(canonical, TEXT_MAX),
        )  # fmt: skip
        self._missed.append(_Missed(what, peer, _cut(given, TEXT_MAX), hidden))
        self._soon()
        if len(self._missed) >= MISSED_MAX:
            self._count_missed()

    def _count_missed(self) -> None:
        now_ns = self.clock.now_ns()
        while self._missed:
            missed = self._missed.popleft()
            kinds = self.kinds if missed.hidden else self._shadow
            kinds.note(missed.what, missed.peer, missed.given, "", now_ns)

    def _soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self._begin)

    def _begin(self) -> None:
        self._timer = None
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self.flush())

    async def flush(self, everything: bool = False) -> None:
        """Record what is due, or everything. What cannot be written now stays for the next time."""
        async with self._writing:
            self._count_missed()
            now_ns = self.clock.now_ns()
            self._shadow.due(now_ns)
            if not self._unwritten or everything:
                self._unwritten += self.kinds.due(now_ns, everything)
            while self._unwritten:
                tenant, lines = self._batch()
                try:
                    await self._write(tenant, lines)
                except FsError as error:
                    if error.kind in WAITS:
                        log.warning("%d records of refusals wait to be written: %s", len(lines), error)
                        return
                    # What could never be written must not keep the rest from it.
                    log.error("a record of refusals is not written: %s: %s", error, lines)
                del self._unwritten[: len(lines)]

    def _batch(self) -> tuple[str, list[str]]:
        """The first records that may share an entry: their tenant, and a line for each."""
        tenant = self._unwritten[0].what.tenant
        lines: list[str] = []
        size = 0
        for record in self._unwritten:
            line = _line(record)
            size += len(line.encode())
            if record.what.tenant != tenant or (lines and size > BATCH_MAX):
                break
            lines.append(line)
        return tenant, lines

    async def close(self) -> None:
        """Record everything. Nothing is to be noted any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            await self._task
        await self.flush(everything=True)


class _PeerWitness:
    """The witness of one connection's chans."""

    def __init__(self, denials: Denials, peer: Peer) -> None:
        self.denials = denials
        self.peer = peer_text(peer)
        self.origin = network(peer)
        self.principal = peer.spiffe or (f"uid={peer.uid}" if peer.kind == "unix" else "")

    def refused(self, op: str, given: str, canonical: str, error: FsError, caller: Caller | None) -> str:
        rule, why = rule_of(error.kind.name, error.detail)
        who = Caller(self.principal, "", HIVE_TENANT) if caller is None else caller
        return self.denials.note(
            op, self.peer, error.kind.name, rule, path=given, canonical=canonical, why=why,
            principal=who.principal, role=who.role, node=who.node, tenant=who.tenant, origin=self.origin,
        )  # fmt: skip

    def missed(self, op: str, given: str, canonical: str, caller: Caller, hidden: bool) -> None:
        self.denials.missed(op, self.peer, self.origin, given, canonical, caller, hidden)


def rule_of(code: str, detail: str) -> tuple[str, str]:
    """The rule that an error's detail names, else its class, and the rest of the detail."""
    if detail.startswith("rule="):
        rule, _, why = detail.removeprefix("rule=").partition(" ")
        return rule or code.lower(), why
    return code.lower(), detail


def _cut(text: str, size_max: int = TEXT_MAX // 4) -> str:
    """``text`` as UTF-8 can tell it, and no longer than a record may be."""
    text = text if len(text) <= size_max else text[: size_max - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _line(record: Record) -> str:
    what = record.what
    said = {
        "trace": record.trace, "op": what.op, "code": what.code, "rule": what.rule, "peer": record.peer,
        "principal": what.principal, "role": what.role, "node": what.node, "path": record.given,
        "canonical": what.canonical, "why": record.why, "count": str(record.times),
        "first": rfc3339(record.first_ns), "last": rfc3339(record.last_ns),
    }  # fmt: skip
    return ctl.line("denied", {name: value for name, value in said.items() if value})
