"""What the authority signs, as outsiders see it: openssl verify, TLS before, during and after an overlap."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP521R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from trusting import Applicant, Established

from skep.fs.address import Address
from skep.fs.connection import ConnectionLost
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.identity import Identity, Pem
from skep.fs.server import listen
from skep.fs.spiffe import Spiffe, name_of
from skep.fs.tls import TlsError
from skep.fs.trust import Reason, Refusal
from skep.namespaces.trust import verbs
from skep.namespaces.trust.authority import CSR_MAX, Authority, AuthorityError, read_request
from skep.namespaces.trust.core import DAY
from skep.namespaces.trust.keys import KeyStoreError
from skep.trace.clock import HOUR, SECOND
from tests.daemons import seconds
from tests.fs.grounds import Grounds, wait_until
from tests.fs.tls_hive import Gate

EMPTY = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))


@asynccontextmanager
async def established(directory: Path, kms: str = "") -> AsyncIterator[Established]:
    made = Established(directory, kms)
    try:
        await made.begin()
        yield made
    finally:
        made.authority.close()


def play(story: Callable[[Established], Awaitable[None]], directory: Path) -> None:
    async def run() -> None:
        async with established(directory) as hive:
            await story(hive)

    asyncio.run(run())


def parsed(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(pem)[0]


def openssl(directory: Path, pem: Pem, *options: str) -> str:
    """What ``openssl verify`` says of the certificate, trusting the bundle, with the CRLs."""
    leaf, *above = (c.public_bytes(Encoding.PEM) for c in x509.load_pem_x509_certificates(pem.certificate))
    files = {"leaf": leaf, "above": b"".join(above), "bundle": pem.bundle, "crl": pem.crl}
    for name, data in files.items():
        (directory / name).write_bytes(data)
    more = ["-untrusted", "above"] if above else []
    done = subprocess.run(
        [
            *["openssl", "verify", "-x509_strict", "-crl_check", "-CAfile", "bundle", "-CRLfile", "crl"],
            *more,
            *options,
            "leaf",
        ],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


# founding


def test_a_hive_is_founded_with_keys_for_each_use(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        assert "hive" == hive.book.trust.hive
        kinds = sorted(path.name.partition("-")[0] for path in (tmp_path / "keys").iterdir())
        assert ["ca", "merkle", "policy", "queen", "token"] == kinds
        before = hive.authority.queen_pem()
        await hive.again()
        after = hive.authority.queen_pem()
        assert (before.key, before.bundle) == (after.key, after.bundle)
        assert parsed(before.certificate).serial_number == parsed(after.certificate).serial_number
        assert 2 == len(hive.book.lines), "found, and issue"

    play(story, tmp_path)


def test_a_hive_keeps_its_name(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        with pytest.raises(AuthorityError, match="this hive is called hive, not other"):
            await hive.begin(Spiffe("other", "queen-primary", "q1"))

    play(story, tmp_path)


@pytest.mark.parametrize("what", verbs.KINDS)
def test_a_ledger_without_its_keys_is_not_served(tmp_path: Path, what: str) -> None:
    async def story(hive: Established) -> None:
        id = hive.book.trust.active(what).id
        (tmp_path / "keys" / f"{what}-{id}.key").unlink()
        with pytest.raises(KeyStoreError, match="No such file"):
            await hive.again()
        assert [] == list((tmp_path / "keys").glob(f"{what}-*"))

    play(story, tmp_path)


@pytest.mark.parametrize("ttl_ns", [9 * SECOND, 8 * DAY])
def test_certificates_last_ten_seconds_to_seven_days(tmp_path: Path, ttl_ns: int) -> None:
    with pytest.raises(AuthorityError, match="expected 10s to 168h"):
        Authority.open(tmp_path, "", ttl_ns)


# certificates


def test_a_certificate_is_an_svid_that_openssl_believes(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        node = Applicant()
        record = hive.enroll(node)
        pem = hive.papers(node, record)
        assert openssl(tmp_path, pem, "-purpose", "sslclient").endswith("leaf: OK\n")
        assert "unsuitable certificate purpose" in openssl(tmp_path, pem, "-purpose", "sslserver")
        queen = hive.authority.queen_pem()
        for purpose in ("sslclient", "sslserver"):
            assert openssl(tmp_path, queen, "-purpose", purpose).endswith("leaf: OK\n")
        made = parsed(pem.certificate)
        assert Spiffe("hive", "drone-worker", "w1") == name_of(made)
        assert record.serial == f"{made.serial_number:x}"
        assert node.key.public_key() == made.public_key()
        uses = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [ExtendedKeyUsageOID.CLIENT_AUTH] == list(uses)
        assert hive.clock.now_ns() + DAY == int(made.not_valid_after_utc.timestamp()) * SECOND

    play(story, tmp_path)


def test_a_certificate_is_made_again_from_its_record(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        node = Applicant()
        record = hive.enroll(node)
        first = parsed(hive.authority.sign(record))
        await hive.again()
        again = parsed(hive.authority.sign(hive.book.folded().certificates[record.serial]))
        assert first.tbs_certificate_bytes == again.tbs_certificate_bytes

    play(story, tmp_path)


def test_a_request_proves_its_key_and_says_nothing_else() -> None:
    node = Applicant()
    assert node.public == read_request(node.csr)
    for key in (Ed25519PrivateKey.generate(), Applicant().key):
        algorithm = None if isinstance(key, Ed25519PrivateKey) else SHA256()
        read_request(EMPTY.sign(key, algorithm).public_bytes(Encoding.PEM).decode())


def test_a_request_that_will_not_do_is_refused_with_a_reason() -> None:
    good = x509.load_pem_x509_csr(Applicant().csr.encode()).public_bytes(Encoding.DER)
    other = x509.load_pem_x509_csr(Applicant().csr.encode())
    forged = good[: -len(other.signature)] + other.signature  # somebody else's signature under it
    rsa, p521 = generate_rsa(65537, 2048), generate_private_key(SECP521R1())
    for request in (EMPTY.sign(rsa, SHA256()), EMPTY.sign(p521, SHA256())):
        with pytest.raises(ValueError, match="expected P-256, P-384 or Ed25519"):
            read_request(request.public_bytes(Encoding.PEM).decode())
    lines = subprocess.run(
        ["openssl", "base64"], input=forged, capture_output=True, check=True
    ).stdout.decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{lines}-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(ValueError, match=r"is not signed by the key it asks for|no certificate request"):
        read_request(pem)
    for text in ("", "hello", pem[:200], "\udc80", "A" * (CSR_MAX + 1)):
        with pytest.raises(ValueError, match="request"):
            read_request(text)


# revocation


def test_what_is_revoked_is_on_the_list_at_once_and_stays_there(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        node, other = Applicant(), Applicant()
        record, second = hive.enroll(node), hive.enroll(other, "w2")
        told: list[bytes] = []
        hive.authority.changed.append(lambda: told.append(hive.authority.queen_pem().crl))
        hive.write(f"revoke serial={record.serial}")
        assert 1 == len(told)
        assert "certificate revoked" in openssl(tmp_path, hive.papers(node, record))
        assert openssl(tmp_path, hive.papers(other, second)).endswith("leaf: OK\n")
        await hive.again()
        assert "certificate revoked" in openssl(tmp_path, hive.papers(node, record))

    play(story, tmp_path)


def test_lists_are_made_anew_before_they_are_due(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        first = hive.authority.crl()
        hive.clock.advance(11 * HOUR)
        assert first == hive.authority.crl()
        hive.clock.advance(HOUR + SECOND)
        second = hive.authority.crl()
        numbers = [
            x509.load_pem_x509_crl(crl).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
            for crl in (first, second)
        ]
        assert numbers[0] < numbers[1]

    play(story, tmp_path)


def test_enrolling_a_node_is_no_news_for_connections(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        told: list[int] = []
        hive.authority.changed.append(lambda: told.append(1))
        hive.enroll(Applicant())
        await hive.rotate("token")
        await hive.rotate("merkle", "0s")
        assert [] == told

    play(story, tmp_path)


# the queen's own


def test_the_queen_renews_her_certificate_with_a_new_key_before_it_ends(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        told: list[int] = []
        hive.authority.changed.append(lambda: told.append(1))
        first = hive.authority.queen_pem()
        hive.clock.advance(59 * DAY)
        await hive.authority.tend()
        assert first.key == hive.authority.queen_pem().key
        hive.clock.advance(2 * DAY)
        await hive.authority.tend()
        second = hive.authority.queen_pem()
        assert first.key != second.key
        assert [1] == told
        assert 1 == len(list((tmp_path / "keys").glob("queen-*")))

    play(story, tmp_path)


def test_a_queen_whose_certificate_is_revoked_takes_another_key(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        first = hive.authority.queen_pem()
        serial = f"{parsed(first.certificate).serial_number:x}"
        hive.write(f"revoke serial={serial}")
        await hive.authority.tend()
        second = hive.authority.queen_pem()
        assert first.key != second.key
        assert openssl(tmp_path, second).endswith("leaf: OK\n")
        assert "certificate revoked" in openssl(tmp_path, first._replace(crl=second.crl))

    play(story, tmp_path)


def test_what_is_refused_because_the_hive_is_busy_is_done_later(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        await hive.rotate("token")
        kept = sorted((tmp_path / "keys").iterdir())
        hive.clock.advance(61 * DAY)
        for kind in (E.THROTTLED, E.NOSPACE):
            hive.refusing = kind
            await hive.authority.tend()
            assert kept == sorted((tmp_path / "keys").iterdir())
        hive.refusing = E.IO
        with pytest.raises(FsError):
            await hive.authority.tend()
        hive.refusing = None
        before = hive.authority.queen_pem()
        await hive.authority.tend()
        assert before.key != hive.authority.queen_pem().key
        assert 1 == len(hive.book.trust.trusted("token"))

    play(story, tmp_path)


# rotation


def test_other_keys_are_rotated_with_an_overlap_too(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        private, public = hive.authority.token_keys()
        await hive.rotate("token")
        newer, both = hive.authority.token_keys()
        assert private != newer
        assert 2 == len(both)
        assert public[0] == both[1]
        hive.clock.advance(HOUR)
        await hive.authority.tend()
        assert both[:1] == hive.authority.token_keys()[1]
        assert 1 == len(list((tmp_path / "keys").glob("token-*"))), "the old one is destroyed"
        await hive.again()

    play(story, tmp_path)


def test_a_retired_cas_key_is_destroyed_after_a_crash_too(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        old = hive.book.trust.active("ca").id
        kept = (tmp_path / "keys" / f"ca-{old}.key").read_bytes()
        await hive.rotate(overlap="0s")
        assert not (tmp_path / "keys" / f"ca-{old}.key").exists()
        (tmp_path / "keys" / f"ca-{old}.key").write_bytes(kept)
        await hive.again()
        assert not (tmp_path / "keys" / f"ca-{old}.key").exists()

    play(story, tmp_path)


class Serving:
    """A queen that listens with TLS, by her authority's papers."""

    def __init__(self, hive: Established) -> None:
        self.hive = hive
        self.refusals: list[Refusal] = []
        self.identity = Identity(hive.authority.queen_pem, hive.clock)
        hive.authority.changed.append(self.identity.reload)
        self.address: Address

    async def connect(self, pem: Pem) -> Client:
        return await Client.connect(self.address, identity=Identity(lambda: pem))

    async def greets(self, pem: Pem) -> Reason | None:
        """Why it does not; None: it does. What is served answers."""
        try:
            async with await self.connect(pem) as client:
                await client.stat("/")
        except TlsError as error:
            return error.refusal.reason
        except ConnectionLost:
            await wait_until(lambda: bool(self.refusals))
            return self.refusals.pop().reason
        return None

    async def is_pinned_by(self, pin: str) -> bool:
        try:
            async with await Client.connect(self.address, pin=pin) as client:
                return ["enroll"] == [entry.name for entry in await client.listdir("/")]
        except TlsError:
            return False


