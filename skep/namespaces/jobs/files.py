"""/jobs: work.

    clone             open: a new job's id is read; write ``submit …``, then it is that job's ctl
    ctl               W submit, cancel, import; R usage
    export.csv        R the tenant's jobs as a sheet, those that have ended too
    import.csv        W such a sheet, which import takes; R
    by-key/<key>      R the id submitted under that idempotency key
    by-state/<state>/ the jobs in that state
    <id>/             a job

A job has:

    request.json      R what was asked for
    state             R queued, leased, running, delayed (it failed and is tried again), succeeded, failed,
                        cancelled
    wait              R blocks until the job has ended, gives its state; to the holder of its lease also when
                        that has ended
    result            R what its worker acknowledged it with
    error             R why it failed, or was cancelled; before its end why its last attempt failed
    attempts          R a line for each lease: number, node=, fence=, leased=, started=, device=, ended=, end=
    device            R where it ran last: cuda:<annex>/<n>, or cpu: and why not there; empty: not said
    events.jsonl      R its events; events.jsonl@N those after ledger number N, for ever
    progress          R percent, msg and time as last reported; in memory only
    artifacts         R a line for each output: name, hash
    log, out          R what it printed; appended by its holder; log@N follows from byte N to the job's end
    ctl               W cancel; by the holder of its lease start, progress, renew, seal, ack, nack,
                        release (it stops with the job undone: another attempt follows at once),
                        fallback (it cannot be done there: it goes on where its pool falls back to)

``submit`` may be a JSON object, ``{"verb":"submit","v":1,"topic":"sum","input":"x"}``; what is wrong with
it is told with a JSON pointer, and another version than 1 is refused. A ``key=`` is kept for the time that
/config says (jobs/key-window, 24h): a request that says the same, however it is spelled, is the same job,
another is refused, and then the key is free; a submit that was refused leaves its key free. The key of a job
that was retried from /dlq names the retry. by-key tells the last job under a key for ever.

A job ends once, whatever dies. ``nack`` says that an attempt failed: after ``delay=``, else after a second
that doubles with each failure, less up to half by chance, at most 5 minutes, another follows, ``retries=``
times. A lease that ends without a word is no failure of the job: another attempt follows at once, 16 times.
``timeout=`` ends an attempt, 5 seconds later when its worker does not, as a nack does; ``deadline=`` ends the
job, and so does, with the code budget, ``runtime=``, which its attempts have together. What submit does not
say of them, the topic's map says, then its pool's create, then /config: topics/<topic>/… and jobs/…, in the
scope of the job's workflow and step. Limits there refuse what asks for more. What is published there holds
from the next decision on; while a scope cannot be read nothing is submitted in it, and what runs goes on.

``inputs=a:notes.txt,b:<sha256>`` are artifacts besides the input, 16 at most, each under a name that its
worker knows it by. What is sealed as notes.txt when the job is submitted is meant, and stays meant; no schema
is asked about it. They are kept as long as the input is, and who holds the job reads them as it does that.

A pool may name the pool that its jobs fall back to. A job of it goes on there, with its attempts and limits,
when nobody is there to do it (annex_lost, disabled, no_device), when it has waited longer than its patience=
(full, else one of these), or when its holder says that it cannot (oom, kernel_failed, lease_expired …). It
waits there anew, and requires no gpu and no annex any more. With ``fallback=refuse`` it has failed instead,
at the end of its patience or when its holder says so, with the reason as its code; and so has a job whose
pool has no fallback. That is an alert. A start on cpu:<n> of a job that was to have a GPU is recorded as a
fallback, too; with fallback=refuse it is refused. request.json has where it was submitted to, and, once there
are any, ``fallbacks`` and where it is ``now``.

``seal name=out.npy`` makes an output of what its holder has staged as <job>.<fence>.out.npy. In the write of
the ``ack`` both are done or neither: a job that has not ended has no such output. The policies are asked of
it as of a seal in /artifacts/ctl.

Where /config names schemas for a topic, topics/<topic>/request and result, its jobs' input and result are
JSON that is good by them: ``schema: /input/width: why``. An artifact that is an input is checked as it is
submitted, and refused above 1 MiB. An ack that is refused leaves the job running. A retry of a
dead letter is checked anew, and so is the job of a trigger that fires.

What else is said of a job, capability, risk, pack, actor, workflow, is for the policies, which see all of it
(context.risk, context.capabilities), and for its worker; the submitter says it, nobody else vouches for it.

A job that has ended leaves memory after a while (jobs/history, 1h; of more than 16384 the oldest) and is read
from the ledger's index from then on, by the same names; nodes have it no more in their listings. A draft of
clone that is older than such a job is refused.

export.csv has a line for each job, in the order of their submission, with these columns:

    jobs.v1           its id
    topic, pool       what it is, and where it waits or waited
    end               succeeded, failed, cancelled; empty: it has not ended
    result            what it was acknowledged with
    error, code       why it failed or was cancelled; its kind, as /dlq has it
    dead              true: it is in /dlq
    submitted         when it was submitted, and
    submitter         by whom, at first
    body              the SHA-256 of the request, as its key is bound to it
    key … tracestate  the arguments of submit, as they are called there; artifacts are told by their hashes

Attempts, logs, outputs, and which trigger or dead letter a job comes from, are not in it. import makes jobs
of a sheet, under their ids, for the tenant of who imports it. One that has ended is recorded as imported,
with its end and without an attempt, fires no trigger and counts to no limit; its artifact must have been
sealed here. One that has not is submitted anew, by who imports it, and waits, whatever it did: policies,
limits, schemas and pools are asked as of a submit, its time limits begin again. A key is bound to the job as
by a submit; one that another job has is refused, but of several lines that have ended the last one gets it. A
job that is there is left as it is, and refused when it is another. The whole sheet, of 16 MiB at most, is
checked first, a mistake is told with its line and column; then it is written in parts of an entry each. Input
and result of one job may have 28 KiB together.

A sheet from before the columns inputs, fallback and patience came is taken without them.

    cp saved.csv jobs/import.csv
    echo import sha256=$(sha256sum < saved.csv | cut -c1-64) > jobs/ctl

A job exists for its tenant, and for the nodes it was leased to. So do its key and whatever else names it:
who is of another tenant finds nothing, in listings, errors and events alike.

    echo submit topic=sha256 input=artifact:notes.txt key=notes-1 > jobs/ctl
    cat jobs/$(cat jobs/by-key/notes-1)/wait
    echo submit topic=kernel input=saxpy inputs=x:x.npy,y:y.npy > jobs/ctl
"""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from skep.fs import ctl
from skep.fs.chan import settle
from skep.fs.ctl import Arg, Command, Verb
from skep.fs.errors import E, FsError
from skep.fs.node import Caller, Handle, How, Maybe, Node
from skep.fs.shapes import Append, Ctl, File, Reply, Stream, Text, parsed
from skep.fs.tree import Clone, Listing, Page, Paged
from skep.namespaces.checked import checked
from skep.namespaces.follow import Feed, events
from skep.namespaces.garbled import keep
from skep.namespaces.jobs import envelope
from skep.namespaces.jobs.history import Found
from skep.namespaces.jobs.names import Place, Shelf, job_of, locate, own_jobs, pages, read
from skep.namespaces.jobs.record import MOVES, TERMINAL, Attempt, Fallback, Job, shown_input
from skep.namespaces.jobs.sheet import IMPORTED, Export, take
from skep.namespaces.jobs.verbs import ID, IMPORT, SEAL, SUBMIT, TABLES, VERSION
from skep.namespaces.live import Hive, Progress
from skep.namespaces.rows import Rows, fixed
from skep.namespaces.sealing import sealed
from skep.namespaces.sheet import Staged
from skep.trace.clock import rfc3339

