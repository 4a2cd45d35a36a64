"""The name in a certificate: ``spiffe://<hive>/<role>/<node>``.

The grammar is narrower than SPIFFE's: three components of lower-case letters, digits and "-", the second
one a role; so that a name has one spelling, and none that a path, a query or an escape could hide in.
Sources: SPIFFE-ID and X509-SVID (github.com/spiffe/spiffe); RFC 5280, 4.2.1.6.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cryptography.x509 import (
    BasicConstraints,
    Certificate,
    DuplicateExtension,
    ExtensionNotFound,
    SubjectAlternativeName,
    UniformResourceIdentifier,
    UnsupportedGeneralNameType,
)

ROLES: Final = frozenset(
    {
        "queen-primary",
        "queen-regional",
        "queen-bare-metal",
        "drone-worker",
        "interactive-ai-booth",
        "kiosk-interactive",
        "glasses-agent",
        "sensor-relay",
        "simulator-test",
        "cuda-annex",
        "boot-lab",
        "gateway",
        "validator",
        "observer",
        "operator",
    }
)
EXPECTED: Final = "expected spiffe://<hive>/<role>/<node>"
QUOTED_MAX: Final = 96  # characters of a certificate's own text in a message: a peer writes what it likes
_NAME: Final = re.compile(r"spiffe://([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})")


class Spiffe(NamedTuple):
    """Who a certificate is of."""

    hive: str
    role: str
    node: str

    def __str__(self) -> str:
        return f"spiffe://{self.hive}/{self.role}/{self.node}"

    @property
    def is_queen(self) -> bool:
        return self.role.startswith("queen-")

    def is_called(self, uname: str) -> bool:
        """Whether an attach's ``uname`` may stand beside this name: the node's name, all of it, or none."""
        return uname in ("", "nobody", self.node, str(self))


def parse(text: str) -> Spiffe:
    """The name written in ``text``. Raises ValueError that quotes it and says what was expected."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"{quoted(text)}: {EXPECTED}")
    if match[2] not in ROLES:
        raise ValueError(f"{quoted(text)}: {match[2]} is no role")
    return Spiffe(match[1], match[2], match[3])


def name_of(certificate: Certificate) -> Spiffe:
    """The one URI among a certificate's alternative names. Raises ValueError when it does not name one node,
    or is a CA's: a CA speaks for others, never for itself."""
    try:
        names = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        raise ValueError(f"no subjectAltName: {EXPECTED}") from None
    except (DuplicateExtension, UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from None
    uris = names.get_values_for_type(UniformResourceIdentifier)
    if len(uris) != 1:
        raise ValueError(f"{len(uris)} URIs in subjectAltName: {EXPECTED}, once")
    if is_ca(certificate):
        raise ValueError(f"{quoted(uris[0])} is in a CA's certificate")
    return parse(uris[0])


def is_ca(certificate: Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(BasicConstraints).value.ca
    except ExtensionNotFound:
        return False


def quoted(text: str) -> str:
    """What somebody else wrote, made harmless and short."""
    return ascii(text if len(text) <= QUOTED_MAX else text[:QUOTED_MAX] + "...")