@asynccontextmanager
async def serving(hive: Established, host: Path) -> AsyncIterator[Serving]:
    made = Serving(hive)
    gate = Gate(Grounds(host))
    async with listen(
        gate, "tls:127.0.0.1:0", identity=made.identity, refused=made.refusals.append, enrol=True
    ) as listener:
        made.address = listener.address
        yield made


def test_through_a_rotation_whoever_knows_either_ca_is_served(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        async with serving(hive, tmp_path / "host") as queen:
            old_pin = hive.authority.pin
            node = Applicant()
            record = hive.enroll(node)
            old = hive.papers(node, record)
            assert await queen.greets(old) is None
            async with await queen.connect(old) as living:
                await hive.rotate()
                new_pin = hive.authority.pin
                assert old_pin != new_pin
                # Who has heard of nothing, who has both CAs, who has the new one, who was invited before.
                await living.stat("/")
                assert await queen.greets(old) is None
                both = hive.papers(node, record)
                assert await queen.greets(both) is None
                late = Applicant()
                latecomer = hive.papers(late, hive.enroll(late, "w2"))
                assert await queen.greets(latecomer) is None
                only_new = latecomer._replace(
                    bundle=latecomer.bundle[: len(latecomer.bundle) // 2 + 8], crl=b""
                )
                assert await queen.greets(only_new) is None
                assert await queen.is_pinned_by(old_pin)
                assert await queen.is_pinned_by(new_pin)
                assert not await queen.is_pinned_by("ab" * 32)
                # The overlap ends: who has not come over is out.
                hive.clock.advance(HOUR)
                await hive.authority.tend()
                await asyncio.wait_for(living.connection.closed, 30)
            assert Reason.UNKNOWN_CA == await queen.greets(old)
            assert await queen.greets(latecomer._replace(bundle=hive.authority.bundle(), crl=b"")) is None
            assert not await queen.is_pinned_by(old_pin)
            assert await queen.is_pinned_by(new_pin)

    (tmp_path / "host").mkdir()
    play(story, tmp_path)


def test_a_session_ends_with_its_certificates_revocation_and_others_do_not(tmp_path: Path) -> None:
    async def story(hive: Established) -> None:
        async with serving(hive, tmp_path / "host") as queen:
            one, other = Applicant(), Applicant()
            papers = hive.papers(one, hive.enroll(one)), hive.papers(other, hive.enroll(other, "w2"))
            async with await queen.connect(papers[0]) as first, await queen.connect(papers[1]) as second:
                hive.write("revoke node=w1")
                await asyncio.wait_for(first.connection.closed, seconds(1))
                await second.stat("/")
            assert Reason.REVOKED in (refusal.reason for refusal in queen.refusals)

    (tmp_path / "host").mkdir()
    play(story, tmp_path)
