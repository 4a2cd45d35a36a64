"""TLS on loopback: who is refused and told of, what ends living sessions, 9P above it, hostile bytes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.doorway import Doorway, Limits, ServerLayer, network_of
from skep.fs.errors import E, FsError
from skep.fs.identity import Identity
from skep.fs.messages import Dialect
from skep.fs.server import listen
from skep.fs.spiffe import parse
from skep.fs.tls import TlsError
from skep.fs.trust import Reason, Refusal
from skep.trace.clock import MINUTE, SECOND, ManualClock
from tests.daemons import seconds
from tests.fs.authority import HOUR, QUEEN, WORKER, Authority, Issued, Papers
from tests.fs.grounds import wait_until
from tests.fs.tls_hive import (
    CA,
    OTHER_CA,
    Q1,
    W1,
    W2,
    Hive,
    dial,
    play,
    said,
    serving,
    stdlib,
    written,
)

DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda d: d.value)
LOOPS = pytest.mark.parametrize(
    "loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uv", "asyncio"]
)


# 9P over it


@pytest.mark.slow
@LOOPS
@DIALECTS
def test_files_are_read_written_and_listed_in_every_dialect(
    dialect: Dialect, loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect(dialect=dialect) as client:
            assert dialect is client.connection.dialect
            assert b"hello, world\n" == await client.read_file("hello")
            await client.write_file("ctl", b"say what=hi\n")
            assert ["hi"] == hive.gate.grounds.said
            assert ["a", "b", "sub"] == [name for name, _ in await client.scan("dir")]
            with pytest.raises(FsError) as raised:
                await client.read_file("missing")
            assert E.MISSING is raised.value.kind
            assert {10} == {
                a.size for a in await asyncio.gather(*(client.stat("memory") for _ in range(999)))
            }
        async with await hive.connect(dialect=dialect, aname="host") as client:
            data = random.Random(1).randbytes((5 << 20) + 17)
            await client.write_file("big", data, create=True)
            assert data == (tmp_path / "big").read_bytes()
            assert data == await client.read_file("big")
        await wait_until(lambda: hive.gate.left == 2)
        assert [] == hive.refusals

    play(story, tmp_path, loop=loop)


def test_the_certificate_is_the_peer(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect(W1), await hive.connect(W2):
            one, two = hive.gate.peers
            assert ("tls", WORKER, "drone-worker", "w1") == (one.kind, one.spiffe, one.role, one.node)
            assert "spiffe://hive/drone-worker/w2" == two.spiffe
            assert one.address != two.address

    play(story, tmp_path)


def test_a_uname_that_contradicts_the_certificate_is_refused_at_attach(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with pytest.raises(FsError, match="the certificate says spiffe://hive/drone-worker/w1") as raised:
            await hive.connect(W1, uname="w2", dialect=Dialect.U)
        assert E.UNAUTHENTICATED.value.errno == raised.value.errno
        for uname in ("w1", WORKER, ""):
            await (await hive.connect(W1, uname=uname)).close()

    play(story, tmp_path)


def test_both_ends_know_one_channel_binding_and_no_other_connection_has_it(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect() as one, await hive.connect() as two:
            ours = [client.connection.channel_binding() for client in (one, two)]
            assert [32, 32] == [len(binding) for binding in ours]
            assert ours[0] != ours[1]
            assert ours == [conversation.channel_binding() for conversation in hive.gate.conversations]
        assert b"" == one.connection.channel_binding()

    play(story, tmp_path)


def test_a_stream_flows_and_is_flushed(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect() as client:
            fid = await client.open("events")
            reading = asyncio.ensure_future(fid.read(0, 100))
            await wait_until(lambda: hive.gate.grounds.events.waiting == 1)
            hive.gate.grounds.events.feed(b"one\n")
            assert b"one\n" == await reading
            waiting = asyncio.ensure_future(fid.read(4, 100))
            await wait_until(lambda: any(c.busy for c in hive.gate.conversations))
            waiting.cancel()
            await wait_until(lambda: not any(c.busy for c in hive.gate.conversations))

    play(story, tmp_path)


def test_a_client_that_does_not_read_stops_the_server_and_loses_nothing(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        (tmp_path / "big").write_bytes(bytes(1 << 20))
        async with await hive.connect(aname="host") as client:
            stream: Any = client.connection._close
            layer = stream.__self__
            fid = await client.open("big")
            layer.pause_reading()
            reads = [asyncio.ensure_future(fid.read(0, 1 << 19)) for _ in range(64)]
            await wait_until(lambda: hive.gate.conversations[0].paused)
            layer.resume_reading()
            assert [1 << 19] * 64 == [len(data) for data in await asyncio.gather(*reads)]
            assert not hive.gate.conversations[0].paused

    play(story, tmp_path)


def test_many_frames_come_in_one_record(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect() as client:
            layer: Any = client.connection._close.__self__  # type: ignore[attr-defined]
            below, layer._below = layer._below, Below()
            layer.writelines([b"x" * 10] * 100)
            # Its header, and after the data its type and its tag.
            assert 5 + 1000 + 1 + 16 == len(layer._below.data)
            layer._below = below

    play(story, tmp_path)


# Who is refused


def test_a_plaintext_dial_is_refused(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        plain = Address("tcp", hive.address.host, hive.address.port)
        with pytest.raises(ConnectionLost):
            await Client.connect(plain)
        assert Reason.PLAINTEXT is (await hive.refused()).reason

    play(story, tmp_path)


CERTIFICATES = {
    Reason.UNKNOWN_CA: lambda: OTHER_CA.issue(WORKER),
    Reason.EXPIRED: lambda: CA.issue(WORKER, begin=-2 * HOUR, end=-HOUR),
    Reason.NOT_YET_VALID: lambda: CA.issue(WORKER, begin=HOUR, end=2 * HOUR),
    Reason.CERTIFICATE: lambda: CA.issue(WORKER, uses=[ExtendedKeyUsageOID.SERVER_AUTH]),
}


@pytest.mark.parametrize("reason", CERTIFICATES, ids=lambda reason: reason.name)
def test_a_certificate_that_is_no_good_is_refused_and_its_owner_told(reason: Reason, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        issued = CERTIFICATES[reason]()
        with pytest.raises(ConnectionLost, match="alert"):
            await hive.connect(issued)
        refusal = await hive.refused()
        assert reason is refusal.reason
        assert f"serial={issued.certificate.serial_number:x}" in refusal.detail

    play(story, tmp_path)


def test_the_other_ends_certificate_is_judged_by_the_client_too(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with pytest.raises(TlsError, match="certificate of an unknown CA") as raised:
            await hive.connect(W1, OTHER_CA)
        assert Reason.UNKNOWN_CA is raised.value.refusal.reason
        refusal = await hive.refused()
        assert (Reason.REFUSED_US, True) == (refusal.reason, "unknown ca" in refusal.detail)

    play(story, tmp_path)


@pytest.mark.parametrize("name", [WORKER, "spiffe://another-hive/queen-primary/q1"])
def test_a_client_talks_to_its_own_hives_queens_only(name: str, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with pytest.raises(TlsError) as raised:
            await hive.connect()
        assert Reason.NAME is raised.value.refusal.reason

    play(story, tmp_path, Papers(CA.issue(name), CA))


def test_a_slow_handshake_is_cut(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with dial(hive) as silent:
            assert b"" == await said(silent)
        assert Reason.SLOW is (await hive.refused()).reason

    play(story, tmp_path, limits=Limits(handshake_s=0.1))


def test_a_trickled_handshake_is_cut_as_well(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        hello = client_hello()

        def trickle() -> None:
            with dial(hive) as sock, contextlib.suppress(ConnectionError):
                for byte in hello:
                    sock.sendall(bytes([byte]))
                sock.settimeout(10)
                while sock.recv(4096):
                    pass

        await asyncio.to_thread(trickle)
        assert Reason.SLOW is (await hive.refused()).reason

    play(story, tmp_path, limits=Limits(handshake_s=0.2))


def test_a_peer_that_leaves_before_the_end_is_told_of(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        dial(hive).close()
        assert Reason.GONE is (await hive.refused()).reason

    play(story, tmp_path)


@pytest.mark.parametrize(
    "limits", [Limits(half_open_max=3), Limits(half_open_peer_max=3)], ids=["all", "peer"]
)
def test_half_open_handshakes_are_bounded(limits: Limits, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(dial(hive)) for _ in range(3)]
            await wait_until(lambda: len(hive.doorway.half_open.members) == 3)
            with dial(hive) as one_more:
                assert b"" == await said(one_more)
            assert [Reason.TOO_MANY] == [refusal.reason for refusal in hive.refusals]
            # One that leaves makes room.
            silent[0].close()
            await wait_until(lambda: len(hive.doorway.half_open.members) == 2)
            await (await hive.connect()).close()

    play(story, tmp_path, limits=limits)


@pytest.mark.parametrize("limits", [Limits(open_max=2), Limits(open_peer_max=2)], ids=["all", "peer"])
def test_connections_are_bounded_too(limits: Limits, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect(W1) as one, await hive.connect(W2):
            with pytest.raises((OSError, ConnectionLost)):
                await hive.connect(W1)
            refusal = await hive.refused()
            assert (Reason.TOO_MANY, True) == (refusal.reason, refusal.detail.startswith("open: 2 "))
            assert b"hello, world\n" == await one.read_file("hello")
        # Who leaves makes room.
        await wait_until(lambda: not hive.doorway.open.members)
        await (await hive.connect(W1)).close()

    play(story, tmp_path, limits=limits)


def test_handshakes_that_end_together_do_not_overrun_the_bound(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        dials = await asyncio.gather(*(hive.connect(W1) for _ in range(8)), return_exceptions=True)
        clients = [one for one in dials if isinstance(one, Client)]
        assert 3 == len(clients)
        assert {Reason.TOO_MANY: 5} == hive.doorway.refusals
        for client in clients:
            await client.close()

    play(story, tmp_path, limits=Limits(open_max=3))


def test_ipv6_neighbours_are_one_peer() -> None:
    assert "2001:db8::/64" == network_of("[2001:db8::1]:1") == network_of("[2001:db8::2%eth0]:2")
    assert "2001:db8:0:1::/64" == network_of("[2001:db8:0:1::1]:1")
    assert "192.0.2.1" == network_of("192.0.2.1:1") == network_of("[::ffff:192.0.2.1]:1")


def test_a_flood_of_refusals_is_counted_to_the_last(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        for _ in range(200):
            with dial(hive) as sock:
                sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
                assert b"" == await said(sock)
        assert {Reason.PLAINTEXT: 200} == hive.doorway.refusals
        assert 200 == len(hive.refusals)

    play(story, tmp_path)


def test_no_refusal_holds_a_secret(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        password = b"swordfish"
        with dial(hive) as sock:
            sock.sendall(b"\x16\x03\x01\x00\x10" + password * 2)
            await said(sock)
        refusal = await hive.refused()
        assert password.decode() not in str(refusal)
        assert "PRIVATE" not in repr(hive.papers.pem)

    play(story, tmp_path)


# What ends a living session, and what does not


def test_a_reload_drops_nobody_and_counts_for_the_next(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect(W1) as old:
            # The CA is replaced, with an overlap, and the queen's own certificate after it.
            hive.papers.change(bundle=CA.pem + OTHER_CA.pem)
            renewed = OTHER_CA.issue(QUEEN)
            hive.papers.change(certificate=renewed.pem, key=renewed.key_pem)
            with pytest.raises(TlsError):
                await hive.connect(W1, CA)
            async with (
                await hive.connect(W1, OTHER_CA),
                await hive.connect(OTHER_CA.issue(WORKER), CA, OTHER_CA),
            ):
                assert b"hello, world\n" == await old.read_file("hello")
            # The overlap ends.
            hive.papers.change(bundle=OTHER_CA.pem)
            await old.connection.closed
            with pytest.raises(ConnectionLost):
                await hive.connect(W1, OTHER_CA)

    play(story, tmp_path)


@LOOPS
def test_a_rotation_under_load_drops_nobody_and_a_revocation_ends_one_within_a_second(
    loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    """The CA is replaced, with an overlap, and each worker's certificate, one at a time, while all ask."""
    nodes = [f"spiffe://hive/drone-worker/w{n}" for n in range(4)]

    async def asking(client: Client, done: list[int], at: int) -> None:
        data = random.Random(at).randbytes(40_000)
        await client.write_file(f"f{at}", data, create=True)
        while True:
            read, _ = await asyncio.gather(client.read_file(f"f{at}"), client.stat(f"f{at}"))
            assert data == read
            done[at] += 1

    async def story(hive: Hive) -> None:
        done = [0] * len(nodes)
        old = [CA.issue(name) for name in nodes]
        hive.papers.change(bundle=CA.pem + OTHER_CA.pem)
        clients = [await hive.connect(one, CA, OTHER_CA, aname="host") for one in old]
        tasks = [asyncio.ensure_future(asking(client, done, at)) for at, client in enumerate(clients)]

        async def all_go_on() -> None:
            before = list(done)
            await wait_until(lambda: all(now > then for now, then in zip(done, before, strict=True)))
            assert [] == hive.refusals

        await all_go_on()
        renewed = OTHER_CA.issue(QUEEN)
        hive.papers.change(certificate=renewed.pem, key=renewed.key_pem)
        await all_go_on()
        for n in range(10):
            hive.papers.change(crl=CA.crl(*[CA.issue(WORKER) for _ in range(n)]))
            await all_go_on()
        # Each worker comes back with a certificate of the new CA, and leaves its old connection by itself.
        for at, name in enumerate(nodes):
            client = await hive.connect(OTHER_CA.issue(name), CA, OTHER_CA, aname="host")
            tasks.append(asyncio.ensure_future(asking(client, done, at)))
            tasks[at].cancel()
            await asyncio.wait([tasks[at]])
            await clients[at].close()
            clients[at] = client
            await all_go_on()
        hive.papers.change(bundle=OTHER_CA.pem, crl=b"")
        await all_go_on()
        revoked = OTHER_CA.issue("spiffe://hive/drone-worker/w9")
        async with await hive.connect(revoked, OTHER_CA, aname="host") as client:
            done.append(0)
            task = asyncio.ensure_future(asking(client, done, len(nodes)))
            await all_go_on()
            async with asyncio.timeout(seconds(1)):
                hive.papers.change(crl=OTHER_CA.crl(revoked))
                with pytest.raises(ConnectionLost):
                    await task
        assert [Reason.REVOKED] == [refusal.reason for refusal in hive.refusals]
        del done[-1]
        hive.refusals.clear()
        await all_go_on()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for client in clients:
            await client.close()

    play(story, tmp_path, loop=loop)


