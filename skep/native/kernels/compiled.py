"""Loops compiled by numba, where it is installed; its use is decided by each twin, from measured sizes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any


@cache
def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled for this machine at its first use, and kept beside the module. numba must be installed."""
    import numba

    try:
        kernel: Callable[..., Any] = numba.njit(cache=True)(loop)
    except RuntimeError:
        # There is no place where it could be kept: neither beside the module nor in a home.
        kernel = numba.njit(loop)
    return kernel


def pays(size: int, warm: int, cold: int) -> bool:
    """Whether a compiled loop is worth it: from ``warm`` elements on in a process that has numba, from
    ``cold`` on in one that must load it first; never where it is not installed."""
    return size >= (warm if "numba" in sys.modules else cold) and find_spec("numba") is not None