PROGRESS: Final = Verb(
    "progress",
    (
        Arg("percent", kind="number"),
        Arg("msg"),
        Arg("fence", kind="number", help="refuse when the lease is not that one any more"),
    ),
    "progress percent=50 msg='half of it'",
    "how far it is; remembered, not recorded",
)
# ``submit`` is for the clone alone.
JOB_VERBS: Final[ctl.Verbs] = {
    name: verb for name, verb in TABLES["*/ctl"].items() if name != SUBMIT.name
} | ctl.verbs(PROGRESS)
CLONE_VERBS: Final[ctl.Verbs] = dict(TABLES["*/ctl"]) | ctl.verbs(PROGRESS)


def files(hive: Hive) -> Listing:
    """The tree of /jobs."""
    staged = Staged()
    children = fixed(
        {
            "clone": Clone(lambda caller: _Draft(hive, hive.draft_id())),
            "ctl": Ctl(
                {**TABLES["ctl"], IMPORT.name: IMPORT},
                lambda caller, commands: _command(hive, staged, caller, commands),
                garbled=_garbled(hive),
            ),
            "by-key": _by_key(hive),
            "by-state": {state: _by_state(hive, state) for state in MOVES},
            "export.csv": Stream(lambda caller: Export(hive, caller)),
        }
    )

    def named(caller: Caller) -> dict[str, Node]:
        return children if caller.node else {**children, IMPORTED: staged.file(caller)}

    def open_pages(caller: Caller) -> Page:
        return pages(hive, Shelf.JOBS, listed, lambda caller: own_jobs(hive, caller), named(caller))(caller)

    def listed(caller: Caller, after: int, limit: int) -> Sequence[tuple[int, str]]:
        return hive.history.listed(caller.tenant, after, limit)

    def walk(name: str, caller: Caller) -> Any:
        if name == IMPORTED and not caller.node:
            return staged.file(caller)
        return children.get(name) or _job(hive, name, caller)

    return Paged(open_pages, walk)


