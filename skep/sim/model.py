"""The ledger folded by hand: what its events may not say, one after the other.

A second opinion on what jobs.record, queues, usage and quotas keep, written from the promises and not from
their code: legal moves, fences, keys, limits, and whose turn it was.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, NamedTuple

from skep.sim.cards import Cards
from skep.sim.history import Said
from skep.sim.queen import AGEING_NS, CAPACITIES, NEEDS, QUEUES, SPARES
from skep.sim.story import Action, document
from skep.trace.clock import SECOND

HELD: Final = ("leased", "running")
WAITS: Final = ("queued", "delayed")
WORDS: Final = ("start", "renew", "ack", "nack", "release", "fallback")  # of a holder
REASONS: Final = ("annex_lost", "no_device", "oom", "kernel_failed", "lease_expired", "disabled", "full")
PRIORITY: Final = 5  # of a request that says none


class Row(NamedTuple):
    """What an event needs: ``to`` "" when the state stays, or the event says it."""

    froms: tuple[str, ...]
    to: str
    rises: bool  # whether the fence does


MOVES: Final[Mapping[str, Row]] = {
    "leased": Row(("queued",), "leased", True),
    "started": Row(("leased",), "running", False),
    "renewed": Row(HELD, "", False),
    "returned": Row(HELD, "queued", True),
    "delayed": Row(HELD, "delayed", False),
    "woken": Row(("delayed",), "queued", False),
    "fellback": Row(("queued", *HELD), "queued", False),
    "ended": Row((*WAITS, *HELD), "", False),
}


@dataclass
class Job:
    """What the ledger says of one job."""

    id: str
    request: dict[str, Any]
    queued_ns: int
    state: str = "queued"
    fence: int = 0
    leases: int = 0
    text: str = ""
    node: str = ""  # who holds it
    preempted: bool = False
    pool: str = ""
    requires: frozenset[str] = frozenset()
    fell: list[str] = field(default_factory=list)  # why it fell back

    @property
    def tenant(self) -> str:
        return str(self.request["tenant"])

    @property
    def priority(self) -> int:
        return int(self.request.get("priority", PRIORITY))

    @property
    def rank(self) -> int:
        """Who has the least of its tenant's goes first."""
        return self.queued_ns - self.priority * AGEING_NS


class Keyed(NamedTuple):
    """What stands under a key: the job, the request as it was written, and until when."""

    job: str
    line: str
    until_ns: int


@dataclass
class Trigger:
    """A trigger on jobs' ends, or of times. ``due``: the entry and event of each end that it waits for."""

    made: dict[str, Any]
    due: list[tuple[int, int]] = field(default_factory=list)
    fired: list[tuple[int, int]] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)


class Node(NamedTuple):
    """What a node offers."""

    words: frozenset[str]
    capacity: int  # 0: it does not say

    @property
    def without_devices(self) -> Node:
        """What it offers while it is disabled."""
        return self._replace(words=frozenset(word for word in self.words if not is_device(word)))


