"""The made-up network and disk."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from skep.sim.disk import Disk, SimLedger
from skep.sim.loop import SimLoop
from skep.sim.net import Network
from skep.trace.clock import MS, SECOND
from skep.trace.ledger import LedgerError, LedgerFull
from tests.trace.ledger_check import check_ledger


class Ear(asyncio.Protocol):
    """Remembers what it hears."""

    def __init__(self) -> None:
        self.heard = b""
        self.lost: Any = "not"

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard += data

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = error


async def joined(loop: SimLoop, network: Network) -> tuple[Ear, Ear]:
    """Who dialled, and who was dialled."""
    there: list[Ear] = []

    def made() -> Ear:
        there.append(Ear())
        return there[-1]

    await loop.create_server(made, "127.0.0.1", 1)
    _, here = await loop.create_connection(Ear, "127.0.0.1", 1)
    await asyncio.sleep(0)
    return here, there[0]


def run(story: Any, seed: str = "a") -> None:
    loop = SimLoop(seed)
    loop.run(story(loop, Network(loop)))


def test_what_is_written_comes_in_order() -> None:
    async def story(loop: SimLoop, network: Network) -> None:
        here, there = await joined(loop, network)
        for n in range(100):
            here.transport.write(b"%d " % n)
        here.transport.close()
        await asyncio.sleep(1)
        assert [b"%d" % n for n in range(100)] == there.heard.split()
        assert there.lost is None

    run(story)


def test_a_stalled_link_is_late_and_loses_nothing() -> None:
    async def story(loop: SimLoop, network: Network) -> None:
        here, there = await joined(loop, network)
        network.place("fate").stalled_until_ns = loop.now_ns + 5 * SECOND
        here.transport.write(b"late")
        await asyncio.sleep(4.9)
        assert there.heard == b""
        await asyncio.sleep(0.2)
        assert there.heard == b"late"

    run(story)


def test_a_cut_link_ends_anywhere_in_what_is_under_way() -> None:
    found = set()

    async def story(loop: SimLoop, network: Network) -> None:
        here, there = await joined(loop, network)
        here.transport.write(b"0123456789")
        network.place("fate").cut()
        await asyncio.sleep(1)
        assert b"0123456789".startswith(there.heard)
        assert isinstance(there.lost, ConnectionResetError)
        assert isinstance(here.lost, ConnectionResetError)
        found.add(len(there.heard))

    for seed in range(40):
        run(story, str(seed))
    assert len(found) > 5


def test_a_writer_that_is_too_fast_is_told_to_wait() -> None:
    told = []

    class Writer(Ear):
        def pause_writing(self) -> None:
            told.append("wait")

        def resume_writing(self) -> None:
            told.append("go on")

    async def story(loop: SimLoop, network: Network) -> None:
        await loop.create_server(Ear, "127.0.0.1", 1)
        transport, _ = await loop.create_connection(Writer, "127.0.0.1", 1)
        transport.write(bytes(1 << 17))
        assert told == ["wait"]
        await asyncio.sleep(1)
        assert told == ["wait", "go on"]

    run(story)


def test_nobody_listens_where_a_process_has_died() -> None:
    async def story(loop: SimLoop, network: Network) -> None:
        process = loop.process("server")

        async def serve() -> None:
            await loop.create_server(Ear, "127.0.0.1", 1)
            await asyncio.sleep(100)

        process.start(serve())
        await asyncio.sleep(1)
        _, here = await loop.create_connection(Ear, "127.0.0.1", 1)
        process.end()
        await asyncio.sleep(1)
        assert here.lost != "not"
        with pytest.raises(ConnectionRefusedError):
            await loop.create_connection(Ear, "127.0.0.1", 1)

    run(story)


def in_loop(check: Any) -> None:
    async def main() -> None:
        check()

    SimLoop("a").run(main())


def test_its_ledger_keeps_the_protocol() -> None:
    in_loop(lambda: check_ledger(lambda: SimLedger(Disk())))


def test_a_commit_that_fails_may_be_on_the_disk() -> None:
    def check() -> None:
        for failing, left in (("lost", []), ("kept", [b"one"])):
            disk = Disk()
            ledger = SimLedger(disk)
            ledger.begin()
            ledger.append([b"one"])
            disk.failing = failing
            with pytest.raises(LedgerError):
                ledger.commit()
            ledger.rollback()
            assert left == disk.bodies

    in_loop(check)


def test_a_full_disk_keeps_what_it_has() -> None:
    def check() -> None:
        disk = Disk()
        ledger = SimLedger(disk)
        ledger.begin()
        ledger.append([b"one"])
        disk.full = True
        with pytest.raises(LedgerFull):
            ledger.commit()
        ledger.rollback()
        disk.full = False
        ledger.begin()
        assert [] == list(ledger.tail())
        assert [] == disk.bodies

    in_loop(check)


def test_a_turn_of_a_dead_process_is_over() -> None:
    async def story(loop: SimLoop, network: Network) -> None:
        disk, process = Disk(), loop.process("queen")

        async def reign() -> None:
            ledger = SimLedger(disk)
            ledger.begin()
            ledger.append([b"one"])
            await asyncio.sleep(100)

        process.start(reign())
        await asyncio.sleep(1 * MS / SECOND)
        assert disk.user is not None
        process.end()
        assert disk.user is None
        SimLedger(disk).begin()

    run(story)
