"""TLS beside plaintext TCP on loopback: rows of tests.bench, or alone: ``python -m tests.bench.tls``.

The client is blocking, with frames made beforehand and TLS by skep.fs.records, so that little of what is
measured is its own; beside the rates stands the server's processor time, where its share is none at all.
The floor of a handshake is Python's own ssl, which judges no names, in a loop that does nothing else."""

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import socket
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from struct import Struct, pack, unpack_from
from typing import Any, NamedTuple

import uvloop
from OpenSSL import SSL
from rich.console import Console
from rich.table import Table

from skep.fs.records import Records
from skep.fs.server import listen
from skep.fs.shapes import Memory
from skep.fs.tree import Dir
from tests.fs.authority import QUEEN, WORKER, Authority, Papers

CA = Authority()
Q1, W1 = CA.issue(QUEEN), CA.issue(WORKER)
HEADER = Struct("<IBH")
TVERSION, TATTACH, TLOPEN, TWALK, TREAD = 100, 104, 12, 110, 116
HANDSHAKE = "TLS handshake"
NOTE = """tls: mutual, TLS 1.3. A handshake is a new connection up to its Rversion, one after another."""


class Figure(NamedTuple):
    per_second: float
    server_us: float  # of processor time, an operation


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    tls: list[Figure]  # a round each
    other: list[Figure]  # what it is set beside: plaintext TCP, or the floor of a handshake
    beside: str

    def rates(self) -> tuple[float, float]:
        """Medians: TLS, the other."""
        return _median(self.tls).per_second, _median(self.other).per_second

    def record(self) -> dict[str, Any]:
        """As tests.bench writes its cells."""
        sides = {"tls": self.tls, self.beside: self.other}
        cells = {
            name: {
                "median": _median(f).per_second,
                "rounds": [x.per_second for x in f],
                "server_us": _median(f).server_us,
            }
            for name, f in sides.items()
        }
        return {"row": self.name, "unit": "ops/s", "cells": cells}


READS = [  # what, file, requests outstanding, bytes of each read
    ("read 64 B, d1", b"f64", 1, 64),
    ("read 64 B, d32", b"f64", 32, 64),
    ("read 64 KiB, d8", b"bulk", 8, 65000),
    ("read 512 KiB, d4", b"bulk", 4, 520000),
]


def measured(rounds: int, seconds: float, wanted: str = "") -> list[Row]:
    """All rows whose name has ``wanted`` in it; both ends run where this process may."""
    reads = [read for read in READS if wanted in f"TLS {read[0]}"]
    if not reads and wanted not in HANDSHAKE:
        return []
    with served() as ports:
        rows = [
            _row(
                f"TLS {what}",
                "tcp",
                rounds,
                lambda name=name, d=depth, n=count: _reads(ports, True, name, d, n, seconds),
                lambda name=name, d=depth, n=count: _reads(ports, False, name, d, n, seconds),
            )
            for what, name, depth, count in reads
        ]
        if wanted in HANDSHAKE:
            ours, floor = ports.tls, ports.floor
            rows.append(
                _row(
                    HANDSHAKE,
                    "ssl",
                    rounds,
                    lambda: _handshakes(ports.pid, ours, seconds),
                    lambda: _handshakes(ports.floor_pid, floor, seconds),
                )
            )
    return rows


def drawn(title: str, rows: list[Row]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in (
        "",
        "beside",
        "beside /s",
        "tls /s",
        "ratio",
        "beside server us",
        "tls server us",
        "ratio",
    ):
        table.add_column(column, justify="left" if column in ("", "beside") else "right", no_wrap=True)
    for row in rows:
        tls, other = _median(row.tls), _median(row.other)
        table.add_row(
            row.name,
            row.beside,
            f"{other.per_second:,.0f}",
            f"{tls.per_second:,.0f}",
            f"{tls.per_second / other.per_second:.2f}",
            f"{other.server_us:,.2f}",
            f"{tls.server_us:,.2f}",
            f"{other.server_us / tls.server_us:.2f}",
        )
    return table


def _row(name: str, beside: str, rounds: int, tls: Callable[[], Figure], other: Callable[[], Figure]) -> Row:
    """Interleaved, so that what else the machine does falls on both."""
    pairs = [(other(), tls()) for _ in range(rounds)]
    return Row(name, [pair[1] for pair in pairs], [pair[0] for pair in pairs], beside)


def _median(figures: list[Figure]) -> Figure:
    return Figure(*(statistics.median(column) for column in zip(*figures, strict=True)))


# The servers


class Ports(NamedTuple):
    pid: int
    tcp: int
    tls: int
    floor_pid: int
    floor: int


@contextlib.contextmanager
def served() -> Iterator[Ports]:
    with contextlib.ExitStack() as stack:
        pid, (tcp, tls) = stack.enter_context(_process(_serve))
        floor_pid, (floor,) = stack.enter_context(_process(_serve_floor))
        yield Ports(pid, tcp, tls, floor_pid, floor)


@contextlib.contextmanager
def _process(target: Callable[[Connection], None]) -> Iterator[tuple[int, tuple[int, ...]]]:
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=target, args=(theirs,), daemon=True)
    server.start()
    assert server.pid is not None
    try:
        yield server.pid, ours.recv()
    finally:
        server.terminate()
        server.join()