@dataclass
class Model:
    """The fold. ``wrong`` has a line for each thing that was not to be."""

    said: Mapping[int, Said]  # by the entry that they were told
    documents: Mapping[str, dict[str, int]]  # limits of a tenant, by the hash of the document that sets them
    jobs: dict[str, Job] = field(default_factory=dict)
    keys: dict[tuple[str, str], Keyed] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    limits: defaultdict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))
    served: dict[tuple[str, str], int] = field(
        default_factory=dict
    )  # pool, tenant -> entry of its last lease
    submits: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))  # times
    triggers: dict[tuple[str, str], Trigger] = field(default_factory=dict)  # by tenant and name
    moving: dict[str, Job] = field(default_factory=dict)  # jobs that have not ended
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cards = Cards(self._broken)
        self._entry: dict[str, Any] = {}

    def entry(self, entry: dict[str, Any]) -> None:
        """The next entry."""
        if self._entry and entry["time"] < self._entry["time"]:
            self.submits.clear()  # no rate is told by a clock that goes back
        self._entry = entry
        if entry["outcome"]["code"] != "ok":
            if entry["events"]:
                self._broken("it was refused, and has events")
            return
        self._check_fence()
        for k, event in enumerate(entry["events"]):
            self._occasion(k, event)
            self.cards.take(event, entry["time"])
            noun, _, kind = event["type"].partition(".")
            if noun == "job" and kind in ("submitted", *MOVES):
                (self._submitted if kind == "submitted" else self._moved)(kind, event)
            elif event["type"] == "node.offered":
                labels = event.get("labels", {})
                words = {*labels, *(f"{name}:{value}" for name, value in labels.items())}
                self.nodes[event["node"]] = Node(frozenset(words), event.get("capacity", 0))
            elif event["type"] == "config.published" and event["sha256"] in self.documents:
                self.limits[event["scope"]] = self.documents[event["sha256"]]
                self.submits[event["scope"]].clear()
        self.cards.settle(entry["time"])
        said = self.said.get(entry["seq"])
        if said is not None and said.verb == "lease" and said.line and said.fence:
            self._check_told(said)
        if said is not None and said.verb == "submit" and (key := said.more["args"].get("key")):
            self._check_key(said, self.keys.get((said.tenant, key)))

    def _broken(self, why: str) -> None:
        entry = self._entry
        self.wrong.append(f"entry {entry['seq']} ({entry['path']} {entry['line'][:80]!r}): {why}")

    def _check_told(self, said: Said) -> None:
        """What was told of a lease is what was given."""
        annex = self.cards.by_annex[said.more["annex"]]
        grant = annex.grants.get(said.reply, {})
        if (grant.get("fence"), grant.get("device")) != (said.fence, said.more["device"]):
            self._broken(f"{said.reply} {said.fence} {said.more['device']} was told, it is {grant}")

    # triggers

    def _occasion(self, k: int, event: dict[str, Any]) -> None:
        match event["type"]:
            case "trigger.created":
                self.triggers[event["tenant"], event["trigger"]] = Trigger(event)
            case "trigger.fired":
                self._fired(self.triggers[event["tenant"], event["trigger"]], event)
            case "job.ended" if (job := self.moving.get(event["job"])) is not None:
                for trigger in self.triggers.values():
                    made, where = trigger.made, trigger.made.get("where", {})
                    of = {"state": event["state"], "topic": job.request["topic"]}
                    if made.get("on") and made["tenant"] == job.tenant and where.items() <= of.items():
                        trigger.due.append((self._entry["seq"], k))

    def _fired(self, trigger: Trigger, event: dict[str, Any]) -> None:
        """Once for each event, and each tick, in their order."""
        if event["why"] == "event":
            place = event["seq"], event.get("k", 0)
            if trigger.due[len(trigger.fired) : len(trigger.fired) + 1] != [place]:
                self._broken(f"it fires for {place}, not for the next of {trigger.due[len(trigger.fired) :]}")
            trigger.fired.append(place)
        else:
            if trigger.ticks and event["at_ns"] <= trigger.ticks[-1]:
                self._broken(f"it fires for {event['at_ns']} after {trigger.ticks[-1]}")
            trigger.ticks.append(event["at_ns"])

    def end(self) -> None:
        """No more entries come."""
        for (tenant, name), trigger in self.triggers.items():
            if trigger.fired != trigger.due:
                self.wrong.append(f"trigger {name} of {tenant}: fired for {trigger.fired}, due {trigger.due}")

    # words and keys

    def _check_fence(self) -> None:
        """A holder's word that counted was the newest holder's."""
        names, words = self._entry["path"].split("/"), self._entry["line"].split()
        if names[1:2] != ["jobs"] or names[3:] != ["ctl"] or words[0] not in WORDS:
            return
        job = self.jobs.get(names[2])
        if job is None:
            self._broken("there is no such job")
            return
        told = next(int(word[6:]) for word in words if word.startswith("fence="))
        if told != job.fence:
            self._broken(f"{words[0]} by fence {told}, the newest is {job.fence}")

    def _check_key(self, said: Said, keyed: Keyed | None) -> None:
        if keyed is None or said.reply != keyed.job:
            self._broken(f"{said.line}: was told {said.reply}, its key says {keyed}")
        elif _request(said.line) != _request(keyed.line):
            self._broken(f"{said.line} is taken for {keyed.line}")

    # jobs

    def _submitted(self, kind: str, event: dict[str, Any]) -> None:
        id, now_ns = event["job"], self._entry["time"]
        if id in self.jobs:
            self._broken(f"job {id} is submitted again")
        job = Job(id, event, now_ns, pool=event["pool"], requires=frozenset(event.get("requires", ())))
        self._check_room(job)
        self.jobs[id] = self.moving[id] = job
        self._check_rate(job.tenant)
        if key := event.get("key", ""):
            self._take_key((job.tenant, key), event)

    def _take_key(self, place: tuple[str, str], event: dict[str, Any]) -> None:
        before, now_ns = self.keys.get(place), self._entry["time"]
        retry = event.get("retry_of")
        if before is not None and not retry and now_ns < before.until_ns:
            self._broken(f"key {place} has {before.job} already")
        line = before.line if retry and before is not None else self._entry["line"]
        self.keys[place] = Keyed(event["job"], line, now_ns + event.get("key_ns", 0))

    def _moved(self, kind: str, event: dict[str, Any]) -> None:
        job, row = self.moving.get(event["job"]), MOVES[kind]
        if job is None:
            self._broken(f"{kind} of a job that was not submitted, or has ended")
            return
        if kind == "fellback":
            self._check_fallback(job, event)
            if event.get("in_place"):
                job.fell.append(event["reason"])
                return
        to = event["state"] if kind == "ended" else row.to or job.state
        if job.state not in row.froms or (to == "succeeded" and job.state != "running"):
            self._broken(f"job {job.id} is {job.state}, and {kind}")
        self._check_rise(kind, to, job, event)
        if kind == "leased":
            self._leased(job, event)
        if kind == "returned" and event["why"] == "preempted":
            self._check_preempted(job)
        if kind == "started":
            self._started(job, event)
        if kind == "fellback":
            job.fell.append(event["reason"])
            job.pool, job.requires = event["pool"], frozenset(event.get("requires", ()))
        if kind in ("woken", "fellback"):
            job.queued_ns = self._entry["time"]
        job.state, job.fence, job.text = to, event.get("fence", job.fence), event.get("text", job.text)
        if to not in HELD:
            job.node = ""
            self.cards.left(job.id)
        if kind == "ended":
            self._check_alert(job, event)
            del self.moving[job.id]

    def _check_rise(self, kind: str, to: str, job: Job, event: dict[str, Any]) -> None:
        """A lease that did not end by its holder's word ends with a new fence."""
        fence = event.get("fence", job.fence)
        end = event.get("end", event.get("why", ""))
        taken = (
            job.state in HELD
            and kind in ("ended", "delayed")
            and (to == "cancelled" or end not in ("", "nacked"))
        )
        taken |= (
            kind == "fellback" and job.state in HELD and not self._entry["path"].endswith(f"{job.id}/ctl")
        )
        if fence < job.fence or ((MOVES[kind].rises or taken) and fence == job.fence):
            self._broken(f"job {job.id} {kind}: fence {fence} after {job.fence}")

    def _check_preempted(self, job: Job) -> None:
        other = self.moving.get(self._entry["line"].partition("for=")[2].split(" ")[0])
        if other is None or (other.tenant, other.pool) != (job.tenant, job.pool):
            self._broken(f"job {job.id} loses its place to one of another tenant or pool")
        elif other.priority <= job.priority or job.preempted:
            self._broken(f"job {job.id} loses its place to {other.id}, that may not take it")
        job.preempted = True

    # devices

    def _started(self, job: Job, event: dict[str, Any]) -> None:
        device = event.get("device", "")
        self.cards.runs[job.id] = job.node, device
        wants = NEEDS.get(job.request["pool"])
        if wants == "gpu" and not device.startswith("cuda") and not job.fell:
            self._broken(f"job {job.id} runs on {device!r}, and did not fall back")

    def _check_fallback(self, job: Job, event: dict[str, Any]) -> None:
        if event["reason"] not in REASONS:
            self._broken(f"job {job.id} falls back for {event['reason']!r}")
        if job.request.get("fallback") != "allow":
            self._broken(f"job {job.id} falls back, and was not to")
        if event.get("in_place"):
            if job.state not in HELD or job.fell:
                self._broken(f"job {job.id} falls back in place, it is {job.state} and fell back: {job.fell}")
        elif SPARES.get(event["pool"]) != job.pool or event["from_pool"] != job.pool:
            self._broken(f"job {job.id} falls back from {job.pool} to {event['pool']}")
        elif any(map(is_device, event.get("requires", ()))):
            self._broken(f"job {job.id} requires {event['requires']} on a CPU")

    def _check_alert(self, job: Job, event: dict[str, Any]) -> None:
        alerts = [each for each in self._entry["events"] if each["type"] == "alert.raised"]
        if event.get("code") not in REASONS:
            return
        if [job.id] != [each["id"] for each in alerts if each["id"] == job.id]:
            self._broken(f"job {job.id} has failed, {event['code']}, and no alert says so")
        if job.request.get("fallback") == "allow" and job.pool in NEEDS:
            self._broken(f"job {job.id} has failed, {event['code']}, and could have fallen back")

    # limits

    def _count(self, tenant: str, states: Sequence[str]) -> int:
        return sum(job.tenant == tenant and job.state in states for job in self.moving.values())

    def _check_room(self, job: Job) -> None:
        in_pool = sum(other.pool == job.pool and other.state == "queued" for other in self.moving.values())
        if job.pool in QUEUES and in_pool >= QUEUES[job.pool]:
            self._broken(f"{in_pool} wait in {job.pool} already")
        waiting = self._count(job.tenant, WAITS)
        for name in ("limits/waiting", "limits/actor-waiting"):
            if waiting >= self.limits[job.tenant].get(name, waiting + 1):
                self._broken(f"{waiting} of {job.tenant} wait already, {name} is {self.limits[job.tenant]}")

    def _check_rate(self, tenant: str) -> None:
        """In any t seconds no more than ``most`` (1 + t) come, while no clock goes back."""
        times = self.submits[tenant]
        times.append(self._entry["time"])
        for name in ("limits/submits", "limits/actor-submits"):
            most = self.limits[tenant].get(name)
            for n, since_ns in enumerate(reversed(times), 1):
                if most is not None and n > most * (1 + (times[-1] - since_ns) / SECOND) + 1e-6:
                    self._broken(f"{n} submits of {tenant} in {times[-1] - since_ns} ns, {name} is {most}")

    # leases

    def _leased(self, job: Job, event: dict[str, Any]) -> None:
        node = self._node(event["node"])
        if event["node"].startswith("a") and job.pool not in (*NEEDS, *SPARES):
            self._broken(f"{event['node']} is an annex, and has job {job.id} of {job.pool}")
        holds = sum(other.node == event["node"] for other in self.moving.values())
        if node.capacity and holds >= node.capacity:
            self._broken(f"{event['node']} holds {holds} of {node.capacity} leases already")
        in_pool = sum(other.pool == job.pool and other.state in HELD for other in self.moving.values())
        if in_pool >= CAPACITIES.get(job.pool, in_pool + 1):
            self._broken(f"{in_pool} leases of {job.pool} are held already")
        held = Counter(other.tenant for other in self.moving.values() if other.state in HELD)
        if not self._may(job, node, held):
            self._broken(f"{event['node']} may not have job {job.id}: {job.request}")
        self._check_turn(job, node, held)
        job.node, job.leases = event["node"], job.leases + 1
        self.served[job.pool, job.tenant] = self._entry["seq"]

    def _node(self, name: str) -> Node:
        """What the node offers now."""
        node, annex = self.nodes.get(name, Node(frozenset(), 0)), self.cards.by_annex.get(name)
        return node if annex is None or not annex.off else node.without_devices

    def _may(self, job: Job, node: Node, held: Counter[str]) -> bool:
        """Whether the node has what the job requires, and the tenant's limits let it be held."""
        has, limits = held[job.tenant], self.limits[job.tenant]
        needs = job.requires | ({NEEDS[job.pool]} if job.pool in NEEDS else set())
        return node.words >= needs and has < min(
            limits.get("limits/jobs", has + 1), limits.get("limits/actor-jobs", has + 1)
        )

    def _check_turn(self, job: Job, node: Node, held: Counter[str]) -> None:
        """It was the turn of the job's tenant in its pool, and of the job in its tenant."""
        waiting = [
            other
            for other in self.moving.values()
            if other.state == "queued" and other.pool == job.pool and self._may(other, node, held)
        ]
        first = min((other.rank for other in waiting if other.tenant == job.tenant), default=job.rank)
        if first < job.rank:
            self._broken(f"job {job.id} is leased, though another is {job.rank - first} ns before it")
        turns = {of: self._turn(job.pool, of) for of in {other.tenant for other in (*waiting, job)}}
        if min(turns.values()) < turns[job.tenant]:
            self._broken(f"{job.tenant} is served, in this order it would be: {sorted(turns.items())}")

    def _turn(self, pool: str, tenant: str) -> tuple[int, int]:
        """Who has the least is served next: leases held in the pool, when it was served last."""
        mine = [job for job in self.moving.values() if (job.pool, job.tenant) == (pool, tenant)]
        return sum(job.state in HELD for job in mine), self.served.get((pool, tenant), 0)


def is_device(word: str) -> bool:
    return word.partition(":")[0] in ("annex", "gpu")


def _request(line: str) -> list[str]:
    return sorted(word for word in line.split() if not word.startswith("key="))


def folded(bodies: Iterable[bytes], said: Iterable[Said], actions: Sequence[Action]) -> Model:
    """The model after all entries; what people were told is held against it as it goes."""
    documents = {
        sha256(document(action.args)).hexdigest(): {
            key: int(value) for key, value in action.args.items() if key.startswith("limits/")
        }
        for action in actions
        if action.do == "config"
    }
    model = Model({each.rev: each for each in said if each.rev}, documents)
    for seq, body in enumerate(bodies, 1):
        entry = json.loads(body)
        if entry["seq"] != seq:
            model.wrong.append(f"entry {seq} says that it is {entry['seq']}")
        model.entry(entry)
    model.end()
    return model
