"""A trace as people read it: a line for each entry, or for each message of a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from skep.fs.ninept import End, Header
from skep.fs.transcript import show as transcript
from skep.trace.clock import rfc3339
from skep.trace.entry import Entry, entry_decoder
from skep.trace.ledger import LedgerTampered
from skep.validator.conversation.talk import Said

WIDTH: Final = 160  # of a line that was written, and of an event, as they are shown
_FIRST: Final = ("job", "lock", "node", "name", "id", "fence", "state", "why")  # of an event's fields

Paint = Callable[[str, str], str]
"""A text in a colour, by its name: what is shown on a terminal."""


def plain(text: str, colour: str) -> str:
    return text


_decoder: Final[msgspec.json.Decoder[Entry[dict[str, Any]]]] = entry_decoder(dict[str, Any])


def decoded(seq: int, body: bytes) -> Entry[dict[str, Any]]:
    """Raises LedgerTampered."""
    try:
        return _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise LedgerTampered(f"entry {seq}: {error}") from error


def entry_line(entry: Entry[dict[str, Any]], paint: Paint = plain) -> str:
    """``time seq actor (role) path line: outcome``, and its events in short."""
    out = entry.outcome
    ok = out.code == "ok"
    said = paint("ok", "green") if ok else paint(f"{out.code}: {cut(out.text)}", "red")
    events = "".join(f"; {_event(event, paint)}" for event in entry.events)
    who = f"{paint(cut(entry.actor), 'cyan')} ({entry.role})"
    number = paint(str(entry.seq), "yellow")
    line = f"{cut(entry.path)} {cut(entry.line)}"
    return f"{rfc3339(entry.time)} {number} {who} {line}: {said}{events}"


def _event(event: dict[str, Any], paint: Paint) -> str:
    names = [name for name in _FIRST if name in event]
    said = " ".join(f"{name}={event[name]}" for name in names)
    return paint(str(event.get("type", "?")), "magenta") + (f" {cut(said)}" if said else "")


def header_line(header: Header) -> str:
    node = f" node {header.node}" if header.node else ""
    return (
        f"{rfc3339(header.time)} session {header.session}: {header.principal} ({header.role}){node},"
        f" tenant {header.tenant}, {header.dialect or 'no dialect yet'}, skep {header.release},"
        f" after entry {header.seq}"
    )


def said_line(said: Said, paint: Paint = plain) -> str:
    """``time record -> message``, its fields by name; what is hidden is counted."""
    arrow, colour = ("->", "cyan") if said.asks else ("<-", "green")
    if said.kind in ("Rlerror", "Rerror"):
        colour = "red"
    message = said.message
    if message is None:
        text = f"{said.frame[:32].hex(' ')} (no message of {said.dialect.value})"
    else:
        text = transcript(said.tag, message, said.dialect)
    name, _, rest = text.partition(" ")
    more = f"  # {cut(said.path)}" if said.path else ""
    if said.hidden:
        more += f"  # {said.hidden} bytes are hidden"
    number = paint(str(said.n), "yellow")
    return f"{rfc3339(said.time_ns)} {number} {arrow} {paint(name, colour)} {cut(rest)}{more}"


def end_line(end: End | None) -> str:
    """How the recording ends; None: it was cut short."""
    if end is None:
        return "cut short: the recording has no end"
    lost = f", {end.lost} messages lost" if end.lost else ""
    return f"end: {end.why}{lost}"


def said_object(said: Said) -> dict[str, Any]:
    """The same for programs."""
    message = said.message
    fields = {} if message is None else {f: getattr(message, f) for f in message.__struct_fields__}
    found: dict[str, Any] = {
        "record": said.n, "time": said.time_ns, "seq": said.seq, "tag": said.tag, "message": said.kind,
        "path": said.path, "hidden": said.hidden,
        "fields": {name: _json(value) for name, value in fields.items()},
    }  # fmt: skip
    if said.to is not None:
        found["answers"] = said.to.n
    return found


def _json(value: Any) -> Any:
    """Data as text, what is not UTF-8 escaped as in transcripts."""
    if isinstance(value, memoryview):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, str):  # names of 9P2000.L are any bytes
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return value


def cut(text: str) -> str:
    """``text`` in one line, and no longer than is read. What is recorded must not speak to a terminal."""
    one = " | ".join(text.split("\n"))[: WIDTH + 1]
    seen = one if one.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in one)
    return seen if len(seen) <= WIDTH else f"{seen[:WIDTH]}…"
