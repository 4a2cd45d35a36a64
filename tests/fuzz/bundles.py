"""Policy bundles as they are published: unpacked within bounds, read to the last policy, or refused.

A zero byte first: the rest is packed as an honest publisher does it. Else all of it is what was sent.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator

import msgspec

from skep.namespaces.packed import TEXT_MAX
from skep.namespaces.policy.bundle import BundleError, rules_of, shipped, tests_of, unpack

LENGTH_MAX = 1024


def one(data: bytes) -> None:
    if data[:1] == b"\0":
        files = {"a.cedar": data[1:].decode("utf-8", "replace")}
        data = base64.b64encode(zlib.compress(msgspec.json.encode(files)))
    try:
        bundle = unpack(data.decode("utf-8", "replace"))
        assert len(bundle.text) <= 2 * TEXT_MAX
        rules = rules_of(bundle)
        tests_of(bundle)
    except BundleError:
        return
    assert len(rules) == len({rule.id for rule in rules})
    again = unpack(bundle.pack())
    assert (bundle.sha256, rules) == (again.sha256, rules_of(again))


def seeds() -> Iterator[bytes]:
    default = shipped()
    for rule in rules_of(default):
        yield b"\0" + rule.text.encode()
    scope = b"(principal, action, resource);"
    yield b'\0@id("a") permit ' + scope + b' // x\n@id("b") forbid ' + scope
    yield b'\0@id("c") @decision("REQUIRE_APPROVAL") permit ' + scope
    for files in ({"a.cedar": ""}, {"x/y": "z"}, {"tests.json": "[]"}):
        yield base64.b64encode(zlib.compress(msgspec.json.encode(files)))
    yield base64.b64encode(zlib.compress(bytes(1 << 20)))
