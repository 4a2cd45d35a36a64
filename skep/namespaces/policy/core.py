"""Policy as a fold: which bundles are live, all their versions, whose signatures count. No clock, no I/O.

A bundle is checked when it is published: it parses, is valid by its schema and the hive's, passes its tests,
is signed by a key that is trusted for it, and leaves who publishes it the right to publish. Otherwise it is
refused, and what was live stays live. What is live is asked by engine.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import cedarpy
import msgspec

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb
from skep.fs.errors import E
from skep.namespaces.order import HIVE, Order, refusal
from skep.namespaces.policy.bundle import (
    TESTS,
    Bundle,
    BundleError,
    Test,
    check,
    shipped,
    signed,
    tests_of,
    unpack,
)
from skep.namespaces.policy.constraint import broken
from skep.namespaces.policy.engine import Engine, Live, Ruling, approval_ref, engine
from skep.namespaces.policy.keys import is_key, is_signature, verify
from skep.namespaces.policy.request import Principal, Request, written
from skep.namespaces.versions import with_new
from skep.trace.rules import Decision, Meta

BUNDLES_MAX: Final = 64
VERSIONS_MAX: Final = 32  # kept of each bundle beside the live one; older ones are in the ledger.
GOOD_MAX: Final = 16  # bundles that are remembered to have been checked.
KEYS_MAX: Final = 64
HIVE_KEYS: Final[tuple[str, ...]] = ("hive", "hive-before")  # the hive's own: which signs, which overlaps

BUNDLE: Final = Arg("bundle", required=True, kind="name")
IF_LIVE: Final = Arg(
    "sha256", required=True, kind="sha256", help="of the bundle, as skep policy check tells it"
)
SIG: Final = Arg("sig", help="Ed25519 by a trusted key, in hex, as skep policy sign makes it")
KEY_NAME: Final = Arg("name", required=True, kind="name")

PUBLISH: Final = Verb(
    "publish",
    (BUNDLE, IF_LIVE, SIG._replace(required=True)),
    "publish bundle=operator sha256=0f… sig=9a…",
    "make the bundle's draft live, when it is good and signed; the reply is its version",
)
_OTHERS: Final = (
    Verb(
        "rollback",
        (BUNDLE, Arg("v", required=True, kind="number")),
        "rollback bundle=operator v=3",
        "make an earlier version live again",
    ),
    Verb(
        "trust-key",
        (
            KEY_NAME,
            Arg("key", required=True, help="its public half, 64 hex digits"),
            Arg("bundle", kind="name", help="the only bundle that it may sign, else any"),
            SIG._replace(help="by a trusted key; the first key that is not the hive's needs none"),
        ),
        "trust-key name=ann key=7d…",
        "bundles signed by it can be published",
    ),
    Verb(
        "distrust-key",
        (KEY_NAME,),
        "distrust-key name=ann",
        "what it signed stays live, but is never published again",
    ),
)
# What people write. The door adds the draft to the line.
VERBS: Final = ctl.verbs(PUBLISH, *_OTHERS)
TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "ctl": ctl.verbs(PUBLISH._replace(args=(*PUBLISH.args, Arg("content", required=True))), *_OTHERS),
    # Written nowhere: the right to ask what the policy says of others.
    "decide": ctl.verbs(Verb("ask")),
}


class Published(msgspec.Struct, frozen=True, tag_field="type", tag="policy.published"):
    """``content`` is the bundle, packed; ``key`` the name of the key that signed it."""

    bundle: str
    v: int
    sha256: str
    sig: str
    key: str
    actor: str
    content: str


class RolledBack(msgspec.Struct, frozen=True, tag_field="type", tag="policy.rolled_back"):
    bundle: str
    v: int


class KeyTrusted(msgspec.Struct, frozen=True, tag_field="type", tag="policy.key_trusted"):
    """``bundle``: the only one it may sign; "": any."""

    name: str
    key: str
    bundle: str


class KeyDistrusted(msgspec.Struct, frozen=True, tag_field="type", tag="policy.key_distrusted"):
    name: str


Event = Published | RolledBack | KeyTrusted | KeyDistrusted


class Version(msgspec.Struct, frozen=True):
    v: int
    sha256: str
    sig: str
    key: str
    actor: str
    published_ns: int
    content: str


class Record(msgspec.Struct, frozen=True):
    """A bundle: its versions by number, the newest last, and which is live."""

    name: str
    live: int
    rev: int
    versions: dict[int, Version]  # never changed

    @property
    def version(self) -> Version:
        return self.versions[self.live]


class Key(msgspec.Struct, frozen=True):
    name: str
    key: str
    bundle: str


@dataclass
class Policy:
    """``introduced``: whether a key that is not the hive's was ever trusted."""

    bundles: dict[str, Record] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    introduced: bool = False
    # Of what is live in ``bundles``.
    live: Engine = field(default_factory=lambda: engine(()), compare=False)

    def copy(self) -> Policy:
        return Policy(self.bundles.copy(), self.keys.copy(), self.introduced, self.live)


