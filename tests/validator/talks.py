"""Conversations by hand: lines of a transcript in, a recording out."""

from __future__ import annotations

from skep.fs.messages import Dialect, Message, Rversion, Tversion
from skep.fs.ninept import End, Header, Writer
from skep.fs.transcript import parse
from skep.fs.wire import pack

HEADER = Header(
    release="0.1.0",
    dialect="9P2000.L",
    msize=8192,
    session="01JD0000000000000000000000",
    principal="unix:work",
    role="drone-worker",
    node="w1",
    tenant="default/default/default",
    aname="",
    tree="00" * 32,
    seq=0,
    time=1_700_000_000_000_000_000,
)
CLOSED = End(why="closed")
SECRET = 'Twrite tag 3 fid 9 offset 0 data "very secret"'


def packed(line: str) -> tuple[int, bytes, Message]:
    tag, message = parse(line, Dialect.L)
    plain = isinstance(message, Tversion | Rversion)
    return tag, pack(tag, message, Dialect.PLAIN if plain else Dialect.L), message


def recording(*lines: str, header: Header = HEADER, end: End | None = CLOSED, seq: int = 0) -> bytes:
    """A message for each line, a millisecond apart, all when the ledger had ``seq`` entries."""
    writer = Writer()
    data = writer.header(header)
    time_ns = header.time
    for line in lines:
        time_ns += 1_000_000
        frame = packed(line)[1]
        hidden = ((23, len(frame) - 23),) if line == SECRET else ()
        data += writer.record(line[0], time_ns, seq, frame, hidden)
    return data + (writer.end(time_ns, seq, end) if end is not None else b"")


BEGIN = (
    "Tattach tag 0 fid 0 afid NOFID uname w1",
    "Rattach tag 0 qid (80 0 1)",
    "Twalk tag 1 fid 0 newfid 1 wname locks ctl",
    "Rwalk tag 1 wqid (80 0 2) (0 0 3)",
)
