"""What a worker does for each topic: a TOML file of argv templates.

    [sha256]                              # the topic
    argv = ["sha256sum", "{input}"]       # never a shell; {input} is the path of the input's file
    timeout = "10m"                       # of one run, else an hour; a job may ask for less
    result = "first-word"                 # of the last line it prints, else "last-line"

Placeholders: {input} the input's file (empty when there is none), {input:a} the file of the one that submit
calls a in inputs= (a job that has none such fails), {text} the input's text, {job} {topic} {attempt} {labels}
(as k:v,k:v); not in the program's own place. A brace is written twice. Everything that is not understood is
refused, with its place. What a job says may begin with a dash: put "--" before {text} where that matters.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec

from skep.fs.ctl import is_input
from skep.trace.clock import parse_duration

PLACEHOLDERS: Final = ("input", "text", "job", "topic", "attempt", "labels")
TIMEOUT: Final = "1h"  # of a handler that says nothing: a hung job must not keep its worker for ever


class HandlersError(Exception):
    """The file cannot be used; the text names it, the place, and what was expected."""


class Handler(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is run for a topic."""

    argv: tuple[str, ...]
    timeout: str = TIMEOUT
    result: Literal["last-line", "first-word"] = "last-line"

    @property
    def timeout_ns(self) -> int:
        return parse_duration(self.timeout)

    def named(self) -> frozenset[str]:
        """The names of the inputs that it asks for."""
        return frozenset(spec for word in self.argv for _, _, spec, _ in _parse(word) if spec)

    def command(self, values: Mapping[str, str], inputs: Mapping[str, str]) -> list[str]:
        """The argv with ``values`` (of all PLACEHOLDERS) and ``inputs`` (of all that are named) in it."""
        return [_filled(word, values, inputs) for word in self.argv]


def _filled(word: str, values: Mapping[str, str], inputs: Mapping[str, str]) -> str:
    parts = (
        text + ("" if name is None else inputs[spec] if spec else values[name])
        for text, name, spec, _ in _parse(word)
    )
    return "".join(parts)


def load(path: Path) -> dict[str, Handler]:
    """The handlers by topic. Raises HandlersError, OSError."""
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise HandlersError(f"{path}: {error}") from error
    handlers = {topic: _handler(path, topic, table) for topic, table in found.items()}
    if not handlers:
        raise HandlersError(f'{path}: no topic in it: expected tables like [sha256] with argv = ["…"]')
    return handlers


def _handler(path: Path, topic: str, table: object) -> Handler:
    try:
        handler = msgspec.convert(table, Handler)
        parse_duration(handler.timeout)
    except (msgspec.ValidationError, ValueError) as error:
        raise HandlersError(f"{path}: [{topic}]: {error}") from error
    if not handler.argv:
        raise HandlersError(f"{path}: [{topic}]: argv is empty: expected a program and its arguments")
    program = handler.argv[0]
    if "{" in program or ("/" in program and not program.startswith("/")):
        raise HandlersError(
            f"{path}: [{topic}]: argv[0] {program!r}: expected a program's name or whole path"
        )
    for i, word in enumerate(handler.argv):
        _check_word(f"{path}: [{topic}]: argv[{i}] {word!r}", word)
    return handler


def _check_word(where: str, word: str) -> None:
    known = " ".join(f"{{{name}}}" for name in (*PLACEHOLDERS, "input:<name>"))
    try:
        parts = list(_parse(word))
    except ValueError as error:
        raise HandlersError(f"{where}: {error}: a brace is written twice") from error
    for _, name, spec, conversion in parts:
        of_input = name == "input" and spec and is_input(spec)
        if name is not None and (name not in PLACEHOLDERS or (spec and not of_input) or conversion):
            raise HandlersError(f"{where}: expected one of {known}; a brace is written twice")


_parse: Final = string.Formatter().parse  # text, then a placeholder's name, what follows its colon, and "!r"