def lives(policy: Policy) -> tuple[Live, ...]:
    """What is live, by name."""
    return tuple(_live(name, policy.bundles[name].version) for name in sorted(policy.bundles))


def _live(bundle: str, version: Version) -> Live:
    return Live(bundle, version.v, version.sha256, version.content)


def with_live(policy: Policy, new: Live) -> Engine:
    """The engine as it would be with ``new`` in the place of its bundle."""
    others = [each for each in lives(policy) if each.bundle != new.bundle]
    return engine(tuple(sorted([*others, new])))


# asking


def permit(policy: Policy, request: Request) -> None:
    """Return when the request is allowed; else raises the Refusal that says why not."""
    ruling = policy.live.decide(request)
    if ruling.decision == "ALLOW":
        return
    match ruling.decision:
        case "ALLOW_WITH_CONSTRAINTS":
            # Every argument, not just those that some policy looks at.
            found = broken(ruling.constraints, request.args)
            if found is not None:
                raise refusal(E.DENIED, f"rule={ruling.rule} expected {found}")
        case "REQUIRE_APPROVAL":
            raise refusal(E.APPROVAL, f"ref={approval_ref(request, ruling)} rule={ruling.rule}")
        case "THROTTLE":
            raise refusal(E.THROTTLED, f"retry-ms={ruling.retry_ms} rule={ruling.rule}")
        case _:
            raise refusal(E.DENIED, f"rule={ruling.rule} role {_role(request)} may not {request.action}")


def _role(request: Request) -> str:
    return str(request.value(("principal", "role")) or "none")


# deciding


Decided = Decision[Event, str]


def decide(policy: Policy, order: Order, request: Request) -> Decided:
    """What follows from an order to /policy, asked as ``request``; raises Refusal."""
    return _DECIDE[order.verb](policy, order, request)


def _publish(policy: Policy, order: Order, request: Request) -> Decided:
    name, digest, sig = order.args["bundle"], order.args["sha256"].removeprefix("sha256:"), order.args["sig"]
    record = policy.bundles.get(name)
    order.check_rev(0 if record is None else record.rev)
    if record is None and len(policy.bundles) >= BUNDLES_MAX:
        raise refusal(E.QUOTA, f"bundles have={len(policy.bundles)} max={BUNDLES_MAX}")
    content = order.args["content"]
    bundle = _unpacked(content)
    if bundle.sha256 != digest:
        raise refusal(E.TAMPER, f"sha256={digest}: the draft is {bundle.sha256}")
    key = _signer(policy, name, signed(name, digest), sig)
    if record is not None and record.version.sha256 == digest:
        return Decision((), f"{name}@{record.live}")
    try:
        _check_packed(content)
    except BundleError as error:
        raise refusal(E.SCHEMA, str(error)) from error
    v = 1 if record is None else max(record.versions) + 1
    _keep_way_back(policy, order, request, Live(name, v, digest, content))
    return Decision((Published(name, v, digest, sig, key, order.actor, content),), f"{name}@{v}")


@lru_cache(maxsize=GOOD_MAX)
def _check_packed(content: str) -> None:
    """``check_all``, 40 ms, done once for what is published again: elsewhere, or by a replay."""
    check_all(unpack(content))


