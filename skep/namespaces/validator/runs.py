"""A run of the validator: what may be asked for, as a job of the pool that is the validators' alone.

Who does a run, again after the first one died, and how it ends once, is jobs' to say.
Whose the pool is, and who may submit to it, the default bundle says (validators.cedar).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb

ROLE: Final = "validator"
POOL: Final = "validator"
VERIFY: Final = "validator.verify"  # topics of jobs
REPLAY: Final = "validator.replay"
DIFF: Final = "validator.diff"
TOPICS: Final = (VERIFY, REPLAY, DIFF)
LINES: Final = "diff"  # an output: what was found, a line each
COMPARED: Final = re.compile(r"(sessions|snapshots)/[^/\s]+")  # below /log/trace

VERBS: Final = ctl.verbs(
    Verb("verify", (), "verify", "is the log what was signed, and what it was at the last run"),
    Verb(
        "replay",
        (
            Arg("from", kind="number", help="the first entry to decide again, else 1"),
            Arg("to", kind="number", help="the last one, else the checkpoint's"),
            Arg("policy", kind="name", help="a bundle, whose draft is asked too: what would be others"),
        ),
        "replay from=1000 to=2000",
        "verify, and decide every line again",
    ),
    Verb(
        "diff",
        tuple(Arg(name, required=True, help="sessions/<id>.9pt or snapshots/<n>") for name in ("a", "b")),
        "diff a=snapshots/1000 b=snapshots/2000",
        "what is not the same in two files of /log/trace",
    ),
)


class Asked(msgspec.Struct, frozen=True, omit_defaults=True, rename={"first": "from", "last": "to"}):
    """The input of a run's job."""

    first: int = 1
    last: int = 0  # 0: to the end
    policy: str = ""  # the name of the bundle that is asked besides; "": none is
    content: str = ""  # its files, packed
    a: str = ""  # below /log/trace; "": nothing is compared
    b: str = ""


def submit_line(verb: str, args: Mapping[str, str], content: str = "") -> str:
    """The line for /jobs/ctl by which a run is asked for. ``content``: the draft of its policy, packed."""
    said = (args.get(name, "") for name in ("a", "b"))
    asked = Asked(int(args.get("from", 1)), int(args.get("to", 0)), args.get("policy", ""), content, *said)
    return ctl.line("submit", {"topic": f"{ROLE}.{verb}", "input": msgspec.json.encode(asked).decode()})


def report_name(run: str) -> str:
    """What the report of a run is called among its outputs."""
    return f"validator-{run}.json"


def reported(names: Iterable[str]) -> Iterator[str]:
    """The runs whose reports are among artifacts of these names, or seem to be."""
    head, tail = report_name("/").split("/")
    return (name[len(head) : -len(tail)] for name in names if name.startswith(head) and name.endswith(tail))
