"""The enrolment door: who has no certificate comes in to ask for one, and tells the hive by its CA's pin."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.fs.conversation import Peer
from skep.fs.dial import Client
from skep.fs.doorway import Limits
from skep.fs.errors import E, FsError
from skep.fs.pin import Pinned
from skep.fs.server import listen
from skep.fs.tls import TlsError
from skep.fs.trust import Reason, spki
from tests.fs.authority import HOUR, QUEEN, WORKER, Authority, Issued, Papers
from tests.fs.grounds import wait_until
from tests.fs.tls_hive import CA, OTHER_CA, Q1, W1, Hive, play, s_client, written

PIN = spki(CA.certificate)
FALSE_CA = Authority("hive CA")


async def enrol(hive: Hive, pin: str = PIN) -> Client:
    return await Client.connect(hive.address, pin=pin)


def test_who_has_no_certificate_comes_in_by_the_pin_and_is_nobody(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await enrol(hive) as client:
            assert b"here\n" == await client.read_file("enroll")
            with pytest.raises(FsError) as raised:
                await client.read_file("hello")
            assert E.MISSING is raised.value.kind
            (peer,) = hive.gate.peers
            assert Peer("tls", peer.address, enrolling=True) == peer
            # Who has one is asked for it at the same door, as ever.
            async with await hive.connect(W1) as known:
                assert b"hello, world\n" == await known.read_file("hello")
            assert (WORKER, False) == (hive.gate.peers[1].spiffe, hive.gate.peers[1].enrolling)
            assert 32 == len(client.connection.channel_binding())
            assert client.connection.channel_binding() == hive.gate.conversations[0].channel_binding()
        assert [] == hive.refusals

    play(story, tmp_path, enrol=True)


def test_without_the_door_nobody_enrols(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with pytest.raises(TlsError, match="no application protocol"):
            await enrol(hive)
        refusal = await hive.refused()
        assert (Reason.PROTOCOL, "'skep-enroll/1'") == (refusal.reason, refusal.detail)

    play(story, tmp_path)


@pytest.mark.parametrize(
    "offered", [(), ("-alpn", "9p"), ("-alpn", "skep-enroll/1,9p")], ids=["none", "9p", "both"]
)
def test_the_door_is_for_those_alone_who_come_to_enrol(offered: tuple[str, ...], tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        assert "certificate required" in await s_client(hive, *offered)
        assert Reason.NO_CERTIFICATE is (await hive.refused()).reason

    play(story, tmp_path, enrol=True)


@pytest.mark.parametrize("enrol", [False, True], ids=["shut", "open"])
def test_another_protocol_is_refused(enrol: bool, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        assert "no application protocol" in await s_client(hive, "-alpn", "h2,http/1.1", issued=W1)
        refusal = await hive.refused()
        assert (Reason.PROTOCOL, "'h2, http/1.1'") == (refusal.reason, refusal.detail)

    play(story, tmp_path, enrol=enrol)


def test_who_enrols_is_not_asked_for_a_certificate(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        output = await s_client(hive, "-alpn", "skep-enroll/1", "-msg", "-showcerts", issued=W1)
        assert "ALPN protocol: skep-enroll/1" in output
        assert "CertificateRequest" not in output
        assert CA.pem.decode() in output
        await wait_until(lambda: len(hive.gate.conversations) == 1)
        assert hive.gate.conversations[0].peer.enrolling

    play(story, tmp_path, enrol=True)


def test_another_group_than_the_first_asked_for_changes_nothing(tmp_path: Path) -> None:
    """A HelloRetryRequest makes a client say hello twice, and OpenSSL ask for the protocol twice."""

    async def story(hive: Hive) -> None:
        output = await s_client(hive, "-alpn", "skep-enroll/1", "-groups", "ffdhe2048:P-256", "-msg")
        assert 2 == output.count("ClientHello")
        assert hive.gate.conversations[0].peer.enrolling

    play(story, tmp_path, enrol=True)


def test_the_ticket_of_an_enrolment_opens_no_other_door(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        session = tmp_path / "session"
        await s_client(hive, "-alpn", "skep-enroll/1", "-sess_out", str(session))
        await wait_until(lambda: not hive.listener.connections)
        assert "certificate required" in await s_client(hive, "-sess_in", str(session))
        assert Reason.NO_CERTIFICATE is (await hive.refused()).reason

    play(story, tmp_path, enrol=True)


@pytest.mark.parametrize(
    "limits", [Limits(enrolling_max=1), Limits(enrolling_peer_max=1)], ids=["all", "peer"]
)
def test_who_enrols_takes_no_room_from_others(limits: Limits, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await enrol(hive):
            with pytest.raises((OSError, ConnectionLost)):
                await enrol(hive)
            refusal = await hive.refused()
            assert (Reason.TOO_MANY, True) == (refusal.reason, refusal.detail.startswith("enrolling: 1 "))
            await (await hive.connect(W1)).close()
        await wait_until(lambda: not hive.doorway.enrolling.members)
        await (await enrol(hive)).close()

    play(story, tmp_path, limits=limits, enrol=True)


def test_an_enrolment_has_its_time(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        async with await hive.connect(W1) as known:
            client = await enrol(hive)
            await asyncio.wait_for(asyncio.shield(client.connection.closed), 5)
            refusal = await hive.refused()
            assert (Reason.SLOW, "to enrol") == (refusal.reason, refusal.detail)
            assert b"hello, world\n" == await known.read_file("hello")

    play(story, tmp_path, limits=Limits(enrolling_s=0.1), enrol=True)


def test_a_wrong_pin_is_refused_and_both_pins_are_told(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        wrong = spki(OTHER_CA.certificate)
        with pytest.raises(TlsError, match=f"another CA than the pinned one expected {wrong}, shown {PIN}"):
            await enrol(hive, wrong)
        refusal = await hive.refused()
        assert (Reason.REFUSED_US, True) == (refusal.reason, "alert" in refusal.detail)

    play(story, tmp_path, enrol=True)


MIDDLE = Authority("middle", above=CA)
NODE = CA.issue(WORKER, subject="a node")
IMPOSTORS: dict[str, tuple[Issued, bytes, Reason]] = {  # whose certificate, shown with which CAs
    "another CA": (OTHER_CA.issue(QUEEN), OTHER_CA.pem, Reason.PIN),
    "another CA, the pinned one shown beside it": (OTHER_CA.issue(QUEEN), OTHER_CA.pem + CA.pem, Reason.PIN),
    "another CA of the same name": (FALSE_CA.issue(QUEEN), FALSE_CA.pem, Reason.PIN),
    "another CA of the same name, the pinned one shown": (FALSE_CA.issue(QUEEN), CA.pem, Reason.CERTIFICATE),
    "both of that name": (FALSE_CA.issue(QUEEN), FALSE_CA.pem + CA.pem, Reason.PIN),
    "signed by a node": (
        Authority("a node", key=NODE.key).issue(QUEEN),
        NODE.pem + CA.pem,
        Reason.CERTIFICATE,
    ),
    "signed by itself": (
        Authority("somebody", key=CA.key).issue(QUEEN),
        CA.pem,
        Reason.UNKNOWN_CA,
    ),
    "the pinned CA not shown": (CA.issue(QUEEN), b"", Reason.UNKNOWN_CA),
    "the CA itself": (Issued(CA.certificate, CA.key), b"", Reason.UNKNOWN_CA),
    "no queen": (CA.issue(WORKER), CA.pem, Reason.NAME),
    "nobody": (CA.issue(), CA.pem, Reason.NAME),
    "expired": (CA.issue(QUEEN, begin=-2 * HOUR, end=-HOUR), CA.pem, Reason.EXPIRED),
    "not yet valid": (CA.issue(QUEEN, begin=HOUR, end=2 * HOUR), CA.pem, Reason.NOT_YET_VALID),
    "no server": (
        CA.issue(QUEEN, uses=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        CA.pem,
        Reason.CERTIFICATE,
    ),
}


@pytest.mark.parametrize("what", IMPOSTORS)
def test_a_pin_alone_makes_nobody_a_queen(what: str) -> None:
    issued, shown, reason = IMPOSTORS[what]

    async def run() -> None:
        async with standing(issued, shown) as address:
            with pytest.raises(TlsError) as raised:
                await Client.connect(address, pin=PIN)
            assert reason is raised.value.refusal.reason, raised.value

    asyncio.run(run())


@pytest.mark.parametrize(
    ("issued", "shown", "pin"),
    [
        (CA.issue(QUEEN), CA.pem, PIN),
        (MIDDLE.issue(QUEEN), CA.pem, PIN),
        (MIDDLE.issue(QUEEN), CA.pem, spki(MIDDLE.certificate)),
        (MIDDLE.issue(QUEEN), b"", spki(MIDDLE.certificate)),
    ],
    ids=["the CA", "a CA two above", "the lower of two", "the one shown of two"],
)
def test_the_pinned_ca_may_stand_anywhere_above(issued: Issued, shown: bytes, pin: str) -> None:
    async def run() -> None:
        async with standing(issued, shown) as address:
            # The handshake ends well, and what stands there is no 9P.
            with pytest.raises(FsError, match="protocol error: a frame of"):
                await Client.connect(address, pin=pin)

    asyncio.run(run())


def test_a_queen_shows_the_cas_above_its_own(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        await (await enrol(hive)).close()

    play(story, tmp_path, Papers(MIDDLE.issue(QUEEN), OTHER_CA, CA), enrol=True)


@pytest.mark.parametrize("pin", ["0" * 63, "0" * 65, "A" * 64, "sha256:" + "0" * 64, "0" * 64 + "\n"])
def test_what_is_no_pin_is_refused(pin: str) -> None:
    with pytest.raises(ValueError, match="expected a SHA-256 of 64 hexadecimal digits"):
        Pinned(pin)


def test_a_pin_is_for_tls_and_for_who_has_no_identity() -> None:
    async def run() -> None:
        with pytest.raises(ValueError, match="an identity belongs to tls"):
            await Client.connect("tcp:127.0.0.1:1", pin=PIN)
        with pytest.raises(ValueError, match="more than a pin"):
            await Client.connect("tls:127.0.0.1:1", pin=PIN, identity=Papers(W1, CA).identity)
        with pytest.raises(ValueError, match="an open gate"):
            async with listen({}, "tls:127.0.0.1:0", identity=Papers(Q1, CA).identity, enrol=True):
                pass

    asyncio.run(run())


@contextlib.asynccontextmanager
async def standing(issued: Issued, shown: bytes) -> AsyncIterator[Address]:
    """Something that has this certificate, and shows it with these CAs."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["skep-enroll/1"])
    with tempfile.TemporaryDirectory() as directory:
        certificate, key = written(Path(directory), issued)
        certificate.write_bytes(issued.pem + shown)
        context.load_cert_chain(certificate, key)

    async def answered(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"no 9P here")
        writer.close()

    async with await asyncio.start_server(answered, "127.0.0.1", 0, ssl=context) as server:
        yield Address("tls", "127.0.0.1", server.sockets[0].getsockname()[1])
