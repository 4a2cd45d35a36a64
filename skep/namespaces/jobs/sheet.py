"""Jobs as a sheet: given a page at a time, from memory and from the history; taken in as a whole."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, NamedTuple

from skep.fs import ctl
from skep.fs.chan import settle
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.checked import checked, detail_of
from skep.namespaces.hive import HiveRules
from skep.namespaces.jobs import adoption
from skep.namespaces.jobs.names import Shelf, job_of, own_jobs, pages, sees
from skep.namespaces.jobs.verbs import ABSENT, ADOPT
from skep.namespaces.live import Hive
from skep.namespaces.order import actor_of
from skep.namespaces.sheet import Form, Line, Staged, written
from skep.trace.entry import ENTRY_MAX, canonical
from skep.trace.entry import Line as LedgerLine
from skep.trace.rules import Meta, Refusal
from skep.trace.turn import Refused

LATER: Final = frozenset({"inputs", "fallback", "patience"})
SHEET: Final = Form("jobs.v1", tuple(arg.name for arg in ADOPT.args), LATER)
IMPORTED: Final = "import.csv"
PATH: Final = "/jobs/ctl"
PAGE: Final = 128  # jobs read before others get their turn
HEAD: Final = 4096  # bytes of an entry beside its lines and events
NEVER: Final = 10**18 - 1  # an entry after all others

# The column that a refusal is about, where its text does not say so.
_COLUMNS: Final = {
    E.NOROUTE: "topic", E.NOWORKER: "requires", E.OVERLOAD: "pool", E.IDEMPOTENCY: "key", E.SCHEMA: "input",
}  # fmt: skip
_NAMED: Final = re.compile(r"(?:adopt|submit): /?([a-z-]+)(?:=|:|$)")


# out


class Export:
    """The source of export.csv: the jobs that there are when it is opened, each as it is when it is given."""

    def __init__(self, hive: Hive, caller: Caller) -> None:
        self.hive = hive
        self.until = hive.state.jobs.number
        self.after = 0
        self.begun = self.ended = False
        self.page = pages(
            hive,
            Shelf.JOBS,
            lambda caller, after, limit: hive.history.listed(caller.tenant, after, limit),
            lambda caller: own_jobs(hive, caller),
        )(caller)

    async def next(self) -> bytes | None:
        rows = [] if self.begun else [SHEET.header]
        self.begun = True
        if not self.ended:
            rows += [await self._row(name) async for name in self._names()]
        return written(rows) or None

    async def _names(self) -> AsyncIterator[str]:
        """Those of the next page."""
        page = [entry for entry in await settle(self.page(self.after, PAGE)) if entry.at <= self.until]
        self.ended = len(page) < PAGE
        for entry in page:
            self.after = entry.at
            yield entry.name
        await asyncio.sleep(0)

    async def _row(self, id: str) -> tuple[str, ...]:
        job = (await job_of(self.hive, id)).job
        dead = id in self.hive.state.jobs.dead.get(job.request.tenant, {})
        args = adoption.arguments(job, dead)
        return tuple(args.get(column, "") for column in SHEET.columns)

    def close(self, undelivered: bytes | None) -> None:
        """Nothing is taken by reading."""


# in


class _Said(NamedTuple):
    """A line of the sheet and what is written down for it; ``size``: the bytes of that, with its events."""

    line: Line
    args: dict[str, str]
    size: int = 0

    def text(self, absent: int) -> str:
        return ctl.line(ADOPT.name, self.args | {ABSENT.name: str(absent)})


async def take(hive: Hive, staged: Staged, caller: Caller, commands: Sequence[Command]) -> str:
    """Import what the caller's tenant has in import.csv; how many jobs that are. Raises FsError, which names
    the line; nothing was written then, unless others have written what is in the way since it was checked."""
    if len(commands) > 1:
        raise FsError(E.USAGE, f"import: expected a write of one line, this one has {len(commands)}")
    lines = await asyncio.to_thread(staged.read, SHEET, caller, commands[0].args["sha256"])
    new = []
    for n, line in enumerate(lines):
        said = _Said(line, {name: value for name, value in line.row.items() if value})
        # What is wrong is told as that argument's, which is called like its column.
        ctl.check(Command(ADOPT.name, said.args, "", line.number), {ADOPT.name: ADOPT})
        if not await _is_known(hive, caller, said):
            new.append(said)
        if n % PAGE == 0:
            await asyncio.sleep(0)
    told = ""
    for part in _parts(await _tried(hive, caller, new)):
        told = await _write(hive, caller, part)
    staged.done(caller)
    return f"{len(lines)} {told}".rstrip()


async def _is_known(hive: Hive, caller: Caller, said: _Said) -> bool:
    """Whether the job is there already. Raises FsError when it is another."""
    id = said.args["job"]
    if id not in hive.state.jobs.by_id and id <= hive.state.jobs.past.horizon:
        await hive.history.wait_reached(hive.turn.seq)
    found = hive.found(id)
    if found is None:
        return False
    if not sees(found.job, caller):
        raise said.line.error("job", id, E.MISSING)
    try:
        adoption.check_same(found.job, said.args)
    except Refusal as refused:
        raise _error(said.line, refused.code, refused.text) from refused
    return True


async def _tried(hive: Hive, caller: Caller, new: Sequence[_Said]) -> list[_Said]:
    """What is to be written down, when all of it can be: it was decided, on a copy of the state."""
    rules, state, seq = HiveRules(), hive.state.copy(), hive.turn.seq + 1
    actor, now_ns = actor_of(caller.principal, caller.node), hive.clock.now_ns()
    tried = []
    for n, said in enumerate(new):
        command = Command(ADOPT.name, said.args, ctl.line(ADOPT.name, said.args))
        try:
            (text,) = await checked(hive, caller, [command])
        except FsError as error:
            raise said.line.error("artifact", error.detail, error.kind) from error
        said = said._replace(args=ctl.parse_line(text).args)
        lines, trace = (said.text(NEVER),), hive.clock.new_id()
        line = LedgerLine(actor, caller.role, caller.tenant, PATH, lines, now_ns, trace, caller.token)
        try:
            events = rules.decide(state, line, 0).events
        except Refusal as refused:
            raise _error(said.line, refused.code, refused.text) from refused
        for event in events:
            rules.apply(state, event, Meta(seq, now_ns, trace))
        size = len(canonical(lines)) + len(canonical(events))
        if size + HEAD > ENTRY_MAX:
            raise said.line.error("job", f"it has {size} bytes, max={ENTRY_MAX - HEAD}", E.TOOBIG)
        tried.append(said._replace(size=size))
        if n % PAGE == 0:
            await asyncio.sleep(0)
    return tried


def _parts(tried: Sequence[_Said]) -> Iterator[list[_Said]]:
    """Those that go into an entry each."""
    part: list[_Said] = []
    for said in tried:
        if part and sum(each.size for each in part) + said.size + HEAD > ENTRY_MAX:
            yield part
            part = []
        part.append(said)
    if part:
        yield part


async def _write(hive: Hive, caller: Caller, part: Sequence[_Said]) -> str:
    absent, past = hive.turn.seq, hive.state.jobs.past
    old = [said for said in part if said.args["job"] <= past.horizon]
    if old:
        await hive.history.wait_reached(absent)
    for said in old:
        if hive.history.find(said.args["job"]) is not None:
            raise said.line.error("job", "it has come meanwhile", E.CONFLICT)
    try:
        replies = await hive.command(caller, PATH, [said.text(absent) for said in part], cost=1)
    except FsError as error:
        cause = error.__cause__
        # Jobs left memory meanwhile; alone, a line cannot be overtaken by those beside it.
        if error.kind is E.CONFLICT and len(part) > 1:
            return [await _write(hive, caller, [said]) for said in part][-1]
        if not isinstance(cause, Refused):
            raise
        raise _error(part[cause.k].line, cause.code, cause.text) from error
    return replies[-1].partition(" ")[2]


def _error(line: Line, code: str, text: str) -> FsError:
    kind = E[code]
    detail = detail_of(kind, text)
    named = _NAMED.match(detail)
    column = named[1] if named is not None and named[1] in SHEET.columns else _COLUMNS.get(kind, "job")
    return line.error(column, detail, kind)
