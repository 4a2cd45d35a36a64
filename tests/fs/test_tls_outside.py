"""The TLS port as an outsider sees it, by OpenSSL's own client: what it speaks, whom it refuses, how."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from skep.fs.trust import Reason
from tests.fs.authority import HOUR, QUEEN, WORKER, Issued
from tests.fs.tls_hive import CA, OTHER_CA, W1, W2, Hive, dial, play, s_client, said


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_older_versions_are_refused(version: str, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        output = await s_client(hive, version, "-cipher", "ALL:@SECLEVEL=0", issued=W1)
        assert "alert protocol version" in output
        assert Reason.VERSION is (await hive.refused()).reason

    play(story, tmp_path)


@pytest.mark.parametrize("suite", ["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"])
def test_tls_1_3_and_its_ciphers_are_served(suite: str, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        output = await s_client(hive, "-ciphersuites", suite, issued=W1)
        assert f"New, TLSv1.3, Cipher is {suite}" in output
        assert "Verify return code: 0 (ok)" in output
        assert "Compression: NONE" in output

    play(story, tmp_path)


def test_nothing_is_resumed_and_there_is_no_early_data(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        session = tmp_path / "session"
        output = await s_client(hive, "-sess_out", str(session), issued=W1)
        assert "New, TLSv1.3" in output
        assert session.stat().st_size > 0
        early = tmp_path / "early"
        early.write_bytes(b"early")
        again = await s_client(hive, "-sess_in", str(session), "-early_data", str(early), issued=W1)
        assert "New, TLSv1.3" in again
        assert "Reused" not in again
        assert "Early data was not sent" in again

    play(story, tmp_path)


@pytest.mark.parametrize("suite", ["TLS_AES_128_CCM_SHA256", "TLS_AES_128_CCM_8_SHA256"])
def test_a_cipher_that_is_not_among_them_is_refused(suite: str, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        output = await s_client(hive, "-ciphersuites", suite, issued=W1)
        assert "alert handshake failure" in output
        refusal = await hive.refused()
        assert (Reason.BROKEN, "no shared cipher") == (refusal.reason, refusal.detail)

    play(story, tmp_path)


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.0\r\n\r\n", b"SSH-2.0-x\r\n", b"\x13\x00\x00\x00\x64\xff\xff", b"\x16\x02\x00", b"\0"],
    ids=["http", "ssh", "9p", "old ssl", "zero"],
)
def test_what_is_no_tls_is_answered_with_nothing(words: bytes, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        with dial(hive) as sock:
            sock.sendall(words)
            assert b"" == await said(sock)
        assert Reason.PLAINTEXT is (await hive.refused()).reason

    play(story, tmp_path)


REFUSED: dict[Reason, tuple[Issued, str]] = {
    Reason.UNKNOWN_CA: (OTHER_CA.issue(WORKER), "unknown ca"),
    Reason.EXPIRED: (CA.issue(WORKER, begin=-2 * HOUR, end=-HOUR), "certificate expired"),
    Reason.NOT_YET_VALID: (CA.issue(WORKER, begin=HOUR, end=2 * HOUR), "bad certificate"),
    Reason.REVOKED: (W2, "certificate revoked"),
    Reason.NAME: (CA.issue("spiffe://another-hive/drone-worker/w1"), "bad certificate"),
    Reason.CERTIFICATE: (
        CA.issue(WORKER, uses=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "unsupported certificate",
    ),
}


@pytest.mark.parametrize("reason", REFUSED, ids=lambda reason: reason.name)
def test_the_alert_says_what_is_wrong_with_a_certificate(reason: Reason, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        issued, alert = REFUSED[reason]
        hive.papers.change(crl=CA.crl(W2))
        assert f"alert {alert}" in await s_client(hive, issued=issued)
        assert reason is (await hive.refused()).reason

    play(story, tmp_path)


# What OpenSSL reads and cryptography does not: in place of what, and why it is refused.
UNREADABLE = {
    "not ASCII": (b"\x0c\x08somebody", b"\x13\x08some\xff\xfe\xfd\xfc", Reason.CERTIFICATE),
    "not Latin": (b"\x0c\x08somebody", b"\x14\x08some\xff\xfe\xfd\xfc", Reason.UNKNOWN_CA),
    "no text": (b"\x0c\x08somebody", b"\x03\x08" + bytes(8), Reason.UNKNOWN_CA),
    "version 8": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x07", Reason.CERTIFICATE),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_certificate_that_cannot_be_read_is_refused_and_told_of(what: str, tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        good, bad, reason = UNREADABLE[what]
        issued = OTHER_CA.issue(WORKER)
        der = issued.certificate.public_bytes(Encoding.DER).replace(good, bad, 1)
        assert "alert" in await s_client(hive, pem=ssl.DER_cert_to_PEM_cert(der).encode(), issued=issued)
        refusal = await hive.refused()
        assert reason is refusal.reason, refusal

    play(story, tmp_path)


@pytest.mark.parametrize(
    ("uris", "said"),
    [
        ((), "no subjectAltName"),
        ((WORKER, QUEEN), "2 URIs in subjectAltName"),
        (("https://hive/drone-worker/w1",), "expected spiffe"),
        (("spiffe://hive/emperor/w1",), "emperor is no role"),
        (("spiffe://another-hive/drone-worker/w1",), "is not of hive hive"),
    ],
)
def test_a_certificate_that_names_nobody_here_is_refused(
    uris: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    async def story(hive: Hive) -> None:
        assert "alert" in await s_client(hive, issued=CA.issue(*uris))
        refusal = await hive.refused()
        assert (Reason.NAME, True) == (refusal.reason, said in refusal.detail)

    play(story, tmp_path)


def test_no_certificate_at_all_is_refused(tmp_path: Path) -> None:
    async def story(hive: Hive) -> None:
        assert "certificate required" in await s_client(hive)
        assert Reason.NO_CERTIFICATE is (await hive.refused()).reason

    play(story, tmp_path)
