"""Ledgers to replay: a story by hand that meets most refusals, and those of simulated hives."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.node import Caller
from skep.namespaces.hive import Event, HiveRules, HiveState
from skep.namespaces.order import actor_of
from skep.namespaces.packed import pack
from skep.namespaces.policy.bundle import shipped
from skep.namespaces.policy.core import first_lines
from skep.sim.queen import Made
from skep.sim.story import story_of
from skep.sim.trial import SKEP
from skep.sim.world import run
from skep.trace.clock import HOUR, SECOND, ManualClock
from skep.trace.entry import OK, Line, Outcome, canonical, entry_of
from skep.trace.rules import Meta, Refusal
from skep.trace.sqlite import SqliteLedger
from skep.validator.replay.replay import Difference, Replay
from tests.namespaces.hives import ANN, BOB, EYE, FIRST, SIGNER, W1, W2

HIVE: Final = Caller("hive", "hive", tenant="")
AMY: Final = Caller("unix:amy", "operator")


class Recorder:
    """Decides lines, one write after the other, and keeps their entries."""

    def __init__(self, rules: HiveRules | None = None, policy: Iterable[str] = ()) -> None:
        self.rules = rules or HiveRules()
        self.state = self.rules.fresh()
        self.clock = ManualClock()
        self.bodies: list[bytes] = []
        default = first_lines(self.state.policy, SIGNER.public, SIGNER.sign)
        self.write("/policy/ctl", *(tuple(policy) or default), who=HIVE)
        self.write("/pools/ctl", *FIRST)
        for node in ("w1", "w2"):
            self.write(f"/nodes/{node}", "join principal=unix:work role=drone-worker", who=HIVE)

    def write(self, path: str, *lines: str, who: Caller = ANN) -> str:
        """What the first line made, or the code of the refusal."""
        self.clock.advance(1)
        actor, seq = actor_of(who.principal, who.node), len(self.bodies) + 1
        line = Line(actor, who.role, who.tenant, path, lines, self.clock.now_ns(), self.clock.new_id())
        meta = Meta(seq, line.time_ns, line.trace)
        before, events, replies = self._before(), list[Event](), []
        for k in range(len(lines)):
            try:
                decision = self.rules.decide(self.state, line, k)
            except Refusal as refusal:
                self.state = before
                self._keep(line, Outcome(refusal.code, refusal.text, k), ())
                return refusal.code
            for event in decision.events:
                self.rules.apply(self.state, event, meta)
            events += decision.events
            replies.append(decision.reply)
        self._keep(line, OK, tuple(events))
        return replies[0]

    def _before(self) -> HiveState:
        """The state to go back to when a write is refused after some of its lines."""
        return self.rules.copy(self.state)

    def _keep(self, line: Line, outcome: Outcome, events: tuple[Event, ...]) -> None:
        if outcome.code != "NODATA":
            self.bodies.append(canonical(entry_of(line, len(self.bodies) + 1, outcome, events)))

    def submit(self, more: str = "", who: Caller = ANN) -> str:
        return self.write("/jobs/ctl", f"submit topic=sum {more}", who=who)

    def lease(self, who: Caller = W1) -> str:
        return self.write("/pools/default/next", "lease", who=who)

    def tell(self, job: str, *verbs: str, who: Caller = W1, fence: int | None = None) -> str:
        """Write a holder's verbs, with the newest fence unless another is given."""
        fence = self.state.jobs.by_id[job].fence if fence is None else fence
        lines = [f"{verb} fence={fence}" for verb in verbs]
        return self.write(f"/jobs/{job}/ctl", *lines, who=who)

    def publish(self, scope: str, document: object) -> str:
        content = msgspec.json.encode(document)
        args = {"scope": scope, "sha256": sha256(content).hexdigest(), "content": pack(content)}
        return self.write("/config/ctl", ctl.line("publish", args))


