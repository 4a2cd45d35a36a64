"""Papers on disk: whole or not there, whatever cuts their writing off, and read as of one moment."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from skep.fs.address import parse as parse_address
from skep.fs.spiffe import parse
from skep.roles.papers import Papers, PapersError, papers_for
from skep.trace.clock import SECOND
from tests.fs.authority import WORKER, Authority

W1 = parse(WORKER)
CA, NEXT = Authority(), Authority("the next CA")


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    """With a key, and nothing signed."""
    made = Papers(tmp_path / "w1")
    made.request(W1)
    return made


def sign(papers: Papers, ca: Authority = CA, end: timedelta = timedelta(hours=1)) -> bytes:
    """A certificate of w1 for the papers' key."""
    key = load_pem_private_key((papers.directory / "key.pem").read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    return ca.issue(WORKER, end=end, key=key).pem


def test_a_request_is_for_a_key_made_here_once(papers: Papers) -> None:
    key = papers.directory / "key.pem"
    assert (0o700, 0o600) == (stat.S_IMODE(papers.directory.stat().st_mode), stat.S_IMODE(key.stat().st_mode))
    before = key.read_bytes()
    request = x509.load_pem_x509_csr(papers.request(W1).encode())
    assert request.is_signature_valid
    assert before == key.read_bytes()


def test_without_a_certificate_there_are_none(papers: Papers) -> None:
    assert not papers.complete
    with pytest.raises(PapersError, match=f"no identity in {papers.directory}: run skep enroll"):
        papers.identity()


def test_what_is_kept_is_what_is_read(papers: Papers) -> None:
    papers.keep(sign(papers), CA.pem, CA.crl(), parse_address("tls:h:1"))
    assert papers.complete
    assert (W1, CA.pem, "tls:h:1") == (papers.name(), papers.read().bundle, str(papers.address()))
    assert W1 == papers.identity().name


def test_what_does_not_go_together_is_not_kept(papers: Papers) -> None:
    papers.keep(sign(papers), CA.pem, CA.crl())
    before = papers.read()
    foreign = CA.issue(WORKER).pem  # for another key
    for certificate, bundle, crl in (
        (foreign, CA.pem, b""),
        (sign(papers), CA.pem, NEXT.crl()),
        (b"junk", CA.pem, b""),
        (sign(papers), b"", CA.crl()),
    ):
        with pytest.raises(ValueError, match=r"."):
            papers.keep(certificate, bundle, crl)
    with pytest.raises(ValueError, match="signed by no CA"):
        papers.keep_crl(NEXT.crl())
    assert before == papers.read()


class Cut(Exception):
    """The power is gone."""


def test_cut_off_anywhere_the_papers_are_those_before_or_those_after(papers: Papers) -> None:
    """From one CA to another, with nothing in common: the hardest change there is."""

    class Mortal(Papers):
        left = 0

        def _write(self, name: str, data: bytes) -> None:
            if not self.left:
                raise Cut
            self.left -= 1
            super()._write(name, data)

    papers.keep(sign(papers), CA.pem, CA.crl())
    before, after = papers.serial(), sign(papers, NEXT)
    seen = []
    for writes in range(5):
        mortal = Mortal(papers.directory)
        mortal.left = writes
        with contextlib.suppress(Cut):
            mortal.keep(after, NEXT.pem, NEXT.crl())
        assert W1 == papers.identity().name
        seen.append(papers.serial() == before)
    assert [True, True, True, False, False] == seen
    assert (NEXT.pem, NEXT.crl()[:20]) == (papers.read().bundle, papers.read().crl[:20])


def test_a_reader_sees_one_moment(papers: Papers) -> None:
    """One who writes changes CA all the time; one who reads finds papers that can be used each time."""
    both = [(sign(papers, ca), ca.pem, ca.crl()) for ca in (CA, NEXT)]
    papers.keep(*both[0])
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            Papers(papers.directory).keep(*both[number % 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            pem = papers.read()
            assert (pem.certificate, pem.bundle, pem.crl) in both
    finally:
        stop.set()
        writer.join()


def test_papers_are_due_after_half_of_their_life(papers: Papers) -> None:
    papers.keep(sign(papers, end=timedelta(hours=10)), CA.pem, b"")
    got_ns = (papers.directory / "cert.pem").stat().st_mtime_ns
    life_ns = papers.end_ns() - got_ns
    assert got_ns + life_ns // 2 - SECOND <= papers.due_ns() <= got_ns + life_ns * 6 // 10


def test_a_key_that_others_read_is_refused(papers: Papers) -> None:
    papers.keep(sign(papers), CA.pem, b"")
    (papers.directory / "key.pem").chmod(0o604)
    with pytest.raises(PapersError, match="chmod 600"):
        papers.identity()


def test_the_papers_of_a_hive_are_found_by_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("SKEP_IDENTITY", raising=False)
    for hive in ("one", "two"):
        found = Papers(tmp_path / "skep" / "identities" / hive)
        found.request(W1)
        found.keep(sign(found), CA.pem, b"", parse_address(f"tls:{hive}:1"))
    assert "two" == papers_for(parse_address("tls:two:1")).directory.name
    with pytest.raises(PapersError, match="several identities for tls:three:1"):
        papers_for(parse_address("tls:three:1"))
    monkeypatch.setenv("SKEP_IDENTITY", os.fspath(tmp_path / "skep" / "identities" / "one"))
    assert "one" == papers_for(parse_address("tls:three:1")).directory.name
