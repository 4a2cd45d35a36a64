"""Whatever is written about an annex, in any order: no device is given twice, fences grow, ends come on time,
and a hive that begins again from its ledger knows the same."""

from __future__ import annotations

from typing import Any

import pytest
from annexes import CARD, CTL, G1, GIB, Annexed
from hives import ANN
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from skep.fs.node import Caller
from skep.namespaces.gpu.record import Leased, fits, used
from skep.namespaces.hive import HiveRules, HiveState
from skep.namespaces.stored import pack_state, unpack_state
from skep.trace.clock import SECOND
from skep.trace.entry import Line, canonical, events_decoder
from skep.trace.rules import Meta, Refusal

EVE = Caller("unix:eve", "operator")
# Mostly what fits beside others: else most of what is asked for is refused.
SIZES = st.sampled_from([GIB, GIB, 2 * GIB, 3 * GIB, 4 * GIB, 0, 9 * GIB])
SLOTS = st.sampled_from([1, 1, 1, 1, 2, 3, 5])
ALONE = st.sampled_from([False, False, False, False, True])
SECONDS = st.integers(1, 40)
DEVICES = st.sampled_from(["", "cuda:0", "cuda:1"])
events = events_decoder(HiveRules.event_type)


class Written(Annexed):
    """Remembers its events as the ledger does."""

    def __init__(self) -> None:
        self.entries: list[tuple[bytes, Meta]] = []
        super().__init__(CARD, CARD | {"id": "cuda:1", "memory": 4 * GIB, "slots": 2})

    def _write(self, actor: str, role: str, tenant: str, path: str, line: str) -> str:
        self.seq += 1
        written = Line(actor, role, tenant, path, (line,), self.clock.now_ns(), self.clock.new_id())
        decision = self.rules.decide(self.state, written, 0)
        meta = Meta(self.seq, written.time_ns, written.trace)
        self.entries.append((canonical(decision.events), meta))
        self.fold(self.state, *self.entries[-1])
        return decision.reply

    def fold(self, state: HiveState, written: bytes, meta: Meta) -> None:
        for event in events.decode(written):
            self.rules.apply(state, event, meta)


