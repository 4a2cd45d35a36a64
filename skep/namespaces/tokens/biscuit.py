"""The token's format: a biscuit of a few sentences of Datalog, written, narrowed and read strictly.

The first block is signed by the hive and says what is granted; whoever holds a token can add blocks, which
can only ask for more. Facts of the first block, and checks of any:

    skep(1);                                                         the version of these sentences
    tenant("default/default/default");
    op("read");                                                      one for each operation: OPS
    path("/jobs/");                                                  one for each place, and what is below it
    check if operation($o), {"read", "write"}.contains($o);
    check if resource($r), $r.starts_with("/jobs/") or resource($r), $r.starts_with("/nodes/w1/");
    check if time($t), $t < 2026-01-01T00:00:00Z;                    the first block must say when it ends
    check if principal("spiffe://hive/drone-worker/w1");
    check if channel("<sha256 of the TLS channel's tls-exporter value, hex>");
    check if use($n), $n <= 5;                                       of the commands written under this block

Each check once in a block, nothing else anywhere: a token that says more is refused, not half understood.
A place ends with a slash, so that a prefix of its text is a prefix by component; bytes of names that are
neither letters, digits nor ``._~@+=:-`` are percent-encoded. Any biscuit library can judge a token by POLICY
with the request's facts: operation, resource (with its slash), tenancy, time, principal, channel, use.

Sources: Biscuit specification, version 3 (github.com/biscuit-auth/biscuit); RFC 3986, 2.1; RFC 9266.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from biscuit_auth import (
    AuthorizationError,
    AuthorizerBuilder,
    Biscuit,
    BiscuitBlockError,
    BiscuitBuilder,
    BiscuitSerializationError,
    BiscuitValidationError,
    BlockBuilder,
    DataLogError,
    PrivateKey,
    PublicKey,
)

from skep.fs.messages import NAME_MAX
from skep.trace.clock import SECOND

TOKEN_MAX: Final = 8192  # bytes, before base64: a peer makes us check a signature for each hundred of them
BLOCKS_MAX: Final = 16
USES_MAX: Final = 10**12
ID_DIGITS: Final = 32  # of a block's revocation id, 128 hex digits long, that it goes by
OPS: Final = ("create", "read", "remove", "write")

# The authoriser's limit of time is one of the wall's clock: 1 ms by default, which a loaded machine takes for
# nothing. What bounds its work is that no rule gets this far, and these numbers.
MAX_TIME: Final = timedelta(seconds=60)
MAX_FACTS: Final = 2048  # TOKEN_MAX bytes hold some 700
MAX_ITERATIONS: Final = 16

POLICY: Final = (
    "allow if skep(1), tenant($t), tenancy($t), op($o), operation($o), path($p), resource($r), "
    "$r.starts_with($p)"
)

# A holder signs blocks itself, so what is signed well may still make no sense: some of that is found at once,
# some when a block is looked at, some when it is judged.
_SENSELESS: Final = (
    BiscuitBlockError, BiscuitSerializationError, BiscuitValidationError, DataLogError,
)  # fmt: skip

Place = tuple[str, ...]  # a path's names, from the root


class TokenError(ValueError):
    """The text is no token of this hive's, or says what no token says. It never quotes a signature."""


class Terms(NamedTuple):
    """What one block allows; None: the block does not say. ``until_ns`` is a whole second."""

    ops: frozenset[str] | None = None
    places: frozenset[Place] | None = None
    until_ns: int | None = None
    subject: str | None = None
    channel: str | None = None
    uses: int | None = None
    tenant: str | None = None  # of the first block


class Asked(NamedTuple):
    """One request, as POLICY judges it. ``channel``: sha256 of the binding, hex; "": there is none."""

    tenant: str
    op: str
    place: Place
    now_ns: int
    principal: str
    channel: str = ""
    use: int = 1


# keys


def private_key(raw: bytes) -> PrivateKey:
    """The Ed25519 key of 32 bytes."""
    return PrivateKey(f"ed25519-private/{raw.hex()}")


def public_key(raw: bytes) -> PublicKey:
    """The Ed25519 key of 32 bytes."""
    return PublicKey(f"ed25519/{raw.hex()}")


