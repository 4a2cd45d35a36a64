"""A target with a mistake in it, to see that mistakes are found: a length is believed."""

from __future__ import annotations

from collections.abc import Iterator

from skep.fs.ctl import parse
from skep.fs.errors import FsError

LENGTH_MAX = 64


def seeds() -> Iterator[bytes]:
    yield b"take length=3 of=abc"
    # A byte less of the text is the mistake.
    yield b"take length=30 of=abcdefghijklmnopqrstuvwxyzabcd"


def one(data: bytes) -> None:
    try:
        commands = parse(data)
    except FsError:
        return
    for command in commands:
        said, text = command.args.get("length", "0"), command.args.get("of", "")
        if said.isdecimal() and text:
            assert int(said) <= len(text), command.text
