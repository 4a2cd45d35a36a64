"""What proves who one is, a directory: made at enrolment, changed at each renewal, read by every command.

    key.pem   the private key: made here, never sent, of mode 0600
    cert.pem  its certificate, then the CAs between it and the bundle; without this there are none
    ca.pem    the CAs that are believed
    crl.pem   what they have revoked; missing: nothing is known to be
    address   where the hive was found

Processes share it: who reads and who writes hold a lock. At any cut of power it is whole, or not there yet.
How papers are asked for is enrolling.py's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from skep.fs.address import Address, parse
from skep.fs.identity import Identity, Pem
from skep.fs.spiffe import Spiffe, name_of
from skep.fs.trust import Trust
from skep.trace.clock import SECOND

CERTIFICATE: Final = "cert.pem"
KEY: Final = "key.pem"
BUNDLE: Final = "ca.pem"
CRL: Final = "crl.pem"
ADDRESS: Final = "address"
SPREAD: Final = 0.1  # of its life: so far apart are those renewed who were enrolled at one time


class PapersError(ValueError):
    """There are no papers that could be used; the text says which were expected and what to do."""


class Papers:
    """The papers in ``directory``, which may have none yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def complete(self) -> bool:
        """Whether there is a certificate, and so all that belongs to it."""
        return (self.directory / CERTIFICATE).exists()

    def read(self) -> Pem:
        """All of it, as it was at one moment. Raises PapersError, OSError."""
        if not self.complete:
            raise PapersError(f"no identity in {self.directory}: run skep enroll")
        with self._locked(fcntl.LOCK_SH):
            _check_private(self.directory / KEY)
            crl = self.directory / CRL
            return Pem(
                self._bytes(CERTIFICATE),
                self._bytes(KEY),
                self._bytes(BUNDLE),
                crl.read_bytes() if crl.exists() else b"",
            )

    def identity(self) -> Identity:
        """For one connection, or many. Raises PapersError."""
        try:
            return Identity(self.read)
        except (OSError, ValueError) as error:
            raise PapersError(f"{self.directory}: {error}") from error

    def certificate(self) -> x509.Certificate:
        """Ours. Raises PapersError, OSError."""
        return _leaf(self.read().certificate)

    def serial(self) -> str:
        """Our certificate's, in hex: signed once more it is the same. Raises PapersError, OSError."""
        return serial_of(self.read().certificate)

    def name(self) -> Spiffe:
        """Whose they are. Raises PapersError, OSError."""
        return name_of(self.certificate())

    def address(self) -> Address | None:
        """Where the hive was found; None: nobody wrote it down."""
        try:
            return parse((self.directory / ADDRESS).read_text().strip())
        except (OSError, ValueError):
            return None

    def due_ns(self) -> int:
        """When to renew: after half of what was left of its life when it came here, and a little more, which
        its serial number tells; before, the hive gives the same one. Raises PapersError, OSError."""
        certificate = self.certificate()
        end_ns = int(certificate.not_valid_after_utc.timestamp()) * SECOND
        got_ns = min((self.directory / CERTIFICATE).stat().st_mtime_ns, end_ns)
        life_ns = end_ns - got_ns
        late = SPREAD * (certificate.serial_number % 1024 / 1024)
        return got_ns + int(life_ns * (0.5 + late))

    def end_ns(self) -> int:
        """When it ends. Raises PapersError, OSError."""
        return int(self.certificate().not_valid_after_utc.timestamp()) * SECOND

    # made and changed

    def request(self, name: Spiffe) -> str:
        """A certificate signing request in PEM for the key, which is made if there is none."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with self._locked(fcntl.LOCK_EX):
            if not (self.directory / KEY).exists():
                self._make_key()
            key = load_pem_private_key(self._bytes(KEY), None)
        assert isinstance(key, EllipticCurvePrivateKey), f"{self.directory / KEY} was not made here"
        uri = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(name))])
        builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(uri, critical=True)
        return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()

    def keep(self, certificate: bytes, bundle: bytes, crl: bytes, address: Address | None = None) -> None:
        """Replace what was there. Raises ValueError, and changes nothing, when it does not go together."""
        pem = Pem(certificate, self._bytes(KEY), bundle, crl)
        Identity(lambda: pem)  # it can be used
        with self._locked(fcntl.LOCK_EX):
            # A CRL is read against the CAs of the bundle, and its reader may come when we are gone.
            old = self._bytes(BUNDLE) if (self.directory / BUNDLE).exists() else b""
            self._write(BUNDLE, old if bundle in old else old + bundle)
            self._write(CRL, crl)
            self._write(CERTIFICATE, certificate)
            self._write(BUNDLE, bundle)
            if address is not None:
                self._write(ADDRESS, f"{address}\n".encode())

    def keep_crl(self, crl: bytes) -> None:
        """What is revoked now. Raises ValueError, and changes nothing, when no CA signed that."""
        with self._locked(fcntl.LOCK_EX):
            Trust.read(self._bytes(BUNDLE), crl)
            self._write(CRL, crl)

    def _make_key(self) -> None:
        key = generate_private_key(SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._write(KEY, pem)

    def _write(self, name: str, data: bytes) -> None:
        """Replace a file, so that at any time either content is there, whole."""
        fresh = self.directory / f".{name}.new"
        fresh.unlink(missing_ok=True)  # of one who was cut off; we hold the lock
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        fresh.rename(self.directory / name)
        with _opened(self.directory) as folder:
            os.fsync(folder)

    def _bytes(self, name: str) -> bytes:
        return (self.directory / name).read_bytes()

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        with _opened(self.directory) as folder:
            fcntl.flock(folder, how)
            yield


def serial_of(chain: bytes) -> str:
    """The serial number of the first certificate in PEM, in hex."""
    return f"{_leaf(chain).serial_number:x}"


def _leaf(chain: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificates(chain)[0]


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _check_private(key: Path) -> None:
    if key.stat().st_mode & 0o077:
        raise PapersError(f"{key} can be read by others: chmod 600 it")


# where they are


def home() -> Path:
    """The folder of this user's identities, one for each hive."""
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(config) / "skep" / "identities"


def named() -> Papers | None:
    """The papers that ``SKEP_IDENTITY`` names; None: it names none."""
    directory = os.environ.get("SKEP_IDENTITY")
    return Papers(Path(directory)) if directory else None


def kept() -> list[Papers]:
    """All that this user has, by the names of the hives."""
    folder = home()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [papers for papers in map(Papers, found) if papers.complete]


def papers_for(address: Address | None) -> Papers:
    """The papers to show at ``address`` (None: at the one hive there is): those that were named, else those
    that were got there, else the only ones. Raises PapersError."""
    given = named()
    if given is not None:
        if not given.complete:
            raise PapersError(f"no identity in {given.directory} (SKEP_IDENTITY): run skep enroll")
        return given
    every = kept()
    there = [papers for papers in every if address is not None and papers.address() == address]
    if len(there or every) == 1:
        return (there or every)[0]
    place = f" for {address}" if address else ""
    if not every:
        raise PapersError(f"no identity{place} in {home()}: run skep enroll, or name one with --identity")
    hives = ", ".join(papers.directory.name for papers in there or every)
    raise PapersError(f"several identities{place} ({hives}): name one with --identity")
