"""Bundles for the tests, and keys to sign them."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.fs import ctl
from skep.namespaces.policy.bundle import Bundle, shipped, signed
from skep.namespaces.policy.core import key_said
from skep.namespaces.policy.engine import Engine, Live
from skep.namespaces.policy.keys import Signer

ANNS = Signer(Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32))
MALS = Signer(Ed25519PrivateKey.from_private_bytes(bytes([2]) * 32))
SCHEMA = shipped().files["skep.cedarschema"]


def bundle(policies: str = "", tests: str = "[]", **files: str) -> Bundle:
    """A bundle with the hive's schema."""
    return Bundle({"mine.cedar": policies, "skep.cedarschema": SCHEMA, "tests.json": tests} | files)


def publish(name: str, made: Bundle, signer: Signer = ANNS, **more: str) -> str:
    """The line that publishes it, as the door writes it down."""
    args = {"bundle": name, "sha256": made.sha256, "sig": signer.sign(signed(name, made.sha256))}
    return ctl.line("publish", args | {"content": made.pack()} | more)


def trust(name: str, key: Signer, by: Signer | None = None, bundle: str = "") -> str:
    """The line that introduces a key, signed by another."""
    args = {"name": name, "key": key.public} | ({"bundle": bundle} if bundle else {})
    sig = {"sig": by.sign(key_said(name, key.public, bundle))} if by is not None else {}
    return ctl.line("trust-key", args | sig)


def engine_of(**policies: str) -> Engine:
    """The engine of bundles with these policies."""
    made = {name: bundle(text) for name, text in policies.items()}
    return Engine([Live(name, 1, each.sha256, each.pack()) for name, each in made.items()])
