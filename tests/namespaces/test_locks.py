"""Locks as a fold: exclusion, fences, the queue, and what time and sessions end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import pytest
from hives import ANN, BOB, EYE, W1, W2, Folded
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs.node import Caller
from skep.namespaces.hive import Event, HiveRules
from skep.namespaces.locks import core
from skep.namespaces.locks.core import WAITING, Granted, Locks
from skep.namespaces.order import HIVE_TENANT
from skep.trace.clock import HOUR, SECOND
from skep.trace.entry import Line, canonical, events_decoder
from skep.trace.rules import Meta, Refusal

CTL = "/locks/ctl"


@pytest.fixture
def hive() -> Folded:
    return Folded()


def acquire(hive: Folded, mode: str = "x", more: str = "", who: Caller = ANN, name: str = "db") -> str:
    return hive.write(CTL, f"acquire name={name} mode={mode} ttl=30s {more}", who)


def release(hive: Folded, fence: str, who: Caller = ANN) -> str:
    return hive.write(CTL, f"release name=db fence={fence}", who)


def expire(hive: Folded) -> None:
    hive._write("hive", "hive", HIVE_TENANT, "/locks/db", "expire")


def refused(hive: Folded, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(CTL, line, who)
    return caught.value.text


def fences(hive: Folded) -> list[int]:
    lock = hive.state.locks.find(HIVE_TENANT, "db")
    assert lock is not None
    return [holder.fence for holder in lock.holders]


def test_an_exclusive_lock_has_one_holder(hive: Folded) -> None:
    assert "1" == acquire(hive)
    until = "2023-11-14T22:13:50.000000000Z"
    for mode in ("x", "s"):
        said = refused(hive, f"acquire name=db mode={mode} ttl=30s", W1)
        assert f"exclusive lock: holder=unix:ann until={until}" == said
    release(hive, "1")
    assert "2" == acquire(hive, who=W1)


def test_shared_ones_hold_together_and_keep_an_exclusive_one_out(hive: Folded) -> None:
    assert ["1", "2"] == [acquire(hive, "s"), acquire(hive, "s", who=W1)]
    assert "exclusive lock: holder=unix:ann" in refused(hive, "acquire name=db mode=x ttl=9s")
    assert [1, 2] == fences(hive)


def test_a_shared_one_does_not_overtake_an_exclusive_one_that_waits(hive: Folded) -> None:
    acquire(hive, "s")
    assert WAITING == acquire(hive, "x", "wait=10s", W1)
    assert refused(hive, "acquire name=db mode=s ttl=9s", W2).startswith("exclusive lock: ")
    assert WAITING == acquire(hive, "s", "wait=20s", W2)
    release(hive, "1")
    assert [2] == fences(hive)
    release(hive, "2", W1)
    assert [3] == fences(hive)


def test_shared_ones_at_the_head_are_granted_together_up_to_the_exclusive_one_behind(hive: Folded) -> None:
    acquire(hive)
    for mode in "ssxs":
        assert WAITING == acquire(hive, mode, "wait=20s", W1)
    release(hive, "1")
    assert [2, 3] == fences(hive)
    release(hive, "2", W1)
    assert [3] == fences(hive)
    release(hive, "3", W1)
    assert [4] == fences(hive)


def test_time_ends_a_grant_and_the_next_one_counts_from_its_own_grant(hive: Folded) -> None:
    acquire(hive)
    acquire(hive, "x", "wait=1h", W1)
    hive.clock.advance(30 * SECOND - 1)
    expire(hive)
    assert [1] == fences(hive)
    hive.clock.advance(1)
    expire(hive)
    (holder,) = hive.state.locks.by_tenant[HIVE_TENANT]["db"].holders
    assert (2, hive.clock.now_ns() + 30 * SECOND) == (holder.fence, holder.until_ns)


def test_what_is_over_does_not_stand_in_the_way_before_the_timer_has_said_so(hive: Folded) -> None:
    acquire(hive)
    hive.clock.advance(30 * SECOND)
    assert "fenced: token=1 newest=1" == refused(hive, "renew name=db fence=1")
    assert "2" == acquire(hive, who=W1)
    assert "fenced: token=1 newest=2" == refused(hive, "release name=db fence=1")


def test_who_has_waited_enough_is_granted_nothing(hive: Folded) -> None:
    acquire(hive)
    acquire(hive, "x", "wait=5s", W1)
    acquire(hive, "x", "wait=10s", W2)
    hive.clock.advance(5 * SECOND)
    release(hive, "1")
    (holder,) = hive.state.locks.by_tenant[HIVE_TENANT]["db"].holders
    assert "unix:work#w2" == holder.asked.actor


def test_a_renewal_moves_the_end(hive: Folded) -> None:
    acquire(hive)
    hive.clock.advance(29 * SECOND)
    assert "1" == hive.write(CTL, "renew name=db fence=1")
    hive.clock.advance(29 * SECOND)
    hive.write(CTL, "renew name=db fence=1 ttl=1h")
    hive.clock.advance(HOUR - 1)
    assert "" == hive.state.locks.why_fenced(HIVE_TENANT, "db", 1, hive.clock.now_ns())
    hive.clock.advance(1)
    assert "token=1 newest=1" == hive.state.locks.why_fenced(HIVE_TENANT, "db", 1, hive.clock.now_ns())


def test_only_who_holds_it_renews_and_releases(hive: Folded) -> None:
    acquire(hive, who=W1)
    for verb in ("renew", "release"):
        for who in (ANN, W2):
            said = refused(hive, f"{verb} name=db fence=1", who)
            assert "permission denied: rule=lock-holder" == said
    assert "rule=default-deny role observer" in refused(hive, "acquire name=a mode=x ttl=9s", EYE)


def test_tenants_do_not_meet(hive: Folded) -> None:
    acquire(hive)
    assert "1" == acquire(hive, who=BOB)
    release(hive, "1", BOB)
    assert [1] == fences(hive)
    assert "2" == acquire(hive, who=BOB, name="other")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("acquire name=db mode=y ttl=9s", "usage: line 1: acquire: mode=y: expected one of x s"),
        ("acquire name=db mode=x ttl=9ms", "usage: acquire: ttl=9ms: expected 1s to 24h"),
        ("acquire name=db mode=x ttl=25h", "usage: acquire: ttl=25h: expected 1s to 24h"),
        ("acquire name=db mode=x ttl=9s wait=2h", "usage: acquire: wait=2h: expected 0s to 1h"),
        ("acquire name=ctl mode=x ttl=9s", "file exists: name=ctl"),
        ("acquire name=db mode=x ttl=9s if-rev=3", "conflict: rev have=0 want=3"),
        ("release name=db fence=1", "fenced: token=1 newest=0"),
    ],
)
def test_what_cannot_be_is_refused(hive: Folded, line: str, said: str) -> None:
    assert said == refused(hive, line)


def test_a_withdrawn_waiter_leaves_the_queue_and_lets_others_go_on(hive: Folded) -> None:
    acquire(hive, "s")
    acquire(hive, "x", "wait=9s", W1)
    acquire(hive, "s", "wait=9s", W2)
    (waiter, _) = hive.state.locks.by_tenant[HIVE_TENANT]["db"].waiters
    withdraw = f"withdraw waiter={waiter.asked.waiter}"
    hive._write("hive", "hive", HIVE_TENANT, "/locks/db", withdraw)
    assert [1, 2] == fences(hive)


def test_a_waiter_withdrawn_as_it_was_granted_holds_nothing(hive: Folded) -> None:
    acquire(hive)
    acquire(hive, "x", "wait=9s", W1)
    (waiter,) = hive.state.locks.by_tenant[HIVE_TENANT]["db"].waiters
    release(hive, "1")
    hive._write("hive", "hive", HIVE_TENANT, "/locks/db", f"withdraw waiter={waiter.asked.waiter}")
    assert [] == fences(hive)


def test_a_session_takes_its_locks_with_it_and_no_others(hive: Folded) -> None:
    acquire(hive, "s", "session=one")
    acquire(hive, "s")
    acquire(hive, "s", "session=two")
    hive._write("hive", "hive", HIVE_TENANT, "/locks/db", "end session=one")
    assert [2, 3] == fences(hive)
    acquire(hive, "x", "wait=9s", W1)
    hive._write("hive", "hive", HIVE_TENANT, "/locks/db", "restart")
    lock = hive.state.locks.by_tenant[HIVE_TENANT]["db"]
    assert ([2], ()) == (fences(hive), lock.waiters)


def test_only_the_hive_ends_what_others_hold(hive: Folded) -> None:
    acquire(hive)
    for line in ("expire", "withdraw waiter=a", "end session=a", "restart"):
        with pytest.raises(Refusal, match="rule=own-verbs"):
            hive.write("/locks/db", line)


# bounds


@pytest.mark.slow
def test_the_lock_free_for_longest_is_forgotten_and_its_fence_is_not(hive: Folded) -> None:
    acquire(hive)
    release(hive, "1")
    for n in range(core.LOCKS_MAX):
        acquire(hive, name=f"held-{n}")
    locks = hive.state.locks
    assert (core.LOCKS_MAX, None) == (len(locks.by_tenant[HIVE_TENANT]), locks.find(HIVE_TENANT, "db"))
    said = refused(hive, "acquire name=db mode=x ttl=30s")
    assert f"quota exceeded: locks have={core.LOCKS_MAX} max={core.LOCKS_MAX}" == said
    hive.write(CTL, "release name=held-7 fence=9")
    newest = core.LOCKS_MAX + 2
    assert f"fenced: token=1 newest={newest - 1}" == refused(hive, "release name=db fence=1")
    assert str(newest) == acquire(hive)


def test_a_queue_has_an_end_and_all_that_wait_are_granted_in_one_entry(hive: Folded) -> None:
    long = Caller("spiffe://hive/operator/" + "x" * 200, "operator")
    acquire(hive)
    for _ in range(core.WAITERS_MAX):
        acquire(hive, "s", "wait=9s", long)
    said = refused(hive, "acquire name=db mode=s ttl=30s wait=9s")
    assert f"quota exceeded: waiters have={core.WAITERS_MAX} max={core.WAITERS_MAX}" == said
    release(hive, "1")
    assert list(range(2, core.WAITERS_MAX + 2)) == fences(hive)
    assert refused(hive, "acquire name=db mode=s ttl=30s").startswith("exclusive lock: ")


def test_everything_that_can_end_at_once_fits_into_one_entry() -> None:
    wide = 10**17
    grants = tuple(range(wide, wide + core.HOLDERS_MAX))
    waiters = tuple(f"{'0' * 26}-{1000 + n}" for n in range(core.WAITERS_MAX))
    tenant, name = "t" * 200, "\\" * 128
    events = (
        core.Released(tenant, name, grants, "withdrawn"),
        core.Withdrawn(tenant, name, waiters, "withdrawn"),
        Granted(tenant, name, waiters, grants),
    )
    assert len(canonical(events)) < 40_000


# properties

PEOPLE = (ANN, W1, W2)


class Step(NamedTuple):
    """``who`` is an index of PEOPLE, ``n`` chooses among fences, sessions and spans of time."""

    verb: str
    who: int
    n: int


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ["x", "s", "x wait=5s", "s wait=5s", "s wait=40s", "x wait=40s", "x wait=9s session=one",
             "s session=two", "release", "renew", "tick", "advance", "withdraw", "end", "restart"]
        ),
        st.integers(0, 2),
        st.integers(0, 7),
    ),
    max_size=60,
)  # fmt: skip


class Run:
    """Steps done one after the other, and what every one of them must leave true."""

    def __init__(self) -> None:
        self.rules = HiveRules()
        self.locks = Locks()
        self.hive = _FOLDED
        self.now_ns = self.hive.clock.now_ns()
        self.seq = 0
        self.events: list[tuple[Meta, bytes]] = []
        self.granted: list[int] = []
        self.queue: list[str] = []  # who was queued and has not been granted or withdrawn, as events tell

    def say(self, who: Caller | None, line: str) -> None:
        self.seq += 1
        actor = "hive" if who is None else who.principal + (f"#{who.node}" if who.node else "")
        role, path = ("hive", "/locks/db") if who is None else (who.role, CTL)
        written = Line(actor, role, HIVE_TENANT, path, (line,), self.now_ns, f"id{self.seq}")
        state = with_locks(self.hive, self.locks)
        try:
            decision = self.rules.decide(state, written, 0)
        except Refusal:
            return
        meta = Meta(self.seq, self.now_ns, written.trace)
        for event in decision.events:
            self.events.append((meta, canonical((event,))))
            self.rules.apply(state, event, meta)
            self._follow(event)
        self._check()

    def _follow(self, event: Any) -> None:
        match event:
            case core.Queued():
                self.queue.append(event.waiter)
            case Granted():
                # Nobody overtakes: they are the head.
                assert list(event.waiters) == self.queue[: len(event.waiters)]
                del self.queue[: len(event.waiters)]
                for fence in event.fences:
                    assert fence > max(self.granted, default=0)
                    self.granted.append(fence)
            case core.Withdrawn():
                self.queue = [each for each in self.queue if each not in event.waiters]

    def _check(self) -> None:
        lock = self.locks.find(HIVE_TENANT, "db")
        if lock is None:
            return
        modes = [holder.asked.mode for holder in lock.holders]
        assert modes == ["x"] or "x" not in modes
        # Whoever could go on has gone on.
        assert not lock.heads
        assert (HIVE_TENANT, "db") in self.locks.busy or not (lock.holders or lock.waiters)

    def do(self, step: Step) -> None:
        who = PEOPLE[step.who]
        lock = self.locks.find(HIVE_TENANT, "db")
        match step.verb:
            case "release" | "renew":
                fence = self.granted[-1 - step.n] if step.n < len(self.granted) else 1
                self.say(who, f"{step.verb} name=db fence={fence}")
            case "advance":
                self.now_ns += step.n * 5 * SECOND
            case "tick":
                self.say(None, "expire")
            case "withdraw":
                if lock is not None and lock.waiters:
                    waiter = lock.waiters[step.n % len(lock.waiters)]
                    self.say(None, f"withdraw waiter={waiter.asked.waiter}")
            case "end":
                self.say(None, f"end session={('one', 'two')[step.n % 2]}")
            case "restart":
                self.say(None, "restart")
            case _:
                mode, _, more = step.verb.partition(" ")
                self.say(who, f"acquire name=db mode={mode} ttl=30s {more}")


_FOLDED = Folded()


def with_locks(hive: Folded, locks: Locks) -> Any:
    """The hive's state with these locks: what is not theirs stays as it is."""
    hive.state.locks = locks
    return hive.state


