"""TLS beside plaintext TCP on loopback: ``python -m tests.bench.tls [CORE]``, both ends on CORE if given.

The client is blocking, with frames made beforehand and Python's own ssl below, so that little of what is
measured is its own; the second column is the server's processor time, where its share is none at all."""

import asyncio
import multiprocessing
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from struct import Struct, pack, unpack_from
from typing import NamedTuple

import uvloop

from skep.fs.server import listen
from skep.fs.shapes import Memory
from skep.fs.tree import Dir
from tests.fs.authority import QUEEN, WORKER, Authority, Issued, Papers

CA = Authority()
Q1, W1 = CA.issue(QUEEN), CA.issue(WORKER)
ROUNDS, SECONDS = 3, 0.7
HEADER = Struct("<IBH")
CASES = [  # what, file, requests outstanding, bytes of each read
    ("read 64 B, d1", b"f64", 1, 64),
    ("read 64 B, d32", b"f64", 32, 64),
    ("read 64 KiB, d8", b"bulk", 8, 65000),
    ("read 512 KiB, d4", b"bulk", 4, 520000),
]


class Figure(NamedTuple):
    per_second: float
    server_us: float  # of processor time, an operation


def serve(pipe: Connection) -> None:
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


def connected(port: int, issued: Issued | None) -> socket.socket:
    """Attached as fid 0; with TLS if ``issued``."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if issued is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=CA.pem.decode())
        with tempfile.NamedTemporaryFile() as file:
            Path(file.name).write_bytes(issued.pem + issued.key_pem)
            context.load_cert_chain(file.name)
        sock = context.wrap_socket(sock)
    ask(sock, 100, pack("<I", 600_000) + text(b"9P2000.L"))
    ask(sock, 104, pack("<II", 0, 0xFFFFFFFF) + text(b"w1") + text(b"") + pack("<I", 0))
    return sock


def frame(kind: int, tag: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body


def text(data: bytes) -> bytes:
    return pack("<H", len(data)) + data


def ask(sock: socket.socket, kind: int, body: bytes) -> None:
    sock.sendall(frame(kind, 0, body))
    reply = sock.recv(65536)
    while len(reply) < unpack_from("<I", reply)[0]:
        reply += sock.recv(65536)
    assert kind + 1 == reply[4], reply


def reads(sock: socket.socket, name: bytes, depth: int, count: int) -> float:
    """Reads a second, ``depth`` sent at a time."""
    ask(sock, 110, pack("<IIH", 0, 1, 1) + text(name))
    ask(sock, 12, pack("<II", 1, 0))
    requests = b"".join(frame(116, tag, pack("<IQI", 1, 0, count)) for tag in range(depth))
    expected = depth * (HEADER.size + 4 + count)
    buffer = bytearray(1 << 20)
    start, done = time.perf_counter(), 0
    while time.perf_counter() < start + SECONDS:
        sock.sendall(requests)
        got = 0
        while got < expected:
            got += sock.recv_into(buffer)
        done += depth
    return done / (time.perf_counter() - start)


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measured(pid: int, port: int, issued: Issued | None, name: bytes, depth: int, count: int) -> Figure:
    with connected(port, issued) as sock:
        before = processor_s(pid)
        per_second = reads(sock, name, depth, count)
        return Figure(per_second, (processor_s(pid) - before) / (per_second * SECONDS) * 1e6)


def median(figures: list[Figure]) -> Figure:
    return Figure(*(statistics.median(column) for column in zip(*figures, strict=True)))


def handshakes(port: int) -> float:
    """Connections a second, one after another, up to the attach."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() < start + SECONDS:
        connected(port, W1).close()
        done += 1
    return done / (time.perf_counter() - start)


def main() -> None:
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    assert server.pid is not None
    tcp_port, tls_port = ours.recv()
    print(f"{'':18}{'tcp /s':>12}{'tls /s':>12}{'ratio':>7}   {'server us/op':>16}{'ratio':>7}")
    for what, name, depth, count in CASES:
        rounds = [
            (
                measured(server.pid, tcp_port, None, name, depth, count),
                measured(server.pid, tls_port, W1, name, depth, count),
            )
            for _ in range(ROUNDS)
        ]
        tcp, tls = (median(list(figures)) for figures in zip(*rounds, strict=True))
        print(
            f"{what:18}{tcp.per_second:12,.0f}{tls.per_second:12,.0f}{tls.per_second / tcp.per_second:7.2f}"
            f"   {tcp.server_us:8.2f}{tls.server_us:8.2f}{tcp.server_us / tls.server_us:7.2f}"
        )
    print(f"handshakes, one client: {handshakes(tls_port):,.0f} /s")
    server.terminate()


if __name__ == "__main__":
    main()
