"""A tap on the wire: a proxy on the host's loopback that writes down each 9P message that passes.

It shows what the kernel's client really sent, whatever the server says of itself, and can hold requests
back, as a server would that has nothing to say yet.
"""

import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import NamedTuple

# Source: Plan 9 manual, fcall(2).
TFLUSH, RFLUSH, TREAD, RREAD, TWRITE = 108, 109, 116, 117, 118
HEADER = struct.Struct("<IBH")  # size[4] type[1] tag[2]
FAR = 1 << 40
BODY_MAX = 64  # Bytes of a body kept: enough for a Tread, not for the data of a 10 MB copy.

Address = tuple[str, int] | Path


class Frame(NamedTuple):
    """One message; ``body`` is what follows the tag, up to BODY_MAX bytes of it."""

    connection: int
    type: int  # T messages are even, R messages odd.
    tag: int
    body: bytes


class Flush(NamedTuple):
    """A Tflush in the record: the request it named and whether each was answered."""

    request: Frame
    request_answered: bool
    flush_answered: bool


@dataclass(slots=True)
class Tap:
    """A running tap. ``frames`` grows while connections are open."""

    port: int
    frames: list[Frame] = field(default_factory=list)

    def flushes(self) -> list[Flush]:
        """Every Tflush so far, oldest first."""
        return [_flush(self.frames, at) for at, frame in enumerate(self.frames) if frame.type == TFLUSH]


def _flush(frames: Sequence[Frame], at: int) -> Flush:
    flush = frames[at]
    (oldtag,) = struct.unpack_from("<H", flush.body)
    same = [frame for frame in frames if frame.connection == flush.connection]
    place = next(n for n, frame in enumerate(same) if frame is flush)
    started = max(n for n in range(place) if same[n].type % 2 == 0 and same[n].tag == oldtag)
    ended = next((n for n in range(place, len(same)) if same[n][1:3] == (RFLUSH, flush.tag)), None)
    between = same[started + 1 : ended]
    answered = any(frame.type % 2 == 1 and frame.tag == oldtag for frame in between)
    return Flush(same[started], answered, ended is not None)


def nothing(frame: Frame) -> bool:
    """Hold nothing back."""
    return False


def far_read(frame: Frame) -> bool:
    """Hold back reads at an offset where no file has bytes: the way to block where no file blocks."""
    return frame.type == TREAD and struct.unpack_from("<IQ", frame.body)[1] >= FAR


@contextmanager
def tapped(server: Address, holds: Callable[[Frame], bool] = nothing) -> Iterator[Tap]:
    """A tap in front of ``server`` on a port of the system's choice, until the block ends.

    Requests for which ``holds`` is true are written down but never reach the server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = _Line(Tap(listener.getsockname()[1]), server, holds)
        acceptor = Thread(target=line.accept, args=(listener,))
        acceptor.start()
        try:
            yield line.tap
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            line.close()


class _Line:
    """The threads behind a tap: two for each connection, one a direction."""

    def __init__(self, tap: Tap, server: Address, holds: Callable[[Frame], bool]) -> None:
        self.tap = tap
        self.server = server
        self.holds = holds
        self.lock = Lock()
        self.sockets: list[socket.socket] = []
        self.pumps: list[Thread] = []

    def accept(self, listener: socket.socket) -> None:
        number = 0
        while (client := _accepted(listener)) is not None:
            number += 1
            server = _connected(self.server)
            self.sockets += client, server
            for source, sink in ((client, server), (server, client)):
                pump = Thread(target=self.pump, args=(number, source, sink))
                self.pumps.append(pump)
                pump.start()

    def pump(self, connection: int, source: socket.socket, sink: socket.socket) -> None:
        try:
            with source.makefile("rb") as stream:
                for size, type_, tag in iter(lambda: _header(stream.read(HEADER.size)), None):
                    rest = stream.read(size - HEADER.size)
                    frame = Frame(connection, type_, tag, rest[:BODY_MAX])
                    with self.lock:
                        self.tap.frames.append(frame)
                    if not self.holds(frame):
                        sink.sendall(HEADER.pack(size, type_, tag) + rest)
        except OSError:
            # Either end hung up, maybe in the middle of a message: the other end hears of it below.
            pass
        _hang_up(sink)

    def close(self) -> None:
        for end in self.sockets:
            _hang_up(end)
        for pump in self.pumps:
            pump.join()
        for end in self.sockets:
            end.close()


def _header(data: bytes) -> tuple[int, int, int] | None:
    """None: the stream ended."""
    return HEADER.unpack(data) if len(data) == HEADER.size else None


def _accepted(listener: socket.socket) -> socket.socket | None:
    """None: the listener was shut down."""
    try:
        return listener.accept()[0]
    except OSError:
        return None


def _connected(server: Address) -> socket.socket:
    if isinstance(server, tuple):
        return socket.create_connection(server)
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(server))
    return end


def _hang_up(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It is down already.
        return
