"""A hive that lives: its turn, its clock, those who wait, and what it forgets when it ends.

Files ask it for two things: ``command`` (write lines, get their replies) and ``state`` (what is durable
now). It alone speaks as ``hive``: leases that end, nodes that are not heard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from skep.fs.ctl import Command, is_name, parse_line
from skep.fs.ctl import line as ctl_line
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.spiffe import Spiffe
from skep.namespaces import hive, occasions
from skep.namespaces.agenda import Agenda
from skep.namespaces.artifacts.core import BYTES_LIMIT
from skep.namespaces.artifacts.shelf import shelf_at
from skep.namespaces.artifacts.store import Store
from skep.namespaces.boot import runs as boot
from skep.namespaces.boot.starts import Starts
from skep.namespaces.checked import Answer, detail_of, vouched, vouched_line
from skep.namespaces.gpu import asked as gpu
from skep.namespaces.gpu import said as gpu_said
from skep.namespaces.gpu.beat import Beat
from skep.namespaces.gpu.offers import Offers
from skep.namespaces.gpu.record import Leased as GpuLeased
from skep.namespaces.gpu.record import Withdrawn as GpuWithdrawn
from skep.namespaces.hive import ANNEX, HiveState
from skep.namespaces.jobs import core
from skep.namespaces.jobs import record as jobs
from skep.namespaces.jobs.due import FALL_BACK, OVERDUE
from skep.namespaces.jobs.fallback import ANNEX_LOST, Due, reason_now, stranded
from skep.namespaces.jobs.history import FILE as HISTORY
from skep.namespaces.jobs.history import Found, History
from skep.namespaces.jobs.logs import Logs
from skep.namespaces.jobs.preemption import preemptions
from skep.namespaces.leases import Leases
from skep.namespaces.locks.core import Granted, Withdrawn
from skep.namespaces.locks.ends import Ends
from skep.namespaces.log.core import LOG
from skep.namespaces.log.denials import Denials
from skep.namespaces.log.recordings import Ordered
from skep.namespaces.nodes.core import Removed
from skep.namespaces.order import HIVE, Order, actor_of
from skep.namespaces.policy.core import HIVE_KEYS, first_lines, key_lines, mending_lines
from skep.namespaces.policy.keys import Signer, load_or_create
from skep.namespaces.pools.core import Made, lines_for
from skep.namespaces.sessions.core import Session, Sessions
from skep.namespaces.sessions.limits import FILE, Limiter
from skep.namespaces.tapes import Tapes
from skep.namespaces.tokens.desk import Desk, Keys
from skep.namespaces.triggers.watch import Watch
from skep.namespaces.trust.authority import Authority
from skep.namespaces.trust.record import Retired, Revoked
from skep.namespaces.validator import runs as validator
from skep.trace import rules
from skep.trace.clock import HOUR, MINUTE, SECOND, Clock, later_id
from skep.trace.entry import Entry, Line
from skep.trace.ring import Ring
from skep.trace.rules import Refusal as RuleRefusal
from skep.trace.turn import Refused, Turn, TurnStopped

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.trust import Refusal

log = logging.getLogger("skep.hive")
TICK_S: Final = 0.5  # how late a lease's end or a silent node is noticed, at most.
SUSPECT_NS: Final = 15 * SECOND  # without a heartbeat: three missed ones of a worker's.
LOST_NS: Final = 45 * SECOND  # then its leases are about to end.
OFFER_NS: Final = SECOND  # between two records of what a node offers: heartbeats are no commands.
START_GRACE_NS: Final = 10 * SECOND  # holders find their way back after a start before leases end.
FALLING_MAX: Final = 1024  # jobs that fall back at one tick as nobody is there for them: each is an entry.
SWEEP_NS: Final = HOUR
EXPIRE_NS: Final = MINUTE  # how late an artifact ends, at most.
BOOKMARK_S: Final = 15.0  # an idle follower hears where it is this often: middleboxes forget in 30 s.
HEARTBEATS: Final = 128  # kept of each node.
PROGRESS_MAX: Final = 65536  # jobs whose progress is remembered: those running, and some that ended.
# The pools that are made when the first node of a role joins, and their topics.
OF_ROLE: Final[Mapping[str, tuple[Made, ...]]] = {
    validator.ROLE: (Made(validator.POOL, validator.TOPICS),),
    boot.ROLE: (Made(boot.POOL, (boot.TOPIC,)),),
    ANNEX: (Made(gpu.SPARE), Made(gpu.POOL, (gpu.TOPIC,), gpu.CREATE)),
}

HiveTurn = Turn[HiveState, hive.Event, str]


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of itself. Fractions of one machine, bytes; its labels and its capacity say which jobs
    it gets, an annex's devices which run on them."""

    load: float = 0.0
    gpu: float = 0.0
    memory_free: int = 0
    capacity: int = 0  # jobs it runs at a time
    running: int = 0
    labels: dict[str, str] = {}
    version: str = ""
    annex: Beat | None = None  # None: it has no devices for others
    leaving: bool = False  # the last one: its connection ends next


