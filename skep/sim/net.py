"""The network: byte streams between processes, late, in pieces, stalled, cut in the middle of a frame.

A stream keeps its order and loses nothing while it lasts, as TCP does. Each connection belongs to a ``Place``
on the side that dialled, whose links are slow, stalled and cut together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from skep.fs.conversation import Peer
from skep.sim.loop import PROCESS, Process, SimLoop
from skep.trace.clock import MS, US

DELAY_NS: Final = 200 * US  # of every piece, at least
JITTER_NS: Final = 800 * US
HIGH: Final = 1 << 16  # bytes under way above which a writer is told to wait
PIECES: Final = 0.05  # how often what is written at once comes in two pieces


class Place:
    """Where a process dials from. ``slow_ns`` comes on top of every piece's way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.slow_ns = 0
        self.stalled_until_ns = 0
        self.links: list[tuple[End, End]] = []

    def cut(self) -> None:
        """Every connection ends; what is under way comes up to any byte of it."""
        links, self.links = self.links, []
        for ends in links:
            for end in ends:
                end.lose(ConnectionResetError("cut"))


class End(asyncio.Transport):
    """One end of a connection; what is written comes out at ``other``."""

    other: End

    def __init__(self, loop: SimLoop, process: Process, place: Place, protocol: Any, peer: Peer) -> None:
        super().__init__()
        self.loop = loop
        self.process = process
        self.place = place
        self.protocol = protocol
        self.peer = peer
        self.chance = Random(f"{loop.seed} {place.name} {process.name} {len(place.links)}")
        self._way: deque[tuple[int, bytes | None]] = deque()  # to this end; None: the stream's end
        self._under_way = 0  # bytes of it
        self._armed = False
        self._reading = True
        self._high = HIGH
        self._full = False  # the protocol was told to wait
        self.closing = False  # nothing more is written
        self.lost = False  # the protocol knows

    # the protocol's side

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.peer if name == "peer" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH if high is None else min(high, HIGH)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._arm()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.closing or not data:
            return
        whole = bytes(data)
        if len(whole) > 1 and self.chance.random() < PIECES:
            at = self.chance.randrange(1, len(whole))
            self.other.comes(whole[:at])
            whole = whole[at:]
        self.other.comes(whole)
        if self.other._under_way > self._high and not self._full:
            self._full = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Sequence[bytes | bytearray | memoryview]) -> None:  # type: ignore[override]
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        """What was written still comes."""
        if not self.closing:
            self.closing = True
            self.other.comes(None)
            self._tell_lost(None)

    def abort(self) -> None:
        if not self.closing:
            self.closing = True
            self.other.lose(ConnectionResetError("reset"))
            self._tell_lost(None)

    def ended(self) -> None:
        """Its process is dead: the kernel closes it."""
        if not self.closing:
            self.closing = self.lost = True
            if self.chance.random() < 0.5:
                self.other.comes(None)
            else:
                self.other.lose(ConnectionResetError("reset"))

    # the network's side

    def comes(self, data: bytes | None) -> None:
        """Have ``data`` come out here, after all that is under way."""
        if self.lost:
            return
        when_ns = self.loop.now_ns + DELAY_NS + int(self.chance.random() * JITTER_NS) + self.place.slow_ns
        if self._way:
            when_ns = max(when_ns, self._way[-1][0])
        self._way.append((when_ns, data))
        self._under_way += len(data or b"")
        self._arm()

    def lose(self, error: Exception) -> None:
        """The connection breaks: of what is under way some bytes come, then the error."""
        if self.lost:
            return
        self.closing = True
        whole = b"".join(data for _, data in self._way if data is not None)
        self._way.clear()
        self._under_way = 0
        if whole and self._reading:
            self._give(whole[: self.chance.randrange(len(whole) + 1)])
        self._tell_lost(error)

    def _arm(self) -> None:
        if self._way and self._reading and not self._armed and not self.lost:
            self._armed = True
            when_ns = max(self._way[0][0], self.place.stalled_until_ns)
            self.loop.call_in(when_ns - self.loop.now_ns, self._out, context=self.process.context)

    def _out(self) -> None:
        self._armed = False
        now_ns = self.loop.now_ns
        while self._way and self._reading and not self.lost:
            when_ns, data = self._way[0]
            if max(when_ns, self.place.stalled_until_ns) > now_ns:
                break
            self._way.popleft()
            if data is None:
                self.closing = True
                self._lose_now(None)
                return
            self._under_way -= len(data)
            self.other.drained(self._under_way)
            self._feed(data)
        self._arm()

    def drained(self, under_way: int) -> None:
        """Of what was written here, so much is under way still."""
        if self._full and under_way <= self._high // 4:
            self._full = False
            self.loop.call_soon(self._resume, context=self.process.context)

    def _resume(self) -> None:
        if not self.lost:
            self.protocol.resume_writing()

    def _give(self, data: bytes) -> None:
        if data:
            self.loop.call_soon(self._feed, data, context=self.process.context)

    def _feed(self, data: bytes) -> None:
        if self.lost:
            return
        self.loop.note(f"{self.process.name} < {len(data)}")
        if isinstance(self.protocol, asyncio.BufferedProtocol):
            at = 0
            while at < len(data):
                buffer = memoryview(self.protocol.get_buffer(-1))
                count = min(len(buffer), len(data) - at)
                buffer[:count] = data[at : at + count]
                self.protocol.buffer_updated(count)
                at += count
        else:
            self.protocol.data_received(data)

    def _tell_lost(self, error: Exception | None) -> None:
        self.loop.call_soon(self._lose_now, error, context=self.process.context)

    def _lose_now(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self.protocol.connection_lost(error)


class Server:
    """What ``create_server`` gives; its sockets know where they are."""

    def __init__(self, network: Network, port: int) -> None:
        self.network = network
        self.port = port
        self.sockets = (self,)

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def close(self) -> None:
        self.network.forget(self.port)

    async def wait_closed(self) -> None:
        pass


class Network:
    """Who listens, and from which place each process dials."""

    def __init__(self, loop: SimLoop) -> None:
        self.loop = loop
        self.places: dict[str, Place] = {}
        self._listening: dict[int, tuple[Process, Callable[[], Any]]] = {}
        loop.dial = self._dial
        loop.serve = self._serve

    def place(self, name: str) -> Place:
        if name not in self.places:
            self.places[name] = Place(name)
        return self.places[name]

    def forget(self, port: int) -> None:
        self._listening.pop(port, None)

    def _serve(self, factory: Callable[[], Any], host: str, port: int) -> Server:
        process = PROCESS.get()
        self._listening[port] = process, factory

        def ended() -> None:
            if self._listening.get(port, (None,))[0] is process:
                self.forget(port)

        process.on_end.append(ended)
        return Server(self, port)

    async def _dial(self, factory: Callable[[], Any], host: str, port: int) -> tuple[End, Any]:
        process = PROCESS.get()
        place = self.place(process.name)
        wait_ns = DELAY_NS + place.slow_ns + max(place.stalled_until_ns - self.loop.now_ns, 0)
        await asyncio.sleep(wait_ns / (1000 * MS))
        if port not in self._listening:
            raise ConnectionRefusedError(f"nobody listens at port {port}")
        there, made = self._listening[port]
        protocol = factory()
        ours = End(self.loop, process, place, protocol, Peer("unix"))
        # The kernel says who dials: all are root, each is a process of its own.
        theirs = End(
            self.loop, there, place, made(), Peer("unix", f"pid {process.number}", 0, 0, process.number)
        )
        ours.other, theirs.other = theirs, ours
        place.links.append((ours, theirs))
        process.on_end.append(ours.ended)
        there.on_end.append(theirs.ended)
        self.loop.call_soon(theirs.protocol.connection_made, theirs, context=there.context)
        protocol.connection_made(ours)
        return ours, protocol
