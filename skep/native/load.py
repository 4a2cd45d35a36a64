"""The load generator's face: it connects, attaches and opens, then lets load.c ask for a while.

A 9P client of its own, so that measuring a server measures none of ours. Operations:

    read     Tread of `count` bytes at offset 0 of the file
    write    Twrite of `count` bytes at offset 0
    stat     Tgetattr in 9P2000.L, Tstat in the other dialects
    walk     Twalk to the file and Tclunk: one operation is the pair
    ctl      Twrite of `line`, its %d replaced by another number each time

There is no Python twin: a Python generator would measure itself.
Source: Plan 9 manual, intro(5); diod's protocol.md for 9P2000.L."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from struct import Struct, pack, unpack_from

from skep.native._load import ffi, lib

NOTAG, NOFID, NONUNAME = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
ROOT, FILE = 0, 1  # the fids: the attach point and the file the operations are about
IO_HEADER = 24  # of a message with data; what the Linux client subtracts from msize
DEPTH_MAX = 512  # requests go out in one sendmsg, which takes 1024 pieces
STALL_S = 2.0  # a server that says nothing for so long has stalled

Rlerror, Tlopen, Tversion, Tattach, Rerror, Twalk, Topen, Tread = 7, 12, 100, 104, 107, 110, 112, 116
HEADER = Struct("<IBH")  # size[4] type[1] tag[2]

# What an operation opens the file for; those not named here only walk to it. The numbers of Tlopen's flags
# and Topen's mode agree as far as reading and writing go.
OPEN_FOR = {"read": os.O_RDONLY, "write": os.O_WRONLY, "ctl": os.O_WRONLY}
OPS = {"read": lib.LOAD_READ, "write": lib.LOAD_WRITE, "walk": lib.LOAD_WALK, "ctl": lib.LOAD_CTL}


@dataclass(frozen=True, slots=True)
class Load:
    """What one measurement saw. Counts only operations answered well, whole and within the time."""

    ops: int
    bytes: int
    seconds: float
    msize: int  # as the server agreed
    count: int  # bytes asked for or carried by each read or write
    p50_ns: int
    p99_ns: int
    errors: int
    error: str  # the first one; empty: none
    error_errno: int  # of the first error; 0: it had none
    stalled: bool
    serial: int  # the first line number that no ctl line has used

    @property
    def sound(self) -> bool:
        return not self.errors and not self.stalled

    @property
    def per_second(self) -> float:
        return self.ops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where the operations go: a server, a dialect, an attach point and a file below it."""

    address: str  # unix:PATH or tcp:HOST:PORT
    path: str = ""  # from the attach point, names parted by /; empty: the attach point itself
    dialect: str = "9P2000.L"
    aname: str = ""
    uname: str = "root"


def measure(
    place: Place,
    op: str,
    *,
    seconds: float,
    connections: int = 1,
    depth: int = 1,
    msize: int = 65536,
    count: int = 64,
    line: str = "",
    serial: int = 0,
    stall_s: float = STALL_S,
) -> Load:
    """Ask for `seconds` over so many connections, `depth` requests outstanding on each.

    `count` is cut to what the agreed msize carries and, reading, to what the file gives. Raises OSError when
    the server cannot be reached or refuses before the asking begins; later refusals are counted."""
    if not 1 <= depth <= DEPTH_MAX:
        raise ValueError(f"depth {depth}: expected 1 to {DEPTH_MAX}")
    with ExitStack() as open_sockets:
        socks = []
        for _ in range(connections):
            sock, agreed = attach(place, msize, stall_s)
            socks.append(open_sockets.enter_context(sock))
            if op != "walk":
                reach(sock, place, OPEN_FOR.get(op))
        count = min(count, agreed - IO_HEADER)
        if op == "read":
            count = unpack_from("<I", call(socks[0], 0, Tread, pack("<IQI", FILE, 0, count)))[0]
        return _run(socks, place, op, depth, count, line, serial, seconds, stall_s, agreed)


@contextmanager
def idle(place: Place, connections: int) -> Iterator[None]:
    """Hold so many attached connections that say nothing."""
    with ExitStack() as open_sockets:
        for _ in range(connections):
            open_sockets.enter_context(attach(place, 65536)[0])
        yield


def attach(place: Place, msize: int, stall_s: float = STALL_S) -> tuple[socket.socket, int]:
    """A new connection with fid ROOT attached, and the msize that the server agreed to."""
    sock = _connect(place.address, stall_s)
    try:
        body = call(sock, NOTAG, Tversion, pack("<I", msize) + _string(place.dialect))
        agreed = int(unpack_from("<I", body)[0])
        if body[6:].decode() != place.dialect:
            raise OSError(errno.EPROTO, f"asked for {place.dialect}, the server speaks {body[6:].decode()}")
        n_uname = pack("<I", os.getuid()) if place.dialect != "9P2000" else b""
        names = _string(place.uname) + _string(place.aname)
        call(sock, 0, Tattach, pack("<II", ROOT, NOFID) + names + n_uname)
    except BaseException:
        sock.close()
        raise
    return sock, agreed


