"""A witness that is killed before its n-th call of the disk: python dying_witness.py DIRECTORY N < bodies.

It reads add-checkpoints, each after its length in bytes on a line of its own, and prints the cosignatures
that left it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from skep.namespaces.seen import Witness
from skep.trace.clock import SystemClock

CALLS = ("open", "fsync", "replace", "rename", "unlink")


def main() -> None:
    directory, at = Path(sys.argv[1]), int(sys.argv[2])
    witness = Witness(directory, "w", SystemClock())
    calls = count(1)

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **more: Any) -> Any:
            if next(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **more)

        return called

    for name in CALLS:
        setattr(os, name, dying(getattr(os, name)))
    while line := sys.stdin.buffer.readline():
        sys.stdout.write(witness.add_checkpoint(sys.stdin.buffer.read(int(line))))
        sys.stdout.flush()


main()
