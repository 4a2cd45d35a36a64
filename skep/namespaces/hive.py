"""The hive's one state: the nouns put together as the rules of its turn. No clock, no I/O.

A line is parsed, checked against its file's table of verbs, put before the policies, and given to its noun.
What the live hive does around it is live.py; the validator replays on this.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, get_args

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E, FsError
from skep.namespaces.alerts import NO_WORKER, Alerted
from skep.namespaces.artifacts import core as artifacts
from skep.namespaces.config import core as config
from skep.namespaces.config.keys import Value, row
from skep.namespaces.gpu import core as gpu
from skep.namespaces.gpu import record as gpu_record
from skep.namespaces.gpu import verbs as gpu_verbs
from skep.namespaces.jobs import adoption, letters, placement, quotas, undecodable
from skep.namespaces.jobs import core as jobs
from skep.namespaces.jobs import record as job_record
from skep.namespaces.jobs import verbs as job_verbs
from skep.namespaces.jobs.envelope import NONE, arguments, scope_of
from skep.namespaces.jobs.fallback import LEASE_EXPIRED, NO_DEVICE, is_device, without_devices
from skep.namespaces.jobs.placement import wanted_of
from skep.namespaces.jobs.queues import AGEING_NS
from skep.namespaces.locks import core as locks
from skep.namespaces.log import core as log
from skep.namespaces.log import recordings
from skep.namespaces.nodes import core as nodes
from skep.namespaces.order import HIVE, HIVE_TENANT, Order, covers, refusal
from skep.namespaces.policy import core as policy
from skep.namespaces.policy.asked import About, Asked
from skep.namespaces.policy.schema import verb_path
from skep.namespaces.pools import core as pools
from skep.namespaces.schemas import core as schemas
from skep.namespaces.tokens import core as tokens
from skep.namespaces.triggers import core as triggers
from skep.namespaces.trust import core as trust
from skep.namespaces.trust import record as trust_record
from skep.namespaces.trust import verbs as trust_verbs
from skep.trace.clock import duration
from skep.trace.entry import Line
from skep.trace.rules import Decision, Meta, Refusal

# Refusals that are no news: an empty queue. The turn writes no entry for them.
UNRECORDED: Final = frozenset({E.NODATA.name})

OPERATOR: Final = "operator"
WORKER: Final = "drone-worker"
ANNEX: Final = "cuda-annex"


# the hive itself


HIVE_TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        Verb("drain", (), "drain", "no more leases; quiesced when the last has ended"),
        Verb("resume", (), "resume"),
        Verb("kick", (Arg("session", required=True, kind="name"),), "kick session=01JD…", "end a session"),
        Verb("reload", (), "reload", "take limits.toml as it is now"),
        Verb("shutdown", (Arg("grace", kind="duration"),), "shutdown grace=30s", "drain, then stop"),
    ),
    # The hive's own, written to no file.
    "": ctl.verbs(Verb("start")),
}


class Drained(msgspec.Struct, frozen=True, tag_field="type", tag="hive.drained"):
    pass


class Resumed(msgspec.Struct, frozen=True, tag_field="type", tag="hive.resumed"):
    pass


class Kicked(msgspec.Struct, frozen=True, tag_field="type", tag="hive.kicked"):
    """Sessions are not in the state: whether ``tenant`` may end it is asked where they are."""

    session: str
    tenant: str = HIVE_TENANT

    def reaches(self, tenant: str) -> bool:
        """Whether a session of ``tenant`` is ended by it."""
        return self.tenant in (HIVE_TENANT, tenant)


class Reloaded(msgspec.Struct, frozen=True, tag_field="type", tag="hive.reloaded"):
    """What was reloaded is no state: limits.toml is each process's own to read."""


class Shutdown(msgspec.Struct, frozen=True, tag_field="type", tag="hive.shutdown"):
    """``grace``: a duration; "" when none was given."""

    grace: str


class Started(msgspec.Struct, frozen=True, tag_field="type", tag="hive.started"):
    pass


HiveEvent = Drained | Resumed | Kicked | Reloaded | Shutdown | Started
Event = (
    HiveEvent
    | job_record.Event
    | pools.Event
    | nodes.Event
    | artifacts.Event
    | log.Event
    | policy.Event
    | config.Event
    | schemas.Event
    | tokens.Event
    | trust_record.Event
    | locks.Event
    | triggers.Event
    | undecodable.Event
    | gpu_record.Event
    | Alerted
)


