"""One target in a process of its own: ``python -m tests.fuzz.child wire [libFuzzer's options, files]``.

libFuzzer starts itself again to merge: ``--as=FILE`` is a program by which it can.
"""

from __future__ import annotations

import sys
from importlib import import_module

import atheris


def main() -> None:
    name, *args = sys.argv[1:]
    program = args.pop(0).removeprefix("--as=") if args[:1] and args[0].startswith("--as=") else sys.argv[0]
    with atheris.instrument_imports(include=["skep"]):
        target = import_module(f"tests.fuzz.{name}")
    atheris.Setup([program, f"-max_len={target.LENGTH_MAX}", *args], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
