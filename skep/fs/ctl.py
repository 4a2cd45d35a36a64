"""The grammar of ctl files: whole lines ``verb key=value …``, quoted as in rc, or a JSON object a line.

Pure: bytes to commands, commands to text, verbs as rows of a table. What a command does is its tree's.

    submit topic=sha256 input='it''s' priority=3
    {"verb": "submit", "topic": "sha256", "input": "two\\nlines"}
    record session=01JD on
    # empty lines and comments are skipped; the last newline may be missing

A bare ``on`` or ``off`` is ``set=on`` or ``set=off``. A verb or an argument that the table does not have is
an error, never dropped.
Source: rc(1) of Plan 9, quotation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Final, NamedTuple

import msgspec

from skep.fs.errors import E, FsError
from skep.fs.tracecontext import is_traceparent, is_tracestate
from skep.trace.clock import parse_duration

LINE_MAX: Final = 20 * 1024  # bytes: a line and its event share a ledger entry of 64 KiB.
LINES_MAX: Final = 1024  # of one write: one transaction is decided without a pause.
NAME_MAX: Final = 128  # bytes of an object's name: names are file names, and end in "@N" sometimes.

SIZE_MAX: Final = 1 << 53  # bytes: every reader of JSON has numbers so large.

SWITCHES: Final[Mapping[str, str]] = {word: f"set={word}" for word in ("on", "off")}  # as people say it
_WORD: Final = re.compile(r"(?:[^ \t']|'(?:[^']|'')*')+")
_QUOTED: Final = re.compile(r"'((?:[^']|'')*)'")
_PLAIN: Final = re.compile(r"[^\x00-\x20\x7f']+")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LISTED: Final = re.compile(r"[A-Za-z0-9][\w.:+@-]{0,127}", re.ASCII)
_SIZE: Final = re.compile(r"(\d{1,15})(KiB|MiB|GiB)?", re.ASCII)
_UNITS: Final = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SHA256: Final = re.compile(r"(?:sha256:)?[0-9a-f]{64}")
_INPUT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")  # a word of a command's, and a file's name


class Command(NamedTuple):
    """One line of a write: ``text`` as it was written, ``number`` its place in the write, from 1."""

    verb: str
    args: dict[str, str]
    text: str
    number: int = 1


class Arg(NamedTuple):
    """One argument of a verb. ``kind`` is a row of KINDS, or the words allowed: ``short|standard``."""

    name: str
    required: bool = False
    kind: str = "text"
    help: str = ""


class _Row(NamedTuple):
    name: str
    args: tuple[Arg, ...] = ()
    example: str = ""
    help: str = ""
    secret: bool = False  # whether the reply is one: it is in no recording of the conversation


class Verb(_Row):
    """One row of a ctl file's table."""

    @cached_property
    def accepts(self) -> Mapping[str, Callable[[str], bool]]:
        """What each argument takes, by its name."""
        return {arg.name: _accepts(arg.kind) for arg in (*self.args, IF_REV)}

    @cached_property
    def required(self) -> tuple[str, ...]:
        """The names of the arguments that must be there."""
        return tuple(arg.name for arg in self.args if arg.required)


Verbs = Mapping[str, Verb]


def verbs(*rows: Verb) -> dict[str, Verb]:
    """A table of the rows, by name."""
    return {row.name: row for row in rows}


# reading


def parse(data: bytes) -> list[Command]:
    """The commands of one write. Raises FsError(E.USAGE or E.TOOBIG) that names the line."""
    lines = data.split(b"\n")
    if len(lines) > LINES_MAX + 1:
        raise FsError(E.TOOBIG, f"max={LINES_MAX} lines, this write has {len(lines)}")
    commands = []
    for number, raw in enumerate(lines, 1):
        if len(raw) > LINE_MAX:
            raise FsError(E.TOOBIG, f"max={LINE_MAX} bytes, line {number} has {len(raw)}")
        try:
            text = raw.decode().strip(" \t\r")
        except UnicodeDecodeError as error:
            raise FsError(E.USAGE, f"line {number}: byte {error.start}: not UTF-8") from error
        if text and not text.startswith("#"):
            commands.append(parse_line(text, number))
    return commands


def parse_line(text: str, number: int = 1) -> Command:
    """The command of one line that is neither empty nor a comment. Raises FsError(E.USAGE)."""
    if text.startswith("{"):
        return _parse_json(text, number)
    if found := _CONTROL.search(text):
        raise FsError(E.USAGE, f"line {number}: control character {found[0]!r}, write a JSON object for it")
    words = _words(text, number)
    args: dict[str, str] = {}
    for word in words[1:]:
        # The name ends at the first "=" outside quotes: a quote before it would be part of the name.
        name, equals, value = SWITCHES.get(word, word).partition("=")
        if not equals or "'" in name or not name:
            raise FsError(E.USAGE, f"line {number}: {word}: expected key=value")
        if name in args or name == "verb":  # as the JSON form has it
            raise FsError(E.USAGE, f"line {number}: {name}= is there twice")
        args[name] = _unquote(value)
    return Command(_unquote(words[0]), args, text, number)