def key_id(raw: bytes) -> int:
    """The number by which a token names the public key that it was signed for."""
    return int.from_bytes(hashlib.sha256(raw).digest()[:4])


# writing


def mint(key: PrivateKey, id: int, terms: Terms) -> Biscuit:
    """The token that grants ``terms``, of which tenant, ops, places and until must be there, signed by the
    key that goes by ``id``. Raises TokenError."""
    assert terms.tenant is not None
    assert terms.ops
    assert terms.places
    assert terms.until_ns is not None
    facts = [
        "skep(1)",
        f'tenant("{_checked(_TENANT, terms.tenant, "tenant")}")',
        *(f'op("{_op(op)}")' for op in sorted(terms.ops)),
        *(f'path("{text}")' for text in sorted(map(place_text, terms.places))),
    ]
    builder = BiscuitBuilder(_source([*facts, *_checks(terms._replace(ops=None, places=None))]))
    builder.set_root_key_id(id)
    return _bounded(builder.build(key))


def attenuate(token: Biscuit, terms: Terms) -> Biscuit:
    """``token``, narrowed. Raises TokenError."""
    assert terms.tenant is None, "only the first block names a tenant"
    checks = _checks(terms)
    if not checks:
        raise TokenError("nothing to narrow it by")
    return _bounded(token.append(BlockBuilder(_source(checks))))


def _bounded(token: Biscuit) -> Biscuit:
    if len(bytes(token.to_bytes())) > TOKEN_MAX:
        raise TokenError(f"it would be longer than {TOKEN_MAX} bytes")
    if token.block_count() > BLOCKS_MAX:
        raise TokenError(f"it would have more than {BLOCKS_MAX} blocks")
    return token


def _source(sentences: list[str]) -> str:
    return "".join(f"{sentence};\n" for sentence in sentences)


def _checks(terms: Terms) -> list[str]:
    checks = []
    if terms.ops is not None:
        ops = ", ".join(f'"{_op(op)}"' for op in sorted(terms.ops))
        checks.append(f"check if operation($o), {{{ops}}}.contains($o)")
    if terms.places is not None:
        places = sorted(map(place_text, terms.places))
        checks.append("check if " + " or ".join(f'resource($r), $r.starts_with("{p}")' for p in places))
    if terms.until_ns is not None:
        checks.append(f"check if time($t), $t < {_time_text(terms.until_ns)}")
    if terms.subject is not None:
        checks.append(f'check if principal("{_checked(_SUBJECT, terms.subject, "subject")}")')
    if terms.channel is not None:
        checks.append(f'check if channel("{_checked(_CHANNEL, terms.channel, "channel")}")')
    if terms.uses is not None:
        if not 0 < terms.uses <= USES_MAX:
            raise TokenError(f"uses {terms.uses}: expected 1 to {USES_MAX}")
        checks.append(f"check if use($n), $n <= {terms.uses}")
    return checks


_TENANT: Final = re.compile(r"[A-Za-z0-9._-]{1,64}(?:/[A-Za-z0-9._-]{1,64}){2}")
_SUBJECT: Final = re.compile(r"[A-Za-z0-9:/._@%+#-]{1,256}")
_CHANNEL: Final = re.compile(r"[0-9a-f]{64}")
_PLACE: Final = re.compile(r"/(?:[A-Za-z0-9._~@+=:%-]+/)*")
_SAFE: Final = "@+=:"  # and letters, digits, "._~-"


def _checked(pattern: re.Pattern[str], text: str, what: str) -> str:
    if pattern.fullmatch(text) is None:
        raise TokenError(f"{what} {text!a}: expected {pattern.pattern}")
    return text


def _op(op: str) -> str:
    if op not in OPS:
        raise TokenError(f"operation {op!a}: unknown, expected some of {','.join(OPS)}")
    return op


def place_text(place: Place) -> str:
    """``("jobs", "a b")`` -> ``/jobs/a%20b/``. Raises TokenError for what is no canonical path."""
    return "/" + "".join(f"{quote(_name(name), safe=_SAFE, errors='surrogateescape')}/" for name in place)