def _garbled(hive: Hive) -> Callable[[Caller, bytes, FsError], Awaitable[None]]:
    return lambda caller, data, error: keep(hive, caller, data, error)


async def _command(hive: Hive, staged: Staged, caller: Caller, commands: list[Command]) -> list[str]:
    if any(command.verb == IMPORT.name for command in commands):
        return [await take(hive, staged, caller, commands)]
    return await hive.command(caller, "/jobs/ctl", await checked(hive, caller, commands))


def _job(hive: Hive, id: str, caller: Caller) -> Maybe[Rows[Hive]]:
    place = locate(hive, id, caller)
    return _rows(hive, id, place, Shelf.JOBS) if isinstance(place, Place) else _late_job(hive, id, place)


async def _late_job(hive: Hive, id: str, place: Maybe[Place | None]) -> Rows[Hive]:
    return _rows(hive, id, await _placed(id, place), Shelf.JOBS)


async def _placed(id: str, place: Maybe[Place | None]) -> Place:
    if (found := await settle(place)) is None:
        # Whether it is another's or nobody's, the record is the same: it has a number in the ledger, by which
        # one could tell.
        raise FsError(E.MISSING, id, hidden=ID.fullmatch(id) is not None)
    return found


def _rows(hive: Hive, id: str, place: Place, shelf: Shelf) -> Rows[Hive]:
    rows = Rows(FILES, hive, id, place.rev, AT)
    rows.number = shelf.path(place.number)
    return rows


def _by_key(hive: Hive) -> Listing:
    async def walk(key: str, caller: Caller) -> Text | None:
        keyed = hive.state.jobs.keyed(caller.tenant, key, hive.clock.now_ns())
        if keyed is None:
            await hive.history.wait_reached(hive.turn.seq)
        id = hive.history.keyed(caller.tenant, key) if keyed is None else keyed.job
        place = None if id is None else await settle(locate(hive, id, caller))
        if place is None:
            return None
        file = Text(f"{id}\n")
        file.number = Shelf.KEY.path(place.number)
        return file

    def own(caller: Caller) -> Iterable[tuple[int, str]]:
        of = {id: key for key, (id, *_) in hive.state.jobs.by_key.get(caller.tenant, {}).items()}
        return ((number, of[id]) for number, id in own_jobs(hive, caller) if id in of)

    def listed(caller: Caller, after: int, limit: int) -> Sequence[tuple[int, str]]:
        return hive.history.listed_keys(caller.tenant, after, limit)

    return Paged(pages(hive, Shelf.KEY, listed, own, kind=stat.S_IFREG), walk)


