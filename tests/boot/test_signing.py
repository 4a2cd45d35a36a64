"""What boots is what was signed: whatever is changed, by whomever, it is not booted, and told by name."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import manifest as guest_manifest

from skep.__main__ import run
from skep.boot.classes import Class
from skep.boot.manifest import ManifestError, read
from skep.boot.run import exact
from skep.boot.signing import Item, Seen, SignatureError, Statement, check, parse, sign
from skep.boot.staging import staged
from skep.trace.clock import SECOND, ManualClock, SystemClock
from skep.trace.pem import public_key

FEW = settings(max_examples=40)
NOW = ManualClock().now_ns()
MANIFEST = """name = "worker"
arch = "x86_64"
kernel = "kernel"
modules = ["sub/rootserver"]
[[milestone]]
name = "root"
entry = "sub/rootserver"
"""


def keys(folder: Path, name: str) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.pem").write_bytes(pem)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return key


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A manifest, its two files, and the keys of ann and bob; ann has signed."""
    (tmp_path / "boot" / "sub").mkdir(parents=True)
    (tmp_path / "boot" / "boot.toml").write_text(MANIFEST)
    (tmp_path / "boot" / "kernel").write_bytes(b"kernel" * 100)
    (tmp_path / "boot" / "sub" / "rootserver").write_bytes(b"server" * 100)
    keys(tmp_path, "ann")
    keys(tmp_path, "bob")
    assert signed(tmp_path) == 0
    return tmp_path


def signed(lab: Path, *more: str, key: str = "ann") -> int:
    return run(["boot", "sign", str(lab / "boot" / "boot.toml"), "--key", str(lab / f"{key}.pem"), *more])


def verified(lab: Path, *more: str, key: str = "ann") -> int:
    trust = ["--trust", str(lab / f"{key}.pub")] if key else []
    manifest = str(lab / "boot" / "boot.toml")
    return run(["boot", "verify", manifest, *trust, "--seen", str(lab / "state" / "seen.json"), *more])


def test_what_was_signed_is_verified(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert verified(lab, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["name"], said["counter"]) == ("worker", 1)
    assert [("manifest", "boot.toml"), ("kernel", "kernel"), ("module", "sub/rootserver")] == [
        (each["kind"], each["path"]) for each in said["files"]
    ]
    assert verified(lab) == 0
    assert "worker: signed, counter 1, until " in capsys.readouterr().out


def tamper(boot: Path) -> None:
    data = bytearray((boot / "kernel").read_bytes())
    data[300] ^= 1
    (boot / "kernel").write_bytes(data)


def truncate(boot: Path) -> None:
    (boot / "kernel").write_bytes((boot / "kernel").read_bytes()[:-1])


def lengthen(boot: Path) -> None:
    (boot / "kernel").write_bytes((boot / "kernel").read_bytes() + b"x")


def swap(boot: Path) -> None:
    (boot / "kernel").rename(boot / "other")
    (boot / "sub" / "rootserver").rename(boot / "kernel")
    (boot / "other").rename(boot / "sub" / "rootserver")


def remove(boot: Path) -> None:
    (boot / "kernel").unlink()


def link(boot: Path) -> None:
    (boot / "kernel").rename(boot.parent / "kernel")
    (boot / "kernel").symlink_to("../kernel")


def link_folder(boot: Path) -> None:
    (boot / "sub").rename(boot.parent / "sub")
    (boot / "sub").symlink_to("../sub")


def fifo(boot: Path) -> None:
    remove(boot)
    os.mkfifo(boot / "kernel")


def change_manifest(boot: Path) -> None:
    (boot / "boot.toml").write_text(MANIFEST.replace("worker", "Worker"))


def unlisted(boot: Path) -> None:
    (boot / "boot.toml").write_text(MANIFEST.replace('"sub/rootserver"]', '"sub/rootserver", "more"]'))
    (boot / "more").write_bytes(b"more")


def change_signature(boot: Path) -> None:
    note = (boot / "boot.toml.sig").read_text()
    (boot / "boot.toml.sig").write_text(note.replace("counter 1", "counter 2"))


def remove_signature(boot: Path) -> None:
    (boot / "boot.toml.sig").unlink()


def another_text(boot: Path) -> None:
    (boot / "boot.toml.sig").write_text("worker is right\n")


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (tamper, "kernel: not what was signed"),
    (truncate, "kernel: not what was signed"),
    (lengthen, "kernel: not what was signed: longer than 600 bytes"),
    (swap, "kernel: not what was signed"),
    (remove, "kernel: No such file"),
    (link, "kernel: a symbolic link"),
    (link_folder, "sub/rootserver: a symbolic link"),
    (fifo, "kernel: expected a file"),
    (change_manifest, "boot.toml: not what was signed"),
    (unlisted, "boot.toml: not what was signed"),
    (change_signature, "is of another text"),
    (remove_signature, "boot.toml.sig: No such file"),
    (another_text, "expected a text, an empty line and signatures"),
]