def parse_place(text: str) -> Place:
    """The names of a path in a token. Raises TokenError when it is not written as ``place_text`` does."""
    names = (unquote_to_bytes(name).decode("utf-8", "surrogateescape") for name in text.split("/")[1:-1])
    place = tuple(names)
    if _PLACE.fullmatch(text) is None or place_text(place) != text:
        raise TokenError(f"path {text!a}: expected a canonical one, like /jobs/")
    return place


def place_of(path: str) -> Place:
    """The names of a path as people write it: ``/jobs``, ``/jobs/``. Raises TokenError for anything that
    would have to be resolved: ``..``, doubled slashes, a path that begins nowhere."""
    if not path.startswith("/"):
        raise TokenError(f"path {path!a}: expected one that begins with a slash")
    place = tuple(path[1:].removesuffix("/").split("/")) if path != "/" else ()
    place_text(place)
    return place


def parse_ops(text: str) -> frozenset[str]:
    """Operations with commas between, or ``all``. Raises TokenError."""
    return frozenset(OPS) if text == "all" else frozenset(map(_op, text.split(",")))


def _name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise TokenError(f"path: {name!a} is no name; expected names parted by single slashes")
    if len(name.encode("utf-8", "surrogateescape")) > NAME_MAX:
        raise TokenError(f"path: a name has at most {NAME_MAX} bytes")
    return name


def _time_text(time_ns: int) -> str:
    return f"{datetime.fromtimestamp(time_ns // SECOND, UTC):%Y-%m-%dT%H:%M:%SZ}"


# reading


def decode(written: bytes) -> bytes:
    """The token's bytes, of these or of their base64 as ``token.to_base64()`` and most tools write it.
    Raises TokenError."""
    text = written.strip()
    if len(text) > TOKEN_MAX * 4 // 3 + 4:
        raise TokenError(f"longer than {TOKEN_MAX} bytes")
    if _BASE64.fullmatch(text) is not None:
        try:
            written = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
        except binascii.Error:
            raise TokenError("not a token") from None
    if len(written) > TOKEN_MAX:
        raise TokenError(f"longer than {TOKEN_MAX} bytes")
    return written


_BASE64: Final = re.compile(rb"[A-Za-z0-9_-]+={0,2}")


def verify(token: bytes, keys: Mapping[int, PublicKey]) -> Biscuit:
    """The token, its signatures checked. ``keys``: those that are trusted, by the number they go by.
    Raises TokenError."""
    try:
        return Biscuit.from_bytes(token, _looked_up(keys))
    except _SENSELESS:
        raise TokenError("it is not signed by this hive's key") from None


def _looked_up(keys: Mapping[int, PublicKey]) -> Callable[[int | None], PublicKey]:
    def find(id: int | None) -> PublicKey:
        if id is None:
            raise KeyError(id)
        return keys[id]

    return find


def read(token: Biscuit) -> list[Terms]:
    """What each block says. Raises TokenError when one says what no token says."""
    blocks = token.block_count()
    if blocks > BLOCKS_MAX:
        raise TokenError(f"it has {blocks} blocks, at most {BLOCKS_MAX} were expected")
    for i in range(blocks):
        if token.block_external_key(i) is not None:
            raise TokenError(f"block {i} is somebody else's")
    try:
        sources = [token.block_source(i) for i in range(blocks)]
    except _SENSELESS:
        raise TokenError("one of its blocks makes no sense") from None
    terms = [_read_block(i, source) for i, source in enumerate(sources)]
    for what in ("tenant", "ops", "places", "until_ns"):
        if getattr(terms[0], what) is None:
            raise TokenError(f"block 0 says nothing of {what}")
    return terms


def ids_of(token: Biscuit) -> list[str]:
    """What each block goes by in the ledger, and is revoked by."""
    return [id[:ID_DIGITS] for id in token.revocation_ids]