def _by_state(hive: Hive, state: str) -> Listing:
    async def walk(id: str, caller: Caller) -> Rows[Hive] | None:
        place = await _placed(id, locate(hive, id, caller))
        return _rows(hive, id, place, Shelf.STATE) if place.state == state else None

    def listed(caller: Caller, after: int, limit: int) -> Sequence[tuple[int, str]]:
        return hive.history.listed(caller.tenant, after, limit, state)

    return Paged(pages(hive, Shelf.STATE, listed, lambda caller: own_jobs(hive, caller, state)), walk)


# one job


def _text(render: Callable[[Job], str]) -> Callable[[Hive, str], Text]:
    """A row whose text is rendered from the job's record when opened."""
    return lambda hive, id: Text(lambda: read(hive, id, lambda found: render(found.job)))


def request_json(job: Job) -> str:
    """What was asked for, one JSON line."""
    request = job.asked
    shown: dict[str, object] = {
        "v": VERSION, "job": job.id, "tenant": request.tenant, "submitter": request.actor,
        "role": request.role, "topic": request.topic, "pool": request.pool, "priority": request.priority,
        "labels": request.labels, "submitted": rfc3339(job.submitted_ns),
    } | envelope.shown(request) | shown_input(job)  # fmt: skip
    shown["actor_id"] = request.actor_id or request.actor
    shown["actor_type"] = envelope.type_of(request)
    if request.key:
        shown["key"] = request.key
    if request.retry_of:
        shown["retry_of"] = request.retry_of
    if request.trigger:
        shown |= {"trigger": request.trigger, "depth": request.depth}
    if request.imported is not None:
        shown["imported"] = request.imported
    if job.fallbacks:
        shown["fallbacks"] = [_fallback(each) for each in job.fallbacks]
        shown["now"] = {"pool": job.request.pool, "requires": job.request.requires}
    return msgspec.json.encode(shown).decode() + "\n"


def _fallback(of: Fallback) -> dict[str, str]:
    shown = {"reason": of.reason, "annex": of.annex, "time": rfc3339(of.at_ns), "from": of.from_pool}
    return shown | {"text": of.text}


def device_of(job: Job) -> str:
    """``cuda:g1/0``, ``cpu: annex_lost``, ``cpu``: where it was started last."""
    device, node = next(((a.device, a.node) for a in reversed(job.attempts) if a.started_ns), ("", ""))
    kind, _, number = device.partition(":")
    if kind == "cpu":
        why = job.fallbacks[-1].reason if job.fallbacks else ""
        return f"cpu: {why}" if why else "cpu"
    return f"{kind}:{node}/{number}" if device else ""


def _line(text: str) -> str:
    """``text`` as a file's content: a value is one bare line, no value is none."""
    return f"{text}\n" if text else ""


def _attempts(job: Job) -> str:
    return "".join(f"{n} {_attempt(attempt)}\n" for n, attempt in enumerate(job.attempts, 1))


def _attempt(attempt: Attempt) -> str:
    words = [f"node={attempt.node}", f"fence={attempt.fence}", f"leased={rfc3339(attempt.leased_ns)}"]
    if attempt.started_ns:
        words.append(f"started={rfc3339(attempt.started_ns)}")
    if attempt.device:
        words.append(f"device={attempt.device}")
    if attempt.end:
        words += [f"ended={rfc3339(attempt.ended_ns)}", f"end={attempt.end}"]
    return " ".join(words)


