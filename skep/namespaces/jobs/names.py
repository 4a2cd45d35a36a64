"""Which jobs there are for a caller, in memory and in the history: what is walked to, and what is listed."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from itertools import islice
from typing import Final, NamedTuple

from skep.fs.chan import settle
from skep.fs.errors import E, FsError
from skep.fs.messages import Qid
from skep.fs.node import Caller, Entry, Maybe, Node, qid_type
from skep.fs.tree import BLOCK, Page
from skep.namespaces.jobs.history import Found
from skep.namespaces.jobs.record import Job, visible
from skep.namespaces.live import Hive


class Shelf(IntEnum):
    """A directory that lists jobs. In each a job has qid paths of its own, the same as long as it is there:
    shelf[3] number[50] file[10], below what other files count on from."""

    JOBS = 1
    STATE = 2
    KEY = 3
    DEAD = 4

    def path(self, number: int) -> int:
        """The first qid path of the job of that number."""
        return self << 60 | number * BLOCK


class Place(NamedTuple):
    """Where a job stands: what a directory of it needs."""

    number: int
    rev: int
    state: str
    tenant: str


def sees(job: Job, caller: Caller) -> bool:
    return visible(job, caller.role, caller.tenant, caller.node)


def locate(hive: Hive, id: str, caller: Caller) -> Maybe[Place | None]:
    """The job, when it exists for the caller."""
    job = hive.state.jobs.by_id.get(id)
    if job is not None:
        return Place(job.number, job.rev, job.state, job.request.tenant) if sees(job, caller) else None
    return _locate_past(hive, id, caller) if id <= hive.state.jobs.past.horizon else None


async def _locate_past(hive: Hive, id: str, caller: Caller) -> Place | None:
    await hive.wait_history()
    row = hive.history.find(id)
    if row is None:
        return None
    if caller.node:
        found = hive.history.job(id)
        seen = found is not None and sees(found.job, caller)
    else:
        seen = row.tenant == caller.tenant
    return Place(row.place, row.rev, row.state, row.tenant) if seen else None


def read(hive: Hive, id: str, render: Callable[[Found], str]) -> Maybe[str]:
    """What ``render`` makes of a job that has been walked to."""
    if id in hive.state.jobs.by_id:
        found = hive.found(id)
        assert found is not None
        return render(found)
    return _read_past(hive, id, render)


async def _read_past(hive: Hive, id: str, render: Callable[[Found], str]) -> str:
    return render(await job_of(hive, id))


async def job_of(hive: Hive, id: str) -> Found:
    """A job that has been walked to."""
    if id not in hive.state.jobs.by_id:
        await hive.wait_history()
    found = hive.found(id)
    if found is None:
        raise FsError(E.MISSING, id)
    return found


# listing


Rows = Sequence[tuple[int, str]]  # number and name, by rising numbers
KEPT: Final = 512  # fixed names that may stand before the jobs: a job's number is larger.


def pages(
    hive: Hive,
    shelf: Shelf,
    listed: Callable[[Caller, int, int], Rows],
    own: Callable[[Caller], Iterable[tuple[int, str]]],
    fixed: Mapping[str, Node] | None = None,
    kind: int = stat.S_IFDIR,
) -> Callable[[Caller], Page]:
    """What a Paged asks: ``fixed`` first, then what is ``listed`` (caller, after, limit) in the history,
    which has every job; a node is given its ``own`` (caller), of those in memory."""

    def open_pages(caller: Caller) -> Page:
        seq = hive.turn.seq

        async def known(caller: Caller, after: int, limit: int) -> Rows:
            try:
                await hive.history.wait_reached(seq)
            except FsError:
                # There is no space for it, say: what is in memory it need not tell.
                if hive.history.seq < hive.state.jobs.past.rev:
                    raise
                return _merged(hive, caller, own(caller), listed(caller, after, limit), after, limit)
            return listed(caller, after, limit)

        async def page(after: int, limit: int) -> list[Entry]:
            found: list[Entry] = []
            for at, (name, node) in enumerate((fixed or {}).items(), 1):
                if at > after and len(found) < limit:
                    attr = await settle(node.attr(caller))
                    found.append(Entry(name, attr.qid, attr.mode, at))
            if left := limit - len(found):
                rows: Iterable[tuple[int, str]]
                if caller.node:
                    rows = islice((row for row in own(caller) if row[0] > after), left)
                else:
                    rows = await known(caller, max(after, KEPT), left)
                found += [
                    Entry(name, Qid(qid_type(kind), 0, shelf.path(number)), kind, number)
                    for number, name in rows
                ]
            return found

        return page

    return open_pages


def own_jobs(hive: Hive, caller: Caller, state: str = "") -> Iterable[tuple[int, str]]:
    """The jobs in memory that the caller's node sees; given ``state``, of those in it."""
    jobs = hive.state.jobs.by_id.values()
    return ((job.number, job.id) for job in jobs if state in ("", job.state) and sees(job, caller))


def _merged(
    hive: Hive, caller: Caller, own: Iterable[tuple[int, str]], past: Rows, after: int, limit: int
) -> Rows:
    """Up to ``limit`` rows after the number: the caller's ``own`` in memory, and those of the ``past`` that
    are not there, as far as these go."""
    numbers = {number for number, _ in own_jobs(hive, caller)}
    last = past[-1][0] if len(past) == limit else None  # None: there are no more
    rows = [row for row in past if row[0] not in numbers] + [row for row in own if row[0] > after]
    return sorted(row for row in rows if last is None or row[0] <= last)[:limit]
