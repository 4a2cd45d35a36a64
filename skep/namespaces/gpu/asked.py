"""A run that is asked for: a job of the topic gpu.run, whose input says which kernel, with which numbers, on
how much of a device. Pure, and without numpy: what is wrong with it is told where it is asked for.

The arrays are the job's inputs: artifacts, .npy files unless ``raw`` says what their bytes are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.namespaces.gpu.beat import SLOTS_MAX, Size
from skep.native.kernels.arguments import ArgumentError, named, told
from skep.native.kernels.catalogue import KERNELS
from skep.native.kernels.source import brought
from skep.trace.entry import canonical

TOPIC: Final = "gpu.run"
POOL: Final = "gpu"  # for nodes with a GPU
SPARE: Final = "gpu-cpu"  # where its jobs go when there is none
PATIENCE: Final = "30s"  # how long they wait for one
# Of POOL. Any worker may say of itself that it has a GPU; that it is an annex, none but annexes.
CREATE: Final[Mapping[str, str]] = {"requires": "annex,gpu", "fallback": SPARE, "patience": PATIENCE}
SOURCE: Final = "source"  # what the source that was brought is called among the inputs
REFUSE: Final = "refuse"  # what a source says of CPUs
_HASH: Final = re.compile("[0-9a-f]{64}")
LAUNCH: Final = ("function", "grid", "block", "args", "shared")  # arguments of how a source is launched

# Arguments of a run that are those of the job's submit.
_SUBMIT: Final = ("fallback", "patience", "priority", "key", "timeout", "retries")


class Asked(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The job's input. ``kernel``: of the catalogue, "": a source was brought. ``raw``: by input, what its
    bytes are, ``float32:1000x10``. ``memory``: bytes, 0: what the sizes come to. ``lease``: that it runs
    inside, "": in none."""

    kernel: str = ""
    numbers: dict[str, int | float] = {}
    raw: dict[str, str] = {}
    out: Literal["npy", "raw"] = "npy"
    memory: Size = 0
    slots: Annotated[int, Meta(ge=1, le=SLOTS_MAX)] = 1
    exclusive: bool = False
    lease: str = ""
    source: str = ""  # its SHA-256 in hex
    launch: dict[str, str] = {}  # of a source, as in the line: function, grid, block, args, shared

    def __post_init__(self) -> None:
        if self.lease and not ctl.is_name(self.lease):
            raise ValueError(f"lease {self.lease!r}: expected a lease's id")
        if self.source and _HASH.fullmatch(self.source) is None:
            raise ValueError(f"source {self.source!r}: expected a SHA-256 in hex")


RUN: Final = Verb(
    "run",
    (
        Arg("kernel", kind="|".join(KERNELS), help="of the catalogue; or a source that is allowed, below"),
        Arg("in", kind="artifacts", help="the arrays, by the kernel's names for them: x:<name or sha256>"),
        Arg("set", kind="labels", help="its numbers: alpha:2"),
        Arg("raw", kind="labels", help="what is in an artifact that is no .npy file: x:float32:1000x10"),
        Arg("out", kind="npy|raw", help="what the results are, else npy"),
        Arg(
            "fallback",
            kind="allow|refuse",
            help="whether a CPU may do it when no device can, else allow; a source: refuse",
        ),
        Arg("patience", kind="duration", help=f"how long it waits for a device, else {PATIENCE}"),
        Arg("memory", kind="size", help="of a device, else what the sizes come to: 4GiB, or bytes"),
        Arg("slots", kind="number", help="of a device, else 1"),
        Arg("exclusive", kind="true|false", help="true: nothing else runs on that device meanwhile"),
        Arg("annex", kind="name", help="on no other"),
        Arg("lease", kind="name", help="on the device, and within what, that lease has"),
        Arg("priority", kind="|".join(map(str, range(10))), help="9 first, else 5"),
        Arg("key", kind="name", help="idempotency, as of a submit"),
        Arg("timeout", kind="duration", help="how long an attempt may run"),
        Arg("retries", kind="number", help="how often it is tried again after it failed, else 0"),
        Arg("source", kind="text", help="CUDA C in an artifact, whose hash is allowed: its name or hash"),
        Arg("function", kind="name", help="of the source"),
        Arg("grid", kind="text", help="blocks, up to three axes: 64x64"),
        Arg("block", kind="text", help="threads of one, up to three axes: 16x16"),
        Arg("args", kind="text", help="its arguments: in:x,out:y:float32:1000x10,float32:2.5"),
        Arg("shared", kind="size", help="bytes of shared memory of a block"),
    ),
    "run kernel=saxpy in=x:a.npy,y:b.npy set=alpha:2",
    "the reply is the job's id",
)