def _words(text: str, number: int) -> list[str]:
    """The words between blanks, still quoted."""
    if "'" not in text:
        # Of the characters that it splits at, ``text`` has none but these two, or more than ASCII.
        return text.split() if text.isascii() else _WORD.findall(text)
    if text.count("'") % 2:
        raise FsError(E.USAGE, f"line {number}: a quote ' is not closed (inside quotes it is written '')")
    return _WORD.findall(text)


def _unquote(word: str) -> str:
    return _QUOTED.sub(lambda m: m[1].replace("''", "'"), word) if "'" in word else word


def _parse_json(text: str, number: int) -> Command:
    try:
        found = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise FsError(E.USAGE, f"line {number}: {error}") from error
    verb = found.pop("verb", None)
    if not isinstance(verb, str) or not verb:
        raise FsError(E.USAGE, f'line {number}: expected a "verb" in the object')
    args = {name: _json_text(value) for name, value in found.items() if value is not None}
    return Command(verb, args, text, number)


def _json_text(value: object) -> str:
    """A string as it is, anything else as its JSON text: ``3``, ``true``, ``["a","b"]``."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# writing


def quote(value: str) -> str:
    """``value`` as one word. Control characters have no quotation: ``line`` writes JSON for them."""
    return value if _PLAIN.fullmatch(value) else "'" + value.replace("'", "''") + "'"


def line(verb: str, args: Mapping[str, str]) -> str:
    """The line that parses to this command, without its newline."""
    plain_names = all(_PLAIN.fullmatch(name) and "=" not in name for name in args)
    if not plain_names or verb.startswith(("#", "{")) or any(map(_CONTROL.search, (verb, *args.values()))):
        return msgspec.json.encode({"verb": verb} | dict(args)).decode()
    return " ".join([quote(verb), *(f"{name}={quote(value)}" for name, value in args.items())])


# checking


def is_name(value: str) -> bool:
    """Whether ``value`` can be a file's name and an object's."""
    return (
        value not in ("", ".", "..")
        and "/" not in value
        and not _CONTROL.search(value)
        and len(value if value.isascii() else value.encode("utf-8", "surrogatepass")) <= NAME_MAX
    )


def is_number(value: str) -> bool:
    return value.isascii() and value.isdigit() and len(value) <= 18


def is_duration(value: str) -> bool:
    try:
        parse_duration(value)
    except ValueError:
        return False
    return True


def is_labels(value: str) -> bool:
    try:
        labels(value)
    except ValueError:
        return False
    return True


def labels(value: str) -> dict[str, str]:
    """The pairs of ``k:v,k:v``, or of a JSON object of strings. Raises ValueError."""
    if not value:
        return {}
    if value.startswith("{"):
        return msgspec.json.decode(value, type=dict[str, str])
    pairs = [item.partition(":") for item in value.split(",") if item]
    if not all(name and colon for name, colon, _ in pairs):
        raise ValueError(f"labels {value!r}: expected k:v,k:v")
    return {name: text for name, _, text in pairs}


def is_list(value: str) -> bool:
    try:
        words = listed(value)
    except ValueError:
        return False
    return bool(words) and all(map(_LISTED.fullmatch, words))


def listed(value: str) -> tuple[str, ...]:
    """The words of ``a,b,k:v``, or of a JSON array of strings, each once, as they stand; none of "".

    Raises ValueError."""
    words = msgspec.json.decode(value, type=list[str]) if value.startswith("[") else value.split(",")
    return tuple(dict.fromkeys(words)) if value else ()


def is_artifacts(value: str) -> bool:
    try:
        artifacts(value)
    except ValueError:
        return False
    return True


def artifacts(value: str) -> dict[str, str]:
    """The pairs of ``a:notes.txt,b:<sha256>``, or of a JSON object of strings: what an artifact is called
    here, and its name or its hash, that without ``sha256:`` before it. Raises ValueError."""
    if value.startswith("{"):
        found = msgspec.json.decode(value, type=dict[str, str])
        pairs = list(found.items())
    else:
        pairs = [(name, said) for name, _, said in (item.partition(":") for item in value.split(","))]
    if len(dict(pairs)) < len(pairs) or not pairs:
        raise ValueError(f"artifacts {value!r}: expected each name once, and one at least")
    if not all(said and is_input(name) for name, said in pairs):
        raise ValueError(f"artifacts {value!r}: expected a:<name or sha256>,b:<name or sha256>")
    return {name: said.removeprefix("sha256:") if is_sha256(said) else said for name, said in pairs}


def is_input(name: str) -> bool:
    """Whether an artifact may be called so where several go in."""
    return _INPUT.fullmatch(name) is not None


def is_sha256(value: str) -> bool:
    return _SHA256.fullmatch(value) is not None


def is_size(value: str) -> bool:
    try:
        size(value)
    except ValueError:
        return False
    return True


def size(value: str) -> int:
    """The bytes of ``4GiB``, or of a number of them. Raises ValueError."""
    found = _SIZE.fullmatch(value)
    bytes_ = SIZE_MAX + 1 if found is None else int(found[1]) * _UNITS[found[2] or ""]
    if bytes_ > SIZE_MAX:
        raise ValueError(f"size {value!r}: expected a number, and KiB, MiB, GiB or nothing behind it")
    return bytes_


class Kind(NamedTuple):
    accepts: Callable[[str], bool]
    expected: str


KINDS: Final[Mapping[str, Kind]] = {
    "text": Kind(lambda value: True, "text"),
    "name": Kind(is_name, f"a name of at most {NAME_MAX} bytes without /"),
    "number": Kind(is_number, "a whole number"),
    "size": Kind(is_size, "bytes, like 4GiB or 65536"),
    "duration": Kind(is_duration, "a duration, like 30s"),
    "list": Kind(is_list, "words, like a,b or k:v"),
    "labels": Kind(is_labels, "labels, like k:v,k:v"),
    "traceparent": Kind(is_traceparent, "a W3C traceparent, 00-<32 hex>-<16 hex>-<2 hex>"),
    "tracestate": Kind(is_tracestate, "a W3C tracestate, vendor=value,… of at most 512 characters"),
    "sha256": Kind(is_sha256, "64 hex digits, sha256: before them"),
    "artifacts": Kind(is_artifacts, "artifacts by what they are called, like a:notes.txt,b:<sha256>"),
}

IF_REV: Final = Arg("if-rev", kind="number", help="only if the object's revision is this")


def check(command: Command, table: Verbs) -> Verb:
    """The row of the command's verb, when its arguments are the row's. Raises FsError(E.USAGE)."""
    row = table.get(command.verb)
    if row is None:
        known = " ".join(table) or "no verb"
        raise FsError(E.USAGE, f"line {command.number}: {command.verb}: unknown verb, expected {known}")
    accepts = row.accepts
    for name, value in command.args.items():
        accepted = accepts.get(name)
        if accepted is None or not accepted(value):
            raise _unaccepted(command, row, name)
    for name in row.required:
        if name not in command.args:
            said = pointer(name) if _is_json(command) else f"{name}="
            raise FsError(E.USAGE, f"{_where(command)}: {said} is missing, expected {synopsis(row)}")
    return row


def _unaccepted(command: Command, row: Verb, name: str) -> FsError:
    """Why the argument is not one that the row takes."""
    value, is_json = command.args[name], _is_json(command)
    arg = next((arg for arg in (*row.args, IF_REV) if arg.name == name), None)
    if arg is None:
        said = f"{pointer(name)}: unknown field" if is_json else f"{name}=: unknown argument"
        return FsError(E.USAGE, f"{_where(command)}: {said}, expected {synopsis(row)}")
    said = f"{pointer(name)}: {quote(value)}" if is_json else f"{name}={quote(value)}"
    return FsError(E.USAGE, f"{_where(command)}: {said}: expected {_expected(arg.kind)}")


def _where(command: Command) -> str:
    return f"line {command.number}: {command.verb}"


def _is_json(command: Command) -> bool:
    return command.text.startswith("{")


def pointer(name: str) -> str:
    """The JSON pointer (RFC 6901) of a member of the line's object."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _accepts(kind: str) -> Callable[[str], bool]:
    return frozenset(kind.split("|")).__contains__ if "|" in kind else KINDS[kind].accepts


def _expected(kind: str) -> str:
    return f"one of {kind.replace('|', ' ')}" if "|" in kind else KINDS[kind].expected


def synopsis(row: Verb) -> str:
    """``submit topic=<name> [key=<name>]``."""
    parts = [row.name]
    for arg in row.args:
        shown = f"{arg.name}={arg.kind if '|' in arg.kind else f'<{arg.kind}>'}"
        parts.append(shown if arg.required else f"[{shown}]")
    return " ".join(parts)


def usage(table: Verbs) -> str:
    """What a read of the ctl gives: each verb, what it does, its arguments, an example."""
    return "".join("\n".join(_usage_lines(row)) + "\n" for row in table.values())


def _usage_lines(row: Verb) -> Iterable[str]:
    yield synopsis(row)
    if row.help:
        yield f"\t{row.help}"
    yield from (f"\t{arg.name}: {arg.help}" for arg in row.args if arg.help)
    if row.example:
        yield f"\texample: {row.example}"
