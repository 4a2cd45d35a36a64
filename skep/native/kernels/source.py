"""CUDA C source that somebody brings: what is told of it, checked before it comes near a device.

In text, as in a line of /gpu/ctl:

    function=scale grid=40 block=256 args=in:x,out:y:float32:10000,uint64:10000,float32:2.5 shared=0

``args`` are the function's, in their order: ``in:NAME``, an input; ``out:NAME:DTYPE[:SIZExSIZE…]``, a result,
zeros at first; ``DTYPE:NUMBER``, a number. The function is extern "C". Sizes of grid and block are three at
most, ``40x2x1``. It has no twin: it runs on a CUDA device or not at all."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from skep.native.kernels.arguments import CONTEXT, DTYPES, ArgumentError, Told, told
from skep.native.kernels.catalogue import BYTES_MAX

TEXT_MAX: Final = 1 << 20  # bytes of a source
ARGS_MAX: Final = 64  # of a function; CUDA's own bound is 4 KiB of them
# Source: CUDA C++ Programming Guide, Compute Capabilities, of every device of today.
GRID_MAX: Final = (0x7FFF_FFFF, 65535, 65535)
BLOCK_MAX: Final = (1024, 1024, 64)
THREADS_MAX: Final = 1024  # of a block
SHARED_MAX: Final = 227 << 10  # bytes, where a card has most; the device is asked before the launch
NAME: Final = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
# What reads a file where it is compiled, or asks whether it is there, whatever token it begins with.
_READS: Final = re.compile(r"\b(?:__)?(?:has_)?(?:include(?:_next)?|embed|import)(?:__)?\b")
# A name in <> is looked for where CUDA's own headers are, and not elsewhere.
_PLAIN: Final = re.compile(r"[ \t]*#[ \t]*include[ \t]*<\w+(?:/\w+)*(?:\.\w+)?>[ \t\r]*", re.ASCII)


class In(NamedTuple):
    name: str

    def __str__(self) -> str:
        return f"in:{self.name}"


class Result(NamedTuple):
    name: str
    told: Told

    def __str__(self) -> str:
        return f"out:{self.name}:{self.told}"


class Scalar(NamedTuple):
    dtype: str
    value: float

    def __str__(self) -> str:
        return f"{self.dtype}:{self.value!r}"


class Brought(NamedTuple):
    """``path``: the file of its text, whose SHA-256, in hex, is ``sha256``. ``shared``: bytes for each block,
    beside those that the text declares."""

    path: str
    sha256: str
    function: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple[In | Result | Scalar, ...]
    shared: int = 0

    @property
    def inputs(self) -> list[str]:
        return [arg.name for arg in self.args if isinstance(arg, In)]

    @property
    def results(self) -> dict[str, Told]:
        return {arg.name: arg.told for arg in self.args if isinstance(arg, Result)}

    def needed(self, inputs: Mapping[str, Told]) -> int:
        """Bytes of device memory that a run takes, where the text does not ask for more: all arrays, and an
        allowance for the process."""
        return sum(of.size for of in (*inputs.values(), *self.results.values())) + CONTEXT

    def fields(self) -> dict[str, str]:
        """As text: ``brought(**it.fields())`` is this one."""
        return {
            "path": self.path, "sha256": self.sha256, "function": self.function, "grid": _sizes(self.grid),
            "block": _sizes(self.block), "args": ",".join(map(str, self.args)), "shared": str(self.shared),
        }  # fmt: skip


def brought(
    path: str, sha256: str, function: str, grid: str, block: str, args: str, shared: str = "0"
) -> Brought:
    """What is told of a source in text; the text itself is read by ``text_of``. Raises ArgumentError."""
    if not NAME.fullmatch(function):
        raise _wrong("function", function, "a name of C's of 64 letters at most")
    of = tuple(_arg(text) for text in args.split(",")) if args else ()
    if len(of) > ARGS_MAX:
        raise _wrong("args", f"{len(of)} of them", f"{ARGS_MAX} at most")
    names = [arg.name for arg in of if not isinstance(arg, Scalar)]
    for name in names:
        if names.count(name) > 1:
            raise _wrong("args", f"{name} twice", "a name for each array")
    threads = _whole("block", block, BLOCK_MAX)
    if math.prod(threads) > THREADS_MAX:
        raise _wrong("block", block, f"{THREADS_MAX} threads at most")
    bytes_ = _whole("shared", shared, (SHARED_MAX,), least=0)[0]
    return Brought(path, sha256, function, _whole("grid", grid, GRID_MAX), threads, of, bytes_)


def text_of(source: Brought) -> str:
    """The text, if it is the one that was told, and reads no file of the machine that compiles it. Raises
    ArgumentError."""
    try:
        with Path(source.path).open("rb") as file:
            content = file.read(TEXT_MAX + 1)
    except OSError as error:
        raise _wrong("source", source.path, f"a file: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if len(content) > TEXT_MAX or found != source.sha256:
        raise _wrong("source", found, f"{source.sha256}, of {TEXT_MAX} bytes at most")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise _wrong("source", f"{error.object[error.start : error.end]!r}", "text in UTF-8") from error
    check_text(text)
    return text


def check_text(text: str) -> None:
    """Raise ArgumentError where a text would read a file as it is compiled, or might: also within comments
    and strings, since which of these is what takes a compiler to tell."""
    # Lines are joined, and ??/ is read, before anything else is.
    joined = re.sub(r"(?:\\|\?\?/)[ \t\f\v]*\r?\n", "", text)
    for line in re.split(r"[\r\n]+", joined):
        if _READS.search(line) and not _PLAIN.fullmatch(line):
            raise _wrong("source", repr(line.strip()[:80]), "#include <NAME> alone on a line, of CUDA's own")


def _arg(text: str) -> In | Result | Scalar:
    kind, _, rest = text.partition(":")
    if kind == "in":
        return In(_name(text, rest))
    if kind == "out":
        name, _, of = rest.partition(":")
        result = Result(_name(text, name), told(name, of))
        if result.told.size > BYTES_MAX:
            raise _wrong("args", text, f"{BYTES_MAX} bytes at most")
        return result
    return Scalar(kind, _number(text, kind, rest))


def _name(text: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise _wrong("args", text, "in:NAME, out:NAME:DTYPE[:SIZExSIZE] or DTYPE:NUMBER")
    return name


def _number(text: str, dtype: str, number: str) -> float:
    """One that the dtype has: an int within its bounds, or any float."""
    try:
        value = float(number) if dtype.startswith("float") else int(number)
    except ValueError:
        dtype = ""
    if dtype not in DTYPES:
        raise _wrong("args", text, f"in:NAME, out:NAME:DTYPE[:SIZExSIZE] or DTYPE:NUMBER, {' '.join(DTYPES)}")
    if isinstance(value, int):
        bits = 8 * DTYPES[dtype]
        least, most = (0, (1 << bits) - 1) if dtype[0] == "u" else (-1 << bits - 1, (1 << bits - 1) - 1)
        if not least <= value <= most:
            raise _wrong("args", text, f"{least} to {most}")
    return value


def _whole(what: str, text: str, most: tuple[int, ...], least: int = 1) -> tuple[int, ...]:
    """``4x3x2``, as many as there are bounds at most."""
    sizes = text.split("x")
    right = len(sizes) <= len(most) and all(size.isascii() and size.isdecimal() for size in sizes)
    if right and all(len(size) < 19 for size in sizes):
        found = tuple(map(int, sizes))
        if all(least <= size <= bound for size, bound in zip(found, most, strict=False)):
            return found
    raise _wrong(what, text, f"{least} or more, and at most {_sizes(most)}")


def _sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _wrong(what: str, given: str, expected: str) -> ArgumentError:
    return ArgumentError(f"{what}: given {given}, expected {expected}")
