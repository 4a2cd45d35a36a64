"""/triggers: jobs that time submits, and events.

    ctl                 W create, pause, resume, run, remove; R usage
    <t>/spec            R as it was created, by whom, one JSON line
    <t>/state           R active or paused
    <t>/next            R when it fires next; empty: it waits for an event, or is paused
    <t>/last            R how it fired last, as ``key value`` lines: at, why, then job, or code and error
    <t>/fired.jsonl     R the same of the last 32 times, one JSON line each

``cron=`` has the five fields of Debian's cron, read in ``zone=``. A time that clocks skip in spring fires
when they go on; one that they pass twice in autumn fires the first time. Where the minute or the hour begins
with ``*`` real time counts: nothing for the skipped hour, and the repeated one twice. Two times that become
one minute are one tick.

Ticks that passed while the hive was down: ``missed=once``, the last of them fires when it is up again;
``skip``, only what is less than a minute late; ``all``, each of them, the oldest first, but no more than the
last 100. Ticks that pass while a trigger is paused have passed.

``on=`` names an event; ``on-state=``, ``on-topic=``, ``on-pool=``, ``on-labels=`` say of which job. Events of
the trigger's tenant count, from its creation on, each once: what was not fired for when the hive died, is
when it is back. All other arguments are those of submit, but for key=. With ``input=event`` the job's input
is what fired it, as JSON: the event as /events has it, texts cut at 1024 characters, or the tick.

A tick or an event is one entry of the ledger: it has the job, or why it was refused; then it is not tried
again. The job is submitted by who created the trigger, in its role and tenant, and the policies are asked
each time. The job says which trigger made it, and how many there were before that: at eight the next one is
refused, so that triggers that fire each other come to an end. So is what a tenant's triggers fire after jobs
of triggers, beyond 1024 at once and 64 a second (throttled); and 64 triggers may wait for events. Under a
capability token none is created, and when its creator's name was revoked, or is of another role or tenant by
now, it is refused.

    echo create trigger=nightly "cron='30 2 * * *'" zone=Europe/Berlin topic=report > triggers/ctl
    echo create trigger=undertaker on=job.ended on-state=failed topic=autopsy input=event > triggers/ctl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from skep.fs.ctl import Command, Verb
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.shapes import Ctl, Text
from skep.fs.tree import Listing
from skep.namespaces.checked import vouched, vouched_line
from skep.namespaces.hive import TABLES
from skep.namespaces.live import Hive
from skep.namespaces.rows import Rows, fixed
from skep.namespaces.triggers.core import CHECKED, OWN, Fire, Trigger
from skep.namespaces.triggers.ticks import check, next_tick
from skep.trace.clock import rfc3339

PATH: Final = "/triggers/ctl"


def files(hive: Hive) -> Listing:
    """The tree of /triggers."""
    verbs = {name: _plain(verb) for name, verb in TABLES["triggers"]["ctl"].items() if name not in OWN}
    children = fixed({"ctl": Ctl(verbs, lambda caller, commands: run(hive, caller, commands))})

    def walk(name: str, caller: Caller) -> Any:
        trigger = hive.state.triggers.find(caller.tenant, name)
        return children.get(name) if trigger is None else Rows(FILES, hive, name, trigger.rev)

    return Listing(lambda caller: [*children, *hive.state.triggers.by_tenant.get(caller.tenant, ())], walk)


def _plain(verb: Verb) -> Verb:
    """The verb as people write it."""
    return verb._replace(args=tuple(arg for arg in verb.args if arg.name != CHECKED))


async def run(hive: Hive, caller: Caller, commands: list[Command]) -> list[str]:
    """Write the commands. What a cron expression and a zone are, is asked here: it is known outside of the
    ledger. Raises FsError."""
    for command in commands:
        if "cron" in command.args:
            check(command.args["cron"], command.args.get("zone", "UTC"), hive.clock.now_ns())
    return await hive.command(caller, PATH, [await _checked(hive, caller, command) for command in commands])


async def _checked(hive: Hive, caller: Caller, command: Command) -> str:
    trigger = hive.state.triggers.find(caller.tenant, command.args.get("trigger", ""))
    if command.verb != "run" or trigger is None:
        return command.text
    return vouched_line(command, await vouched(hive, caller.tenant, trigger.made.submit))


# one trigger


def _text(render: Callable[[Trigger], str]) -> Callable[[Hive, str], Text]:
    """A row rendered from the trigger's record when opened. Raises FsError(E.MISSING) when it was removed
    since it was walked to."""

    def content(hive: Hive, name: str, caller: Caller) -> str:
        trigger = hive.state.triggers.find(caller.tenant, name)
        if trigger is None:
            raise FsError(E.MISSING, name)
        return render(trigger)

    return lambda hive, name: Text(lambda caller: content(hive, name, caller))


def _spec(trigger: Trigger) -> str:
    made = trigger.made
    shown: dict[str, Any] = {
        "trigger": made.trigger, "tenant": made.tenant, "creator": made.actor, "role": made.role,
        "created": rfc3339(trigger.created_ns),
    }  # fmt: skip
    if made.cron:
        shown |= {"cron": made.cron, "zone": made.zone, "missed": made.missed}
    else:
        shown |= {"on": made.on} | {f"on-{word}": value for word, value in made.where.items()}
        if made.labels:
            shown["on-labels"] = made.labels
    return msgspec.json.encode(shown | {"submit": made.submit}).decode() + "\n"


def _next(trigger: Trigger) -> str:
    made = trigger.made
    if not made.cron or not trigger.active:
        return ""
    tick_ns = next_tick(made.cron, made.zone, trigger.after_ns)
    return "" if tick_ns is None else f"{rfc3339(tick_ns)}\n"


def _fire(fire: Fire) -> dict[str, Any]:
    fired = fire.fired
    shown: dict[str, Any] = {"at": rfc3339(fired.at_ns), "why": fired.why, "time": rfc3339(fire.time_ns)}
    if fired.why == "event":
        shown |= {"seq": fired.seq, "event": fired.k}
    return shown | ({"job": fired.job} if fired.job else {"code": fired.code, "error": fired.text})


def _last(trigger: Trigger) -> str:
    if not trigger.recent:
        return ""
    return "".join(f"{word} {value}\n" for word, value in _fire(trigger.recent[-1]).items())


FILES: Final[Mapping[str, Callable[[Hive, str], Any]]] = {
    "spec": _text(_spec),
    "state": _text(lambda trigger: "active\n" if trigger.active else "paused\n"),
    "next": _text(_next),
    "last": _text(_last),
    "fired.jsonl": _text(
        lambda trigger: "".join(f"{msgspec.json.encode(_fire(each)).decode()}\n" for each in trigger.recent)
    ),
}