@dataclass
class HiveState:
    """Everything the ledger says. ``mode``: online, draining, or stopping until the next start."""

    mode: str = "online"
    jobs: job_record.Jobs = field(default_factory=job_record.Jobs)
    pools: pools.Pools = field(default_factory=pools.Pools)
    nodes: nodes.Nodes = field(default_factory=nodes.Nodes)
    artifacts: artifacts.Artifacts = field(default_factory=artifacts.Artifacts)
    log: log.Log = field(default_factory=log.Log)
    policy: policy.Policy = field(default_factory=policy.Policy)
    tokens: tokens.Tokens = field(default_factory=tokens.Tokens)
    trust: trust_record.Trust = field(default_factory=trust_record.Trust)
    config: config.Config = field(default_factory=config.Config)
    schemas: schemas.Schemas = field(default_factory=schemas.Schemas)
    locks: locks.Locks = field(default_factory=locks.Locks)
    triggers: triggers.Triggers = field(default_factory=triggers.Triggers)
    undecodable: undecodable.Undecodable = field(default_factory=undecodable.Undecodable)
    gpu: gpu_record.Annexes = field(default_factory=gpu_record.Annexes)

    def copy(self) -> HiveState:
        return HiveState(
            self.mode,
            self.jobs.copy(),
            self.pools.copy(),
            self.nodes.copy(),
            self.artifacts.copy(),
            self.log.copy(),
            self.policy.copy(),
            self.tokens.copy(),
            self.trust.copy(),
            self.config.copy(),
            self.schemas.copy(),
            self.locks.copy(),
            self.triggers.copy(),
            self.undecodable.copy(),
            self.gpu.copy(),
        )

    @property
    def condition(self) -> str:
        """online, draining, or quiesced when nothing is held any more."""
        return self.condition_of(HIVE_TENANT)

    def condition_of(self, tenant: str) -> str:
        """What /state tells the tenant: whether its own jobs are held, the hive's own whether any are."""
        if self.mode == "online":
            return "online"
        held = (self.jobs.by_id[job].request.tenant for job in self.jobs.held)
        return "draining" if any(covers(tenant, of) for of in held) else "quiesced"

    # What the nouns ask of each other.

    def setting(self, scope: str, key: str) -> Value:
        """What /config has for ``key``, ``topics/sum/lease``, in ``scope``: a tenant's name, a workflow's
        below it (``org/project/env/nightly``), a step's below that; "": the system's. A scope that nobody has
        written a document for has what its tenant, its organisation, the system have, or the key's default.

        A scope that cannot be read raises Refusal: what it forbids is not known. KeyError: no such key."""
        known = self.config.known.get((scope, key))
        if known is not None:
            return known.value
        try:
            return self.config.value(scope or config.SYSTEM, key).value
        except config.ConfigError as error:
            raise refusal(E.CONFLICT, f"config: {error}") from error

    def of_settings(self, key: tuple[str, ...], found: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
        """What ``found`` makes of settings and of nothing else, remembered as ``key`` until one changes."""
        return self.config.made(key, found)

    def schema_version(self, reference: str, at: str) -> str:
        """The version that is referred to. Raises Refusal, which begins with ``at``."""
        try:
            return self.schemas.name(reference)
        except schemas.SchemaError as error:
            raise refusal(E.SCHEMA, f"{at}: {error}") from error

    def checked_by(self, reference: str, text: str | bytes, at: str) -> str:
        """The version that the JSON text is good by. Raises Refusal, with the place below ``at``."""
        try:
            return self.schemas.check_text(reference, text, at)
        except schemas.SchemaError as error:
            raise refusal(E.SCHEMA, str(error)) from error

    def setting_or_default(self, scope: str, key: str) -> Value:
        """The same, but the key's default when it cannot be read: for what has begun and goes on."""
        try:
            return self.config.value(scope or config.SYSTEM, key).value
        except config.ConfigError:
            return row(key).default

    def limit(self, tenant: str, key: str) -> int | None:
        """A number of ``setting``; None: there is no limit."""
        found = self.setting(tenant, key)
        assert found is None or isinstance(found, int)
        return found

    def count_kinds(self, request: job_record.Submitted) -> int:
        return self.jobs.queues.count_kinds(request)

    def room(self, tenant: str, actor: str, now_ns: int, bound_ns: int) -> int:
        """How many more of the actor's jobs (ALL: of the tenant's) its limits let nodes hold now, whose
        attempts may take ``bound_ns`` each; none when the limits cannot be read."""
        try:
            return quotas.room(self.jobs.usage, self, tenant, actor, now_ns, bound_ns)
        except Refusal:
            return 0

    def pool_for(self, tenant: str, submit: Mapping[str, str]) -> str:
        """The pool that the policies are asked about: where the job would go, or the first that refuses it;
        "": there is none."""
        wanted = wanted_of(tenant, submit)
        try:
            found = placement.verdicts(self, wanted)
        except Refusal:
            return ""  # the submit is refused for the same reason
        best = placement.chosen(found) or next(iter(found), None)
        return "" if best is None else best.pool

    def defaults_of(self, topic: str, pool: str) -> Mapping[str, str]:
        return self.pools.defaults_of(topic, pool)

    def candidates(self, scope: str, topic: str) -> Sequence[str]:
        said = self._configured(scope, f"topics/{topic}/pools") if topic else None
        return said if isinstance(said, tuple) else self.pools.topics.get(topic, ())

    def _configured(self, scope: str, key: str) -> Value:
        """``setting``, but None where nobody has said anything."""
        found = self.setting(scope, key)
        if found is None or self.config.value(scope or config.SYSTEM, key).source.v:
            return found
        return None

    def has_pool(self, pool: str) -> bool:
        return pool in self.pools.by_name

    def is_draining(self, pool: str) -> bool:
        return self.pools.by_name[pool].draining

    def refuses(self, pool: str) -> bool:
        return self.pools.by_name[pool].refuses

    def is_stuck(self, pool: str) -> bool:
        """Whether jobs wait in the pool, nobody has one of it, and that is not the hive's own doing."""
        queues = self.jobs.queues
        return self.mode == "online" and bool(queues.count_waiting(pool)) and not queues.count_held(pool)

    def load(self, pool: str) -> float:
        queue = self.jobs.queues.of(pool)
        return (queue.waiting + queue.held) / (self.pools.by_name[pool].capacity or 1)

    def has_node(self, tenant: str, words: frozenset[str]) -> bool:
        return self.nodes.has(tenant, words)

    def has_open_node(self, tenant: str, words: frozenset[str]) -> bool:
        return self.nodes.takes(tenant, words, self._shut(words))

    def ageing_ns(self, pool: str) -> int:
        found = self.pools.by_name.get(pool)
        return found.ageing_ns or AGEING_NS if found is not None else AGEING_NS

    def needs(self, pool: str, scope: str) -> frozenset[str]:
        said = self.setting(scope, f"pools/{pool}/requires")
        assert isinstance(said, tuple), said
        own = self.pools.by_name[pool].requires
        return own.union(said) if said else own

    def fallback_of(self, pool: str) -> tuple[str, int]:
        found = self.pools.by_name.get(pool)
        return ("", 0) if found is None else (found.fallback, found.patience_ns)

    def why_no_annex(self, pool: str, tenant: str, requires: tuple[str, ...] = ()) -> tuple[str, str]:
        """Why no node can have the tenant's jobs of the pool now that require these too: no_device, disabled,
        annex_lost; and which node could before. ("", ""): there is one, be it busy."""
        try:
            needs = self.needs(pool, tenant).union(requires)
        except Refusal:
            return "", ""  # nobody gets them for another reason, which ends when that can be read again
        why = self.nodes.why_none(tenant, needs, self._shut(needs))
        if why[0] != NO_DEVICE or not any(map(is_device, needs)):
            return why
        # An annex without such a device, or that was started without it, says more than that there is none;
        # where one is asked for by its name, no other does.
        named = {word for word in needs if word.startswith("annex:")}
        words = frozenset(without_devices(needs)) | named | {"annex"}
        annexes = [node.id for node in self.nodes.offering(tenant, words)]
        off = next(filter(self.gpu.is_disabled, annexes), "")
        return ("disabled", off) if off else (NO_DEVICE, next(iter(annexes), ""))

    def _shut(self, needs: Iterable[str]) -> Container[str]:
        """The nodes that have what is needed, and are not to have it."""
        return self.gpu.disabled if any(map(is_device, needs)) else ()

    def offers(self, node: str) -> frozenset[str]:
        found = self.nodes.by_id.get(node)
        if found is None:
            return frozenset()
        return frozenset(without_devices(found.offers)) if self.gpu.is_disabled(node) else found.offers

    def annex_state(self, annex: str) -> str:
        found = self.nodes.by_id.get(annex)
        return "" if found is None else found.state

    def serves_all(self, node: str) -> bool:
        found = self.nodes.by_id.get(node)
        return found is not None and HIVE_TENANT in found.tenants

    def lease_ns(self, request: job_record.Submitted) -> int:
        """As /config has it for the topic, where those who run the hive say so; else the tighter of what it
        and the pool have. What it has and cannot be read, ends no lease early."""
        pool_ns = self.pools.by_name[request.pool].lease_ns
        scope = scope_of(request.tenant, request.workflow, request.step)
        key = "lease", scope, request.topic, request.pool
        try:
            is_last, least_ns = self.of_settings(key, lambda: self._lease_said(*key[1:]))
        except config.ConfigError:
            return pool_ns
        if least_ns == NONE:
            return pool_ns
        return least_ns if is_last else min(pool_ns, least_ns)

    def _lease_said(self, scope: str, topic: str, pool: str) -> tuple[bool, int]:
        """Whether the pool has no say, and how long leases last as /config has it. Raises ConfigError."""
        of_topic = self.config.value(scope, f"topics/{topic}/lease")
        of_pool = self.config.value(scope, f"pools/{pool}/lease")
        if isinstance(of_topic.value, int) and config.owner(of_topic.source.scope) == HIVE_TENANT:
            return True, of_topic.value
        said = (each.value for each in (of_pool, of_topic) if each.source.v)
        return False, min((each for each in said if isinstance(each, int)), default=NONE)

    def queue_max(self, pool: str, scope: str) -> int:
        most, said = self.pools.by_name[pool].queue_max, self.setting(scope, f"pools/{pool}/waiting")
        return said if isinstance(said, int) and said < most else most

    def artifact_named(self, tenant: str, name: str) -> str | None:
        return self.artifacts.by_name.get(tenant, {}).get(name)

    def has_artifact(self, tenant: str, sha256: str) -> bool:
        return sha256 in self.artifacts.by_hash.get(tenant, {})

    def why_no_lease(self, pool: str, node: str, asking: int = 0, pool_asking: int = 0) -> str:
        """Why the pool gives the node no lease now, beside those that they have asked for; "": it does."""
        if self.mode != "online":
            return f"the hive is {self.condition}"
        if pool not in self.pools.by_name:
            return f"pool={pool}: there is no such pool"
        if self.pools.by_name[pool].draining:
            return f"pool={pool} is draining"
        found = self.nodes.by_id.get(node)
        if found is None:
            return f"node={node} has not joined"
        if found.state != "online":
            return f"node={node} is {found.state}"
        if found.role == ANNEX and not self._is_for_annexes(pool):
            return f"rule=annex-pools pool={pool} needs no device, and no other falls back to it"
        if found.capacity and self.count_held(node) + asking >= found.capacity:
            return f"node={node} holds the {found.capacity} leases that it can"
        most = self.pools.by_name[pool].capacity
        if most and self.jobs.queues.count_held(pool) + pool_asking >= most:
            return f"pool={pool} gives no more than {most} leases at a time"
        return ""

    def _is_for_annexes(self, pool: str) -> bool:
        """Whether its jobs need a device, or needed one before they fell back."""
        known = self.pools.by_name
        return any(map(is_device, known[pool].requires)) or any(of.fallback == pool for of in known.values())

    def held_tenant(self, job: str, node: str) -> str | None:
        found = self.jobs.by_id.get(job)
        return found.request.tenant if node and found is not None and found.node == node else None

    def holders(self, pool: str, tenant: str) -> list[str]:
        """The node of each lease of the pool that is held, as the tenant sees it."""
        held = (self.jobs.by_id[job] for job in self.jobs.held)
        return [job.node for job in held if job.request.pool == pool and covers(tenant, job.request.tenant)]

    def artifacts_held(self, node: str) -> list[tuple[str, str]]:
        """Tenant and hash of the inputs and outputs of the jobs that the node holds."""
        found = []
        for job in map(self.jobs.by_id.__getitem__, self.jobs.held):
            if job.node == node:
                hashes = [*job.request.artifacts, *self.artifacts.outputs.get(job.id, {}).values()]
                found += [(job.request.tenant, sha256) for sha256 in hashes]
        return found

    def output(self, job: str, name: str) -> str:
        return self.artifacts.outputs.get(job, {}).get(name, "")

    def submitter(self, job: str) -> str:
        return self.jobs.by_id[job].request.actor

    def outputs_max(self, job: str) -> int | None:
        """How many bytes the outputs of a job may have together; None: as many as its tenant may have."""
        return self.jobs.by_id[job].request.bytes_max

    def artifacts_used(self, tenant: str) -> frozenset[str]:
        """The hashes of the inputs and outputs of the tenant's jobs that have not ended, and of its dead
        letters, which may be tried again."""
        dead = self.jobs.dead.get(tenant, {})
        found = {each for letter in dead.values() if letter is not None for each in letter.artifacts}
        using = [id for id, letter in dead.items() if letter is not None]
        for job in map(self.jobs.by_id.__getitem__, self.jobs.by_tenant.get(tenant, ())):
            if job.state not in job_record.TERMINAL or job.id in dead:
                found.update(job.request.artifacts)
                using.append(job.id)
        for id in using:
            found.update(self.artifacts.outputs.get(id, {}).values())
        found.update(self.triggers.artifacts(tenant))
        return frozenset(found)

    def sees_node(self, tenant: str, node: str, seq: int | None = None) -> bool:
        """Whether the node exists for the tenant, and existed at the entry ``seq`` (None: now). One that was
        removed was somebody's; whose is forgotten."""
        found = self.nodes.by_id.get(node)
        if found is None or (seq is not None and seq < found.first):
            return tenant == HIVE_TENANT
        return nodes.visible(found, tenant)

    @property
    def revoked_tokens(self) -> Container[str]:
        return self.trust.tokens

    @property
    def retired_token_keys(self) -> Container[str]:
        return [key.id for key in self.trust.keys.get("token", ()) if key.retired]

    def count_held(self, node: str) -> int:
        return self.jobs.queues.by_node.get(node, 0)

    def count_waiting(self, pool: str) -> int:
        return self.jobs.count_waiting(pool)

    def trust_of(self, node: str) -> str:
        found = self.nodes.by_id.get(node)
        return "green" if found is None else found.trust

    def about(self, noun: str, order: Order) -> About:
        name = order.name or order.args.get(NAMED_BY.get(noun, ""), "")
        match noun:
            case "jobs" if order.verb in (job_verbs.SUBMIT.name, job_verbs.ADOPT.name):
                topic = order.args.get("topic", "")  # not there in a question
                labels = ctl.labels(order.args.get("labels", ""))
                pool = partial(self.pool_for, order.tenant, order.args)
                return About(name, order.actor, order.tenant, topic, pool, labels, lambda: order.args)
            case "jobs" | "dlq":
                job = self.jobs.by_id.get(name) or letters.of_past(self.jobs, order)
                if job is None or job.request.tenant != order.tenant:
                    return About(name)
                of = job.request
                said = partial(arguments, of)
                return About(name, of.actor, of.tenant, of.topic, lambda: of.pool, of.labels, said, of.role)
            case "triggers":
                trigger = self.triggers.find(order.tenant, name)
                if trigger is None:
                    owner, submit = order.actor, order.args
                else:
                    owner, submit = trigger.made.actor, trigger.made.submit
                topic, labels = submit.get("topic", ""), ctl.labels(submit.get("labels", ""))
                pool = partial(self.pool_for, order.tenant, submit)
                return About(name, owner, order.tenant, topic, pool, labels)
            case "pools":
                topic = order.args.get("topic", "")
                of_topic = next(iter(self.pools.topics.get(topic, ())), "")
                return About(name, capability=topic, pool=lambda: name or of_topic)
            case _:
                return About(name)


# routing: a line's path to its noun and table


TABLES: Final[Mapping[str, Mapping[str, ctl.Verbs]]] = {
    "": HIVE_TABLES,
    "jobs": job_verbs.WRITTEN,
    "dlq": {"ctl": {**letters.WRITTEN["ctl"], undecodable.KEEP.name: undecodable.KEEP}},
    "policy": policy.TABLES,
    "config": config.TABLES,
    "schemas": schemas.TABLES,
    "pools": pools.TABLES,
    "nodes": nodes.TABLES,
    "artifacts": artifacts.TABLES,
    "log": log.TABLES,
    "trust": {**tokens.TABLES, **trust_verbs.TABLES},
    "locks": locks.TABLES,
    "triggers": triggers.tables(job_verbs.SUBMIT.args),
    "gpu": gpu_verbs.TABLES,
}

# The argument that names a noun's object where the path does not.
NAMED_BY: Final[Mapping[str, str]] = {
    "jobs": "job", "dlq": "id", "pools": "pool", "nodes": "node", "artifacts": "name", "policy": "bundle",
    "trust": "node", "config": "scope", "schemas": "id", "locks": "name",
    "triggers": "trigger", "gpu": "source",
}  # fmt: skip

# What the hive alone may write, as /noun/place/verb; the policies are asked about the rest.
OWN_VERBS: Final[frozenset[str]] = frozenset(
    {
        *(f"/jobs/*/{verb}" for verb in job_verbs.TABLES["*"]),
        "/artifacts/ctl/expire",
        "/log/*/denied",
        *(f"/log/*/{verb}" for verb in recordings.OWN),
        *(f"/log/*/witness/{verb}" for verb in log.TABLES["*/witness"]),
        "//start",
        *(f"/nodes/*/{verb}" for verb in nodes.TABLES["*"]),
        *(f"/pools/*/{verb}" for verb in pools.TABLES["*"]),
        *(f"/trust/*/{verb}" for verb in trust_verbs.OWN_VERBS),
        *(f"/locks/*/{verb}" for verb in locks.TABLES["*"]),
        *(f"/triggers/ctl/{verb}" for verb in triggers.OWN),
        "/triggers/*/fire",
        *(f"/gpu/*/{verb}" for verb in gpu_verbs.TABLES["*"]),
    }
)

# The policies are asked about it as of /artifacts/ctl/seal.
SEALING: Final = f"/jobs/*/ctl/{job_verbs.SEAL.name}"
# What has no action of its own in the policies' schema.
HIDDEN: Final = OWN_VERBS | {SEALING}

# What may be written in any tenant. All else is about the hive, and for its own tenant alone.
TENANT_VERBS: Final[frozenset[str]] = frozenset({
    "/ctl/kick", "/jobs/ctl/adopt", "/log/*/ctl/record", "/pools/*/next/lease", "/trust/*/clone/mint",
    "/trust/*/renew",
    *(f"/gpu/*/ctl/{verb}" for verb in ("lease", "renew", "release")),
    *(f"/artifacts/ctl/{verb}" for verb in artifacts.VERBS),
    *(f"/config/ctl/{verb}" for verb in config.TABLES["ctl"]),
    *(f"/jobs/{place}/{verb}" for place in ("ctl", "*/ctl") for verb in job_verbs.TABLES[place]),
    *(f"/dlq/ctl/{verb}" for verb in TABLES["dlq"]["ctl"]),
    *(f"/locks/ctl/{verb}" for verb in locks.TABLES["ctl"]),
    *(f"/triggers/ctl/{verb}" for verb in TABLES["triggers"]["ctl"]),
})  # fmt: skip


# Folders of a noun that are none of its objects, and have a ctl.
FOLDERS: Final[Mapping[str, tuple[str, ...]]] = {"gpu": ("sources",)}


def route(path: str) -> tuple[str, str, str]:
    """``/jobs/01JD/ctl`` -> ("jobs", "*/ctl", "01JD"); ``/ctl`` -> ("", "ctl", "")."""
    _, noun, *names = path.split("/", 3)
    match names:
        case []:
            return "", noun, ""
        case ["ctl"]:
            return noun, "ctl", ""
        case [name]:
            return noun, "*", name
        case [name, "ctl"] if name in FOLDERS.get(noun, ()):
            return noun, f"{name}/ctl", ""
        case _:
            return noun, f"*/{names[1]}", names[0]


class _Submitting:
    """Where the jobs of triggers go."""

    def __init__(self, state: HiveState) -> None:
        self.state = state

    def submitted(self, order: Order, trigger: str, depth: int) -> tuple[Event, ...]:
        if why := self.state.trust.why_gone(order.actor.partition("#")[0], order.tenant):
            raise refusal(E.DENIED, f"rule=creator-gone {why}")
        policy.permit(self.state.policy, Asked("jobs", "/jobs/ctl", order, job_verbs.SUBMIT.args, self.state))
        events = jobs.decide(self.state.jobs, order, self.state).events
        return tuple(
            msgspec.structs.replace(event, trigger=trigger, depth=depth)
            if isinstance(event, job_record.Submitted)
            else event
            for event in events
        )


class HiveRules:
    """The rules of a hive's turn. A reply is one word for each line: what was made or changed, or ok."""

    event_type: Any = Event

    def fresh(self) -> HiveState:
        return HiveState()

    def copy(self, state: HiveState) -> HiveState:
        return state.copy()

    def decide(self, state: HiveState, line: Line, k: int) -> Decision[Event, str]:
        noun, place, name = route(line.path)
        try:
            command = ctl.parse_line(line.lines[k], k + 1)
            row = ctl.check(command, TABLES[noun][place])
        except FsError as error:
            raise Refusal(error.kind.name, error.text) from error
        if line.role != HIVE:
            verb = verb_path(noun, place, command.verb)
            if verb in OWN_VERBS:
                raise refusal(E.DENIED, f"rule=own-verbs {command.verb} is the hive's alone")
            if line.tenant != HIVE_TENANT and verb not in TENANT_VERBS:
                raise refusal(
                    E.DENIED, f"rule=hive-tenant {command.verb} is about the hive, not about a tenant"
                )
        order = Order(
            command.verb,
            command.args,
            place,
            name,
            line.actor,
            line.role,
            line.tenant,
            line.time_ns,
            line.id(k),
            line.token,
        )
        asked = Asked(noun, line.path, order, row.args, state)
        if line.role != HIVE:
            policy.permit(state.policy, _sealing(asked) if verb == SEALING else asked)
        used = tokens.admit(state.tokens, line.token, state, line.time_ns) if line.token else None
        decision = self._of_noun(state, noun, order, asked)
        events = decision.events
        if state.gpu.of_job:
            events = (*events, *_freed(state, order, events))
            events = (*events, *_bereft(state, order, events))
        return Decision(events if used is None else (*events, used), decision.reply)

    def _of_noun(self, state: HiveState, noun: str, order: Order, asked: Asked) -> Decision[Event, str]:
        match noun:
            case "jobs" if order.verb == job_verbs.ADOPT.name:
                if "end" not in order.args:
                    anew = adoption.submission(order)
                    policy.permit(state.policy, Asked("jobs", asked.path, anew, job_verbs.SUBMIT.args, state))
                return adoption.decide(state.jobs, order, state)
            case "jobs":
                decided = jobs.decide(state.jobs, order, state)
                if order.verb == job_verbs.SEAL.name:
                    return _sealed(state, order)
                given = gpu.grant(state.gpu, order, _run(state, order)) if gpu.is_start(order) else ()
                return Decision((*given, *decided.events), decided.reply)
            case "dlq" if state.undecodable.find(order.tenant, order.args.get("id", "")):
                return undecodable.decide(state.undecodable, order)
            case "dlq" if order.verb == undecodable.KEEP.name:
                return undecodable.decide(state.undecodable, order)
            case "dlq" if order.verb == "retry":
                again = letters.resubmission(letters.letter(state.jobs, order), order)
                policy.permit(state.policy, Asked("jobs", "/jobs/ctl", again, job_verbs.SUBMIT.args, state))
                return letters.decide(state.jobs, order, state)
            case "dlq":
                return letters.decide(state.jobs, order, state)
            case "pools" if order.place == "*/next":
                return jobs.decide(state.jobs, order, state)
            case "pools" if order.place == "*":
                return _unread(state, order)
            case "pools":
                return pools.decide(state.pools, order)
            case "nodes":
                decided_node = nodes.decide(state.nodes, order, state)
                ended = gpu.gone(state.gpu, order) if order.verb == "remove" else ()
                events = (*ended, *decided_node.events, *_alerts(state, order))
                return Decision(events, decided_node.reply)
            case "artifacts":
                return artifacts.decide(state.artifacts, order, state)
            case "log":
                return log.decide(state.log, order)
            case "policy":
                return policy.decide(state.policy, order, asked)
            case "config":
                return config.decide(state.config, order)
            case "schemas":
                return schemas.decide(state.schemas, order)
            case "trust" if order.place == "*/clone":
                return tokens.decide(state.tokens, order)
            case "trust":
                return trust.decide(state.trust, order)
            case "locks":
                return locks.decide(state.locks, order)
            case "triggers":
                return triggers.decide(state.triggers, order, _Submitting(state))
            case "gpu" if order.place == "*/ctl" and not state.sees_node(order.tenant, order.name):
                raise refusal(E.MISSING, order.name)
            case "gpu":
                return gpu.decide(state.gpu, order, state)
            case _:
                return decide_hive(state, order)

    def apply(self, state: HiveState, event: Event, meta: Meta) -> None:
        _APPLY[type(event)](state, event, meta)


def _output(order: Order) -> Order:
    """The seal in a job's ctl as what it is, one of /artifacts/ctl."""
    args = {name: value for name, value in order.args.items() if name != job_verbs.FENCE.name}
    return order._replace(args=args | {"job": order.name}, place="ctl", name="")


def _sealing(asked: Asked) -> Asked:
    """Who may seal there may seal here, and nobody else."""
    row = artifacts.TABLES["ctl"][artifacts.SEAL.name].args
    return Asked("artifacts", "/artifacts/ctl", _output(asked.order), row, asked.world)


def _sealed(state: HiveState, order: Order) -> Decision[Event, str]:
    """What follows from a seal in the ctl of a job, which is its writer's."""
    sealing = _output(order)
    if not state.jobs.by_id[order.name].held:
        return Decision((), f"sha256:{sealing.args['sha256'].removeprefix('sha256:')}")  # said again
    return artifacts.decide(state.artifacts, sealing, state)


def _run(state: HiveState, order: Order) -> gpu.Run:
    """Whose job it is that starts, when it starts."""
    of = state.jobs.by_id[order.name].request
    return gpu.Run(of.job, of.tenant, of.actor, of.priority)


def _alerts(state: HiveState, order: Order) -> tuple[Alerted, ...]:
    """What is to be looked at after an order about a node."""
    if order.verb != "lost" or order.name not in state.gpu.by_id:
        return ()
    node = state.nodes.by_id[order.name]
    tenant = next(iter(node.tenants)) if len(node.tenants) == 1 else HIVE_TENANT
    every = duration(state.gpu.by_id[node.id].every_ns)
    return (Alerted("annex", node.id, tenant, "annex_lost", f"two heartbeats are missing, every={every}"),)


def _unread(state: HiveState, order: Order) -> Decision[Event, str]:
    """Jobs that have fallen back to a pool wait there for nobody: told once, until somebody takes one."""
    if not state.is_stuck(order.name):
        raise refusal(E.NODATA, f"pool={order.name}: its jobs are taken")
    decided = pools.decide(state.pools, order)
    text = f"jobs have fallen back to pool={order.name}, and nobody takes them"
    alert = Alerted("pool", order.name, HIVE_TENANT, NO_WORKER, text)
    return Decision((*decided.events, alert), decided.reply)


def _freed(state: HiveState, order: Order, events: Sequence[Event]) -> tuple[Event, ...]:
    """What else follows where the attempts of jobs end that run on devices."""
    jobs = (getattr(event, "job", "") for event in events if _ends_attempt(event))
    return gpu.freed(state.gpu, order, [job for job in jobs if job in state.gpu.of_job])


def _bereft(state: HiveState, order: Order, events: Sequence[Event]) -> Iterator[Event]:
    """What else follows where a device has no more for jobs that run: else others would be given what they
    use still."""
    for event in events:
        if isinstance(event, gpu_record.Ended) and event.job:
            reason = LEASE_EXPIRED if event.why == gpu_record.WITHIN else NO_DEVICE
            yield from jobs.bereft(state.jobs, order, state, event.job, reason, event.annex).events


def _ends_attempt(event: Event) -> bool:
    if isinstance(event, job_record.Fellback):
        return not event.in_place
    return isinstance(event, job_record.Returned | job_record.Delayed | job_record.Ended)


def _set_mode(mode: str) -> Callable[[HiveState, Any, Meta], None]:
    def apply_mode(state: HiveState, event: Any, meta: Meta) -> None:
        state.mode = mode

    return apply_mode


def _applying(noun: str, apply: Callable[[Any, Any, Meta], None]) -> Callable[[HiveState, Any, Meta], None]:
    return lambda state, event, meta: apply(getattr(state, noun), event, meta)


def _apply_job(state: HiveState, event: Any, meta: Meta) -> None:
    if type(event) is job_record.Fellback and event.annex:
        gpu_record.fell_back(state.gpu, event.annex, event.job, len(state.jobs.by_id[event.job].fallbacks))
    if event.job in state.gpu.of_job and _ends_attempt(event):
        gpu_record.job_over(state.gpu, event.job, meta)
    if type(event) is job_record.Leased:
        pools.taken(state.pools, state.jobs.by_id[event.job].request.pool)
    for job in job_record.apply(state.jobs, event, meta):
        state.artifacts.outputs.pop(job, None)


def _apply_node(state: HiveState, event: Any, meta: Meta) -> None:
    nodes.apply(state.nodes, event, meta)
    if type(event) is nodes.Removed:
        gpu_record.removed(state.gpu, event.node)


_APPLY: Final[Mapping[type, Callable[[HiveState, Any, Meta], None]]] = {
    Drained: _set_mode("draining"),
    Resumed: _set_mode("online"),
    Shutdown: _set_mode("stopping"),
    Started: _set_mode("online"),
    Kicked: lambda state, event, meta: None,  # sessions are not in the state
    Reloaded: lambda state, event, meta: None,
    Alerted: lambda state, event, meta: None,
    **dict.fromkeys(get_args(job_record.Event), _apply_job),
    **dict.fromkeys(get_args(pools.Event), _applying("pools", pools.apply)),
    **dict.fromkeys(get_args(nodes.Event), _apply_node),
    **dict.fromkeys(get_args(artifacts.Event), _applying("artifacts", artifacts.apply)),
    **dict.fromkeys(get_args(log.Event), _applying("log", log.apply)),
    **dict.fromkeys(get_args(policy.Event), _applying("policy", policy.apply)),
    **dict.fromkeys(get_args(config.Event), _applying("config", config.apply)),
    schemas.Event: _applying("schemas", schemas.apply),
    **dict.fromkeys(get_args(tokens.Event), _applying("tokens", tokens.apply)),
    **dict.fromkeys(get_args(trust_record.Event), _applying("trust", trust_record.apply)),
    **dict.fromkeys(get_args(locks.Event), _applying("locks", locks.apply)),
    **dict.fromkeys(get_args(triggers.Event), _applying("triggers", triggers.apply)),
    **dict.fromkeys(get_args(undecodable.Event), _applying("undecodable", undecodable.apply)),
    **dict.fromkeys(get_args(gpu_record.Event), _applying("gpu", gpu_record.apply)),
}


def decide_hive(state: HiveState, order: Order) -> Decision[HiveEvent, str]:
    """What follows from an order to the hive itself."""
    match order.verb:
        case "drain":
            return Decision((Drained(),), "ok")
        case "resume":
            return Decision((Resumed(),), "ok")
        case "kick":
            return Decision((Kicked(order.args["session"], order.tenant),), order.args["session"])
        case "reload":
            return Decision((Reloaded(),), "ok")
        case "shutdown":
            return Decision((Shutdown(order.args.get("grace", "")),), "ok")
        case _:
            # A hive that was drained before it died is drained still.
            return Decision((Started(),) if state.mode == "stopping" else (), "ok")
