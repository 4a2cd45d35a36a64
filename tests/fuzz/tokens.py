"""Capability tokens: what is written is a token of ours or is refused; who holds one can only narrow it.

An input is what is written as a token or, behind a zero byte, sentences that the holder of a good one adds.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator

from biscuit_auth import Biscuit, KeyPair, PrivateKey

from skep.namespaces.tokens.biscuit import (
    OPS,
    TOKEN_MAX,
    Asked,
    Terms,
    TokenError,
    allows,
    attenuate,
    decode,
    ids_of,
    mint,
    read,
    verify,
)
from skep.namespaces.tokens.grant import granted, is_inside
from tests.fuzz.holding import holds
from tests.namespaces.token_terms import ID, NOW_NS, TENANT, UNTIL_NS, terms, with_block

LENGTH_MAX = 1024
PAIR = KeyPair.from_private_key(PrivateKey("ed25519-private/" + "07" * 32))
KEYS = {ID: PAIR.public_key}
BASE = mint(PAIR.private_key, ID, terms("read write", "/jobs /nodes"))
GRANT = granted(ids_of(BASE), read(BASE))
ASKS = [
    Asked(tenant, op, place, now_ns, "unix:ann", use=use)
    for tenant in (TENANT, "other/project/env")
    for op in ("read", "write", "remove")
    for place in (("jobs", "1"), ("artifacts",), ())
    for now_ns in (NOW_NS, UNTIL_NS)
    for use in (1, 9)
]
ALLOWED = [allows(BASE, asked) for asked in ASKS]


def one(data: bytes) -> None:
    if data[:1] == b"\0":
        narrow(data[1:])
    else:
        show(data)


def show(written: bytes) -> None:
    """What passes for a token was made with the hive's key: there are only those of ``seeds``."""
    try:
        raw = decode(written)
        assert len(raw) <= TOKEN_MAX
        token = verify(raw, KEYS)
        found = granted(ids_of(token), read(token))
    except TokenError as error:
        holds(len(str(error)) < 1000, error)
        return
    check(token, found.ops <= GRANT.ops)


def narrow(source: bytes) -> None:
    try:
        token = with_block(source.decode("utf-8", "replace"), BASE)
    except Exception as error:
        # Biscuit's own errors have no base of their own.
        holds(type(error).__module__ == "biscuit_auth", error)
        return
    # It is its holder who has added to it: its signatures are good.
    token = verify(bytes(token.to_bytes()), KEYS)
    try:
        found = granted(ids_of(token), read(token))
    except TokenError:
        check(token, True)
        return
    check(
        token,
        found.ops <= GRANT.ops
        and all(is_inside(place, GRANT.places) for place in found.places)
        and (found.tenant, found.until_ns <= GRANT.until_ns) == (GRANT.tenant, True),
    )


def check(token: Biscuit, narrower: bool) -> None:
    assert narrower, token
    for asked, allowed in zip(ASKS, ALLOWED, strict=True):
        assert allowed or not allows(token, asked), asked


def seeds() -> Iterator[bytes]:
    narrowed = attenuate(BASE, Terms(ops=frozenset({"read"}), uses=3, subject="unix:ann"))
    for token in (BASE, narrowed, attenuate(narrowed, Terms(places=frozenset({("jobs", "1")})))):
        yield bytes(token.to_bytes())
        yield base64.urlsafe_b64encode(bytes(token.to_bytes()))
    for more in (
        Terms(ops=frozenset(OPS)),
        Terms(places=frozenset({("jobs", "a b"), ()}), until_ns=UNTIL_NS),
        Terms(subject="unix:ann", channel="ab" * 32, uses=3),
    ):
        block = attenuate(BASE, more)
        yield b"\0" + block.block_source(1).encode()
    for source in (
        'op("remove"); path("/"); tenant("other/project/env");',
        'operation($o) <- op($o); resource("/");',
        'check if true; check all op($o), $o == "read"; reject if false;',
        "check if use($n), $n <= 1 or time($t), $t < 2030-01-01T00:00:00Z trusting previous;",
    ):
        yield b"\0" + source.encode()
