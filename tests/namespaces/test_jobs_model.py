"""The engine beside a model of it: another reading of the table of moves, and nothing of the engine's code.

Whatever is written in whatever order, both say the same of every job, nothing moves out of an end, and
deciding and applying are functions of what they are given.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
from hives import ANN, W1, W2, Folded
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs import ctl
from skep.namespaces.hive import HiveState
from skep.trace.clock import SECOND
from skep.trace.entry import Line
from skep.trace.rules import Decision, Meta, Refusal

NODES = {"w1": W1, "w2": W2}
LEASE_S, TIMEOUT_S, GRACE_S, RUNTIME_S, DEADLINE_S, DELAY_S, PATIENCE_S = 30, 20, 5, 35, 90, 7, 15
WAYS = ("", "allow", "refuse")  # of a job in default, which has no fallback, and of those in gpu
POOLS = {"": "default", "allow": "gpu", "refuse": "gpu"}
ENDS = ("succeeded", "failed", "cancelled")


@dataclass
class Model:
    """One job. Times are seconds since the story began."""

    retries: int
    submitted: int
    state: str = "queued"
    fence: int = 0
    node: str = ""
    until: int = 0
    started: int = 0
    ran: int = 0
    failures: int = 0
    code: str = ""
    way: str = ""
    pool: str = "default"
    since: int = 0  # when it began to wait

    def end(self, state: str, now: int, code: str = "", fenced: bool = False) -> None:
        self.stop(now, fenced)
        self.state, self.code = state, code

    def stop(self, now: int, fenced: bool) -> None:
        if self.state == "running":
            self.ran += now - self.started
        self.fence += fenced

    def fail(self, now: int, code: str, delay: int, fenced: bool = False) -> None:
        self.stop(now, fenced)
        self.failures += 1
        if self.ran >= RUNTIME_S:
            self.state, self.code = "failed", "budget"
        elif self.failures > self.retries or now + delay >= self.submitted + DEADLINE_S:
            self.state, self.code = "failed", code
        else:
            self.state, self.until = "delayed", now + delay

    def fall(self, now: int, reason: str) -> None:
        self.stop(now, False)
        if self.state == "running" and self.ran >= RUNTIME_S:
            self.state, self.code = "failed", "budget"
        elif (self.pool, self.way) == ("gpu", "allow"):
            self.wait(now)
            self.pool = "cpu"
        else:
            self.state, self.code = "failed", reason

    def wait(self, now: int) -> None:
        self.state, self.since = "queued", now

    @property
    def held(self) -> bool:
        return self.state in ("leased", "running")

    def takes(self, verb: str, node: str, fence: int, now: int) -> bool:
        """Whether the verb moves it now, said by the node with this fence."""
        holder = self.held and node == self.node and fence == self.fence
        match verb:
            case "start":
                return holder and self.state == "leased"
            case "renew" | "nack" | "final" | "oom":
                return holder
            case "full":
                return (self.state, self.pool) == ("queued", "gpu") and now >= self.since + PATIENCE_S
            case "ack":
                return holder and self.state == "running"
            case "cancel":
                return self.state not in ENDS
            case "expire":
                return self.held and fence == self.fence and now >= self.until
            case "release":
                return self.state == "leased" and fence == self.fence
            case "timeout":
                late = now >= self.started + TIMEOUT_S + GRACE_S
                return self.state == "running" and fence == self.fence and late
            case "spent":
                late = now >= self.started + max(RUNTIME_S - self.ran, 0) + GRACE_S
                return self.state == "running" and fence == self.fence and late
            case "overdue":
                return self.state not in ENDS and now >= self.submitted + DEADLINE_S
            case _:
                assert verb == "wake"
                return self.state == "delayed" and now >= self.until

    def take(self, verb: str, now: int) -> None:
        match verb:
            case "start":
                self.state, self.started = "running", now
            case "renew":
                self.until = now + LEASE_S
            case "ack":
                self.end("succeeded", now)
            case "nack":
                self.fail(now, "nacked", DELAY_S)
            case "final":
                self.end("failed", now, "final")
            case "cancel":
                self.end("cancelled", now, fenced=self.held)
            case "expire":
                self.stop(now, fenced=True)
                self.wait(now)
                if self.ran >= RUNTIME_S:
                    self.state, self.code = "failed", "budget"
            case "release":
                self.fence += 1
                self.wait(now)
            case "oom" | "full":
                self.fall(now, verb)
            case "timeout":
                self.fail(now, "timeout", 0, fenced=True)
            case "spent":
                self.end("failed", now, "budget", fenced=True)
            case "overdue":
                self.end("failed", now, "deadline", fenced=self.held)
            case "wake":
                self.wait(now)


OWN = ("expire", "release", "timeout", "spent", "overdue", "wake", "full")
LINES = {
    "nack": f"nack error=e delay={DELAY_S}s", "final": "nack error=e final=true", "cancel": "cancel",
    "overdue": "overdue", "wake": "wake", "oom": "fallback reason=oom", "full": "fallback reason=full",
}  # fmt: skip

Step = tuple[str, int, int, str]


def attempt(*steps: tuple[str, int]) -> list[Step]:
    """The first job's next attempt on w1, if nothing comes between."""
    return [("lease", 0, 0, "w1"), *((verb, n, 0, "w1") for verb, n in steps)]


