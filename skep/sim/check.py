"""Whether a run kept what the hive promises: found out from the ledger's bytes and what people were told.

Nothing here asks the code that is checked, but for the last two: that a fold of the ledger is the state that
the hive had, and that who decides its lines again decides the same.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

from skep.namespaces.hive import Event, HiveRules, HiveState
from skep.sim.history import Said
from skep.sim.linear import ENDED, LOCK, NEVER, Op, linearization
from skep.sim.linear import job as job_object
from skep.sim.model import Model, folded
from skep.sim.story import LOCKS
from skep.sim.world import Ran
from skep.trace.entry import Entry, canonical, entry_decoder
from skep.trace.fold import apply_entry
from skep.trace.rules import Meta, Refusal
from skep.validator.gpu.proof import prove

# What is refused because of who asks is recorded later, in sums; what a killed hive had not summed is lost.
SUMMED: Final = ("DENIED", "READONLY", "UNAUTHENTICATED", "APPROVAL", "THROTTLED")


def broken(ran: Ran) -> list[str]:
    """The promises that were not kept, each in a line."""
    model = folded(ran.bodies, ran.history.said, ran.story.actions)
    return [
        *dict.fromkeys(ran.wrong),
        *model.wrong,
        *_answers(ran),
        *_order(ran),
        *_ends(ran, model),
        *_jobs_linear(ran, model),
        *_locks_linear(ran),
        *_heard(ran, model),
        *_proven(ran),
        *_replayed(ran),
    ]


# what people were told


def _answers(ran: Ran) -> Iterator[str]:
    """What was answered is in the ledger, as it was answered."""
    entries = [json.loads(body) for body in ran.bodies]
    by_trace = {entry["trace"]: entry for entry in entries}
    # The hive adds to some what they refer to.
    lines = [entry["line"] for entry in entries if entry["outcome"]["code"] == "ok"]
    for said in ran.history.said:
        unread = said.answer == "ok" and said.line and not said.trace
        if unread and not any(line.startswith(said.line) for line in lines):
            yield f"{said.who}: {said.line}: told ok, the ledger has no such line"
        if not said.trace or (said.answer in SUMMED and said.trace not in by_trace):
            continue
        what = f"{said.who}: {said.line or said.verb}: told {said.answer} rev={said.rev} trace={said.trace}"
        entry = by_trace.get(said.trace)
        if entry is None:
            yield f"{what}: the ledger has no such entry"
        elif "wait" in said.more.get("args", ()):
            pass  # it was taken, and answered later, when it was granted or given up
        elif said.rev and (entry["seq"] != said.rev or not entry["line"].startswith(said.line)):
            yield f"{what}: the ledger has {entry['line']!r} as entry {entry['seq']}"
        elif said.answer in ("ILLEGAL_MOVE", "FENCED") and entry["outcome"]["code"] == "MISSING":
            pass  # the job has ended and left memory, and is told to have ended all the same
        elif entry["outcome"]["code"] != said.answer and said.answer not in SUMMED:
            yield f"{what}: the ledger has {entry['outcome']['code']}"


def _order(ran: Ran) -> Iterator[str]:
    """Who was answered before another asked, stands before it in the ledger."""
    told = [said for said in ran.history.said if said.rev]
    answers = sorted(told, key=lambda said: said.answered)
    last, i = None, 0
    for said in sorted(told, key=lambda said: said.called):
        while i < len(answers) and answers[i].answered < said.called:
            if last is None or answers[i].rev > last.rev:
                last = answers[i]
            i += 1
        if last is not None and last.rev > said.rev:
            yield f"{said.who}: {said.line}: entry {said.rev}, after {last.line!r} was told {last.rev}"


def _ends(ran: Ran, model: Model) -> Iterator[str]:
    """What was told of a job's end is its end, and every job has one."""
    for job in model.jobs.values():
        if job.state not in ENDED:
            yield f"job {job.id} has not ended: it is {job.state}"
    for said in ran.history.said:
        found = model.jobs.get(said.about)
        if said.answer != "ok" or not said.about:
            continue
        if said.verb in ("submit", "ack", "cancel", "lease") and found is None:
            yield f"{said.who}: {said.verb} {said.about} was acknowledged, and the ledger does not know it"
        elif found is None:
            continue
        elif said.verb == "ack" and (found.state, found.text) != ("succeeded", said.more["result"]):
            yield f"{said.who}: {said.line} of {said.about} was told ok, it is {found.state} {found.text}"
        elif said.verb == "cancel" and found.state != "cancelled":
            yield f"{said.who}: cancel {said.about} was acknowledged, it is {found.state}"
        elif said.verb in ("look", "wait") and said.reply in ENDED and said.reply != found.state:
            yield f"{said.who}: {said.about} was {said.reply}, it is {found.state}"


_ANSWERED: Final = ("ok", "FENCED")  # what tells something of a job's state


def _jobs_linear(ran: Ran, model: Model) -> Iterator[str]:
    # Who submitted it may not have been told.
    ops = {id: [Op(-1, ("submit", 0, ""), None, 0)] for id in model.jobs}
    for i, said in enumerate(ran.history.said):
        if said.about in model.jobs and (op := _job_op(i, said)) is not None:
            ops[said.about].append(op)
    for id, history in ops.items():
        if linearization(history, job_object(model.jobs[id].fence)) is None:
            told = "; ".join(f"{op.asked} -> {op.answer}" for op in sorted(history, key=lambda op: op.called))
            yield f"job {id}: what was told of it was never true at once: {told}"