def folded(events: Sequence[tuple[Meta, bytes]]) -> Locks:
    """What is read back from the bytes."""
    decoder: msgspec.json.Decoder[tuple[core.Event, ...]] = events_decoder(Event)
    locks = Locks()
    for meta, raw in events:
        for event in decoder.decode(raw):
            core.apply(locks, event, meta)
    return locks


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(steps)
def test_exclusion_order_and_fences_hold_under_any_interleaving(plan: list[Step]) -> None:
    run = Run()
    for step in plan:
        run.do(step)
    assert run.locks == folded(run.events)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from("xs"), min_size=1, max_size=12), st.integers(0, 11))
def test_whoever_waits_is_granted_after_those_before_it_and_no_others(modes: list[str], place: int) -> None:
    """The bound of fairness: as many grants come before one's own as were in the queue before one, whoever
    comes later."""
    run = Run()
    run.say(ANN, "acquire name=db mode=x ttl=24h")
    place %= len(modes)
    for mode in modes:
        run.say(W1, f"acquire name=db mode={mode} ttl=24h wait=1h")
    mine = f"id{place + 2}"
    for n in range(len(modes) + 1):
        lock = run.locks.by_tenant[HIVE_TENANT]["db"]
        if lock.granted_to(mine) is not None:
            break
        # Somebody comes late each time one goes.
        run.say(W2, f"acquire name=db mode={'sx'[n % 2]} ttl=24h wait=1h")
        holder = lock.holders[0]
        who = ANN if holder.asked.actor == "unix:ann" else W1
        run.say(who, f"release name=db fence={holder.fence}")
    held = run.locks.by_tenant[HIVE_TENANT]["db"].granted_to(mine)
    assert held is not None
    assert place + 2 == held.fence
