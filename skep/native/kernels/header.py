"""What is in a .npy file, by its header alone, without numpy: for who decides where it goes.

Source: NumPy, doc/source/reference/generated/numpy.lib.format.html (versions 1.0 to 3.0)."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, Final

from skep.native.kernels.arguments import AXES_MAX, DTYPES, SIZE_END, ArgumentError, Told

MAGIC: Final = b"\x93NUMPY"
SIZE_MAX: Final = 1 << 16  # bytes of a header: one of eight axes has less than 200
DTYPE_MAX: Final = 40  # characters of a dtype that is quoted
_PLAIN: Final = re.compile("[!-~]+")
# Source: Python's ast.literal_eval, what it may raise.
_UNREADABLE: Final = (ValueError, TypeError, SyntaxError, MemoryError, RecursionError)
_LENGTHS: Final = {1: 2, 2: 4, 3: 4}  # bytes of the header's length, by version
_KINDS: Final = {"i": "int", "u": "uint", "f": "float"}
# Of one byte there is no order: numpy writes |. Otherwise it must be this machine's, which is <.
_NAMES: Final = {
    f"{'|' if size == 1 else '<'}{kind}{size}": name
    for kind, of in _KINDS.items()
    for name, size in DTYPES.items()
    if name.rstrip("0123456789") == of
}


def header(name: str, path: Path) -> Told:
    """Of the argument ``name``, in a file; a dtype that nothing takes is as numpy writes it. Raises
    ArgumentError."""
    try:
        with path.open("rb") as file:
            return _told(file.read(SIZE_MAX))
    except OSError as error:
        raise ArgumentError(f"{name}: {path}: expected a file: {error.strerror}") from error
    except _UNREADABLE as error:
        raise ArgumentError(f"{name}: {path}: expected an array in .npy: {error}") from error


def _told(begin: bytes) -> Told:
    """Raises what _UNREADABLE has."""
    version = begin[len(MAGIC)] if begin.startswith(MAGIC) and len(begin) > len(MAGIC) else 0
    if version not in _LENGTHS:
        raise ValueError("no such beginning")
    at = len(MAGIC) + 2
    length = int.from_bytes(begin[at : at + _LENGTHS[version]], "little")
    text = begin[at + _LENGTHS[version] :][:length]
    if len(text) < length:
        raise ValueError("the header is cut short")
    of: Any = ast.literal_eval(text.decode("utf-8" if version == 3 else "latin1").strip())
    shape = of.get("shape") if isinstance(of, dict) else None
    if not isinstance(shape, tuple) or len(shape) > AXES_MAX or not all(map(_is_size, shape)):
        raise ValueError("no shape in its header")
    return Told(_dtype(of.get("descr")), shape)


def _is_size(of: object) -> bool:
    return type(of) is int and 0 <= of < SIZE_END


def _dtype(descr: object) -> str:
    """Its name; of one that nothing takes, as much as tells which it is."""
    text = descr if isinstance(descr, str) and _PLAIN.fullmatch(descr) else ascii(descr)
    return _NAMES.get(text, text[:DTYPE_MAX])