def test_a_ca_renewed_with_the_same_key_is_the_same_ca(tmp_path: Path) -> None:
    ca = Authority()
    renewed = Authority(key=ca.key)

    async def story(hive: Hive) -> None:
        async with await hive.connect(ca.issue(WORKER), ca) as client:
            hive.papers.change(bundle=renewed.pem)
            assert b"hello, world\n" == await client.read_file("hello")

    play(story, tmp_path, Papers(ca.issue(QUEEN), ca))


def test_a_revoked_session_ends_at_once_and_no_other(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect(W1) as revoked, await hive.connect(W2) as other:
            hive.papers.change(crl=CA.crl(W1))
            await asyncio.wait_for(asyncio.shield(revoked.connection.closed), 1)
            with pytest.raises(ConnectionLost):
                await revoked.read_file("hello")
            refusal = await hive.refused()
            assert Reason.REVOKED is refusal.reason
            assert f"{WORKER} serial={W1.certificate.serial_number:x}" == refusal.detail
            assert b"hello, world\n" == await other.read_file("hello")
        with pytest.raises(ConnectionLost, match="alert"):
            await hive.connect(W1)
        await wait_until(lambda: hive.doorway.refusals[Reason.REVOKED] == 2)
        # With its CRL the revocation goes.
        hive.papers.change(crl=b"")
        await (await hive.connect(W1)).close()

    play(story, tmp_path)


@pytest.mark.slow
def test_who_is_revoked_between_the_proof_and_the_end_of_a_handshake_is_refused(tmp_path: Path) -> None:
    """Its certificate was judged already; and nothing that was not alive at the reload is looked at again."""

    async def story(hive: Hive) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=CA.pem.decode())
        context.load_cert_chain(*written(tmp_path, W1))
        come, go = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = context.wrap_bio(come, go)
        reader, writer = await asyncio.open_connection(hive.address.host, hive.address.port)
        done = False
        while not done:
            try:
                client.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                writer.write(go.read())
                come.write(await reader.read(65536))
        last = go.read()
        writer.write(last[:-8])
        members = hive.doorway.half_open.members
        await wait_until(lambda: any(layer._judge.chain is not None for layer in members))
        hive.papers.change(crl=CA.crl(W1))
        writer.write(last[-8:])
        assert Reason.REVOKED is (await hive.refused()).reason
        assert not hive.gate.conversations
        writer.close()

    play(story, tmp_path)