class Annexes(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.hive = Written()

    def write(self, path: str, line: str, who: Caller = ANN) -> str | None:
        """The reply; None: it was refused."""
        try:
            return self.hive.write(path, line, who)
        except Refusal:
            return None

    @rule(
        memory=SIZES, slots=SLOTS, ttl=st.integers(20, 90), priority=st.integers(0, 9),
        wait=st.integers(0, 60), exclusive=ALONE, device=DEVICES, who=st.sampled_from([ANN, EVE]),
    )  # fmt: skip
    def lease(self, device: str, who: Caller, exclusive: bool, **said: int) -> None:
        ttl, wait = said.pop("ttl"), said.pop("wait")
        line = f"lease ttl={ttl}s wait={wait}s exclusive={str(exclusive).lower()} "
        line += " ".join(f"{name}={value}" for name, value in said.items())
        self.write(CTL, line + (f" device={device}" if device else ""), who)

    @rule(data=st.data(), verb=st.sampled_from(["renew", "release"]), ttl=SECONDS)
    def with_lease(self, data: st.DataObject, verb: str, ttl: int) -> None:
        held = [grant for grant in self.hive.annex.grants.values() if not grant.job]
        if held:
            grant = data.draw(st.sampled_from(held))
            who = ANN if grant.given.holder == ANN.principal else EVE
            more = f" ttl={ttl}s" if verb == "renew" else ""
            self.write(CTL, f"{verb} lease={grant.lease} fence={grant.given.fence}{more}", who)

    @precondition(lambda self: not self.hive.annex.why_disabled)
    @rule(
        data=st.data(), memory=SIZES, slots=SLOTS, exclusive=ALONE,
        device=st.sampled_from(["cuda:0", "cuda:1"]), priority=st.integers(0, 9), within=st.booleans(),
    )  # fmt: skip
    def start(
        self, data: st.DataObject, device: str, priority: int, within: bool, exclusive: bool, **said: int
    ) -> None:
        job = self.hive.held(f"priority={priority} retries=9")
        given = [grant.given for grant in self.hive.annex.grants.values() if not grant.job]
        own = [each for each in given if each.holder == ANN.principal] if within else []
        outer = data.draw(st.sampled_from(own)) if own else None
        device, lease = (outer.device, f" lease={outer.lease}") if outer else (device, "")
        line = f"start fence=1 device={device} exclusive={str(exclusive).lower()} "
        line += " ".join(f"{name}={value}" for name, value in said.items()) + lease
        if self.write(f"/jobs/{job}/ctl", line, G1) is None:
            self.hive.tell(job, "fallback reason=full")

    @precondition(lambda self: self.hive.state.gpu.of_job)
    @rule(data=st.data(), verb=st.sampled_from(["ack", "nack error=x", "release", "fallback reason=oom"]))
    def end(self, data: st.DataObject, verb: str) -> None:
        job = data.draw(st.sampled_from(list(self.hive.state.gpu.of_job)))
        self.hive.tell(job, verb)
        self.write("/jobs/ctl", f"cancel job={job}")  # or the next start takes it

    @rule(seconds=SECONDS)
    def expire(self, seconds: int) -> None:
        """Time goes on, and the timer has said so."""
        self.hive.clock.advance(seconds * SECOND)
        for job in self.hive.state.gpu.of_job.copy():
            runs = job in self.hive.state.gpu.of_job  # still: the end of another's may have ended its lease
            if runs and self.hive.state.jobs.by_id[job].until_ns <= self.hive.clock.now_ns():
                self.hive.hive(f"/jobs/{job}", f"expire fence={self.hive.state.jobs.by_id[job].fence}")
                self.write("/jobs/ctl", f"cancel job={job}")
        self.hive.expire()
        assert not any(grant.is_over(self.hive.clock.now_ns()) for grant in self.hive.annex.grants.values())
        assert self.hive.clock.now_ns() < min(self.hive.state.gpu.due.values(), default=1 << 63)

    @rule(seconds=SECONDS)
    def be_late(self, seconds: int) -> None:
        """Time goes on, and the timer has not said so yet: what is over ends with whatever is asked next."""
        self.hive.clock.advance(seconds * SECOND)

    @rule(
        memory=st.sampled_from([8 * GIB, 8 * GIB, 8 * GIB, 4 * GIB, GIB]),
        slots=st.sampled_from([4, 4, 4, 2]),
        second=st.booleans(),
    )
    def offer(self, memory: int, slots: int, second: bool) -> None:
        cards: list[dict[str, Any]] = [CARD | {"memory": memory, "slots": slots}]
        self.hive.offer(*cards, *([CARD | {"id": "cuda:1"}] if second else []))

    @rule(line=st.sampled_from(["enable", "enable", "disable reason=drill"]))
    def switch(self, line: str) -> None:
        self.hive.write(CTL, line)

    @rule()
    def begin_again(self) -> None:
        """From the ledger, and from a snapshot: the same state, which goes on."""
        state = self.hive.rules.fresh()
        for entry in self.hive.entries:
            self.hive.fold(state, *entry)
        assert self.hive.state.gpu == state.gpu
        self.hive.state = unpack_state(pack_state(state))
        assert self.hive.state.gpu == state.gpu

    @invariant()
    def no_device_is_given_twice(self) -> None:
        annex = self.hive.annex
        for card in annex.cards:
            given, alone = used(annex.on(card.id)), any(g.given.exclusive for g in annex.on(card.id))
            assert (given.memory <= card.memory, given.slots <= card.slots) == (True, True)
            assert not (alone and given.leases > 1)
        for outer in annex.grants.values():
            assert annex.card(outer.given.device) is not None
            inner = used(annex.within(outer.lease))
            assert (inner.memory <= outer.given.memory, inner.slots <= outer.given.slots) == (True, True)
            assert outer.given.within in ("", *annex.grants)

    @invariant()
    def whatever_a_job_has_its_attempt_holds(self) -> None:
        grants = {grant.job: "g1" for grant in self.hive.annex.grants.values() if grant.job}
        assert grants == self.hive.state.gpu.of_job
        assert all(self.hive.state.jobs.by_id[job].node == "g1" for job in grants)

    @invariant()
    def the_next_one_waits_for_room_and_for_nothing_else(self) -> None:
        annex = self.hive.annex
        for waiter in annex.queue()[:1]:
            assert all(
                not fits(card.memory, card.slots, used(annex.on(card.id)), waiter.room)
                for card in annex.cards_for(waiter.room)
            )
        assert not (annex.why_disabled and annex.waiters)

    @invariant()
    def fences_grow(self) -> None:
        said = [event for written, _ in self.hive.entries for event in events.decode(written)]
        fences = [event.fence for event in said if isinstance(event, Leased)]
        assert sorted(set(fences)) == fences


TestAnnexes = pytest.mark.slow(Annexes.TestCase)
TestAnnexes.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