def _read_block(number: int, source: str) -> Terms:
    """The library does not quote what is in a string, so a block may print as what it is not. Then it is
    read as narrowing by what it prints as, which is a narrowing too; the hive signs no such block itself."""
    sentences = source.removesuffix(";\n").split(";\n") if source else []
    if number == 0:
        if sentences[:1] != ["skep(1)"]:
            raise TokenError("block 0 is not of version 1")
        del sentences[0]
    found: dict[str, Any] = {}
    for sentence in sentences:
        row, match = _sentence(number, sentence)
        value = row.value(match)
        if row.many:
            found[row.field] = found.get(row.field, frozenset()) | value
        elif row.field in found:
            raise TokenError(f"block {number} speaks of {row.field} twice")
        else:
            found[row.field] = value
    return Terms(**found)


def _sentence(number: int, sentence: str) -> tuple[_Row, re.Match[str]]:
    for row in _ROWS:
        match = row.pattern.fullmatch(sentence)
        if match is not None and (number == 0 or not row.first):
            return row, match
    raise TokenError(f"block {number}: {sentence[:64]!a}: unknown here")


class _Row(NamedTuple):
    """A sentence. ``first``: only in the first block; ``many``: any number of them."""

    pattern: re.Pattern[str]
    field: str
    value: Callable[[re.Match[str]], Any]
    first: bool = False
    many: bool = False


def _ops(match: re.Match[str]) -> frozenset[str]:
    return frozenset(map(_op, re.findall(r'"([^"]*)"', match[1])))


def _places(match: re.Match[str]) -> frozenset[Place]:
    return frozenset(map(parse_place, re.findall(r'"([^"]*)"', match[1])))


def _time(match: re.Match[str]) -> int:
    try:
        return int(datetime.fromisoformat(match[1]).timestamp()) * SECOND
    except ValueError:
        raise TokenError(f"time {match[1]!a}: there is no such") from None


def _text(match: re.Match[str]) -> str:
    return match[1]


def _number(match: re.Match[str]) -> int:
    return int(match[1])


_STRING = r'"[^"]*"'
_PREFIX = rf"resource\(\$r\), \$r\.starts_with\({_STRING}\)"


def _row(pattern: str, field: str, value: Callable[[re.Match[str]], Any], first: str = "") -> _Row:
    return _Row(re.compile(pattern, re.ASCII), field, value, bool(first), first == "many")


_ROWS: Final = (
    _row(rf'tenant\("({_TENANT.pattern})"\)', "tenant", _text, "once"),
    _row(rf"op\(({_STRING})\)", "ops", _ops, "many"),
    _row(rf"path\(({_STRING})\)", "places", _places, "many"),
    _row(rf"check if operation\(\$o\), \{{({_STRING}(?:, {_STRING})*)\}}\.contains\(\$o\)", "ops", _ops),
    _row(rf"check if ({_PREFIX}(?: or {_PREFIX})*)", "places", _places),
    _row(r"check if time\(\$t\), \$t < (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", "until_ns", _time),
    _row(rf'check if principal\("({_SUBJECT.pattern})"\)', "subject", _text),
    _row(rf'check if channel\("({_CHANNEL.pattern})"\)', "channel", _text),
    _row(r"check if use\(\$n\), \$n <= (\d{1,12})", "uses", _number),
)


# judging


def allows(token: Biscuit, asked: Asked) -> bool:
    """Whether biscuit's own authoriser allows the request: what any other verifier comes to as well."""
    facts = {
        "tenant": asked.tenant,
        "op": asked.op,
        "place": place_text(asked.place),
        "now": datetime.fromtimestamp(asked.now_ns // SECOND, UTC),
        "principal": asked.principal,
        "channel": asked.channel,
        "use": asked.use,
    }
    builder = AuthorizerBuilder(
        "tenancy({tenant}); operation({op}); resource({place}); time({now}); principal({principal}); "
        f"channel({{channel}}); use({{use}}); {POLICY};",
        facts,
    )
    limits = builder.limits()  # type: ignore[attr-defined]  # not in the stubs of 0.4
    limits.max_time, limits.max_facts, limits.max_iterations = MAX_TIME, MAX_FACTS, MAX_ITERATIONS
    builder.set_limits(limits)  # type: ignore[attr-defined]
    try:
        builder.build(token).authorize()
    except (AuthorizationError, *_SENSELESS):
        return False
    return True
