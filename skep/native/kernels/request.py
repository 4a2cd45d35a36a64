"""What the process of a lease is asked and what it answers: a line of JSON each, process.py to child.py.

Nothing here needs numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from skep.native.kernels.arguments import Told
from skep.native.kernels.source import Brought, brought

READY: Final = b"ready\n"
WARM: Final = "--warm"  # numba is loaded before the first request, where it is installed
LIFE: Final = "--life="  # the pipe that only the parent writes to: it ends with it
FORMS: Final = ("npy", "raw")  # of results; raw: the elements alone, in C's order, the least byte first


class Request(NamedTuple):
    """``kernel``: one of the catalogue's, or any name of a ``source``. ``inputs``: files by argument, .npy
    but for those that ``raw`` tells. ``out``: the directory for results, NAME.npy or NAME.raw as ``form``
    says. ``device``: auto, cpu, cuda or cuda:N, by the order of the bus. ``seconds``, ``size_max``: bytes,
    what one run may take. ``signed``: what was signed of this kernel (None: nothing need be). ``source``:
    what runs in place of a kernel of the catalogue."""

    kernel: str
    inputs: Mapping[str, str]
    numbers: Mapping[str, float]
    out: str
    device: str = "auto"
    seconds: float = 60.0
    size_max: int = 4 << 30
    signed: Mapping[str, Any] | None = None
    raw: Mapping[str, Told] = {}
    form: str = "npy"
    source: Brought | None = None


class Made(NamedTuple):
    """A result: where it is, what it is."""

    path: str
    dtype: str
    shape: list[int]
    sha256: str


class Done(NamedTuple):
    kernel: str
    device: str  # cuda:N, or cpu: and why
    nanoseconds: int
    out: dict[str, Made]


class RunError(Exception):
    """The kernel did not run to its end. ``why``: argument, unsigned, no_device, disabled, oom, time,
    kernel_failed, or killed, where somebody asked for that."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(text)
        self.why = why


def asked(request: Request) -> bytes:
    fields = {**request._asdict(), "inputs": dict(request.inputs), "numbers": dict(request.numbers)}
    fields["raw"] = {name: list(of) for name, of in request.raw.items()}
    fields["source"] = request.source and request.source.fields()
    return json.dumps(fields).encode() + b"\n"


def heard(line: bytes) -> Request:
    fields = json.loads(line)
    fields["raw"] = {name: Told(dtype, tuple(shape)) for name, (dtype, shape) in fields["raw"].items()}
    if fields["source"] is not None:
        fields["source"] = brought(**fields["source"])
    return Request(**fields)


def said(done: Done) -> bytes:
    outs = {name: made._asdict() for name, made in done.out.items()}
    return json.dumps({**done._asdict(), "out": outs}).encode() + b"\n"


def refused(error: RunError) -> bytes:
    return json.dumps({"why": error.why, "error": str(error)}).encode() + b"\n"


def answered(line: bytes) -> Done:
    """Raises RunError."""
    answer = json.loads(line)
    if "why" in answer:
        raise RunError(answer["why"], answer["error"])
    made = {name: Made(**of) for name, of in answer["out"].items()}
    return Done(answer["kernel"], answer["device"], answer["nanoseconds"], made)
