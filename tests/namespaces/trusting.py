"""Trust for the tests: the fold without other nouns, an authority over it, and who asks for certificates."""

from __future__ import annotations

import time
from base64 import b64encode
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from skep.fs import ctl
from skep.fs.errors import E, FsError
from skep.fs.identity import Pem
from skep.fs.spiffe import Spiffe
from skep.namespaces.order import HIVE, Order
from skep.namespaces.trust import core, record, verbs
from skep.namespaces.trust.authority import Authority, read_request
from skep.namespaces.trust.core import secret_hash
from skep.namespaces.trust.record import Certificate, Trust
from skep.trace.clock import SECOND, ManualClock
from skep.trace.entry import canonical, events_decoder
from skep.trace.rules import Decision, Meta, Refusal

QUEEN = Spiffe("hive", "queen-primary", "q1")
KEYS = {what: digit * 64 for what, digit in zip(verbs.KINDS, "abcd", strict=True)}
UNTIL = "2043-11-14T22:13:20Z"
FOUND = ctl.line("found", {"hive": "hive", "certificate": "QQ==", "until": UNTIL} | KEYS)
_events = events_decoder(record.Event)


class Book:
    """Lines to /trust, decided and applied one after the other, as the hive's turn does it."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        self.trust = Trust()
        self.clock = clock or ManualClock()
        self.lines: list[tuple[Order, str]] = []  # those that took effect, and their replies
        self.entries: list[tuple[bytes, Meta]] = []

    def write(self, line: str, actor: str = "unix:ann", place: str = "ctl") -> str:
        """The reply. Raises Refusal, FsError."""
        command = ctl.parse_line(line)
        ctl.check(command, verbs.TABLES[place])
        id = self.clock.new_id()
        order = Order(command.verb, command.args, place, "", actor, "", "", self.clock.now_ns(), id)
        before = canonical(as_value(self.trust))
        try:
            decision: Decision[record.Event, str] = core.decide(self.trust, order)
        finally:
            assert before == canonical(as_value(self.trust)), "deciding changes nothing"
        meta = Meta(len(self.lines) + 1, order.time_ns, id)
        body = canonical(decision.events)
        for event in _events.decode(body):
            record.apply(self.trust, event, meta)
        self.lines.append((order, decision.reply))
        self.entries.append((body, meta))
        return decision.reply

    def own(self, line: str) -> str:
        """Written by the hive itself."""
        return self.write(line, HIVE, "*")

    def found(self) -> None:
        self.own(FOUND)

    def invite(self, more: str = "role=drone-worker node=w1") -> str:
        """Its secret is its node's name."""
        node = more.partition("node=")[2].split(" ")[0]
        return self.write(f"invite {more} secret={secret_hash(node)}")

    def enroll(self, invite: str, secret: str = "w1", key: str = "S0VZ", ttl: str = "24h") -> str:
        line = f"enroll invite={invite} secret={secret_hash(secret)} key={key} ttl={ttl}"
        return self.write(line, "tls:anonymous", "*")

    def renew(self, serial: str, key: str = "S0VZ", name: str = "drone-worker/w1", ttl: str = "24h") -> str:
        return self.write(f"renew serial={serial} key={key} ttl={ttl}", f"spiffe://hive/{name}", "*")

    def rotate(self, what: str, overlap: str = "1h", key: str = "") -> str:
        key = key or f"{len(self.lines):064x}"
        more = f" certificate=QQ== until={UNTIL}" if what == "ca" else ""
        before = self.trust.active(what).id
        return self.write(f"rotate what={what} overlap={overlap} key={key} before={before}{more}")

    def is_good(self, serial: str) -> bool:
        return self.trust.is_good(serial, self.clock.now_ns())

    def folded(self) -> Trust:
        """The state as it is when the ledger is read again."""
        trust = Trust()
        for body, meta in self.entries:
            for event in _events.decode(body):
                record.apply(trust, event, meta)
        return trust

    def decided_again(self) -> list[str]:
        """What replaying the lines that took effect replies."""
        trust, replies = Trust(), []
        for (order, _), (body, meta) in zip(self.lines, self.entries, strict=True):
            decision: Decision[record.Event, str] = core.decide(trust, order)
            assert body == canonical(decision.events)
            for event in decision.events:
                record.apply(trust, event, meta)
            replies.append(decision.reply)
        return replies


def as_value(trust: Trust) -> object:
    return {name: msgspec.to_builtins(value) for name, value in vars(trust).items()}


def refused(book: Book, line: str, actor: str = "unix:ann", place: str = "ctl") -> str:
    """The text of the refusal."""
    try:
        book.write(line, actor, place)
    except Refusal as error:
        return error.text
    raise AssertionError(f"{line}: it was taken")


class Applicant:
    """Somebody with a key who asks for a certificate."""

    def __init__(self, key: EllipticCurvePrivateKey | None = None) -> None:
        self.key = key or generate_private_key(SECP256R1())

    @property
    def csr(self) -> str:
        # What it asks to be called is nobody's business but the invite's.
        name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://hive/operator/boss")])
        made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return (
            made.add_extension(name, critical=False)
            .sign(self.key, SHA256())
            .public_bytes(Encoding.PEM)
            .decode()
        )

    @property
    def public(self) -> str:
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return b64encode(spki).decode()

    @property
    def private(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Established:
    """An authority over a book, as a hive has it. The clock begins now: OpenSSL has no other."""

    def __init__(self, directory: Path, kms: str = "", clock: ManualClock | None = None) -> None:
        self.directory = directory
        self.kms = kms
        self.clock = clock or ManualClock(time.time_ns() // SECOND * SECOND)
        self.book = Book(self.clock)
        self.refusing: E | None = None  # how the hive refuses its own lines now; None: it does not
        self.authority = Authority.open(directory, kms, clock=self.clock)

    async def begin(self, queen: Spiffe = QUEEN) -> None:
        await self.authority.begin(queen, lambda: self.book.trust, self.say)

    async def again(self) -> None:
        """The process dies, and another begins on the same ledger and keys."""
        self.authority.close()
        self.authority = Authority.open(self.directory, self.kms, clock=self.clock)
        await self.begin()

    async def say(self, path: str, line: str) -> None:
        if self.refusing is not None:
            raise FsError(self.refusing)
        self._moved(lambda: self.book.own(line))

    def write(self, line: str) -> str:
        return self._moved(lambda: self.book.write(line))

    def enroll(self, applicant: Applicant, node: str = "w1", role: str = "drone-worker") -> Certificate:
        invite = self.book.invite(f"role={role} node={node}")
        key = read_request(applicant.csr)
        return self.book.trust.certificates[self._moved(lambda: self.book.enroll(invite, node, key))]

    async def rotate(self, what: str = "ca", overlap: str = "1h") -> None:
        self.write(ctl.line("rotate", {"what": what, "overlap": overlap} | self.authority.rotation(what)))
        await self.authority.tend()

    def papers(self, applicant: Applicant, record: Certificate) -> Pem:
        """What the node keeps, with the CAs that are trusted now."""
        authority = self.authority
        return Pem(authority.sign(record), applicant.private, authority.bundle(), authority.crl())

    def _moved(self, write: object) -> str:
        assert callable(write)
        reply: str = write()
        self.authority.moved(_events.decode(self.book.entries[-1][0]))
        return reply