@cache
def story() -> tuple[bytes, ...]:
    """What people, workers and the hive do to a few jobs and locks in two days. Asserts each outcome."""
    hive = Recorder()
    first = hive.submit("input=a key=k")
    assert (first, "IDEMPOTENCY") == (hive.submit("input=a key=k"), hive.submit("input=b key=k"))
    assert "DENIED" == hive.submit("input=a", EYE)
    assert "DENIED" == hive.write("/pools/ctl", "create pool=mine", who=BOB)
    assert "DENIED" == hive.write(f"/jobs/{first}", "overdue")
    assert "MISSING" == hive.write("/jobs/ctl", f"cancel job={first}", who=BOB)
    urgent = hive.submit("priority=9")
    assert [urgent, first] == [hive.lease(), hive.lease()]
    assert "FENCED" == hive.tell(first, "start", fence=7)
    assert "MISSING" == hive.tell(first, "start", who=W2)
    assert first == hive.tell(first, "start", "ack result=1")
    assert "ILLEGAL_MOVE" == hive.write("/jobs/ctl", f"cancel job={first}")
    assert urgent == hive.tell(urgent, "start", "renew")
    assert "CONFLICT" == hive.write(f"/jobs/{urgent}", "expire fence=1", who=HIVE)
    hive.clock.advance(HOUR)
    assert urgent == hive.write(f"/jobs/{urgent}", "expire fence=1", who=HIVE)
    assert urgent == hive.lease(W2)
    assert "FENCED" == hive.tell(urgent, "ack result=2", who=W1, fence=1)
    # A write of several lines that is taken back.
    assert "FENCED" == hive.write(f"/jobs/{urgent}/ctl", "start fence=3", "ack fence=1", who=W2)
    assert urgent == hive.tell(urgent, "nack error=no", who=W2)
    retried = hive.submit("retries=1")
    assert retried == hive.lease()
    assert retried == hive.tell(retried, "nack error=no")
    hive.clock.advance(HOUR)
    assert retried == hive.write(f"/jobs/{retried}", "wake", who=HIVE)
    hive.write("/dlq/ctl", f"retry id={urgent}")
    hive.publish("system", {"limits": {"waiting": 3}})
    assert "QUOTA" in [hive.submit(), hive.submit(), hive.submit()]
    hive.write("/pools/ctl", "create pool=slim queue=1", "map topic=slim pool=slim")
    hive.write("/jobs/ctl", "submit topic=slim", who=BOB)
    assert "OVERLOAD" == hive.write("/jobs/ctl", "submit topic=slim", who=BOB)
    fence = hive.write("/locks/ctl", "acquire name=door mode=x ttl=30s")
    assert "BUSY" == hive.write("/locks/ctl", "acquire name=door mode=x ttl=30s", who=AMY)
    assert "FENCED" == hive.write("/locks/ctl", f"release name=door fence={int(fence) + 1}")
    hive.clock.advance(48 * HOUR)
    hive.publish("system", {"limits": {}})
    # The key is free again.
    assert first != hive.submit("input=b key=k")
    late = hive.submit("deadline=5s")
    assert "CONFLICT" == hive.write(f"/jobs/{late}", "overdue", who=HIVE)
    hive.clock.advance(6 * SECOND)
    assert late == hive.write(f"/jobs/{late}", "overdue", who=HIVE)
    assert "ok" == hive.write("/ctl", "drain")
    return tuple(hive.bodies)


def fired_again(rules: HiveRules) -> list[bytes]:
    """What a hive of these rules writes down when it says that a trigger fires, and after a restart says so
    again. The entry that it fires for has an odd number."""
    hive, runs = Recorder(rules), msgspec.structs.replace(HIVE, tenant=ANN.tenant)
    hive.write("/triggers/ctl", "create trigger=next on=job.ended topic=sum input=event")
    while len(hive.bodies) % 2 == 0:
        hive.submit()
    said = f"fire seq={len(hive.bodies) + 2} k=0 depth=0 event='{{}}'"
    hive.submit()
    hive.submit()
    for _ in range(2):
        hive.write("/triggers/next", said, who=runs)
    return hive.bodies


@cache
def simulated(seed: str, steps: int, made: Made = SKEP) -> tuple[bytes, ...]:
    """The ledger of a simulated hive."""
    return tuple(run(story_of(seed, steps), made).bodies)


def replayed(bodies: Iterable[bytes], rules: HiveRules | None = None) -> list[Difference]:
    """Every difference, deciding that changes the state among them."""
    replay, found = Replay(rules), []
    for seq, body in enumerate(bodies, 1):
        difference = replay.judge(replay.decode(seq, body), body)
        found += [difference] if difference is not None else []
    touched = replay.touched(replay.digest())
    return found if touched is None else [*found, touched]


def ledger(path: Path, bodies: Iterable[bytes]) -> Path:
    """A ledger in a file, with these entries."""
    opened = SqliteLedger(str(path))
    opened.begin()
    list(opened.tail())
    opened.append(list(bodies))
    opened.commit()
    opened.close()
    return path


def tampered(n: int, old: str, new: str) -> list[bytes]:
    """The story, with something else in its n-th entry."""
    found = list(story())
    assert old.encode() in found[n - 1]
    found[n - 1] = found[n - 1].replace(old.encode(), new.encode())
    return found


def entry_with(text: str) -> int:
    """The number of the first entry of the story that has the text."""
    return next(n for n, body in enumerate(story(), 1) if text.encode() in body)


def forged() -> list[bytes]:
    """The story, whose first lease has a fence that no hive gave."""
    return tampered(entry_with('"type":"job.leased"'), '"fence":1', '"fence":5')


def bundle(directory: Path, name: str, policies: str) -> Path:
    """A bundle's directory, with the schema of this release."""
    folder = directory / name
    folder.mkdir()
    (folder / "skep.cedarschema").write_text(shipped().files["skep.cedarschema"])
    (folder / "mine.cedar").write_text(policies)
    (folder / "tests.json").write_text("[]")
    return folder