@pytest.mark.parametrize(("spoil", "told"), WRONG, ids=lambda each: getattr(each, "__name__", ""))
def test_what_is_not_as_it_was_signed_is_told_and_does_not_boot(
    lab: Path, spoil: Callable[[Path], None], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(lab / "boot")
    assert verified(lab) == Class.SIGNATURE_INVALID.row.status
    err = capsys.readouterr().err
    assert "signature_invalid" in err
    assert told in err
    manifest, out = str(lab / "boot" / "boot.toml"), lab / "out"
    trust = ["--trust", str(lab / "ann.pub"), "--seen", str(lab / "state" / "seen.json")]
    assert run(["boot", "run", manifest, *trust, "--out", str(out)]) == Class.SIGNATURE_INVALID.row.status
    assert json.loads((out / "boot.json").read_bytes())["verdict"]["cause"] == "signature_invalid"
    assert not (lab / "state").exists()


def test_another_key_is_not_trusted(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(lab, key="bob") == Class.SIGNATURE_INVALID.row.status
    assert "expected a key that is known" in capsys.readouterr().err
    assert verified(lab, "--trust", str(lab / "ann.pub"), key="bob") == 0


def test_a_key_that_is_none_is_a_mistake_of_usage(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(lab, "--trust", str(lab / "boot" / "kernel")) == 2
    assert verified(lab, key="") == 2
    assert "whose signature is expected" in capsys.readouterr().err


def test_a_manifest_may_name_the_key_itself(lab: Path) -> None:
    (lab / "boot" / "boot.toml").write_text(MANIFEST + '[signature]\ntrust = "../ann.pub"\n')
    assert verified(lab, key="") == Class.SIGNATURE_INVALID.row.status
    assert signed(lab) == 0
    assert verified(lab, key="") == 0
    # Whoever calls knows better whom to trust.
    assert verified(lab, key="bob") == Class.SIGNATURE_INVALID.row.status


def test_what_was_replaced_does_not_come_back(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boot = lab / "boot"
    old = {path: path.read_bytes() for path in (boot / "kernel", boot / "boot.toml.sig")}
    (boot / "kernel").write_bytes(b"mended")
    assert signed(lab) == 0
    assert verified(lab) == 0
    assert verified(lab) == 0
    for path, data in old.items():
        path.write_bytes(data)
    assert verified(lab) == Class.SIGNATURE_INVALID.row.status
    assert "worker: replayed: its counter is 1, 2 was seen" in capsys.readouterr().err
    assert signed(lab, "--counter", "2") == 0
    assert verified(lab) == Class.SIGNATURE_INVALID.row.status
    assert "counter 2 was of another statement" in capsys.readouterr().err
    assert signed(lab) == 0
    assert verified(lab) == 0


def test_counters_that_cannot_be_read_admit_nothing(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (lab / "state").mkdir()
    (lab / "state" / "seen.json").write_text("{")
    assert verified(lab) == Class.SIGNATURE_INVALID.row.status
    assert "not the counters that were seen" in capsys.readouterr().err


def test_a_signature_holds_until_it_expires(lab: Path) -> None:
    key = keys(lab, "carl")
    item = Item("manifest", "0" * 64, 1, "boot.toml")
    note = sign(Statement("worker", 1, NOW + SECOND, (item,)), key)
    assert check(note, [key.public_key()], NOW).counter == 1
    with pytest.raises(SignatureError, match="expired at 2023-11-14T22:13:21"):
        check(note, [key.public_key()], NOW + SECOND)
    assert signed(lab, "--expires", "never") == 0
    assert parse((lab / "boot" / "boot.toml.sig").read_text().partition("\n\n")[0] + "\n").expires_ns is None


@pytest.mark.parametrize("span", ["0d", "-1d", "soon", "1e3d", "100000d", "0s"])
def test_a_time_that_is_none_is_refused(lab: Path, span: str) -> None:
    assert signed(lab, "--expires", span) == 2


def test_nothing_is_signed_that_could_not_be_verified(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link(lab / "boot")
    assert signed(lab) == 1
    assert "kernel: a symbolic link" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["ker\tnel", "k" * 66_000])
def test_what_no_note_can_say_is_not_signed(name: str) -> None:
    items = (Item("manifest", "0" * 64, 1, "boot.toml"), Item("kernel", "0" * 64, 1, name))
    with pytest.raises(SignatureError, match=r"control character|bytes, expected at most"):
        sign(Statement("worker", 1, None, items), Ed25519PrivateKey.generate())


@pytest.mark.parametrize("path", ["../kernel", "/kernel", "sub/../../kernel", ".skep/esp/kernel"])
def test_no_path_leaves_the_manifests_folder(lab: Path, path: str) -> None:
    text = MANIFEST.replace('"kernel"', f'"{path}"')
    (lab / "boot" / "boot.toml").write_text(text)
    assert signed(lab) == 2
    # Signed all the same, by who has the key, it boots nothing from there.
    data = text.encode()
    first = Item("manifest", sha256(data).hexdigest(), len(data), "boot.toml")
    items = (first, Item("kernel", sha256(b"kernel" * 100).hexdigest(), 600, path))
    note = sign(Statement("worker", 2, None, items), keys(lab, "carl"))
    (lab / "boot" / "boot.toml.sig").write_bytes(note)
    with (
        pytest.raises(ManifestError, match="expected a"),
        staged(lab / "boot" / "boot.toml", [lab / "carl.pub"], Seen(lab / "seen"), NOW),
    ):
        raise AssertionError


def test_what_is_staged_are_the_files_that_were_signed_and_no_others(lab: Path) -> None:
    boot = lab / "boot"
    (boot / "unlisted").write_bytes(b"x")
    with staged(boot / "boot.toml", [lab / "ann.pub"], Seen(lab / "seen"), NOW) as found:
        names = {str(path.relative_to(found.base)) for path in found.base.rglob("*") if path.is_file()}
        assert names == {"kernel", "sub/rootserver"}
        # Changed between check and use: what was checked is what is used.
        tamper(boot)
        assert (found.base / "kernel").read_bytes() == b"kernel" * 100
        assert found.base.stat().st_mode & 0o777 == 0o700
    assert not found.base.exists()


def test_what_a_killed_lab_left_is_removed_by_the_next(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(lab))
    path, later = lab / "boot" / "boot.toml", SystemClock().now_ns() + 120 * SECOND
    left, new = lab / "skep-staged-left", lab / "skep-staged-new"
    (left / "sub").mkdir(parents=True)
    with staged(path, [], Seen(lab / "seen"), NOW) as running:
        assert left.exists()
        with staged(path, [], Seen(lab / "seen"), later):
            assert not left.exists()
            assert (running.base / "kernel").exists()
        new.mkdir()
        with staged(path, [], Seen(lab / "seen"), SystemClock().now_ns()):
            assert new.exists()
    assert [new] == list(lab.glob("skep-staged-*"))


def test_without_a_signature_links_are_followed(lab: Path) -> None:
    link(lab / "boot")
    with staged(lab / "boot" / "boot.toml", [], Seen(lab / "seen"), NOW) as found:
        assert (found.base / "kernel").read_bytes() == b"kernel" * 100
        assert found.statement is None
    assert not (lab / "seen").exists()


@pytest.mark.slow
def test_counts_are_those_of_the_folder_itself(images: Path, tmp_path: Path) -> None:
    """File names reach the guest on x86: the private copy has the same."""
    path = guest_manifest(images, "x86_64")
    there = asyncio.run(exact(read(path), path.parent))
    with staged(path, [], Seen(tmp_path / "seen"), NOW) as found:
        here = asyncio.run(exact(found.manifest, found.base))
    assert there.reached == here.reached
    assert len(here.reached) == 5


def test_whoever_verifies_at_the_same_time_the_highest_counter_stays(tmp_path: Path) -> None:
    item = Item("manifest", "0" * 64, 1, "boot.toml")

    def admit(counter: int) -> None:
        with suppress(SignatureError):
            Seen(tmp_path / "seen").admit(Statement("worker", counter, None, (item,)))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(admit, [3, 1, 8, 2, 7, 5, 4, 6]))
    assert json.loads((tmp_path / "seen").read_bytes())["worker"]["counter"] == 8


def test_no_bit_of_a_note_can_be_another(lab: Path) -> None:
    note = (lab / "boot" / "boot.toml.sig").read_bytes()
    trusted = [public_key(lab / "ann.pub")]
    assert check(note, trusted, NOW).counter == 1
    for at in range(len(note)):
        with pytest.raises(SignatureError):
            check(note[:at] + bytes([note[at] ^ 1]) + note[at + 1 :], trusted, NOW)
        with pytest.raises(SignatureError):
            check(note[:at], trusted, NOW)


@FEW
@given(st.binary(max_size=300))
def test_any_bytes_are_a_signature_or_refused(data: bytes) -> None:
    with pytest.raises(SignatureError):
        check(data, [], NOW)


PATHS = st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs", "Cc")), min_size=1)
ITEMS = st.builds(
    Item, st.sampled_from(["kernel", "module"]), st.just("ab" * 32), st.integers(0, 2**60), PATHS
)
STATEMENTS = st.builds(
    Statement,
    st.just("worker"),
    st.integers(1, 2**53 - 1),
    st.none() | st.integers(0, 2**62),
    st.lists(ITEMS, min_size=1, max_size=4).map(tuple),
)


@FEW
@given(STATEMENTS)
def test_a_statement_is_read_as_it_was_written(statement: Statement) -> None:
    assert parse(str(statement)) == statement


@FEW
@given(STATEMENTS, st.data())
def test_any_other_text_is_another_statement_or_none(statement: Statement, data: st.DataObject) -> None:
    text = str(statement)
    at = data.draw(st.integers(0, len(text) - 1))
    other = text[:at] + data.draw(st.text(max_size=2)) + text[at + 1 :]
    try:
        found = parse(other)
    except SignatureError:
        return
    assert str(found) == other


@FEW
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with pytest.raises(SignatureError):
        parse(text)
