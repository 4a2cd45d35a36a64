"""Arrays in files: inputs read where they are, results written with their hash."""

from __future__ import annotations

from hashlib import file_digest
from pathlib import Path
from typing import Any

import numpy as np

from skep.native.kernels.arguments import ArgumentError, Told, shown
from skep.native.kernels.check import told_of
from skep.native.kernels.request import Made


def array(name: str, path: Path, raw: Told | None = None) -> Any:
    """The array of a .npy file, or of the elements alone that ``raw`` tells. Raises ArgumentError."""
    if not path.is_file():
        raise ArgumentError(f"{name}: {path}: expected a file")
    if raw is not None:
        return _elements(name, path, raw)
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise ArgumentError(f"{name}: {path}: expected an array in .npy: {error}") from error


def _elements(name: str, path: Path, raw: Told) -> Any:
    size = path.stat().st_size
    if size != raw.size:
        raise ArgumentError(f"{name}: {path}: given {size} bytes, expected the {raw.size} of {shown(raw)}")
    dtype = np.dtype(raw.dtype).newbyteorder("<")
    # No memory can be mapped from a file of nothing.
    return np.memmap(path, dtype, "r", shape=raw.shape) if size else np.empty(raw.shape, dtype)


def saved(directory: Path, name: str, out: Any, form: str) -> Made:
    path = directory / f"{name}.{form}"
    if form == "npy":
        np.save(path, out, allow_pickle=False)
    else:
        out.astype(out.dtype.newbyteorder("<"), copy=False).tofile(path)
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()
    of = told_of(out)
    return Made(str(path), of.dtype, list(of.shape), digest)