def _progress(hive: Hive, id: str) -> Text:
    def content() -> str:
        progress = hive.progress.get(id)
        if progress is None:
            return ""
        percent = "" if progress.percent is None else f"percent {progress.percent}\n"
        return f"{percent}msg {progress.msg}\ntime {rfc3339(progress.time_ns)}\n"

    return Text(content)


def _artifacts(hive: Hive, id: str) -> Text:
    def render(found: Found) -> str:
        return "".join(f"{name} sha256:{sha}\n" for name, sha in found.outputs.items())

    return Text(lambda: read(hive, id, render))


def _events(hive: Hive, id: str) -> Stream:
    async def source(caller: Caller) -> Feed:
        job = (await job_of(hive, id)).job
        return Feed(hive, job.first - 1, job.rev, events(hive, caller, id))

    return Stream(source)


def _events_at(hive: Hive, id: str, seq: int) -> Stream:
    return Stream(lambda caller: Feed(hive, seq, None, events(hive, caller, id)))


def _wait(hive: Hive, id: str) -> Stream:
    return Stream(lambda caller: _Wait(hive, id, caller))


class _Wait:
    """Gives the state once, when it is terminal; to a holder, when the lease that it had has ended."""

    def __init__(self, hive: Hive, id: str, caller: Caller) -> None:
        self.hive = hive
        self.id = id
        self.given = False
        job = hive.state.jobs.by_id.get(id)
        holds = job is not None and caller.node and job.node == caller.node
        self.lease = len(job.attempts) if job is not None and holds else 0  # 0: it has none

    async def next(self) -> bytes | None:
        if self.given:
            return None
        while not self._over(job := (await job_of(self.hive, self.id)).job):
            await self.hive.wait_news(self.id)
        self.given = True
        return f"{job.state}\n".encode()

    def _over(self, job: Job) -> bool:
        return job.state in TERMINAL or (
            self.lease > 0 and (len(job.attempts), job.held) != (self.lease, True)
        )

    def close(self, undelivered: bytes | None) -> None:
        """Nothing was taken."""


def _printed(name: str) -> Callable[[Hive, str], Append]:
    return lambda hive, id: _Printed(hive, id, name)


class _Printed(Append):
    """The log or the output: appended by the holder of the job's lease."""

    def __init__(self, hive: Hive, id: str, name: str) -> None:
        super().__init__(self._print, lambda offset, count: hive.logs.read(id, name, offset, count))
        self.hive = hive
        self.id = id
        self.name = name
        self.mtime_ns = hive.logs.mtime_ns(id, name) or self.mtime_ns

    def size(self) -> int:
        return self.hive.logs.size(self.id, self.name)

    def _print(self, caller: Caller, data: bytes) -> None:
        check_holder(self.hive, self.id, caller)
        self.hive.logs.append(self.id, self.name, data)
        self.hive.news(self.id)


def check_holder(hive: Hive, id: str, caller: Caller) -> Job:
    """The job, when the caller's node holds its lease. Raises FsError(E.DENIED)."""
    job = hive.state.jobs.by_id.get(id)
    if job is None or not caller.node or job.node != caller.node:
        raise FsError(E.DENIED, "rule=lease-holder")
    return job


def _printed_at(name: str) -> Callable[[Hive, str, int], Stream]:
    return lambda hive, id, offset: Stream(lambda caller: _Printing(hive, id, name, offset))


PIECE: Final = 64 * 1024  # bytes of a log that a follower gets at a time.


class _Printing:
    """What a job prints, as it prints it, until it has ended."""

    def __init__(self, hive: Hive, id: str, name: str, offset: int) -> None:
        self.hive = hive
        self.id = id
        self.name = name
        self.offset = offset

    async def next(self) -> bytes | None:
        while True:
            job = self.hive.state.jobs.by_id.get(self.id)
            ended = job is None or job.state in TERMINAL
            if data := self.hive.logs.read(self.id, self.name, self.offset, PIECE):
                self.offset += len(data)
                return data
            if ended:
                return None
            await self.hive.wait_news(self.id)

    def close(self, undelivered: bytes | None) -> None:
        """Nothing is taken by reading."""


