"""Messages as lines people read and write: ``Tread tag 5 fid 1 offset 0 count 100``.

A line is the message's name, its tag and its fields by name in the order of the wire; lines are made and read
from the declarations in messages.py. Forms of values:

    17  0o644  0x7ff  NOFID  NOTAG     numbers
    hello  "two words\\n"  "x"*4096     strings and data: bytes, quoted where needed, \\xNN for those not text
    (80 0 17)                          a qid: type in hexadecimal, version, path
    wname usr glenda                   a sequence: all that follows, it is always a message's last field
    stat (name hello length 5)         a stat: fields by name, the others say "leave it" (DONT_TOUCH)
    data (qid (0 0 3) offset 1 …) …    what Rreaddir carries: directory entries, by field

A field left out of a line that is read is 0, empty or, an afid, NOFID.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final, NamedTuple, get_args, get_origin, get_type_hints

from skep.fs.errors import FsError
from skep.fs.messages import (
    DONT_TOUCH,
    NOFID,
    NONUNAME,
    NOTAG,
    NUMBERS,
    Dialect,
    Message,
    Only,
    Qid,
    Rreaddir,
    Stat,
)
from skep.fs.wire import Dirent, pack_dirent, unpack_dirents

NAMES: Final = {message.__name__: message for message in NUMBERS}
_FIDS: Final = ("fid", "afid", "newfid", "dfid", "olddirfid", "newdirfid", "dirfid")
_FORMATS: Final = {"mode": "0o{:o}", "perm": "0o{:o}", "flags": "0o{:o}", "valid": "{:#x}",
                   "request_mask": "{:#x}"}  # fmt: skip
_WORD: Final = re.compile(r"[A-Za-z0-9_./@+%,=<>-][A-Za-z0-9_./@+%,=<>:#-]*")
_TOKEN: Final = re.compile(r'\s*(?:([()])|("(?:[^"\\]|\\.)*"(?:\*\d+)?)|([^\s()"]+))')
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(?:\*(\d+))?')
_ESCAPE: Final = re.compile(r"\\(x[0-9a-fA-F]{2}|.)")
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0"}
REST: Final = "..."  # in a line to compare with: the other fields may be anything
_RUN: Final = 32  # bytes all alike from which on they are counted instead of shown

Tree = str | list["Tree"]  # a word as it stands, or what stands in parentheses


class Field(NamedTuple):
    """A field of a record and how it is written: number, string, data, qid, stat, names or qids."""

    name: str
    kind: str


_KINDS: Final[dict[Any, str]] = {
    int: "number", str: "string", bytes: "data", Qid: "qid", Stat: "stat",
    tuple[str, ...]: "names", tuple[Qid, ...]: "qids",
}  # fmt: skip


@functools.cache
def fields(record: type[Any], dialect: Dialect) -> tuple[Field, ...]:
    """The fields of a message, of Stat or of Dirent, as this dialect has them."""
    found = []
    for name, hint in get_type_hints(record, include_extras=True).items():
        metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if any(isinstance(mark, Only) and dialect not in mark.dialects for mark in metadata):
            continue
        found.append(Field(name, _KINDS[get_args(hint)[0] if get_origin(hint) is Annotated else hint]))
    return tuple(found)


# Showing


def show(tag: int, message: Message, dialect: Dialect) -> str:
    """The line of one message."""
    tag_text = "NOTAG" if tag == NOTAG else str(tag)
    words = [type(message).__name__, "tag", tag_text]
    for field in fields(type(message), dialect):
        words += [field.name, *_show_field(message, field, dialect)]
    return " ".join(words)


def _show_field(message: Any, field: Field, dialect: Dialect) -> Iterable[str]:
    value = getattr(message, field.name)
    if field.kind in ("names", "qids"):
        one = _show_qid if field.kind == "qids" else quote
        return [one(item) for item in value]
    if isinstance(message, Rreaddir):
        return _show_dirents(value)
    return [_show_value(value, field, dialect)]


def _show_value(value: Any, field: Field, dialect: Dialect) -> str:
    match field.kind:
        case "number":
            return _show_number(value, field.name)
        case "string" | "data":
            return quote(value)
        case "qid":
            return _show_qid(value)
    told = [
        f"{part.name} {_show_value(getattr(value, part.name), part, dialect)}"
        for part in fields(Stat, dialect)
        if getattr(value, part.name) != getattr(DONT_TOUCH, part.name)
    ]
    return f"({' '.join(told)})"


def _show_number(value: int, name: str) -> str:
    if value == NOFID and name in _FIDS:
        return "NOFID"
    if value == NONUNAME and name == "n_uname":
        return "NONUNAME"
    return _FORMATS.get(name, "{}").format(value) if value > 9 else str(value)


def _show_qid(qid: Qid) -> str:
    return f"({qid.type:x} {qid.vers} {qid.path})"


def _show_dirents(data: bytes) -> list[str]:
    try:
        entries = unpack_dirents(memoryview(data))
    except FsError:
        return [quote(data)]
    return [
        f"(qid {_show_qid(e.qid)} offset {e.offset} type {e.type} name {quote(e.name)})" for e in entries
    ] or ['""']


def quote(value: str | bytes | memoryview) -> str:
    """A string or data as one word."""
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    if len(raw) >= _RUN and raw.count(raw[:1]) == len(raw):
        return f'"{_escaped(raw[:1].decode("utf-8", "surrogateescape"))}"*{len(raw)}'
    text = raw.decode("utf-8", "surrogateescape")
    if _WORD.fullmatch(text) and text != REST:
        return text
    return f'"{"".join(_escaped(char) for char in text)}"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char == "\n":
        return "\\n"
    if char == "\t":
        return "\\t"
    if char.isprintable() and not "\udc80" <= char <= "\udcff":
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))


# Reading


def parse(line: str, dialect: Dialect) -> tuple[int, Message]:
    """The tag and message that ``line`` tells. Raises ValueError that quotes what it cannot read."""
    name, tag, told = split(line)
    kind = NAMES.get(name)
    if kind is None:
        raise ValueError(f"{name!r} is no message: {line}")
    parts = fields(kind, dialect)
    unknown = told.keys() - {field.name for field in parts}
    if unknown:
        raise ValueError(f"{name} has no field {', '.join(sorted(unknown))} in {dialect.value}: {line}")
    values = [_parse_field(told.get(field.name), field, dialect) for field in parts]
    return _parse_number(tag), kind(*values)


def split(line: str) -> tuple[str, str, dict[str, list[Tree]]]:
    """The name of the message, its tag, and the words of each field as they stand (REST among them)."""
    words = tokens(line)
    match words:
        case [str(name), "tag", str(tag), *rest] if name in NAMES:
            pass
        case _:
            raise ValueError(f"a line begins with a message's name and its tag: {line}")
    kinds = {field.name: field.kind for dialect in Dialect for field in fields(NAMES[name], dialect)}
    told: dict[str, list[Tree]] = {}
    while rest:
        field = rest.pop(0)
        if field == REST:
            told[REST] = []
        elif not isinstance(field, str) or field not in kinds:
            raise ValueError(f"{name} has no field {field!r}: {line}")
        elif kinds[field] in ("names", "qids") or (name == "Rreaddir" and field == "data"):
            told[field], rest = rest, []
        else:
            told[field] = [rest.pop(0)] if rest else []
    return name, tag, told


def tokens(line: str) -> list[Tree]:
    """The words of a line; what stands in parentheses is a list."""
    stack: list[list[Tree]] = [[]]
    at = 0
    line = line.rstrip()
    while at < len(line):
        found = _TOKEN.match(line, at)
        if found is None:
            raise ValueError(f"{line[at:]!r} cannot be read: {line}")
        at = found.end()
        paren, quoted, word = found.groups()
        if paren == "(":
            stack.append([])
        elif paren == ")":
            if len(stack) == 1:
                raise ValueError(f"a parenthesis too many: {line}")
            closed = stack.pop()
            stack[-1].append(closed)
        else:
            stack[-1].append(quoted or word)
    if len(stack) != 1:
        raise ValueError(f"a parenthesis is open: {line}")
    return stack[0]


def _parse_field(words: list[Tree] | None, field: Field, dialect: Dialect) -> Any:
    if field.kind == "names":
        return tuple(_parse_string(word) for word in words or ())
    if field.kind == "qids":
        return tuple(_parse_qid(word) for word in words or ())
    if field.kind == "data" and words and isinstance(words[0], list):
        return b"".join(pack_dirent(_parse_dirent(word)) for word in words)
    if words is None:
        return {"number": NOFID if field.name == "afid" else NONUNAME if field.name == "n_uname" else 0,
                "string": "", "data": b"", "qid": Qid(0, 0, 0), "stat": DONT_TOUCH}[field.kind]  # fmt: skip
    if len(words) != 1:
        raise ValueError(f"{field.name} has one value, not {words}")
    return _parse_value(words[0], field, dialect)


def _parse_value(word: Tree, field: Field, dialect: Dialect) -> Any:
    match field.kind:
        case "number":
            return _parse_number(word)
        case "string":
            return _parse_string(word)
        case "data":
            return unquote(word)
        case "qid":
            return _parse_qid(word)
    values = {part.name: getattr(DONT_TOUCH, part.name) for part in fields(Stat, dialect)}
    for name, value in _pairs(word):
        part = next((part for part in fields(Stat, dialect) if part.name == name), None)
        if part is None:
            raise ValueError(f"a stat has no {name!r} in {dialect.value}")
        values[name] = _parse_value(value, part, dialect)
    return Stat(**values)


def _pairs(word: Tree) -> Iterable[tuple[str, Tree]]:
    if not isinstance(word, list) or len(word) % 2:
        raise ValueError(f"names and values in parentheses were expected: {word!r}")
    for name, value in zip(word[::2], word[1::2], strict=True):
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is no name of a field")
        yield name, value


def _parse_dirent(word: Tree) -> Dirent:
    told = dict(_pairs(word))
    return Dirent(
        _parse_qid(told["qid"]), _parse_number(told["offset"]), _parse_number(told["type"]),
        _parse_string(told["name"]),
    )  # fmt: skip


def _parse_number(word: Tree) -> int:
    named = {"NOTAG": NOTAG, "NOFID": NOFID, "NONUNAME": NONUNAME}
    if not isinstance(word, str):
        raise ValueError(f"{word!r} is no number")
    return named[word] if word in named else int(word, 0)


def _parse_qid(word: Tree) -> Qid:
    match word:
        case [str(kind), str(vers), str(path)]:
            return Qid(int(kind, 16), int(vers), int(path))
    raise ValueError(f"{word!r} is no qid: (80 0 17) was expected")


def _parse_string(word: Tree) -> str:
    return unquote(word).decode("utf-8", "surrogateescape")


def unquote(word: Tree) -> bytes:
    """The bytes a word stands for."""
    if not isinstance(word, str):
        raise ValueError(f"{word!r} is no string")
    quoted = _QUOTED.fullmatch(word)
    if quoted is None:
        return word.encode("utf-8", "surrogateescape")
    text, times = quoted.groups()
    return _ESCAPE.sub(_unescaped, text).encode("utf-8", "surrogateescape") * int(times or 1)


def _unescaped(escape: re.Match[str]) -> str:
    what = escape[1]
    if what[0] == "x" and len(what) == 3:
        return bytes([int(what[1:], 16)]).decode("utf-8", "surrogateescape")
    return _ESCAPES.get(what, what)
