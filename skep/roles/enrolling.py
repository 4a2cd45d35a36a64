"""Asking a hive for papers: the first ones with an invite, later ones with those that one has.

What is asked is /trust's (namespaces/trust/files.py); where the papers are kept is papers.py's.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from skep.fs.address import Address
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.identity import Identity
from skep.fs.messages import Dialect
from skep.fs.spiffe import ROLES, Spiffe
from skep.roles.papers import Papers, PapersError, serial_of
from skep.trace.clock import Clock, SystemClock

PREFIX: Final = "skep1."


class InviteError(ValueError):
    """The text is no invite; it is not quoted, for it may be a part of one."""


class Invite(msgspec.Struct, frozen=True):
    """What ``skep invite`` prints, taken apart. ``spki``: SHA-256 of the CA's public key, in hex."""

    hive: str
    id: str
    secret: str
    spki: str
    role: str
    node: str

    @property
    def name(self) -> Spiffe:
        return Spiffe(self.hive, self.role, self.node)

    def __repr__(self) -> str:
        return f"Invite({self.name}, {self.id})"


class Signed(msgspec.Struct, frozen=True):
    """The hive's answer, PEM: the certificate with the CAs above it, and the CAs to believe."""

    certificate: str
    bundle: str


def parse_invite(text: str) -> Invite:
    """The invite written in ``text``. Raises InviteError."""
    word = text.strip()
    if not word.startswith(PREFIX):
        raise InviteError(f"no invite: expected one word that begins with {PREFIX}")
    coded = word.removeprefix(PREFIX)
    try:
        found = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        invite = msgspec.json.decode(found, type=Invite)
    except (binascii.Error, ValueError) as error:
        raise InviteError("no invite, or not all of one: take it whole, as skep invite printed it") from error
    if invite.role not in ROLES:
        raise InviteError(f"the invite is for the role {invite.role!r}, which is none")
    return invite


async def enroll(papers: Papers, address: Address, invite: Invite) -> None:
    """Get the papers that ``invite`` promises, from the hive at ``address``, which proves to be the one that
    gave it. Said again with the same papers, it succeeds again.

    Raises PapersError when they are somebody else's; OSError, FsError."""
    if papers.complete and papers.name() != invite.name:
        raise PapersError(f"{papers.directory} holds the identity of {papers.name()}: name another directory")
    request = papers.request(invite.name)
    client = await Client.connect(address, pin=invite.spki, dialect=Dialect.U)
    async with client:
        said = {"invite": invite.id, "secret": invite.secret, "csr": request}
        answer = await _ask(client, "/trust/enroll", said)
    papers.keep(answer.certificate.encode(), answer.bundle.encode(), b"", address)


async def renew(papers: Papers, client: Client) -> None:
    """Get the next papers over a session that the present ones have opened. Raises OSError, FsError, and
    ValueError when what came cannot be used."""
    request = papers.request(papers.name())
    crl = await client.read_file("/trust/crl.pem")
    answer = await _ask(client, "/trust/renew", {"csr": request})
    certificate, bundle = answer.certificate.encode(), answer.bundle.encode()
    try:
        papers.keep(certificate, bundle, crl)
    except ValueError:
        # An overlap has ended just now, and there was a CRL of the CA that is gone.
        papers.keep(certificate, bundle, await client.read_file("/trust/crl.pem"))


async def _ask(client: Client, path: str, said: dict[str, str]) -> Signed:
    async with await client.open(path, "rw") as fid:
        await fid.write_all(msgspec.json.encode(said))
        answer = b"".join([piece async for piece in fid.pieces()])
    try:
        return msgspec.json.decode(answer, type=Signed)
    except msgspec.DecodeError as error:
        raise FsError(E.PROTO, f"{path}: {error}") from error


class Shown:
    """Papers as one session was opened with them, and their keeping while it lasts: a link.Standing."""

    def __init__(self, papers: Papers, clock: Clock | None = None) -> None:
        """Raises PapersError."""
        self.papers = papers
        self.clock = clock or SystemClock()
        try:
            self.pem = papers.read()
            self.identity = Identity(lambda: self.pem, self.clock)
            self.serial = serial_of(self.pem.certificate)
        except PapersError:
            raise
        except (OSError, ValueError) as error:
            raise PapersError(f"{papers.directory}: {error}") from error

    async def look(self, client: Client) -> bool:
        """Renew what is due, or what the hive's trust has moved away from, over the session ``client`` that
        was opened with this; whether there are other papers now, and it ought to be opened again.

        Raises PapersError, OSError, FsError, and ValueError when what came cannot be used."""
        # In this order: a rotation between the two adds a CA, and the CRLs are of those before.
        crl = await client.read_file("/trust/crl.pem")
        bundle = await client.read_file("/trust/ca.pem")
        kept = self.papers.read()
        if _authorities(bundle) != _authorities(kept.bundle) or self.clock.now_ns() >= self.papers.due_ns():
            await renew(self.papers, client)
        elif crl != self.pem.crl:
            self.papers.keep_crl(crl)
            self.pem = self.pem._replace(crl=crl)
            self.identity.reload()
        return self.papers.serial() != self.serial


def _authorities(bundle: bytes) -> frozenset[bytes]:
    return frozenset(ca.public_bytes(Encoding.DER) for ca in x509.load_pem_x509_certificates(bundle))
