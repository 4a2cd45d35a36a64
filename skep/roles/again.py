"""A hive again, in memory, as it was while a conversation was recorded: the other end of it.

Nobody proves here who they are: whom the recording names is let in, by the role's manifest of now."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.fs.chan import Chan
from skep.fs.conversation import Conversation, Peer
from skep.fs.ctl import parse_line
from skep.fs.errors import E, FsError
from skep.fs.messages import NUMBERS, Tflush, Tread
from skep.fs.ninept import Header
from skep.fs.node import Caller, Node
from skep.fs.wire import WireError
from skep.namespaces.live import Hive
from skep.namespaces.order import actor_of
from skep.namespaces.sessions.core import Session
from skep.namespaces.stored import Begun
from skep.namespaces.tokens.afid import Afids
from skep.namespaces.tokens.biscuit import Terms
from skep.namespaces.tokens.desk import Desk, Fresh, Keys
from skep.namespaces.tokens.files import CLONE
from skep.namespaces.tree import hive_tree
from skep.roles.gate import NO_ANAME, names
from skep.roles.manifest import load
from skep.trace.clock import ManualClock
from skep.trace.ledger import Ledger
from skep.validator.conversation.answers import Answers
from skep.validator.conversation.past import PastLedger, PastTurn, Strange

SPINS: Final = 50  # steps of the loop in which what needs no other thread is done
PATIENCE_S: Final = 2.0  # how long an answer may take that needs one
_WAITS: Final = frozenset({NUMBERS[Tread], NUMBERS[Tflush]})  # what may be outstanding for ever
_NEVER_S: Final = 1e9  # bookmarks come by the clock, which stands still here


class PastHive(Hive):
    """A hive whose drafts have the names that they had."""

    drafts: deque[str]

    def draft_id(self) -> str:
        return self.drafts.popleft() if self.drafts else super().draft_id()


class PastDesk(Desk):
    """A token desk whose tokens go by the names that they had. They are worth nothing: nobody has them any
    more, and a recording shows none."""

    def __init__(self, hive: PastHive, turn: PastTurn, actor: str) -> None:
        private = secrets.token_bytes(32)
        public = Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()
        super().__init__(hive.clock, lambda: Keys(private, (public,)), lambda: hive.state)
        self._turn = turn
        self._actor = actor

    def mint(self, terms: Terms) -> Fresh:
        fresh = super().mint(terms)
        line = self._turn.line_of(self._actor, CLONE)
        if line is None:
            return fresh
        was = parse_line(line).args
        return Fresh(was["id"], was["key"], fresh.token)


class _Door:
    """The gate of the one connection."""

    def __init__(self, hive: PastHive, root: Node, header: Header) -> None:
        self.hive = hive
        self.root = root
        self.header = header
        self.hang_up: Callable[[], None] = lambda: None
        self._afids = Afids()
        self._begun: dict[str, Session] = {}  # by tenant

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        return self._afids.chan()

    async def attach(
        self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None
    ) -> Chan:
        header = self.header
        if aname not in (*NO_ANAME, header.aname, header.tenant):
            raise FsError(E.MISSING, aname)
        manifest = load(header.role)
        view = manifest.view(names(self.hive, header.node, header.principal))
        session = self._begun.get(header.tenant)
        if session is None:
            user = header.node or header.principal.rpartition(":")[2]
            caller = Caller(
                header.principal, header.role, header.tenant, os.getuid(), os.getgid(), user,
                header.session, header.node,
            )  # fmt: skip
            session = Session(
                header.session, caller, "local", header.time, lambda: 0, manifest.ns, self.hang_up, view
            )
            self._begun[header.tenant] = session
            self.hive.sessions.add(session)
            if header.node:
                await self.hive.join(caller)
        return await manifest.enter(Chan(self.root, session.caller, view), view)

    def left(self) -> None:
        for session in self._begun.values():
            self.hive.sessions.remove(session.id)


class PastWire:
    """The conversation with it."""

    def __init__(
        self, hive: PastHive, turn: PastTurn, clock: ManualClock, door: _Door, header: Header
    ) -> None:
        self._hive = hive
        self._turn = turn
        self._clock = clock
        # What is served, as the header of a recording has it.
        self.tree = sha256(f"{hive.tapes.tree}{load(header.role).ns}".encode()).hexdigest()
        self._actor = actor_of(header.principal, header.node)
        self._asked: dict[int, int] = {}  # types of messages that are not answered, by tag
        self._answers = Answers(lambda tag: self._asked.pop(tag, None))
        self._conversation = Conversation(door, Peer("local"), self._take)

    def close(self) -> None:
        self._conversation.lost()

    async def at(self, time_ns: int, seq: int) -> None:
        self._clock.time_ns = time_ns
        while self._turn.seq < seq:
            own = self._turn.next_of(self._actor, seq)
            if own is None:
                self._turn.go_to(seq)
                break
            # What was written then, is written now by whom waits for it here; if by nobody, another session
            # of the same actor wrote it.
            self._turn.go_to(own - 1)
            self.expect(seq)
            await self._wait_written(own)
            self._turn.go_to(own)
        await self._spin(lambda: False, 1)

    async def _wait_written(self, seq: int) -> None:
        """Return when the entry is written, or nobody does."""
        await self._spin(lambda: self._turn.seq >= seq)
        # What is written may have to be read or hashed first, on another thread.
        if self._turn.seq < seq and any(kind not in _WAITS for kind in self._asked.values()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._turn.wait_past(seq - 1)

    async def _spin(self, done: Callable[[], bool], steps: int = SPINS) -> None:
        for _ in range(steps):
            if done():
                return
            await asyncio.sleep(0)

    def expect(self, seq: int) -> None:
        self._turn.horizon = max(self._turn.horizon, seq)

    def send(self, frame: bytes) -> None:
        self._asked[int.from_bytes(frame[5:7], "little")] = frame[4]
        try:
            self._conversation.receive(frame)
        except WireError:
            self._answers.end()  # no connection would go on: nothing more is answered

    async def answer(self, tag: int) -> bytes | None:
        await self._spin(lambda: self._answers.has(tag))
        return await self._answers.next(tag, PATIENCE_S)

    def unasked(self) -> list[bytes]:
        return self._answers.rest()

    def draft(self, id: str) -> None:
        self._hive.drafts.append(id)

    def strange(self) -> list[Strange]:
        found, self._turn.strange = self._turn.strange, []
        return found

    def _take(self, frames: Sequence[bytes | memoryview]) -> None:
        self._answers.feed(b"".join(frames))


@contextlib.asynccontextmanager
async def past_wire(
    header: Header, ledger: Ledger, seq: int, begun: Begun | None = None
) -> AsyncIterator[PastWire]:
    """The other end, when the ledger had ``seq`` entries. ``begun``: what some of them mean; None: all are
    folded. Raises LedgerError."""
    clock = ManualClock(header.time)  # its ids are nobody's
    past = PastLedger(ledger, seq, 0 if begun is None else begun.seq)
    turn = PastTurn(past, begun)
    try:
        with TemporaryDirectory(prefix="skep-again-") as directory:
            hive = PastHive(turn, clock, Path(directory), header.release, _NEVER_S)
            hive.drafts = deque()
            if turn.state.trust.hive:  # it has keys
                hive.tokens = PastDesk(hive, turn, actor_of(header.principal, header.node))
            door = _Door(hive, hive_tree(hive), header)
            wire = PastWire(hive, turn, clock, door, header)
            try:
                # What has left memory takes a while to be found.
                await hive.wait_history()
                yield wire
            finally:
                wire.close()
                door.left()
                await hive.close()
    finally:
        await turn.close()
        past.close()