# commands to one job


def _ctl(hive: Hive, id: str) -> Ctl:
    return Ctl(JOB_VERBS, lambda caller, commands: run(hive, id, caller, commands))


async def run(hive: Hive, id: str, caller: Caller, commands: list[Command]) -> list[str]:
    """Write the commands to the job: what is recorded in one entry, then progress into memory."""
    reports = [_report(hive, id, caller, command) for command in commands if command.verb == PROGRESS.name]
    written = [command for command in commands if command.verb != PROGRESS.name]
    recorded = await checked(hive, caller, written)
    replies = iter(await _recorded(hive, id, caller, written, recorded) if recorded else [])
    for report in reports:
        hive.report(id, report)
    return [id if command.verb == PROGRESS.name else next(replies) for command in commands]


async def _recorded(
    hive: Hive, id: str, caller: Caller, commands: Sequence[Command], lines: list[str]
) -> list[str]:
    path = f"/jobs/{id}/ctl"
    if not any(command.verb == SEAL.name for command in commands):
        return await hive.command(caller, path, lines)
    async with sealed(hive, caller, commands, id) as seals:
        found = [seals.get(command.number, line) for command, line in zip(commands, lines, strict=True)]
        return await hive.command(caller, path, found)


def _report(hive: Hive, id: str, caller: Caller, command: Command) -> Progress:
    job = check_holder(hive, id, caller)
    args = command.args
    if "fence" in args and int(args["fence"]) != job.fence:
        raise FsError(E.FENCED, f"token={args['fence']} newest={job.fence}")
    percent = int(args["percent"]) if "percent" in args else None
    if percent is not None and percent > 100:
        raise FsError(E.USAGE, f"line {command.number}: progress: percent={percent}: expected 100 or less")
    return Progress(hive.clock.now_ns(), percent, args.get("msg", "").replace("\n", " "))


class _Draft(File):
    """A job that has an id and is not submitted yet: what an open of clone holds."""

    def __init__(self, hive: Hive, id: str) -> None:
        super().__init__(0o666)
        self.hive = hive
        self.id = id

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Drafting(self, caller)


class _Drafting(Reply):
    def __init__(self, draft: _Draft, caller: Caller) -> None:
        super().__init__(f"{draft.id}\n".encode())
        self.draft = draft
        self.caller = caller

    async def write(self, offset: int, data: memoryview) -> int:
        commands = await parsed(self.caller, bytes(data), _garbled(self.draft.hive))
        for command in commands:
            ctl.check(command, CLONE_VERBS)
        if (
            commands
            and commands[0].verb != SUBMIT.name
            and self.draft.id not in self.draft.hive.state.jobs.by_id
            and self.draft.id > self.draft.hive.state.jobs.past.horizon
        ):
            raise FsError(E.USAGE, f"line {commands[0].number}: expected {ctl.synopsis(SUBMIT)}")
        replies = await run(self.draft.hive, self.draft.id, self.caller, commands)
        self.reply("".join(f"{line}\n" for line in replies).encode())
        return len(data)


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "request.json": _text(request_json),
    "state": _text(lambda job: f"{job.state}\n"),
    "wait": _wait,
    "result": _text(lambda job: _line(job.text) if job.state == "succeeded" else ""),
    "error": _text(lambda job: _line(job.text) if job.state != "succeeded" else ""),
    "attempts": _text(_attempts),
    "device": _text(lambda job: _line(device_of(job))),
    "events.jsonl": _events,
    "progress": _progress,
    "artifacts": _artifacts,
    "log": _printed("log"),
    "out": _printed("out"),
    "ctl": _ctl,
}
AT: Final[Mapping[str, Callable[[Hive, str, int], Any]]] = {
    "events.jsonl": _events_at,
    "log": _printed_at("log"),
    "out": _printed_at("out"),
}
