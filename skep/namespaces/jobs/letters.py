"""Dead letters: jobs that have failed, until somebody has them done again or throws them away.

A job that has failed has ended: its retry is another job, submitted now with all that was said of the first,
where that was submitted to.
It is allowed when its submitter would be allowed to submit it now, besides that who retries it may do so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.jobs.contract import vouching
from skep.namespaces.jobs.core import Decided, World, accepted
from skep.namespaces.jobs.envelope import arguments
from skep.namespaces.jobs.quotas import admitted
from skep.namespaces.jobs.record import Discarded, Job, Jobs, Submitted, visible
from skep.namespaces.jobs.verbs import CHECKED
from skep.namespaces.order import Order, refusal
from skep.namespaces.packed import PackError, pack, unpack_as
from skep.trace.entry import canonical
from skep.trace.rules import Decision

LETTER: Final = Arg("id", required=True, kind="name", help="the job that has failed")

TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        Verb("retry", (LETTER,), "retry id=01JD…", "submit it again as its submitter did; the new job's id"),
        Verb(
            "discard",
            (LETTER, Arg("reason", required=True)),
            "discard id=01JD… reason='the customer is gone'",
            "no dead letter any more; the job's own files stay",
        ),
    ),
}
# As written down: of a letter that has left memory the door says what was submitted, and of an artifact that
# is to be the input of a retry, by what it is good.
REQUEST: Final = Arg("request")
WRITTEN: Final[Mapping[str, ctl.Verbs]] = {
    place: ctl.verbs(*(verb._replace(args=(*verb.args, REQUEST, CHECKED)) for verb in table.values()))
    for place, table in TABLES.items()
}


def letter(jobs: Jobs, order: Order) -> Job:
    """The dead letter that the order is about; raises Refusal."""
    job = jobs.by_id.get(order.args["id"]) or of_past(jobs, order)
    if job is None or not is_letter(jobs, job) or not visible(job, order.role, order.tenant, order.node):
        raise refusal(E.MISSING)
    order.check_rev(job.rev)
    if order.verb == "discard" and not order.args["reason"].strip():
        raise refusal(E.USAGE, "discard: reason=: expected why")
    return job


def of_past(jobs: Jobs, order: Order) -> Job | None:
    """The letter that has left memory, with the request that the order brings when it is the one that was
    submitted; None: there is no such letter, or it brings another."""
    kept = jobs.dead.get(order.tenant, {}).get(order.args.get("id", ""))
    try:
        text = unpack_as(order.args.get("request", ""), "" if kept is None else kept.request)
    except PackError:
        return None
    assert kept is not None, "no text has the hash ''"
    return Job(msgspec.json.decode(text, type=Submitted), 0, 0, kept.rev, "failed")


def with_request(request: Submitted) -> dict[str, str]:
    """What the line of a command about a letter that has left memory says besides. Raises PackError."""
    return {REQUEST.name: pack(canonical(request))}


def is_letter(jobs: Jobs, job: Job) -> bool:
    return job.id in jobs.dead.get(job.request.tenant, {})


def resubmission(job: Job, order: Order) -> Order:
    """The submit that a retry is: its submitter's, now. A ledger that did not say in which role that was
    leaves who retries it to answer for it."""
    request = job.asked
    actor, role = (request.actor, request.role) if request.role else (order.actor, order.role)
    said = arguments(request)
    if CHECKED.name in order.args:
        said[CHECKED.name] = order.args[CHECKED.name]
    elif request.checked and request.artifact:  # a ledger that did not say
        said |= vouching(request.checked, request.artifact)
    return Order("submit", said, "ctl", "", actor, role, request.tenant, order.time_ns, order.id)


def decide(jobs: Jobs, order: Order, world: World) -> Decided:
    """What follows from an order to /dlq; raises Refusal. The policies have been asked, for a retry about
    its resubmission too."""
    job = letter(jobs, order)
    if order.verb == "discard":
        return Decision((Discarded(job.id, order.args["reason"], job.request.tenant),), job.id)
    event = accepted(resubmission(job, order), order.id, world)
    # The key names the retry from now on: its request is the same, as it was written.
    event = msgspec.structs.replace(
        event,
        body=job.request.body,
        actor=job.request.actor,
        retry_of=job.id,
        trigger=job.request.trigger,
        depth=job.request.depth,
    )
    return Decision((admitted(jobs.usage, event, order.time_ns, world),), event.job)