class Heard(msgspec.Struct, frozen=True):
    time_ns: int
    said: Heartbeat


class Progress(msgspec.Struct, frozen=True):
    time_ns: int
    percent: int | None = None  # None: it did not say
    msg: str = ""


class Hive:
    """The hive of a turn. ``directory`` holds what is too big for the ledger: artifacts, logs. ``artifacts``:
    the URL of an object store that holds them instead, once they are sealed.

    Made and used on the turn's event loop. ``run`` is its timers' task."""

    def __init__(
        self,
        turn: HiveTurn,
        clock: Clock,
        directory: Path,
        version: str = "",
        bookmark_s: float = BOOKMARK_S,
        artifacts: str = "",
    ) -> None:
        self.turn = turn
        self.clock = clock
        self.version = version
        self.bookmark_s = bookmark_s
        shelf = shelf_at(artifacts, directory / "artifacts")
        self.store = Store(directory / "artifacts", shelf, self.artifact_bytes)
        self.directory = directory
        self.signer: Signer | None = None  # of policies; None: policy.key's, made when it is needed
        self.logs = Logs(directory / "jobs")
        self.history = History(directory / HISTORY, turn.ledger.read, turn.seq)
        self.sessions = Sessions()
        self.authority: Authority | None = None  # None: it has no certificates
        self.tokens: Desk | None = None  # None: it has no key to make tokens with
        self.denials = Denials(clock, self._denied)
        self.tapes = Tapes(
            directory / "log" / "trace" / "sessions",
            clock,
            version,
            self.sessions,
            lambda: turn.seq,
            lambda: turn.state.log.recordings,
            self.say,
        )
        self.limits = Limiter(directory / FILE, self.sessions, clock.monotonic_ns)
        self.vouched: dict[tuple[str, str, str, str], Answer] = {}  # see checked.py
        self.leases = Leases(lambda: turn.state, clock.now_ns)
        self.lock_ends = Ends(lambda: turn.state.locks, self.sessions.by_id)
        self.sessions.on_end.append(self._unlock)
        self.triggers = Watch(
            lambda: turn.state.triggers, lambda seq, kinds: occasions.read(turn, seq, kinds), self._fire
        )
        self.agenda = Agenda(lambda id: turn.state.jobs.by_id.get(id), turn.state.jobs.by_id.values())
        self.on_tick: list[Callable[[int], Awaitable[None]]] = []  # what else time asks for, told the time
        self.starts = Starts(None, clock, version)  # of a queen: how its process began
        self.reached_at: list[str] = []  # the addresses it serves by TLS
        self.started_ns = clock.now_ns()
        self.shutdown: asyncio.Future[str] = asyncio.get_running_loop().create_future()  # the grace asked for
        self.heartbeats: dict[str, Ring[Heard]] = {}
        self.offers = Offers(lambda: turn.state.gpu, clock.monotonic_ns)
        self._stuck_ns: dict[str, int] = {}  # pool -> since when nobody takes its jobs, though some wait
        self._offered_ns: dict[str, int] = {}  # node -> when what it offers was recorded last
        self.progress: dict[str, Progress] = {}
        # job -> who waits for news of it, in the order they came
        self._waiting: dict[str, dict[asyncio.Future[None], None]] = {}
        self._later: set[asyncio.Task[None]] = set()
        self._swept_ns = self._expired_ns = self.started_ns
        self._sweeping: asyncio.Task[None] | None = None
        turn.on_commit.append(self._moved)

    async def establish(self, authority: Authority, queen: Spiffe) -> None:
        """Have ``authority`` sign for this hive, which is founded if it is new. Comes before ``start``.

        Raises FsError, and what ``Authority.begin`` raises."""
        await authority.begin(queen, lambda: self.state.trust, self.say)
        self.authority = authority
        self.signer = Signer(authority.signing_key("policy"))
        self.make_tokens(lambda: Keys(*authority.token_keys()))

    def make_tokens(self, keys: Callable[[], Keys]) -> None:
        """Mint and believe tokens by these keys, which are asked for each time."""
        self.tokens = Desk(self.clock, keys, lambda: self.state)

    @property
    def state(self) -> HiveState:
        return self.turn.state

    # writing

    async def command(self, caller: Caller, path: str, lines: Sequence[str], cost: int = 0) -> list[str]:
        """Write the lines to ``path`` as the caller; a reply for each: what was made or changed, the
        revision, the trace. All take effect or none. ``cost``: as how many lines they count, 0: as they are.
        Raises FsError."""
        self.limits.command(caller, cost or len(lines))
        actor = actor_of(caller.principal, caller.node)
        tenant = self._tenant(caller, path, lines)
        try:
            done = await self._submit(actor, caller.role, tenant, path, lines, caller.token)
        except FsError as error:
            if error.kind is not E.MISSING or len(lines) != 1:
                raise
            return [await self._of_past(caller, path, lines[0], error)]
        return [f"{reply} rev={done.seq} trace={done.trace}" for reply in done.replies]

    async def _of_past(self, caller: Caller, path: str, line: str, error: FsError) -> str:
        """What the writer of a line that found no job is told when the job has left memory: the same as if it
        had not. Nothing can follow for a job that has ended. Raises FsError."""
        noun, place, name = hive.route(path)
        command = parse_line(line)
        id = name or command.args.get("job", "")
        if noun != "jobs" or id > self.state.jobs.past.horizon:
            raise error
        await self.wait_history()
        found = self.found(id)
        if found is None:
            raise error
        actor, now_ns = actor_of(caller.principal, caller.node), self.clock.now_ns()
        order = Order(command.verb, command.args, place, name, actor, caller.role, caller.tenant, now_ns, id)
        try:
            decided = core.decide(jobs.Jobs({id: found.job}), order, self.state)
        except RuleRefusal as refusal:
            kind = E[refusal.code]
            detail = refusal.text.removeprefix(kind.value.text).removeprefix(": ")
            raise FsError(kind, detail, trace=error.trace) from error
        assert not decided.events, decided.events
        return f"{decided.reply} rev={found.job.rev} trace={error.trace}"

    def writes(self, path: str) -> Callable[[Caller, list[Command]], Awaitable[list[str]]]:
        """What a ctl file at ``path`` runs: its commands as they were written."""
        return lambda caller, commands: self.command(caller, path, [command.text for command in commands])

    async def _submit(
        self, actor: str, role: str, tenant: str, path: str, lines: Sequence[str], token: str = ""
    ) -> Any:
        now_ns, trace = self.clock.now_ns(), self.clock.new_id()
        line = Line(actor, role, tenant, path, tuple(lines), now_ns, trace, token)
        with told_as_fs_error(len(lines)):
            return await self.turn.submit(line)

    def _tenant(self, caller: Caller, path: str, lines: Sequence[str]) -> str:
        """What a node does to a job belongs in the job's tenant's trace."""
        job = self.state.jobs.by_id.get(job_of(path, lines)) if caller.node else None
        if job is None or not jobs.visible(job, caller.role, caller.tenant, caller.node):
            return caller.tenant
        return job.request.tenant

    async def say(self, path: str, line: str, tenant: str = "") -> None:
        """Write a line as the hive itself. Raises FsError."""
        await self._submit(HIVE, HIVE, tenant, path, (line,))

    def refused(self, refusal: Refusal) -> None:
        """A TLS connection was refused, or ended for its certificate: to be recorded."""
        self.denials.refused(refusal)

    async def _denied(self, tenant: str, lines: Sequence[str]) -> None:
        await self._submit(HIVE, HIVE, tenant, f"/log/{LOG}", lines)

    async def start(self, first: Sequence[str] = ()) -> None:
        """Begin: ``first`` are the lines for /pools/ctl of a hive that has no pool yet.

        A hive that has no policy, or the one of an older release, gets this release's; what this release
        cannot read is rolled back."""
        try:
            await self.say("/", "start")
        except FsError as error:
            # On a full disk what is written is read on; only who was stopped must be told that it goes on.
            if error.kind is not E.NOSPACE or self.state.mode == "stopping":
                raise
        ended = [*self.lock_ends.of_start(), *gpu_said.of_start(self.state.gpu)]
        await asyncio.gather(*(self._own(*said) for said in ended))
        await self.tapes.start()
        signer = self.signer or load_or_create(self.directory / "policy.key")
        for lines in (
            first_lines(self.state.policy, signer.public, signer.sign),
            mending_lines(self.state.policy),
        ):
            if lines:
                await self._submit(HIVE, HIVE, "", "/policy/ctl", lines)
        if first and not self.state.pools.by_name:
            await self._submit(HIVE, HIVE, "", "/pools/ctl", first)

    async def keep_policy_keys(self, anew: bool = False) -> None:
        """Have bundles believed by the policy keys that /trust has now. When an operator has distrusted the
        hive's key, that waits until it is ``anew``: rotated."""
        if self.authority is None or not (anew or HIVE_KEYS[0] in self.state.policy.keys):
            return
        trusted = [key.id for key in self.state.trust.trusted("policy")]
        if self.signer is None or self.signer.public != trusted[0]:
            self.signer = Signer(self.authority.signing_key("policy"))
        for line in key_lines(self.state.policy, trusted):
            await self._own("/policy/ctl", line)

    # jobs

    def found(self, id: str) -> Found | None:
        """The job, from memory or from the history as far as that goes; None: there is none."""
        job = self.state.jobs.by_id.get(id)
        if job is not None:
            return Found(job, self.state.artifacts.outputs.get(id, {}))
        return self.history.job(id) if id <= self.state.jobs.past.horizon else None

    def draft_id(self) -> str:
        """An id that no job has had, later than those of all that have left memory: also while the clock says
        less than it did."""
        return later_id(self.clock.new_id(), self.state.jobs.past.horizon)

    def tenant_of(self, id: str) -> str | None:
        """Whose the job is, found as above; None: there is none."""
        job = self.state.jobs.by_id.get(id)
        if job is not None:
            return job.request.tenant
        row = self.history.find(id) if id and id <= self.state.jobs.past.horizon else None
        return None if row is None else row.tenant

    async def wait_history(self) -> None:
        """Return when what has left memory can be found. Raises FsError(E.IO) when it cannot be."""
        while self.history.seq < self.state.jobs.past.rev:
            await self.history.wait_reached(self.state.jobs.past.rev)

    async def prepare(self, *made: Made) -> None:
        """Have pools for topics of the hive's own; they are made when somebody first asks for such a job, or
        comes to do one."""
        if lines := [line for each in made for line in lines_for(self.state.pools, each)]:
            await self._own_lines("/pools/ctl", lines, "")

    # nodes

    async def join(self, caller: Caller) -> None:
        """The caller's node has attached. Raises FsError(E.DENIED) when the name is another's."""
        if not is_name(caller.node) or "#" in caller.node:
            raise FsError(E.USAGE, f"node {caller.node!r}: expected a file name without #")
        args = {"principal": caller.principal, "role": caller.role, "tenant": caller.tenant}
        if caller.role in OF_ROLE:
            await self.prepare(*OF_ROLE[caller.role])
        await self.say(f"/nodes/{caller.node}", ctl_line("join", args))
        self._hear(caller.node, Heartbeat())

    async def leave(self, node: str) -> None:
        """The node's connections have ended: nobody need wait for its heartbeat. An annex that has not said
        that it goes is suspect at once, and lost when it stays away: none disappears without an alert."""
        if node not in self.state.nodes.by_id:
            return
        heard = self.heard(node)
        if node not in self.state.gpu.by_id or (heard is not None and heard.said.leaving):
            await self.say(f"/nodes/{node}", "leave")
        elif self.state.nodes.by_id[node].link == "online":
            await self.say(f"/nodes/{node}", "suspect")

    async def hear(self, node: str, said: Heartbeat) -> None:
        """A heartbeat of a node that has joined."""
        self._hear(node, said)
        if self.state.nodes.by_id[node].link != "online":
            await self._own(f"/nodes/{node}", "back")
        if offer := self._offer(node, said):
            await self._own(f"/nodes/{node}", offer)
        # What devices are given depends on it.
        if said.annex and (offer := self.offers.heard(node, said.annex)):
            await self._own(gpu_said.path_of(node), offer)

    def _offer(self, node: str, said: Heartbeat) -> str:
        """The hive's line when the node offers something else than is recorded; "": it does not, or has just
        done so: what changes all the time is recorded now and then."""
        known = self.state.nodes.by_id.get(node)
        new = (said.labels, said.capacity, said.version)
        if known is None or (known.labels, known.capacity, known.version) == new:
            return ""
        now_ns = self.clock.now_ns()
        if node in self._offered_ns and now_ns - self._offered_ns[node] < OFFER_NS:
            return ""
        self._offered_ns[node] = now_ns
        labels = msgspec.json.encode(said.labels).decode()
        return ctl_line("offer", {"labels": labels, "capacity": str(said.capacity), "version": said.version})

    def _hear(self, node: str, said: Heartbeat) -> None:
        self.heartbeats.setdefault(node, Ring(HEARTBEATS)).append(Heard(self.clock.now_ns(), said))
        self.news(node)

    def heard(self, node: str) -> Heard | None:
        """Its last heartbeat; None: none since the hive began."""
        ring = self.heartbeats.get(node)
        return ring.read(ring.last - 1)[1][0] if ring is not None and ring.last else None

    # limits

    def limit(self, tenant: str, key: str) -> int | None:
        """The limit that /config has for the tenant; None: there is none. Raises FsError when it cannot be
        read."""
        try:
            return self.state.limit(tenant, key)
        except rules.Refusal as refusal:
            kind = E[refusal.code]
            raise FsError(kind, detail_of(kind, refusal.text)) from refusal

    def artifact_bytes(self, tenant: str) -> tuple[int, int | None]:
        """How many the tenant has sealed, and may have together with those it stages."""
        return self.state.artifacts.sizes.get(tenant, 0), self.limit(tenant, BYTES_LIMIT)

    # leases

    async def take(self, caller: Caller, pool: str) -> jobs.Job:
        """The next job of the pool, leased to the caller's node; waits for one.

        Cancelled before the lease was decided, no job is taken; later it returns all the same."""
        path = f"/pools/{pool}/next"

        async def ask() -> str:
            return (await self.command(caller, path, ("lease",)))[0].partition(" ")[0]

        while True:
            job = self.state.jobs.by_id[await self.leases.take(pool, caller.node, caller.tenant, ask)]
            # Cancelled in the next breath.
            if job.node == caller.node:
                return job

    def give_back(self, job: jobs.Job) -> None:
        """The lease did not reach its reader: the job goes back to the head of its queue, soon."""
        self.later(self._own(f"/jobs/{job.id}", f"release fence={job.fence}", job.request.tenant))

    # locks

    def _unlock(self, session: Session) -> None:
        """The session has ended."""
        for said in self.lock_ends.of_session(session.id):
            self.later(self._own(*said))

    async def withdraw(self, path: str, line: str, tenant: str) -> None:
        """Undo what a writer has given up waiting for; it is undone, whoever gives up waiting for that."""
        await asyncio.wait([self.later(self._own(path, line, tenant))])

    # waiting

    async def wait_news(self, job: str) -> None:
        """Return when the job's state, log or progress has moved after this call; or what became of a lock's
        waiter; or a node was heard."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(job, {})
        waiting[future] = None
        try:
            await future
        finally:
            del waiting[future]
            if not waiting and self._waiting.get(job) is waiting:
                del self._waiting[job]

    def news(self, job: str) -> None:
        """Wake those who wait for news of the job."""
        for future in self._waiting.get(job, ()):
            if not future.done():
                future.set_result(None)

    def report(self, job: str, progress: Progress) -> None:
        """Remember how far the job is, and forget the oldest such memory beyond PROGRESS_MAX."""
        self.progress.pop(job, None)
        self.progress[job] = progress
        if len(self.progress) > PROGRESS_MAX:
            del self.progress[next(iter(self.progress))]
        self.news(job)

    async def wait_quiesced(self) -> None:
        """Return when the hive drains and no lease is held. Raises FsError(E.IO) when the turn stops."""
        while self.state.condition != "quiesced":
            with told_as_fs_error():
                await self.turn.wait_past(self.turn.seq)

    def _moved(self, entries: list[Entry[hive.Event]]) -> None:
        for entry in entries:
            for event in entry.events:
                match event:
                    case hive.Shutdown() if not self.shutdown.done():
                        self.shutdown.set_result(event.grace)
                    case hive.Reloaded():
                        self.limits.reload()
                    case hive.Kicked():
                        session = self.sessions.by_id.get(event.session)
                        if session is not None and event.reaches(session.caller.tenant):
                            session.kick()
                    case Ordered():
                        self.tapes.moved(event)
                    case Removed():
                        self.heartbeats.pop(event.node, None)
                        self.news(event.node)
                        self._offered_ns.pop(event.node, None)
                        self.offers.forget(event.node)
                    case Revoked() | Retired() if self.tokens is not None:
                        self.tokens.recheck()
                    case Granted() | Withdrawn():
                        for waiter in event.waiters:
                            self.news(waiter)
                    case GpuLeased(job="") | GpuWithdrawn():
                        self.news(event.lease)
                    case _ if job := getattr(event, "job", ""):
                        if (record := self.state.jobs.by_id.get(job)) is not None:
                            self.agenda.moved(record)
                        self.news(job)
        self.history.moved(entries)
        if self.authority is not None:
            self.authority.moved(event for entry in entries for event in entry.events)
        self.leases.dispatch_all()
        if self.triggers.moved(
            entries[0].seq,
            entries[-1].seq,
            lambda kinds: (
                each for entry in entries for each in occasions.occasions(self.state, entry, kinds)
            ),
        ):
            self.later(self.triggers.fire(self.clock.now_ns()))

    # time

    async def run(self) -> None:
        """Do what time asks for, until cancelled; raises FsError(E.IO) when the turn has stopped."""
        while True:
            await self.tick()
            await asyncio.sleep(TICK_S)

    async def tick(self) -> None:
        """Do what is due now: end leases and delays, notice silent nodes, sweep the store."""
        # Other processes of this hive may have queued jobs for our readers.
        self.turn.refresh()
        if self.history.seq < self.state.jobs.past.rev:
            self.history.write()
        now_ns = self.clock.now_ns()
        await self.denials.flush()
        self.tapes.tick()
        self.limits.sweep()
        due = [*self._due_jobs(now_ns), *self._silent_nodes(now_ns), *self._unread_pools(now_ns)]
        due += self.lock_ends.due(now_ns)
        due += [*gpu_said.due(self.state.gpu, now_ns), *self.offers.due()]
        due += [
            (f"/jobs/{job.id}", f"preempt for={other.id}", job.request.tenant)
            for job, other in preemptions(self.state.jobs, self.state, now_ns)
        ]
        if due:
            await asyncio.gather(*(self._own(*said) for said in due))
        await self._trigger(now_ns)
        # The day has changed, and with it what limits let be held.
        self.leases.dispatch_all()
        await self.keep_policy_keys()
        for tick in self.on_tick:
            await tick(now_ns)
        if self.authority is not None:
            await self.authority.tend()
        if now_ns - self._expired_ns >= EXPIRE_NS:
            await self._expire(now_ns)
        if now_ns - self._swept_ns >= SWEEP_NS:
            self._swept_ns = now_ns
            if self._sweeping is None or self._sweeping.done():
                self._sweeping = self.later(self._sweep(now_ns))

    async def _fire(self, path: str, lines: Sequence[str], tenant: str) -> None:
        """Write a trigger's lines, which submit what its creator said, with what the door says of that."""
        trigger = self.state.triggers.find(tenant, hive.route(path)[2])
        try:
            more = {} if trigger is None else await vouched(self, tenant, trigger.made.submit)
        except FsError as error:
            if error.kind is not E.SCHEMA:
                log.warning("%s fires at the next tick: %s", path, error)
                return
            more = {"unfit": error.detail}
        await self._own_lines(path, [vouched_line(parse_line(line), more) for line in lines], tenant)

    async def _trigger(self, now_ns: int) -> None:
        await self.triggers.catch_up(self.turn.seq)
        firing = self.later(self.triggers.fire(now_ns))
        # Triggers that fire each other must not keep time from the rest: they go on beside it.
        await asyncio.wait([firing], timeout=TICK_S)
        if firing.done():
            firing.result()
        if (seen := self.triggers.seen()) is not None:
            await self._own("/triggers/ctl", f"seen seq={seen}")

    async def _expire(self, now_ns: int) -> None:
        """End artifacts whose time is over: some of each tenant, and more at the next tick."""
        found = False
        for tenant in list(self.state.artifacts.by_hash):
            # Who uses what is asked only when something could end.
            if any(self.state.artifacts.due(tenant, now_ns, ())) and any(
                self.state.artifacts.due(tenant, now_ns, self.state.artifacts_used(tenant))
            ):
                found = True
                await self._own("/artifacts/ctl", "expire", tenant)
        if not found:
            self._expired_ns = now_ns

    async def _sweep(self, now_ns: int) -> None:
        try:
            await self.store.sweep(now_ns, lambda digest: digest in self.state.artifacts.sealed)
        except OSError as error:
            log.warning("artifacts are swept again in an hour: %s", error)

    def _due_jobs(self, now_ns: int) -> Iterator[tuple[str, str, str]]:
        waited = []
        for job, line in self.agenda.take(now_ns, self.started_ns + START_GRACE_NS):
            if line != FALL_BACK:
                yield f"/jobs/{job.id}", line, job.request.tenant
            elif 0 < job.deadline_ns <= now_ns:
                yield f"/jobs/{job.id}", OVERDUE, job.request.tenant
            else:
                waited.append(job)
        for due in self._falling(waited, now_ns):
            args = {"reason": due.reason} | ({"annex": due.annex} if due.annex else {})
            yield f"/jobs/{due.job.id}", ctl_line("fallback", args), due.job.request.tenant

    def _falling(self, waited: Sequence[jobs.Job], now_ns: int) -> Iterable[Due]:
        """The jobs that fall back now: those that have ``waited`` as long as they were to, and those that
        nobody is there for. After a start annexes have time to find their way back, too."""
        state, up_ns = self.state, now_ns - self.started_ns
        if state.mode != "online":
            return ()  # it gives no leases, and that is no annex's fault
        found = {
            job.id: reason_now(job, state)
            for job in waited
            if up_ns >= min(job.request.patience_ns, START_GRACE_NS)
        }
        pools = [pool.name for pool in state.pools.by_name.values() if pool.fallback]
        for due in islice(
            chain.from_iterable(stranded(state.jobs, pool, state) for pool in pools), FALLING_MAX
        ):
            if due.reason != ANNEX_LOST or up_ns >= START_GRACE_NS:
                found.setdefault(due.job.id, due)
        return found.values()

    def _unread_pools(self, now_ns: int) -> Iterator[tuple[str, str, str]]:
        """Where jobs have fallen back to, and nobody has taken one for as long as they would have waited."""
        state = self.state
        spare = {pool.fallback: pool.patience_ns for pool in state.pools.by_name.values() if pool.fallback}
        for pool, patience_ns in spare.items():
            if not state.is_stuck(pool) or state.pools.by_name[pool].unread:
                self._stuck_ns.pop(pool, None)
            elif now_ns - self._stuck_ns.setdefault(pool, now_ns) >= patience_ns:
                yield f"/pools/{pool}", "unread", ""

    def _silent_nodes(self, now_ns: int) -> Iterator[tuple[str, str, str]]:
        for node in self.state.nodes.by_id.values():
            heard = self.heard(node.id)
            silent_ns = now_ns - (self.started_ns if heard is None else heard.time_ns)
            limits = gpu_said.silence_ns(self.state.gpu, node.id)
            suspect_ns, lost_ns = limits or (SUSPECT_NS, LOST_NS)
            if silent_ns > lost_ns and node.link in ("online", "suspect"):
                yield f"/nodes/{node.id}", "lost", ""
            elif silent_ns > suspect_ns and node.link == "online":
                yield f"/nodes/{node.id}", "suspect", ""

    async def _own(self, path: str, line: str, tenant: str = "") -> None:
        """Say what a timer found; refused, it was late: the lease was renewed, the node came back."""
        await self._own_lines(path, (line,), tenant)

    async def _own_lines(self, path: str, lines: Sequence[str], tenant: str) -> None:
        """All of them or, refused, none."""
        try:
            await self._submit(HIVE, HIVE, tenant, path, lines)
        except FsError as error:
            if isinstance(error.__cause__, TurnStopped):
                raise

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do it, whether or not anybody waits for it; ``close`` does."""
        task = asyncio.ensure_future(work)
        self._later.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._later.discard(task)
        # What can fail here is the turn, and its role waits for that.
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Return when what was left for later is done, and what was refused is recorded; call it before the
        turn's close."""
        self.triggers.close()
        await self.history.close()
        if self._sweeping is not None:
            self._sweeping.cancel()  # it takes as long as there are artifacts, and the next one finds them
        if self._later:
            await asyncio.gather(*self._later, return_exceptions=True)
        await self.tapes.close()
        await self.denials.close()


def job_of(path: str, lines: Sequence[str]) -> str:
    """The job that a node's write is about, by the file it is written to or the first line; "": none."""
    noun, _, name = hive.route(path)
    if noun == "jobs":
        return name
    return parse_line(lines[0]).args.get("job", "") if noun == "artifacts" else ""


@contextmanager
def told_as_fs_error(lines: int = 1) -> Iterator[None]:
    """Refusals and the turn's end as files tell them; one of several lines is named."""
    try:
        yield
    except Refused as error:
        kind = E[error.code]
        detail = detail_of(kind, error.text)
        if lines > 1 and not detail.startswith("line "):
            detail = f"{detail} (line {error.k + 1})".lstrip()
        # What has no entry, is not recorded: then the id would lead nowhere.
        raise FsError(kind, detail, trace=None if error.seq is None else error.trace) from error
    except TurnStopped as error:
        raise FsError(E.IO, str(error)) from error