ATTEMPTS = (
    attempt(("start", 0), ("nack", 0), ("wait", DELAY_S), ("wake", 0)),
    attempt(("start", 0), ("wait", 12), ("nack", 0), ("wait", DELAY_S), ("wake", 0)),
    attempt(("start", 0), ("wait", LEASE_S), ("expire", 0)),
    attempt(("start", 0), ("wait", 20), ("renew", 0), ("wait", 20), ("spent", 0)),
    attempt(("start", 0), ("wait", 36), ("expire", 0)),
    attempt(("start", 0), ("wait", 25), ("timeout", 0), ("wait", 1), ("wake", 0)),
    [("submit", 1, 1, "w1"), ("lease", 1, 0, "w1"), ("start", -1, 0, "w1"), ("oom", -1, 0, "w1")],
    [("submit", 1, 1, "w1"), ("wait", 14, 0, "w1"), ("full", -1, 0, "w1"), ("lease", 1, 0, "w2")],
    [("submit", 1, 2, "w1"), ("wait", PATIENCE_S, 0, "w1"), ("full", -1, 0, "w1")],
    [("lease", 1, 0, "w1"), ("release", -1, 0, "w1"), ("wait", PATIENCE_S, 0, "w1"), ("full", -1, 0, "w1")],
)
single = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 2), st.integers(0, 2), st.just("w1")),
    st.tuples(st.just("lease"), st.integers(0, 2), st.just(0), st.sampled_from(list(NODES))),
    st.tuples(st.just("wait"), st.integers(1, 40), st.just(0), st.just("w1")),
    st.tuples(
        st.sampled_from(["start", "renew", "ack", "nack", "final", "oom", "cancel", *OWN]),
        st.integers(0, 2),
        st.sampled_from([0, 0, 0, 0, -1, 1]),
        st.sampled_from(list(NODES)),
    ),
)