def _unpacked(content: str) -> Bundle:
    try:
        bundle = unpack(content)
        # As it is packed here, so that a line of another make is no larger.
        bundle.pack()
    except BundleError as error:
        raise refusal(E.SCHEMA, str(error)) from error
    return bundle


def _signer(policy: Policy, bundle: str, said: bytes, sig: str) -> str:
    """The name of the trusted key whose signature it is. Raises Refusal."""
    if not is_signature(sig):
        raise refusal(E.UNSIGNED, f"sig={sig[:16]}: expected an Ed25519 signature, 128 hex digits")
    for key in policy.keys.values():
        if key.bundle in ("", bundle) and verify(key.key, sig, said):
            return key.name
    raise refusal(
        E.UNSIGNED, f"no trusted key made it: expected one of {' '.join(sorted(policy.keys)) or 'none'}"
    )


def _keep_way_back(policy: Policy, order: Order, request: Request, new: Live) -> None:
    """Refuse what would take from its publisher the right to publish: nobody could mend it."""
    if order.role == HIVE:
        return
    ruling = with_live(policy, new).ask(request)
    # Approvals are given by nobody yet, so what needs one is refused.
    if ruling.decision in ("DENY", "REQUIRE_APPROVAL"):
        raise refusal(E.SCHEMA, f"{new.bundle}: {ruling.rule} would not let {order.actor} {order.verb} again")


def _rollback(policy: Policy, order: Order, request: Request) -> Decided:
    name, v = order.args["bundle"], int(order.args["v"])
    record = policy.bundles.get(name)
    if record is None or v not in record.versions:
        raise refusal(E.USAGE, f"rollback: bundle={name} v={v}: there is no such version")
    order.check_rev(record.rev)
    if v == record.live:
        return Decision((), f"{name}@{v}")
    version = record.versions[v]
    # Its key may have been distrusted since.
    _signer(policy, name, signed(name, version.sha256), version.sig)
    _keep_way_back(policy, order, request, _live(name, version))
    return Decision((RolledBack(name, v),), f"{name}@{v}")


def key_said(name: str, key: str, bundle: str) -> bytes:
    """What a signature that introduces a key is over."""
    return f"skep policy key\n{name}\n{key}\n{bundle}\n".encode()


def _trust_key(policy: Policy, order: Order, request: Request) -> Decided:
    name, key, bundle = order.args["name"], order.args["key"].lower(), order.args.get("bundle", "")
    if not is_key(key):
        raise refusal(E.USAGE, f"trust-key: key={key[:16]}: expected an Ed25519 key, 64 hex digits")
    known = policy.keys.get(name)
    if known == Key(name, key, bundle):
        return Decision((), name)
    if order.role != HIVE:
        if known is not None or name in HIVE_KEYS:
            raise refusal(E.EXISTS, f"name={name}")
        # The first is believed: it comes from who may write here at all. Those after it, only from a key.
        if policy.introduced:
            _signer(policy, bundle, key_said(name, key, bundle), order.args.get("sig", ""))
    if known is None and len(policy.keys) >= KEYS_MAX:
        raise refusal(E.QUOTA, f"keys have={len(policy.keys)} max={KEYS_MAX}")
    return Decision((KeyTrusted(name, key, bundle),), name)


def _distrust_key(policy: Policy, order: Order, request: Request) -> Decided:
    name = order.args["name"]
    if name not in policy.keys:
        raise refusal(E.USAGE, f"distrust-key: name={name}: there is no such key")
    return Decision((KeyDistrusted(name),), name)


_DECIDE: Final[Mapping[str, Callable[[Policy, Order, Request], Decided]]] = {
    "publish": _publish, "rollback": _rollback, "trust-key": _trust_key, "distrust-key": _distrust_key,
}  # fmt: skip


@lru_cache(maxsize=1)
def hive_schema() -> cedarpy.Schema:
    """What the hive's requests have: the schema shipped with the default bundle."""
    bundle = shipped()
    return cedarpy.Schema.from_str(bundle.files[bundle.schema_file])


