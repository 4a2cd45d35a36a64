"""What comes before a certificate: invites, requests to be signed, names. The first byte says which."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from skep.fs import spiffe
from skep.fs.spiffe import ROLES
from skep.namespaces.trust.authority import read_request
from skep.roles.enrolling import PREFIX, InviteError, parse_invite
from tests.fuzz.holding import holds

LENGTH_MAX = 2048
SECRET = "0123456789abcdef"


def invite(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        found = parse_invite(text)
    except InviteError as error:
        holds(SECRET not in str(error), error)
        return
    assert found.role in ROLES
    assert SECRET not in repr(found)
    again = base64.urlsafe_b64encode(msgspec.json.encode(found)).decode().rstrip("=")
    assert found == parse_invite(PREFIX + again)


def coded_invite(data: bytes) -> None:
    invite(PREFIX.encode() + base64.urlsafe_b64encode(data).rstrip(b"="))


def request(data: bytes) -> None:
    """A request as PEM: the key it is for, or why not."""
    try:
        found = read_request(data.decode("utf-8", "surrogateescape"))
    except ValueError:
        return
    load_der_public_key(base64.b64decode(found, validate=True))


def coded_request(data: bytes) -> None:
    lines = base64.encodebytes(data)
    request(b"-----BEGIN CERTIFICATE REQUEST-----\n" + lines + b"-----END CERTIFICATE REQUEST-----\n")


def name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        found = spiffe.parse(text)
    except ValueError:
        return
    assert (text, True) == (str(found), found.role in ROLES)


KINDS: tuple[Callable[[bytes], None], ...] = (invite, coded_invite, request, coded_request, name)


def one(data: bytes) -> None:
    if data and data[0] < len(KINDS):
        KINDS[data[0]](data[1:])


def seeds() -> Iterator[bytes]:
    said = {
        "hive": "hive",
        "id": "01JD",
        "secret": SECRET,
        "spki": "ab" * 32,
        "role": "drone-worker",
        "node": "w1",
    }
    raw = msgspec.json.encode(said)
    yield b"\0" + PREFIX.encode() + base64.urlsafe_b64encode(raw)
    yield b"\1" + raw
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "w1")])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://hive/operator/me")])
    builder = x509.CertificateSigningRequestBuilder(subject).add_extension(names, critical=False)
    for made in (
        builder.sign(derive_private_key(7, SECP256R1()), SHA256()),
        builder.sign(Ed25519PrivateKey.from_private_bytes(bytes(32)), None),
        builder.sign(generate_private_key(65537, 1024), SHA256()),
    ):
        yield b"\2" + made.public_bytes(Encoding.PEM)
        yield b"\3" + made.public_bytes(Encoding.DER)
    yield b"\4spiffe://hive/drone-worker/w1"
