"""Who witnesses this hive's checkpoints, how many of them make one agreed, and which logs it witnesses
itself.

What they have cosigned is not here: a cosignature that were an entry would make the next checkpoint. What is
here: whom an operator added, what they told the hive that it would rather not hear, and whether the hive had
its quorum. What is done with it is quorum.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import Order, refusal
from skep.trace.note import COSIGNER, NoteError, parse_vkey
from skep.trace.rules import Decision, Meta

WITNESSES_MAX: Final = 32  # with the hive's own keys, a note's signatures
WATCHED_MAX: Final = 256  # logs that a hive is a witness of
CLEARED_MAX: Final = 1024  # splits that were let go of: each is a log that lied
KEYS_MAX: Final = 16  # of one of them: each rotation is one more
NOTE_MAX: Final = 6 * 1024  # bytes of each note of a disagreement: its line stays below 20 KiB

_NAME: Final = Arg("name", required=True, kind="name")

TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "*/witness/ctl": ctl.verbs(
        Verb(
            "add",
            (_NAME, Arg("key", required=True, help="as `skep witness` prints it")),
            "add name=w1 key=w1.example.org+1a2b3c4d+BA…",
            "a witness more; the quorum rises to a majority",
        ),
        Verb("remove", (_NAME,), "remove name=w1"),
        Verb(
            "quorum",
            (Arg("need", required=True, kind="number", help="a majority of the witnesses, or 0 for none"),),
            "quorum need=2",
            "so many must have cosigned a checkpoint before it is agreed",
        ),
        Verb(
            "disagree",
            (
                Arg("key", required=True, help="the witness's own"),
                Arg("why", required=True),
                Arg("first", help="a checkpoint that this hive has signed"),
                Arg("second", help="and one that cannot be true beside it"),
            ),
            "disagree key=w1.example.org+1a2b3c4d+BA… why='it signed two roots of 57 entries'",
            "what a witness cannot cosign",
        ),
        Verb(
            "watch",
            (Arg("key", required=True, help="of another log, as its /log/trace/keys has it"),),
            "watch key=h2/log/trace+1a2b3c4d+AQ…",
            "be a witness of that log: what is brought to add-checkpoint is cosigned",
        ),
        Verb("unwatch", (Arg("origin", required=True),), "unwatch origin=h2/log/trace"),
        Verb(
            "clear",
            (Arg("split", required=True, kind="name"),),
            "clear split=0a1b2c3d4e5f6071",
            "cosign that log again, from what was cosigned last",
        ),
    ),
    # The hive's own, written to no file.
    "*/witness": ctl.verbs(
        Verb("lost", (Arg("why", required=True),), help="there is no quorum any more"),
        Verb("regained"),
    ),
}


class Added(msgspec.Struct, frozen=True, tag_field="type", tag="witness.added"):
    """``need``: of how many cosignatures from now on."""

    name: str
    key: str
    need: int


class Dropped(msgspec.Struct, frozen=True, tag_field="type", tag="witness.removed"):
    name: str


class Needed(msgspec.Struct, frozen=True, tag_field="type", tag="witness.quorum"):
    need: int


class Disagreed(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="witness.disagreed"):
    """``first`` and ``second``: the two notes; "": it told of none."""

    name: str
    why: str
    first: str = ""
    second: str = ""


class Watched(msgspec.Struct, frozen=True, tag_field="type", tag="witness.watched"):
    origin: str
    key: str


class Unwatched(msgspec.Struct, frozen=True, tag_field="type", tag="witness.unwatched"):
    origin: str


class Cleared(msgspec.Struct, frozen=True, tag_field="type", tag="witness.cleared"):
    split: str


class Lost(msgspec.Struct, frozen=True, tag_field="type", tag="witness.lost"):
    """Too few witnesses: who is missing or disagrees, why, and what to do."""

    why: str


class Regained(msgspec.Struct, frozen=True, tag_field="type", tag="witness.regained"):
    pass


Event = Added | Dropped | Needed | Disagreed | Watched | Unwatched | Cleared | Lost | Regained


class Witness(msgspec.Struct, frozen=True):
    """``why``: what it told that it disagrees with, ``told_ns`` when; "": nothing. Times are ns."""

    name: str
    key: str
    since_ns: int
    why: str = ""
    told_ns: int = 0


@dataclass
class Witnesses:
    """``watched``: the keys of the logs that this hive is a witness of, by origin; ``cleared``: their splits
    that an operator has let go of. ``need``: how many cosignatures make a checkpoint agreed; 0: none does.
    ``lost``: why there is no quorum, since ``lost_ns``; "": there is, or none is needed."""

    by_name: dict[str, Witness] = field(default_factory=dict)
    need: int = 0
    lost: str = ""
    lost_ns: int = 0
    watched: dict[str, tuple[str, ...]] = field(default_factory=dict)
    cleared: dict[str, int] = field(default_factory=dict)  # split -> when, ns

    def copy(self) -> Witnesses:
        watched, cleared = self.watched.copy(), self.cleared.copy()
        return Witnesses(self.by_name.copy(), self.need, self.lost, self.lost_ns, watched, cleared)


def decide(witnesses: Witnesses, order: Order) -> Decision[Event, str]:
    """What follows from an order about witnesses."""
    name = order.args.get("name", "")
    match order.verb:
        case "add":
            return Decision((_added(witnesses, name, order.args["key"]),), name)
        case "quorum":
            need, have = int(order.args["need"]), len(witnesses.by_name)
            if need > have or 0 < need <= have // 2:
                # Two that are no majorities may each agree upon another checkpoint.
                detail = f"need={need}: expected {have // 2 + 1} to {have} of {have} witnesses, or 0"
                raise refusal(E.USAGE, detail)
            return Decision((Needed(need),), f"{need}/{have}")
        case "lost":
            return Decision((Lost(order.args["why"]),), "ok")
        case "regained":
            return Decision((Regained(),), "ok")
        case "remove" if name in witnesses.by_name:
            if witnesses.need >= len(witnesses.by_name):
                raise refusal(E.CONFLICT, f"the quorum needs all {witnesses.need}: quorum need= first")
            return Decision((Dropped(name),), name)
        case "watch":
            return Decision((_watched(witnesses, order.args["key"]),), "ok")
        case "unwatch" if order.args["origin"] in witnesses.watched:
            return Decision((Unwatched(order.args["origin"]),), "ok")
        case "unwatch":
            raise refusal(E.MISSING, f"log {order.args['origin']}")
        case "clear":
            if len(witnesses.cleared) >= CLEARED_MAX:
                raise refusal(E.QUOTA, f"splits cleared max={CLEARED_MAX}")
            return Decision((Cleared(order.args["split"]),), order.args["split"])
        case "disagree":
            return _disagreed(witnesses, order.args)
        case _:
            raise refusal(E.MISSING, f"witness {name}")


def _disagreed(witnesses: Witnesses, args: Mapping[str, str]) -> Decision[Event, str]:
    found = [each.name for each in witnesses.by_name.values() if each.key == args["key"]]
    if not found:
        raise refusal(E.MISSING, f"witness {args['key']}")
    notes = [args.get(which, "") for which in ("first", "second")]
    if max(map(len, notes)) > NOTE_MAX:
        raise refusal(E.TOOBIG, f"max={NOTE_MAX} a note")
    return Decision((Disagreed(found[0], args["why"], *notes),), found[0])


def _watched(witnesses: Witnesses, key: str) -> Watched:
    try:
        vkey = parse_vkey(key)
    except NoteError as error:
        raise refusal(E.USAGE, str(error)) from error
    keys = witnesses.watched.get(vkey.name, ())
    if key in keys:
        raise refusal(E.EXISTS, f"key {key}")
    if len(witnesses.watched) >= WATCHED_MAX or len(keys) >= KEYS_MAX:
        raise refusal(E.QUOTA, f"logs max={WATCHED_MAX}, keys of one max={KEYS_MAX}")
    return Watched(vkey.name, key)


def _added(witnesses: Witnesses, name: str, key: str) -> Added:
    have = len(witnesses.by_name)
    if name in witnesses.by_name:
        raise refusal(E.EXISTS, f"witness {name}")
    if have >= WITNESSES_MAX:
        raise refusal(E.QUOTA, f"witnesses have={have} max={WITNESSES_MAX}")
    try:
        vkey = parse_vkey(key, COSIGNER)
    except NoteError as error:
        raise refusal(E.USAGE, str(error)) from error
    for other in witnesses.by_name.values():
        # One who counts twice makes a majority of a minority.
        if parse_vkey(other.key, COSIGNER).public == vkey.public:
            raise refusal(E.EXISTS, f"it is the key of {other.name}")
    need = witnesses.need and max(witnesses.need, (have + 1) // 2 + 1)
    return Added(name, key, need)


def apply(witnesses: Witnesses, event: Event, meta: Meta) -> None:
    """Change ``witnesses`` by ``event``."""
    match event:
        case Added():
            witnesses.by_name[event.name] = Witness(event.name, event.key, meta.time_ns)
            witnesses.need = event.need
        case Dropped():
            del witnesses.by_name[event.name]
        case Needed():
            witnesses.need = event.need
        case Disagreed():
            found = witnesses.by_name[event.name]
            witnesses.by_name[event.name] = msgspec.structs.replace(
                found, why=event.why, told_ns=meta.time_ns
            )
        case Watched():
            keys = witnesses.watched.get(event.origin, ())
            witnesses.watched[event.origin] = (*keys, event.key)
        case Unwatched():
            del witnesses.watched[event.origin]
        case Cleared():
            witnesses.cleared[event.split] = meta.time_ns
        case Lost():
            witnesses.lost, witnesses.lost_ns = event.why, witnesses.lost_ns or meta.time_ns
        case Regained():
            witnesses.lost, witnesses.lost_ns = "", 0