def check_all(bundle: Bundle) -> int:
    """How many tests it passed, when it is good in every way. Raises BundleError."""
    tests = 0
    for test, ruling, ok in tried(bundle):
        tests += 1
        if not ok:
            wanted, found = f"{test.decision} {test.rule}".strip(), f"{ruling.decision} by {ruling.rule}"
            raise BundleError(f"{TESTS}: test {tests} {test.name!r}: {found}, expected {wanted}")
    return tests


def tried(bundle: Bundle) -> Iterator[tuple[Test, Ruling, bool]]:
    """Each test, what was decided, and whether that was expected. Raises BundleError when it is not valid."""
    check(bundle, hive_schema())
    # As if it alone were live, and the operator's: a test tells of its own bundle.
    alone = Engine([Live("operator", 0, bundle.sha256, bundle.pack())])
    for i, test in enumerate(tests_of(bundle)):
        try:
            request = written(test.request, test.request.principal or Principal(""))
        except ValueError as error:
            raise BundleError(f"{TESTS}: test {i + 1}: {error}") from error
        ruling = alone.ask(request)
        expected = test.rule in ("", ruling.rule, ruling.rule.partition("/")[2])
        yield test, ruling, ruling.decision == test.decision and expected


def apply(policy: Policy, event: Event, meta: Meta) -> None:
    """Change ``policy`` by ``event``."""
    match event:
        case Published(name):
            version = Version(
                event.v, event.sha256, event.sig, event.key, event.actor, meta.time_ns, event.content
            )
            record = policy.bundles.get(name)
            kept, live = ({}, 0) if record is None else (record.versions, record.live)
            versions = with_new(kept, live, event.v, version, VERSIONS_MAX)
            policy.bundles[name] = Record(name, event.v, meta.seq, versions)
            policy.live = engine(lives(policy))
        case RolledBack(name, v):
            policy.bundles[name] = msgspec.structs.replace(policy.bundles[name], live=v, rev=meta.seq)
            policy.live = engine(lives(policy))
        case KeyTrusted(name, key, bundle):
            policy.keys[name] = Key(name, key, bundle)
            policy.introduced = policy.introduced or name not in HIVE_KEYS
        case KeyDistrusted(name):
            del policy.keys[name]


# the hive's own


def first_lines(policy: Policy, public: str, sign: Callable[[bytes], str]) -> list[str]:
    """The lines by which the hive makes its default bundle live, where nobody else has published one.

    A newer release brings a newer default. ``public`` is the hive's key, ``sign`` signs with it."""
    record = policy.bundles.get("default")
    bundle = shipped()
    if record is not None and (record.version.actor != HIVE or record.version.sha256 == bundle.sha256):
        return []
    said = {"bundle": "default", "sha256": bundle.sha256, "sig": sign(signed("default", bundle.sha256))}
    return [
        ctl.line("trust-key", {"name": HIVE_KEYS[0], "key": public}),
        ctl.line("publish", said | {"content": bundle.pack()}),
    ]


def key_lines(policy: Policy, trusted: Sequence[str]) -> list[str]:
    """The lines by which the hive's own keys that are trusted are these: the one that signs and, while a
    rotation overlaps, the one before it."""
    wanted = dict(zip(HIVE_KEYS, trusted, strict=False))
    known = {name: policy.keys[name].key for name in HIVE_KEYS if name in policy.keys}
    return [
        # What overlaps first: at no time is it not believed.
        *(ctl.line("trust-key", {"name": name, "key": key}) for name, key in reversed(wanted.items())
          if known.get(name) != key),
        *(ctl.line("distrust-key", {"name": name}) for name in known if name not in wanted),
    ]  # fmt: skip


def mending_lines(policy: Policy) -> list[str]:
    """The lines by which the hive leaves live bundles that this release cannot read for the last good one."""
    lines = []
    for name, record in policy.bundles.items():
        if engine((_live(name, record.version),)).broken:
            good = [
                v for v in sorted(record.versions) if not engine((_live(name, record.versions[v]),)).broken
            ]
            if good:
                lines.append(ctl.line("rollback", {"bundle": name, "v": str(good[-1])}))
    return lines
