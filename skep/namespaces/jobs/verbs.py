"""What can be written about jobs: the verbs of each file, as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.namespaces.order import ACTOR_TYPES
from skep.trace.clock import CROCKFORD

PRIORITY_MAX: Final = 9
VERSION: Final = 1  # of the request's form; another has other fields, or others mean something else.
PRIORITY: Final = 5  # when none is given; 9 is served first.
# Why a job falls back, or ends because it may not: what its holder says, and what the hive alone finds out.
OF_HOLDER: Final = ("oom", "kernel_failed", "no_device", "disabled", "lease_expired", "full")
REASONS: Final = ("annex_lost", *OF_HOLDER)

ID: Final = re.compile(rf"[{CROCKFORD}]{{26}}(-[0-9]{{1,4}})?")  # a ULID, and what Line.id makes of it

JOB: Final = Arg("job", required=True, kind="name")
FENCE: Final = Arg("fence", required=True, kind="number", help="the lease's, from /pools/<p>/next")
REASON: Final = Arg("reason")

SUBMIT: Final = Verb(
    "submit",
    (
        Arg("topic", required=True, kind="name", help="what kind of work; a pool must be mapped to it"),
        Arg("key", kind="name", help="idempotency: the same key and request is the same job"),
        Arg("priority", kind="|".join(map(str, range(PRIORITY_MAX + 1))), help=f"9 first, else {PRIORITY}"),
        Arg("labels", kind="labels"),
        Arg("requires", kind="list", help="labels that its node must have: gpu,zone:eu"),
        Arg("retries", kind="number", help="how often it is tried again after it failed, else 0"),
        Arg("timeout", kind="duration", help="how long an attempt may run"),
        Arg("deadline", kind="duration", help="how long it may take in all, from now"),
        Arg("runtime", kind="duration", help="how long its attempts may run together"),
        Arg("bytes", kind="number", help="how large its outputs may be together"),
        Arg("input", help="text, or artifact:<name> as sealed last"),
        Arg("artifact", kind="sha256", help="the input by its hash"),
        Arg("fallback", kind="allow|refuse", help="whether it may go on where its pool falls back to"),
        Arg("patience", kind="duration", help="how long it waits in a pool that falls back"),
        Arg("inputs", kind="artifacts", help="artifacts besides it, by what the worker calls them"),
        Arg("capability", kind="name", help="what it does, besides what its topic says"),
        Arg("risk", kind="list", help="what could go wrong with it: pii,export"),
        Arg("pack", kind="name", help="the pack that it comes from"),
        Arg("actor-id", kind="text", help="whom it is done for, else its writer"),
        Arg("actor-type", kind="|".join(ACTOR_TYPES), help="what that is, else what its writer's role is"),
        Arg("workflow", kind="name", help="what it is part of; a scope of /config too"),
        Arg("run", kind="name", help="of the workflow"),
        Arg("step", kind="name", help="of the workflow; a scope of /config too"),
        Arg("traceparent", kind="traceparent", help="W3C trace context, passed on to its worker"),
        Arg("tracestate", kind="tracestate"),
        Arg("v", kind="number", help=f"the form that the request has, {VERSION} when it does not say"),
    ),
    "submit topic=sha256 input=artifact:notes.txt key=notes-1",
    "queue a job; the reply is its id",
)
CANCEL: Final = Verb(
    "cancel", (REASON,), "cancel reason='no longer needed'", "end it; a holder is fenced off"
)
SEAL: Final = Verb(
    "seal",
    (
        FENCE,
        Arg("name", required=True, kind="name", help="of the output, staged as <job>.<fence>.<name>"),
        Arg("sha256", kind="sha256", help="refuse if the bytes are others"),
    ),
    "seal fence=1 name=out.npy",
    "a staged file is an output of it; in the write of its ack, if that is accepted",
)

# What people and workers write, by the file they write it to.
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        SUBMIT, CANCEL._replace(args=(JOB, REASON), example="cancel job=01JD… reason='no longer needed'")
    ),
    "*/ctl": ctl.verbs(
        SUBMIT,
        CANCEL,
        Verb(
            "start",
            (
                FENCE,
                Arg("device", kind="name", help="where it runs: cuda:<n> or cpu:<n> of the annex, or cpu"),
                Arg("memory", kind="number", help="bytes of the device"),
                Arg("slots", kind="number", help="of the device, else 1"),
                Arg("exclusive", kind="true|false", help="nobody else on the device"),
                Arg("lease", kind="name", help="which it runs inside of"),
            ),
            "start fence=1",
            "the holder runs it now",
        ),
        Verb("renew", (FENCE,), "renew fence=1", "the lease's end moves on"),
        SEAL,
        Verb("ack", (FENCE, Arg("result")), "ack fence=1 result=done", "it succeeded"),
        Verb(
            "nack",
            (
                FENCE,
                Arg("error", required=True),
                Arg("delay", kind="duration", help="before the next attempt, else what the attempts ask for"),
                Arg("code", kind="name", help="the error's kind, shown with a dead letter"),
                Arg("final", kind="true|false", help="no attempt could succeed: it is a dead letter now"),
            ),
            "nack fence=1 error='exit status 1' delay=10s",
            "the attempt failed",
        ),
        Verb("release", (FENCE,), "release fence=1", "give it back undone: it goes to another at once"),
        Verb(
            "fallback",
            (
                FENCE,
                Arg("reason", required=True, kind="|".join(OF_HOLDER)),
                Arg("error", help="what the device said"),
            ),
            "fallback fence=1 reason=oom error='4 GiB asked, 1 GiB free'",
            "it goes on in the pool that its pool falls back to; where it may not, it has failed",
        ),
    ),
    # The hive's own, written to no file.
    "*": ctl.verbs(
        Verb("expire", (FENCE,)),
        Verb("timeout", (FENCE,)),
        Verb("spent", (FENCE,)),
        Verb("overdue"),
        Verb("wake"),
        Verb("preempt", (Arg("for", required=True, kind="name"),)),
        Verb(
            "fallback",
            (
                Arg("reason", required=True, kind="|".join(REASONS)),
                Arg("annex", kind="name"),
                Arg("fence", kind="number"),  # of a lease that is held; none: it waits
            ),
        ),
        Verb("release", (FENCE,)),
    ),
}

IMPORT: Final = Verb(
    "import",
    (Arg("sha256", required=True, kind="sha256", help="of import.csv, as sha256sum tells it"),),
    "import sha256=0f…",
    "take over every job of import.csv",
)
# What the door makes of each line of an import. No file takes it.
ADOPT: Final = Verb(
    "adopt",
    (
        JOB,
        Arg("topic", required=True, kind="name"),
        Arg("pool", kind="name", help="where it waits or waited; else where a submit would go"),
        Arg("end", kind="succeeded|failed|cancelled", help="how it ended; else it is submitted anew"),
        Arg("result"),
        Arg("error", help="why it failed or was cancelled"),
        Arg("code", kind="name", help="the error's kind"),
        Arg("dead", kind="true|false", help="it has failed and is a dead letter still"),
        Arg("submitted", kind="text", help="when it was submitted first"),
        Arg("submitter", kind="text", help="by whom"),
        Arg("body", kind="sha256", help="of the request, as its key is bound to it"),
        *(arg for arg in SUBMIT.args if arg.name not in ("topic", "v")),
    ),
    "adopt job=01JD… topic=sum end=succeeded result=3",
    "a job from elsewhere, under its id",
)

# As written down: the door has checked an artifact by the topic's schema, and says so.
CHECKED: Final = Arg("checked", kind="text", help="<schema>@<version> <sha256 of the artifact>")
# The door has looked for the job in the index.
ABSENT: Final = Arg("absent", kind="number", help="the ledger's entry up to which there was no such job")
# The door has hashed the bytes and put them away.
PUT: Final = (Arg("size", required=True, kind="number"), Arg("chunks", kind="sha256"))
_MORE: Final = {SUBMIT.name: (CHECKED,), SEAL.name: PUT}
WRITTEN: Final[dict[str, dict[str, Verb]]] = {
    place: {name: verb._replace(args=(*verb.args, *_MORE.get(name, ()))) for name, verb in table.items()}
    for place, table in TABLES.items()
}
WRITTEN["ctl"][ADOPT.name] = ADOPT._replace(args=(*ADOPT.args, CHECKED, ABSENT))
