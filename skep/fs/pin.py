"""A client that has no certificate yet, and knows of its hive no more than the pin of its CA.

What it is told by a server that this CA vouches for, it may believe; the server knows nothing of it.
Source: RFC 7469, 2.4 (what a pin is of).
"""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto

from skep.fs.identity import End
from skep.fs.judge import ENROL, Judge, bare_context, joined
from skep.fs.records import Rooms
from skep.fs.spiffe import quoted
from skep.fs.trust import Chain, Doubt, Reason, spki

_PIN: Final = re.compile(r"[0-9a-f]{64}")

# That a CA is not known is no fault here, as long as the pinned one is in the chain.
# Source: openssl/x509_vfy.h.
_UNKNOWN: Final = frozenset({2, 19, 20})


class Pinned:
    """Stands where an Identity does, for connections that last as long as an enrolment."""

    def __init__(self, pin: str) -> None:
        """``pin``: of the CA, as ``trust.spki`` gives it. Raises ValueError for what is none."""
        if _PIN.fullmatch(pin) is None:
            raise ValueError(f"{quoted(pin)}: expected a SHA-256 of 64 hexadecimal digits")
        self.pin = pin
        self.rooms = Rooms()
        self._context = bare_context()
        store = self._context.get_cert_store()
        assert store is not None
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)

    def judge(self, server: bool) -> Judge:
        assert not server, "a server has a certificate"
        return Judge(self._believed, server, pardoned=_UNKNOWN)

    def connection(self, judge: Judge) -> SSL.Connection:
        """A connection between memory buffers, whose peer ``judge`` is to judge."""
        return joined(self._context, judge, ENROL)

    def doubt(self, chain: Chain) -> Doubt | None:
        """None: a pin does not change."""
        return None

    def hold(self, chain: Chain, end: End) -> None:
        """Nothing ends it but its own end: there is no CRL yet to read."""

    def release(self, end: End) -> None:
        """Nothing was held."""

    def _believed(self, certificates: list[x509.Certificate]) -> Chain | Doubt:
        """The chain up to the pinned CA. OpenSSL has checked each of its signatures, its uses and times."""
        pins = [spki(certificate) for certificate in certificates]
        if self.pin not in pins[1:]:
            return Doubt(Reason.PIN, f"expected {self.pin}, shown {', '.join(pins[1:])}")
        at = pins.index(self.pin, 1)
        return Chain.of(certificates[: at + 1])
