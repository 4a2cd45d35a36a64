"""What may be written to /trust, as tables: by people, and as the ledger has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.spiffe import ROLES
from skep.namespaces.order import HIVE_TENANT

QUEENS: Final = frozenset(role for role in ROLES if role.startswith("queen-"))
INVITED_ROLES: Final = tuple(sorted(ROLES - QUEENS))
"""What an invite may make of one. Clients believe any queen of this CA: hers is made where she serves."""

KINDS: Final = ("ca", "token", "merkle", "policy")  # of keys, each for one use alone
INVITE_TTL: Final = "10m"  # when an invite says nothing
OVERLAP: Final = "24h"  # when a rotation says nothing: nodes renew themselves twice in it

INVITE: Final = Verb(
    "invite",
    (
        Arg("role", required=True, kind="|".join(INVITED_ROLES)),
        Arg("node", required=True, kind="name", help="what its certificate will call it"),
        Arg("ttl", kind="duration", help=f"how long it may be used, 10s to 168h, else {INVITE_TTL}"),
        Arg("tenant", help=f"org/project/env, or some with commas between; else {HIVE_TENANT}"),
    ),
    "invite role=drone-worker node=w7 ttl=10m",
    "let a node ask for a certificate, once; the reply is the invite, told only here",
    secret=True,
)
REVOKE: Final = Verb(
    "revoke",
    (
        Arg("serial", kind="text", help="one certificate"),
        Arg("node", kind="name", help="all its certificates and invites; it has to be invited again"),
        Arg("token", kind="text", help="a capability token, by its revocation id"),
        Arg("reason"),
    ),
    "revoke node=w7 reason=stolen",
    "one of them, at once and for ever",
)
ROTATE: Final = Verb(
    "rotate",
    (
        Arg("what", required=True, kind="|".join(KINDS)),
        Arg("overlap", kind="duration", help=f"how long the old one is good too, else {OVERLAP}; 0s: not"),
    ),
    "rotate what=ca overlap=1h",
    "a new key; the reply is its id",
)
VERBS: Final = ctl.verbs(INVITE, REVOKE, ROTATE)

_KEY: Final = Arg("key", required=True)
_CERTIFICATE: Final = (Arg("certificate"), Arg("until"), Arg("cross"))  # of a CA: as Key has them
_TTL: Final = Arg("ttl", required=True, kind="duration")

# As written down: the door has made what is random, and says so.
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(
        INVITE._replace(args=(*INVITE.args, Arg("secret", required=True))),
        REVOKE,
        ROTATE._replace(args=(*ROTATE.args, _KEY, Arg("before", required=True), *_CERTIFICATE)),
    ),
    "*": ctl.verbs(
        Verb("enroll", (Arg("invite", required=True), Arg("secret", required=True), _KEY, _TTL)),
        Verb("renew", (Arg("serial", required=True), _KEY, _TTL)),
        # The hive's own, written to no file.
        Verb(
            "found",
            (
                Arg("hive", required=True, kind="name"),
                *(Arg(kind, required=True) for kind in KINDS),
                *_CERTIFICATE[:2],
            ),
        ),
        Verb("issue", (Arg("role", required=True), Arg("node", required=True), _KEY, _TTL)),
        Verb("retire", (Arg("what", required=True, kind="|".join(KINDS)), _KEY)),
    ),
}
OWN_VERBS: Final = ("found", "issue", "retire")
