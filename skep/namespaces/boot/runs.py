"""A boot that is asked for: a job of the boot lab's pool, whose input is an image. Pure.

Who does it is any worker of that pool with a handler for the topic, as examples/boot-lab.toml has it. What a
run is to do stands in the labels of its job, where the worker and the policies read it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb

ROLE: Final = "boot-lab"
POOL: Final = "boot-lab"
TOPIC: Final = "boot.run"
SHIFT_MAX: Final = 10  # QEMU's
BOOTS_MAX: Final = 100  # of one run: it keeps its worker as long
SUFFIX: Final = ".boot"  # of an image's name among the artifacts
NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")  # of an image
TIMING: Final = "timing.json"  # outputs of the job
DIAGNOSTICS: Final = "diagnostics.json"
JUNIT: Final = "junit.xml"
STAGES: Final = "stages.svg"
CHECK: Final = re.compile(r"[0-9a-f]{64}\.json(\.sig)?")  # of a file's layout, named by its SHA-256

_IMAGE: Final = Arg("image", required=True, kind="name")
VERBS: Final = ctl.verbs(
    Verb(
        "put",
        (
            _IMAGE._replace(help=f"its archive is staged as <image>{SUFFIX}, made by `skep boot pack`"),
            Arg("sha256", kind="sha256", help="refuse if the bytes are others"),
            Arg("class", kind="short|standard|audit", help="how long it is kept, else standard"),
        ),
        "put image=worker",
        "make a staged archive an image; the reply is its hash",
    ),
    Verb(
        "run",
        (
            _IMAGE,
            Arg("shift", kind="|".join(map(str, range(SHIFT_MAX + 1))), help="else as its manifest has it"),
            Arg("boots", kind="number", help="by the clock on the wall, else one"),
            Arg("max-ms", kind="number", help="budget of the last milestone, virtual ms less waits"),
        ),
        "run image=worker shift=4",
        "boot it in the lab; the reply is the run's id",
    ),
)


def submit_line(sha256: str, args: Mapping[str, str]) -> str:
    """The line for /jobs/ctl by which a run of an image is asked for."""
    labels = ",".join(f"{name}:{value}" for name, value in args.items())
    return ctl.line("submit", {"topic": TOPIC, "artifact": f"sha256:{sha256}", "labels": labels})