def reach(sock: socket.socket, place: Place, mode: int | None) -> None:
    """Walk fid FILE to the file and open it for `mode` (None: leave it unopened)."""
    body = _names(place.path)
    qids = call(sock, 0, Twalk, pack("<II", ROOT, FILE) + body)
    if qids[:2] != body[:2]:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), place.path)
    if mode is not None and place.dialect == "9P2000.L":
        call(sock, 0, Tlopen, pack("<II", FILE, mode))
    elif mode is not None:
        call(sock, 0, Topen, pack("<IB", FILE, mode))


def _run(
    socks: list[socket.socket],
    place: Place,
    op: str,
    depth: int,
    count: int,
    line: str,
    serial: int,
    seconds: float,
    stall_s: float,
    agreed: int,
) -> Load:
    stat = lib.LOAD_GETATTR if place.dialect == "9P2000.L" else lib.LOAD_STAT
    head, _, tail = line.encode().partition(b"%d")
    body = _names(place.path) if op == "walk" else head
    fds = ffi.new("int[]", [s.fileno() for s in socks])
    # The structure borrows these for the run.
    body_c, tail_c = ffi.from_buffer(body), ffi.from_buffer(tail)
    load = ffi.new(
        "load_t *",
        {
            "op": OPS.get(op, stat),
            "nconn": len(socks),
            "depth": depth,
            "fds": fds,
            "count": count,
            "body": body_c,
            "nbody": len(body),
            "tail": tail_c,
            "ntail": len(tail),
            "serial": serial,
            "duration_ns": int(seconds * 1e9),
            "stall_ns": int(stall_s * 1e9),
        },
    )
    lib.load_run(load)
    return Load(
        ops=load.ops,
        bytes=load.bytes,
        seconds=load.elapsed_ns / 1e9,
        msize=agreed,
        count=count,
        p50_ns=load.p50_ns,
        p99_ns=load.p99_ns,
        errors=load.errors,
        error=ffi.string(load.error).decode(errors="replace"),
        error_errno=load.error_errno,
        stalled=bool(load.stalled),
        serial=load.serial,
    )


def _connect(address: str, stall_s: float) -> socket.socket:
    kind, _, rest = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        where: str | tuple[str, int] = rest
    elif kind == "tcp":
        host, _, port = rest.rpartition(":")
        sock = socket.socket()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        where = (host, int(port))
    else:
        raise ValueError(f"address {address!r}: expected unix:PATH or tcp:HOST:PORT")
    # Kernel timeouts, not settimeout: load.c wants sockets that block.
    timeval = pack("@ll", int(stall_s), int(stall_s % 1 * 1e6))
    for option in socket.SO_RCVTIMEO, socket.SO_SNDTIMEO:
        sock.setsockopt(socket.SOL_SOCKET, option, timeval)
    try:
        sock.connect(where)
    except OSError:
        sock.close()
        raise
    return sock


def call(sock: socket.socket, tag: int, kind: int, body: bytes) -> bytes:
    """One request and its reply's body; OSError when the server refuses."""
    sock.sendall(HEADER.pack(HEADER.size + len(body), kind, tag) + body)
    size, answer, _ = HEADER.unpack(_receive(sock, HEADER.size))
    reply = _receive(sock, size - HEADER.size)
    if answer == Rlerror:
        code = unpack_from("<I", reply)[0]
        raise OSError(code, os.strerror(code))
    if answer == Rerror:
        raise OSError(errno.EREMOTEIO, reply[2 : 2 + unpack_from("<H", reply)[0]].decode(errors="replace"))
    if answer != kind + 1:
        raise OSError(errno.EPROTO, f"reply {answer} to request {kind}")
    return reply


def _receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        try:
            piece = sock.recv(size - len(data))
        except BlockingIOError as e:
            raise TimeoutError(errno.ETIMEDOUT, "the server does not answer") from e
        if not piece:
            raise ConnectionResetError(errno.ECONNRESET, "the server closed the connection")
        data += piece
    return data


def _string(text: str) -> bytes:
    """n[2] text[n]"""
    return pack("<H", len(text.encode())) + text.encode()


def _names(path: str) -> bytes:
    """nwname[2] nwname*(wname[s])"""
    names = [n for n in path.split("/") if n]
    return pack("<H", len(names)) + b"".join(map(_string, names))