scripts = st.lists(st.one_of(single.map(lambda step: [step]), st.sampled_from(ATTEMPTS)), max_size=20).map(
    lambda parts: [("submit", 1, 0, "w1"), *(step for part in parts for step in part)]
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(scripts)
def test_the_engine_does_what_the_table_says(script: list[Step]) -> None:
    hive, models, now = Pure(), dict[str, Model](), 0
    for verb, n, off, node in script:
        before = {id: model.state for id, model in models.items()}
        match verb:
            case "wait":
                hive.clock.advance(n * SECOND)
                now += n
            case "submit":
                args = {"retries": n, "timeout": f"{TIMEOUT_S}s", "runtime": f"{RUNTIME_S}s"}
                args |= {"deadline": f"{DEADLINE_S}s", "topic": "fast" if off else "sum"}
                args |= {"fallback": WAYS[off], "patience": f"{PATIENCE_S}s"} if off else {}
                id = hive.write("/jobs/ctl", ctl.line("submit", {k: str(v) for k, v in args.items()}))
                models[id] = Model(n, now, way=WAYS[off], pool=POOLS[WAYS[off]], since=now)
            case "lease":
                lease(hive, models, ("default", "gpu", "cpu")[n], node, now)
            case _ if models:
                id = list(models)[n % len(models)]
                say(hive, models[id], id, verb, off, node, now)
        for id, model in models.items():
            job = hive.state.jobs.by_id[id]
            assert (model.state, model.fence) == (job.state, job.fence), (verb, id)
            assert (model.code, model.pool) == (job.code, job.request.pool)
            if before.get(id) in ENDS:
                assert before[id] == model.state


def lease(hive: Pure, models: dict[str, Model], pool: str, node: str, now: int) -> None:
    waiting = [model for model in models.values() if (model.state, model.pool) == ("queued", pool)]
    assert len(waiting) == hive.state.count_waiting(pool)
    try:
        model = models[hive.write(f"/pools/{pool}/next", "lease", NODES[node])]
    except Refusal:
        assert not waiting
        return
    assert model in waiting
    model.state, model.fence, model.node, model.until = "leased", model.fence + 1, node, now + LEASE_S


def say(hive: Pure, model: Model, id: str, verb: str, off: int, node: str, now: int) -> None:
    fence = model.fence + off
    if fence < 0:
        return
    line = LINES.get(verb, verb) + (
        "" if verb in ("cancel", "overdue", "wake", "full") else f" fence={fence}"
    )
    taken = model.takes(verb, node, fence, now)
    was = copy.copy(model)
    try:
        if verb in OWN:
            hive.hive(f"/jobs/{id}", line)
        else:
            hive.write(f"/jobs/{id}/ctl", line, ANN if verb == "cancel" else NODES[node])
    except Refusal:
        assert not taken, (verb, was)
        return
    # What was said before is answered again, and moves nothing.
    again = verb in ("ack", "nack", "final", "oom") and node == was.node and fence == was.fence
    assert taken or (again and not was.held), (verb, was)
    if taken:
        model.take(verb, now)
        job = hive.state.jobs.by_id[id]
        # Without delay= the wait is the engine's to choose, and so is whether the deadline comes before.
        if model.state == job.state == "delayed" and verb == "timeout":
            model.until = -(-(job.until_ns - hive.began_ns) // SECOND)
        elif model.state == "delayed" and verb == "timeout":
            model.state, model.code = job.state, job.code


class Pure(Folded):
    """Decides and applies twice: on what it has and on a copy, which must not differ or touch each other."""

    def __init__(self) -> None:
        super().__init__()
        for line in ("create pool=cpu", "create pool=gpu fallback=cpu", "map topic=fast pool=gpu"):
            self.write("/pools/ctl", line)
        self.began_ns = self.clock.now_ns()

    def _decided(self, state: HiveState, line: Line) -> Decision[Any, str] | Refusal:
        try:
            return self.rules.decide(state, line, 0)
        except Refusal as refused:
            return refused

    def _write(self, actor: str, role: str, tenant: str, path: str, line: str) -> str:
        if not hasattr(self, "began_ns"):
            return super()._write(actor, role, tenant, path, line)
        self.seq += 1
        written = Line(actor, role, tenant, path, (line,), self.clock.now_ns(), self.clock.new_id())
        meta = Meta(self.seq, written.time_ns, written.trace)
        before = copy.deepcopy(self.state.jobs)
        other = self.rules.copy(self.state)
        decided = [self._decided(state, written) for state in (self.state, other)]
        assert before == self.state.jobs
        decision = decided[0]
        if isinstance(decision, Refusal):
            assert str(decision) == str(decided[1])
            raise decision
        assert decision == decided[1]
        events = copy.deepcopy(decision.events)
        for event in decision.events:
            self.rules.apply(other, event, meta)
        assert before == self.state.jobs
        for event in decision.events:
            self.rules.apply(self.state, event, meta)
        assert (events, other.jobs) == (decision.events, self.state.jobs)
        return decision.reply