def asked(args: Mapping[str, str], source: str = "") -> Asked:
    """What a checked ``run`` asks for; ``source``: the SHA-256, in hex, of what it brings. Raises
    ArgumentError."""
    inputs = ctl.artifacts(args["in"]) if "in" in args else {}
    raw = ctl.labels(args.get("raw", ""))
    for name, text in raw.items():
        if name not in inputs:
            raise ArgumentError(f"raw: {name}: expected one of {' '.join(inputs) or 'in='}")
        told(name, text)
    numbers = {name: _number(name, text) for name, text in ctl.labels(args.get("set", "")).items()}
    if source:
        launch = _launch(args, inputs, numbers, source)
        return Asked(raw=raw, source=source, launch=launch, **_room(args))
    kernel = args.get("kernel", "")
    if not kernel:
        raise ArgumentError("expected kernel=, or source=")
    if odd := [name for name in LAUNCH if name in args]:
        raise ArgumentError(f"{odd[0]}=: expected source= with it")
    named(KERNELS[kernel], inputs, numbers)
    return Asked(kernel=kernel, numbers=numbers, raw=raw, **_room(args))


def _launch(
    args: Mapping[str, str], inputs: Mapping[str, str], numbers: Mapping[str, float], source: str
) -> dict[str, str]:
    """How a source is launched, checked but for what is in its text."""
    if "kernel" in args or numbers:
        raise ArgumentError("source=: expected without kernel= and set=")
    if args.get("fallback", REFUSE) != REFUSE:
        raise ArgumentError("source=: it has no twin for a CPU: expected fallback=refuse, or nothing")
    if missing := [name for name in LAUNCH[:-1] if name not in args]:
        raise ArgumentError(f"source=: expected {missing[0]}= with it")
    launch = {name: args[name] for name in LAUNCH if name in args}
    if "shared" in launch:
        launch["shared"] = str(ctl.size(launch["shared"]))
    expected = brought("", source, **launch).inputs
    if set(inputs) != set(expected) or SOURCE in inputs:
        raise ArgumentError(
            f"in: given {' '.join(inputs) or 'nothing'}, expected {' '.join(expected) or 'nothing'}"
        )
    return launch


def _room(args: Mapping[str, str]) -> dict[str, Any]:
    """How much of a device a run wants, and what it gives."""
    slots = int(args.get("slots", 1))
    if not 1 <= slots <= SLOTS_MAX:
        raise ArgumentError(f"slots: {slots}: expected 1 to {SLOTS_MAX}")
    return {
        "out": args.get("out", "npy"),
        "memory": ctl.size(args.get("memory", "0")),
        "slots": slots,
        "exclusive": args.get("exclusive") == "true",
        "lease": args.get("lease", ""),
    }


def _number(name: str, text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ArgumentError(f"set: {name}: {text!r}: expected a number") from None


def parse(text: str) -> Asked:
    """What a job's input asks for. Raises ArgumentError."""
    try:
        return msgspec.json.decode(text, type=Asked)
    except msgspec.DecodeError as error:
        raise ArgumentError(f"input: {error}") from error


def submit_line(args: Mapping[str, str], asked: Asked) -> str:
    """The line for /jobs/ctl by which the run is asked for."""
    said = {"topic": TOPIC, "input": canonical(asked).decode()}
    inputs = ctl.artifacts(args["in"]) if "in" in args else {}
    if asked.source:
        # It is an input like the others: who holds the job may read it.
        inputs[SOURCE] = asked.source
        said["fallback"] = REFUSE
    if inputs:
        said["inputs"] = ",".join(f"{name}:{of}" for name, of in inputs.items())
    if "annex" in args:
        said["requires"] = f"annex:{args['annex']}"
    said |= {name: args[name] for name in _SUBMIT if name in args}
    return ctl.line("submit", said)