def _job_op(i: int, said: Said) -> Op | None:
    """None: what was answered tells nothing."""
    if said.answer not in ("", *_ANSWERED):
        return None
    match said.verb:
        case "lease":
            asked = ("lease", said.fence, said.more.get("attempt", 0))
        case "ack" | "nack" | "fallback":
            asked = (said.verb, said.fence, said.more.get("result", said.more.get("error", "")))
        case "start" | "renew" | "release":
            asked = (said.verb, said.fence, "")
        case "submit" | "cancel":
            asked = (said.verb, 0, "")
        case "look" | "wait" if said.answer:
            return Op(i, ("look", 0, ""), said.reply, said.called, said.answered)
        case _:
            return None
    return Op(i, asked, said.answer or None, said.called, said.answered)


def _locks_linear(ran: Ran) -> Iterator[str]:
    ops: defaultdict[str, list[Op]] = defaultdict(list)
    fences: list[tuple[int, int]] = []
    for i, said in enumerate(ran.history.said):
        op = _lock_op(i, said)
        if op is not None:
            ops[said.about].append(op)
            if said.verb == "acquire" and said.reply:
                fences.append((said.rev, int(said.reply)))
    for name, history in ops.items():
        if linearization(history, LOCK) is None:
            told = "; ".join(f"{op.asked} -> {op.answer}" for op in sorted(history, key=lambda op: op.called))
            yield f"lock {name}: what was told of it was never true at once: {told}"
    if len({fence for _, fence in fences}) < len(fences):
        yield f"a lock's fence was given twice: {sorted(fences)}"


def _lock_op(i: int, said: Said) -> Op | None:
    known = said.answer in ("", "ok", "BUSY", "FENCED")
    if said.about not in LOCKS or said.verb not in ("acquire", "release", "check") or not known:
        return None
    answer: Any = said.answer or None
    if said.verb == "acquire":
        answer = int(said.reply) if said.answer == "ok" and said.reply.isdigit() else answer
        # An acquire that was granted without its fence being told may have any.
        answer = None if answer == "ok" else answer
        asked: tuple[Any, ...] = ("acquire", said.more["args"]["mode"][0])
        if said.answer == "ok" and answer is None:
            return Op(i, asked, None, said.called, NEVER)
        return Op(i, asked, answer, said.called, said.answered)
    fence = said.fence or int(said.more["args"]["fence"])
    return Op(i, (said.verb, fence), answer, said.called, said.answered)


def _heard(ran: Ran, model: Model) -> Iterator[str]:
    """Who follows a tenant's events has heard each of its jobs' once, in order, and no other's."""
    told = [
        (entry["seq"], event["type"], event["job"])
        for entry in map(json.loads, ran.bodies)
        for event in entry["events"]
        if event["type"].startswith("job.") and event["job"] in model.jobs
    ]
    for ear in ran.ears:
        own = [each for each in told if model.jobs[each[2]].tenant == ear.tenant and each[0] <= ear.seq]
        if own != ear.heard:
            at = next((i for i, (a, b) in enumerate(zip(own, ear.heard, strict=False)) if a != b), -1)
            yield f"{ear.tenant} heard {ear.heard[at : at + 2]}, the ledger has {own[at : at + 2]}"


def _proven(ran: Ran) -> Iterator[str]:
    """Who proves from the ledger what became of GPU work, finds nothing wrong either."""
    if ran.story.annexes:
        for found in prove(enumerate(ran.bodies, 1)).broken:
            yield f"prove: entry {found.entry}: {found.claim}: {found.job} {found.annex}: {found.text}"


# the ledger read again


def _replayed(ran: Ran) -> Iterator[str]:
    """Folding gives the state that the last queen had; deciding again gives what was decided."""
    rules = ran.made.rules()
    folded = rules.fresh()
    decoder = entry_decoder(Event)
    for body in ran.bodies[: ran.seq]:
        entry = decoder.decode(body)
        code, events = _decided(rules, folded, entry)
        if (code, canonical(events)) != (entry.outcome.code, canonical(entry.events)):
            was = f"{entry.outcome.code} {entry.events}"
            yield f"entry {entry.seq}: {entry.line!r} was decided {was}, now {code} {events}"
            return
        apply_entry(rules, folded, entry)
    if folded != ran.state:
        yield f"the state is not the ledger's: {_difference(folded, ran.state)}"


def _decided(rules: HiveRules, state: HiveState, entry: Entry[Any]) -> tuple[str, list[Any]]:
    """The outcome's code and the events of the entry's lines, decided on ``state``."""
    events: list[Any] = []
    line = entry.written()
    meta = Meta(entry.seq, entry.time, entry.trace)
    if len(line.lines) > 1:
        state = rules.copy(state)
    for k in range(len(line.lines)):
        try:
            decision = rules.decide(state, line, k)
        except Refusal as refusal:
            return refusal.code, []
        events += decision.events
        # Lines of one write see each other.
        if k + 1 < len(line.lines):
            for event in decision.events:
                rules.apply(state, event, meta)
    return "ok", events


def _difference(ledger: Any, live: Any) -> str:
    for name in vars(ledger):
        a, b = getattr(ledger, name), getattr(live, name)
        if a != b:
            if hasattr(a, "__dict__"):
                return f"{name}.{_difference(a, b)}"
            return f"{name}: {str(a)[:300]} is {str(b)[:300]}"
    return "nothing"
