"""Signed manifests: a root's signature or nothing, and nothing else in its place."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from skep.roles.manifest import load
from skep.roles.sealed import ManifestError, Source, public_key, sign

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
WATCH = b"mount hive /\nallow read /version\n"
ALL = b"mount hive /\nallow all /**\n"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Two roles, both signed."""
    for role, text in (("observer", WATCH), ("operator", ALL)):
        (tmp_path / f"{role}.ns").write_bytes(text)
        (tmp_path / f"{role}.ns.sig").write_bytes(sign(role, text, KEY))
    return Source(tmp_path, KEY.public_key())


def put(source: Source, name: str, data: bytes) -> None:
    Path(str(source.directory), name).write_bytes(data)


def refusal(source: Source, role: str = "observer") -> str:
    with pytest.raises(ManifestError) as caught:
        load(role, source)
    return str(caught.value)


def test_what_the_root_signed_is_loaded(source: Source) -> None:
    assert ("observer", 1) == (load("observer", source).role, len(load("observer", source).rules))


def test_a_manifest_without_a_signature_is_none(source: Source) -> None:
    Path(str(source.directory), "observer.ns.sig").unlink()
    assert "observer.ns.sig: missing" in refusal(source)
    assert 1 == len(load("observer", source._replace(root=None)).rules)


@pytest.mark.parametrize(
    ("signature", "why"),
    [
        (hashlib.sha256(WATCH).hexdigest().encode(), "48 bytes are no Ed25519 signature"),
        (base64.b64encode(hashlib.sha256(WATCH).digest()), "32 bytes are no Ed25519 signature"),
        (base64.b64encode(hashlib.sha512(WATCH).digest()), "not a signature of observer.ns by the key"),
        (b"", "0 bytes are no Ed25519 signature"),
        (b"not base64!", "expected a signature in base64"),
        (sign("observer", WATCH, OTHER), "not a signature of observer.ns by the key"),
        (base64.b64encode(KEY.sign(WATCH)), "not a signature of observer.ns by the key"),
        (sign("observer", ALL, KEY), "not a signature of observer.ns by the key"),
    ],
    ids=["digest-hex", "digest", "digest-of-64", "empty", "noise", "another-key", "bare", "another-text"],
)
def test_what_is_no_signature_by_the_root_is_refused(source: Source, signature: bytes, why: str) -> None:
    put(source, "observer.ns.sig", signature)
    assert refusal(source).startswith(f"observer.ns.sig: {why}")


def test_one_byte_changed_is_another_manifest(source: Source) -> None:
    put(source, "observer.ns", WATCH.replace(b"read", b"rEad"))
    assert "not a signature of observer.ns" in refusal(source)


def test_a_stronger_roles_manifest_cannot_stand_in_anothers_place(source: Source) -> None:
    put(source, "observer.ns", ALL)
    put(source, "observer.ns.sig", sign("operator", ALL, KEY))
    assert "not a signature of observer.ns" in refusal(source)


def test_a_role_that_the_directory_lacks_is_not_looked_for_elsewhere(source: Source) -> None:
    assert "'drone-worker' has no manifest: expected one of observer operator" in refusal(
        source, "drone-worker"
    )


def test_a_signed_manifest_that_is_not_understood_is_refused(source: Source) -> None:
    put(source, "observer.ns", b"mount hive /\nalow read /x\n")
    put(source, "observer.ns.sig", sign("observer", b"mount hive /\nalow read /x\n", KEY))
    assert refusal(source).startswith("observer.ns:2: alow: unknown verb")


# what the environment says


def test_the_environment_names_directory_and_root(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEP_MANIFESTS", str(source.directory))
    monkeypatch.setenv("SKEP_MANIFEST_ROOT", str(public_pem(tmp_path / "root.pem")))
    assert (("version",), "observer") == (load("observer").rules[0].path, load("observer").role)
    put(source, "observer.ns.sig", sign("observer", WATCH, OTHER))
    with pytest.raises(ManifestError):
        load("observer")


def test_with_a_root_the_shipped_manifests_need_signatures_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SKEP_MANIFESTS", raising=False)
    monkeypatch.setenv("SKEP_MANIFEST_ROOT", str(public_pem(tmp_path / "root.pem")))
    with pytest.raises(ManifestError, match=r"observer\.ns\.sig: missing"):
        load("observer")


@pytest.mark.parametrize("text", [b"", b"not a key", b"private"])
def test_a_root_that_cannot_be_read_is_not_done_without(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes
) -> None:
    monkeypatch.setenv("SKEP_MANIFESTS", str(source.directory))
    monkeypatch.setenv("SKEP_MANIFEST_ROOT", str(tmp_path / "root.pem"))
    with pytest.raises(ManifestError, match=r"root\.pem"):
        load("observer")
    (tmp_path / "root.pem").write_bytes(private_pem() if text == b"private" else text)
    with pytest.raises(ManifestError, match=r"root\.pem"):
        load("observer")


# the commands


def public_pem(path: Path) -> Path:
    path.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path


def private_pem() -> bytes:
    return KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def skep(*args: str | Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "skep", "manifest", *map(str, args)], capture_output=True, text=True
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()


@pytest.mark.slow
def test_what_was_signed_by_the_command_is_checked_by_it(tmp_path: Path) -> None:
    file, key, root = tmp_path / "watcher.ns", tmp_path / "key.pem", public_pem(tmp_path / "root.pem")
    file.write_bytes(WATCH)
    key.write_bytes(private_pem())
    assert (0, "watcher: 1 rules, 0 binds, unsigned", "") == skep("check", file)
    assert "watcher.ns.sig: missing" in skep("check", "--root", root, file)[2]
    assert (0, f"{file}.sig", "") == skep("sign", "--key", key, file)
    assert (0, "watcher: 1 rules, 0 binds, signed", "") == skep("check", "--root", root, file)
    assert public_key(root) == KEY.public_key()


def test_what_is_not_right_is_not_signed(tmp_path: Path) -> None:
    file, key = tmp_path / "watcher.ns", tmp_path / "key.pem"
    file.write_bytes(b"mount hive /\nallow reed /x\n")
    key.write_bytes(private_pem())
    expected = "watcher.ns:2: 'reed': unknown right, expected some of read,write,create,remove,all"
    assert (1, "", f"skep: {expected}") == skep("sign", "--key", key, file)
    assert not file.with_name("watcher.ns.sig").exists()