def test_a_client_leaves_a_queen_whose_certificate_is_revoked(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        papers = Papers(W1, CA)
        client = await Client.connect(hive.address, identity=papers.identity)
        papers.change(crl=CA.crl(Q1))
        await asyncio.wait_for(asyncio.shield(client.connection.closed), 1)
        with pytest.raises(ConnectionLost, match="certificate revoked"):
            await client.read_file("hello")
        with pytest.raises(TlsError, match="certificate revoked"):
            await Client.connect(hive.address, identity=papers.identity)

    play(story, tmp_path)


@pytest.mark.slow
def test_a_session_ends_when_its_certificate_expires(tmp_path: Path) -> None:
    clock = ManualClock(time_ns=int(W1.certificate.not_valid_before_utc.timestamp()) * SECOND + 30 * MINUTE)

    async def story(hive: Hive) -> None:
        brief = CA.issue(WORKER, end=HOUR / 2)
        async with await hive.connect(brief) as client, await hive.connect(W2) as other:
            clock.time_ns = int(brief.certificate.not_valid_after_utc.timestamp()) * SECOND - 1
            hive.papers.identity._sweep()
            assert b"hello, world\n" == await client.read_file("hello")
            clock.advance(1)
            await asyncio.wait_for(asyncio.shield(client.connection.closed), 1)
            assert Reason.EXPIRED is (await hive.refused()).reason
            assert b"hello, world\n" == await other.read_file("hello")

    play(story, tmp_path, Papers(Q1, CA, clock=clock))


@pytest.mark.slow
def test_a_session_ends_by_the_real_clock(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        brief = CA.issue(WORKER, end=timedelta(seconds=2))
        client = await hive.connect(brief)
        await asyncio.wait_for(asyncio.shield(client.connection.closed), 4)
        refusal = await hive.refused()
        assert Reason.EXPIRED is refusal.reason
        assert WORKER in refusal.detail

    play(story, tmp_path)


def test_a_reload_of_what_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    nameless = CA.issue()
    bad = {
        "Unable to load PEM": {"certificate": b""},
        "the key is not that of the certificate": {"key": W2.key_pem},
        "is no CA": {"bundle": W2.pem},
        "Unable to load": {"bundle": b""},
        "signed by no CA in the bundle": {"crl": OTHER_CA.crl(W1)},
        "no CRL in what should hold some": {"crl": CA.crl(W1)[:-40]},
        "no subjectAltName": {"certificate": nameless.pem, "key": nameless.key_pem},
    }

    async def story(hive: Hive) -> None:
        async with await hive.connect() as client:
            good = hive.papers.pem
            for what, fields in bad.items():
                with pytest.raises(ValueError, match=what):
                    hive.papers.change(**fields)
                hive.papers.pem = good
            assert b"hello, world\n" == await client.read_file("hello")
            await (await hive.connect()).close()

    play(story, tmp_path)


def test_a_ca_below_the_bundles_is_believed_with_its_certificate_sent(tmp_path: Path) -> None:
    middle = Authority("middle", above=CA)

    async def story(hive: Hive) -> None:
        await (await hive.connect(middle.issue(WORKER))).close()
        unsent = middle.issue(WORKER)._replace(above=b"")
        with pytest.raises(ConnectionLost):
            await hive.connect(unsent)
        assert Reason.UNKNOWN_CA is (await hive.refused()).reason

    play(story, tmp_path)


def test_a_revoked_middle_ca_ends_whom_it_signed(tmp_path: Path) -> None:
    middle = Authority("middle", above=CA)

    async def story(hive: Hive) -> None:
        client = await hive.connect(middle.issue(WORKER))
        hive.papers.change(crl=CA.crl(Issued(middle.certificate, middle.key)))
        await asyncio.wait_for(asyncio.shield(client.connection.closed), 1)

    play(story, tmp_path)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    paths = written(tmp_path, W1)
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(CA.pem)
    assert parse(WORKER) == Identity.files(*paths, bundle).name
    paths[1].chmod(0o640)
    with pytest.raises(ValueError, match="can be read by others: chmod 600 it"):
        Identity.files(*paths, bundle)


def test_tls_needs_an_identity_and_nothing_else_takes_one(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with pytest.raises(ValueError, match="tls needs one"):
            await Client.connect(hive.address)
        with pytest.raises(ValueError, match="an identity belongs to tls"):
            await Client.connect("tcp:127.0.0.1:1", identity=hive.papers.identity)
        with pytest.raises(ValueError, match="tls needs one"):
            async with listen({}, "tls:127.0.0.1:0"):
                pass

    play(story, tmp_path)


# How it ends


def test_a_client_that_says_goodbye_gets_one_back(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        def converse() -> bytes:
            with stdlib(hive, W1) as sock:
                plain: socket.socket = sock.unwrap()
                return plain.recv(1)  # raises when close_notify does not come

        assert b"" == await asyncio.to_thread(converse)
        await wait_until(lambda: hive.gate.left == 1)
        assert [] == hive.refusals

    play(story, tmp_path)


def test_a_connection_cut_without_goodbye_is_lost(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        client = await hive.connect()
        (connection,) = hive.listener.connections
        connection.transport._below.close()
        await client.connection.closed
        with pytest.raises(ConnectionLost, match="cut off without close_notify"):
            await client.read_file("hello")

    play(story, tmp_path)


def test_a_goodbye_is_no_cut(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        client = await hive.connect()
        (connection,) = hive.listener.connections
        connection.transport.close()
        await client.connection.closed
        with pytest.raises(ConnectionLost, match="connection lost: closed"):
            await client.read_file("hello")

    play(story, tmp_path)


def test_a_record_that_was_tampered_with_ends_the_connection(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        client = await hive.connect()
        layer: Any = client.connection._close.__self__  # type: ignore[attr-defined]
        layer._below.write(b"\x17\x03\x03\x00\x20" + bytes(32))
        await client.connection.closed
        refusal = await hive.refused()
        assert (Reason.BROKEN, True) == (refusal.reason, "bad record mac" in refusal.detail)
        await wait_until(lambda: hive.gate.left == 1)

    play(story, tmp_path)


def test_what_is_no_9p_ends_the_connection(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        def converse() -> bytes:
            with stdlib(hive, W1) as sock:
                sock.sendall(b"\xff" * 100)
                with contextlib.suppress(OSError):
                    heard: bytes = sock.recv(100)
                    return heard
                return b""

        assert b"" == await asyncio.to_thread(converse)
        await wait_until(lambda: hive.gate.left == 1)

    play(story, tmp_path)


def test_a_closing_listener_ends_handshakes_and_sessions(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path) as hive:
            client = await hive.connect()
            silent = dial(hive)
            await wait_until(lambda: len(hive.doorway.half_open.members) == 1)
        await client.connection.closed
        with silent:
            assert b"" == await said(silent)

    asyncio.run(run())


# Hostile bytes


class Below:
    """A transport that keeps what it is given."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.ended = False

    def write(self, data: bytes) -> None:
        self.data += data

    def writelines(self, buffers: list[bytes]) -> None:
        self.data += b"".join(buffers)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def abort(self) -> None:
        self.ended = True

    close = write_eof = abort

    def is_closing(self) -> bool:
        return self.ended


class Nobody:
    """Above: it must not hear of a connection that is refused."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


IDENTITY = Papers(Q1, CA).identity


def client_hello() -> bytes:
    client = Papers(W1, CA).identity
    connection = client.connection(client.judge(server=False))
    with contextlib.suppress(SSL.WantReadError):
        connection.do_handshake()
    hello: bytes = connection.bio_read(65536)
    return hello


HELLO = client_hello()
junk = st.binary(max_size=3000)
mutations = st.lists(st.tuples(st.integers(0, len(HELLO) - 1), st.integers(0, 255)), min_size=1, max_size=8)
mutated = mutations.map(lambda changes: _changed(HELLO, changes))
records = st.tuples(st.sampled_from([20, 21, 22, 23, 24]), junk).map(
    lambda t: bytes([t[0], 3, 3]) + len(t[1]).to_bytes(2, "big") + t[1]
)
attacks = st.one_of(
    junk,
    mutated,
    st.tuples(mutated, junk).map(b"".join),
    st.lists(records, max_size=6).map(b"".join),
    st.lists(records, max_size=4).map(lambda pieces: HELLO + b"".join(pieces)),
    st.integers(0, len(HELLO)).map(lambda n: HELLO[:n]),
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(attacks, st.lists(st.integers(1, 400), max_size=12))
def test_any_bytes_are_refused_or_waited_for_and_leave_nothing(attack: bytes, cuts: list[int]) -> None:
    async def run() -> None:
        refusals: list[Refusal] = []
        doorway = Doorway(IDENTITY, refusals.append)
        layer, below = ServerLayer(doorway, Nobody()), Below()
        layer.connection_made(below)  # type: ignore[arg-type]
        at = 0
        for cut in [*cuts, len(attack)]:
            received(layer, attack[at : at + cut])
            at += cut
        layer.connection_lost(None)
        assert 1 == len(refusals)
        assert 300 > len(refusals[0].detail)
        assert (set(), {}) == (doorway.half_open.members, doorway.half_open.networks)
        assert layer._deadline is None
        assert layer._ssl is None
        assert {} == IDENTITY.held

    asyncio.run(run())


def received(layer: ServerLayer, data: bytes) -> None:
    """As an event loop gives it."""
    layer.get_buffer(-1)[: len(data)] = data
    layer.buffer_updated(len(data))


def _changed(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for at, byte in changes:
        changed[at] = byte
    return bytes(changed)