def _serve(pipe: Connection) -> None:
    async def run() -> None:
        tree = Dir({"f64": "x" * 64, "bulk": Memory(bytes(1 << 20))})
        identity = Papers(Q1, CA).identity
        async with (
            listen(tree, "tcp:127.0.0.1:0") as tcp,
            listen(tree, "tls:127.0.0.1:0", identity=identity) as tls,
        ):
            pipe.send((tcp.address.port, tls.address.port))
            await asyncio.get_running_loop().create_future()

    uvloop.run(run())


def _serve_floor(pipe: Connection) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    _load(context, Q1.pem, Q1.key_pem)
    with socket.create_server(("127.0.0.1", 0)) as server:
        pipe.send((server.getsockname()[1],))
        while True:
            plain, _ = server.accept()
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as sock:
                sock.sendall(sock.recv(65536))


def _load(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    context.check_hostname = False
    context.load_verify_locations(cadata=CA.pem.decode())
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(certificate + key)
        context.load_cert_chain(file.name)


# The client


class Tls:
    """A blocking connection: what of a socket is used here."""

    identity = Papers(W1, CA).identity

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        connection = self.identity.connection(self.identity.judge(False))
        self.rooms = self.identity.rooms
        self.records = Records(connection, self.rooms)
        while True:
            with contextlib.suppress(SSL.WantReadError):
                connection.do_handshake()
                self.sock.sendall(connection.bio_read(65536))
                return
            self.sock.sendall(connection.bio_read(65536))
            self.records.put(0, self.sock.recv_into(self.rooms.cipher_view, 65536))

    def sendall(self, data: bytes) -> None:
        self.sock.sendall(self.records.seal(data))

    def recv_into(self, buffer: memoryview) -> int:
        """How many bytes came; they stay where they were decrypted."""
        got = 0
        while not got:
            n = self.sock.recv_into(self.rooms.cipher_view, 65536)
            self.records.put(0, n)
            got = self.records.take(0)
            assert n, "the server has gone"
            assert self.records.error is None, self.records.error
        return got

    def recv(self, size: int) -> bytes:
        return bytes(self.rooms.plain_view[: self.recv_into(self.rooms.plain_view)])

    def close(self) -> None:
        self.sock.close()


def _dial(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _reads(ports: Ports, tls: bool, name: bytes, depth: int, count: int, seconds: float) -> Figure:
    """Reads, ``depth`` sent at a time."""
    plain = _dial(ports.tls if tls else ports.tcp)
    sock: Any = Tls(plain) if tls else plain
    try:
        _ask(sock, TVERSION, pack("<I", 600_000) + _text(b"9P2000.L"))
        _ask(sock, TATTACH, pack("<II", 0, 0xFFFFFFFF) + _text(b"w1") + _text(b"") + pack("<I", 0))
        _ask(sock, TWALK, pack("<IIH", 0, 1, 1) + _text(name))
        _ask(sock, TLOPEN, pack("<II", 1, 0))
        requests = b"".join(_frame(TREAD, tag, pack("<IQI", 1, 0, count)) for tag in range(depth))
        expected = depth * (HEADER.size + 4 + count)
        buffer = memoryview(bytearray(1 << 20))
        before, start, done = _processor_s(ports.pid), time.perf_counter(), 0
        while time.perf_counter() < start + seconds:
            sock.sendall(requests)
            got = 0
            while got < expected:
                got += sock.recv_into(buffer)
            done += depth
        return Figure(done / (time.perf_counter() - start), (_processor_s(ports.pid) - before) / done * 1e6)
    finally:
        sock.close()


def _handshakes(pid: int, port: int, seconds: float) -> Figure:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, W1.pem, W1.key_pem)
    version = _frame(TVERSION, 0, pack("<I", 65536) + _text(b"9P2000.L"))
    before, start, done = _processor_s(pid), time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        with context.wrap_socket(_dial(port)) as sock:
            sock.sendall(version)
            assert sock.recv(100)[5:] == version[5:]
        done += 1
    return Figure(done / (time.perf_counter() - start), (_processor_s(pid) - before) / done * 1e6)


def _frame(kind: int, tag: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def _text(data: bytes) -> bytes:
    return pack("<H", len(data)) + data


def _ask(sock: Any, kind: int, body: bytes) -> None:
    sock.sendall(_frame(kind, 0, body))
    reply = sock.recv(65536)
    while len(reply) < unpack_from("<I", reply)[0]:
        reply += sock.recv(65536)
    assert kind + 1 == reply[4], reply


def _processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.tls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each cell; the median is shown")
    parser.add_argument("--seconds", type=float, default=0.5, help="of asking in each round")
    parser.add_argument("--rows", default="", help="only rows whose name has this in it")
    parser.add_argument("--core", type=int, help="both ends there; otherwise on any")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    title = "both ends on any core" if args.core is None else f"both ends on core {args.core}"
    console = Console()
    console.print(drawn(title, measured(args.rounds, args.seconds, args.rows)))
    console.print(NOTE)


if __name__ == "__main__":
    main()
