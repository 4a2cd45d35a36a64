"""A verifier of transparency logs written from the public texts alone: it imports nothing of what it checks.

Sources: RFC 6962, 2.1; RFC 9162, 2.1.3.2 and 2.1.4.2; c2sp.org/tlog-tiles, signed-note, tlog-checkpoint,
tlog-proof, tlog-cosignature, tlog-witness (the body of add-checkpoint)."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

Fetch = Callable[[str], bytes]  # of a resource's path below the log's prefix; raises when there is none


def h(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def mth(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, of leaf hashes."""
    if not leaves:
        return h()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return h(b"\x01", mth(leaves[:k]), mth(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH(m, D[n]) of RFC 6962, 2.1.1."""
    n = len(leaves)
    if n == 1:
        return []
    k = 1
    while k * 2 < n:
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def proof(m: int, leaves: list[bytes]) -> list[bytes]:
    """PROOF(m, D[n]) of RFC 6962, 2.1.2."""
    return subproof(m, leaves, True)


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    n = len(leaves)
    if m == n:
        return [] if whole else [mth(leaves)]
    k = 1
    while k * 2 < n:
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def to_right_child(fn: int, sn: int) -> tuple[int, int]:
    """2.1.3.2 and 2.1.4.2: if LSB(fn) is not set, right-shift both until it is or fn is 0."""
    while fn and not fn & 1:
        fn, sn = fn >> 1, sn >> 1
    return fn, sn


def check_inclusion(index: int, size: int, leaf: bytes, root: bytes, hashes: list[bytes]) -> None:
    """RFC 9162, 2.1.3.2."""
    assert index < size
    fn, sn, r = index, size - 1, leaf
    for p in hashes:
        assert sn != 0
        if fn & 1 or fn == sn:
            r = h(b"\x01", p, r)
            fn, sn = to_right_child(fn, sn)
        else:
            r = h(b"\x01", r, p)
        fn >>= 1
        sn >>= 1
    assert sn == 0
    assert r == root


def check_consistency(first: int, second: int, old: bytes, new: bytes, hashes: list[bytes]) -> None:
    """RFC 9162, 2.1.4.2."""
    assert 0 < first <= second
    if first == second:
        assert not hashes
        assert old == new
        return
    assert hashes
    if first & (first - 1) == 0:
        hashes = [old, *hashes]
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn >>= 1
        sn >>= 1
    fr = sr = hashes[0]
    for c in hashes[1:]:
        assert sn != 0
        if fn & 1 or fn == sn:
            fr, sr = h(b"\x01", c, fr), h(b"\x01", c, sr)
            fn, sn = to_right_child(fn, sn)
        else:
            sr = h(b"\x01", sr, c)
        fn >>= 1
        sn >>= 1
    assert sn == 0
    assert fr == old
    assert sr == new


def open_note(note: bytes, name: str, public: bytes) -> str:
    """The text of a signed note on which this Ed25519 key's signature stands and is good."""
    said = note.decode("utf-8")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said)
    at = said.rindex("\n\n")
    text, signatures = said[: at + 1], said[at + 2 :]
    assert signatures.endswith("\n")
    assert name
    assert not re.search(r"[\s+]", name)
    key_id = h(name.encode(), b"\n\x01", public)[:4]
    good = 0
    for line in signatures[:-1].split("\n"):
        dash, key, encoded = line.split(" ")
        assert dash == "\u2014"
        blob = base64.b64decode(encoded, validate=True)
        if key == name and blob[:4] == key_id:
            Ed25519PublicKey.from_public_bytes(public).verify(blob[4:], text.encode())
            good += 1
    assert good == 1
    return text


def open_checkpoint(note: bytes, origin: str, public: bytes) -> tuple[int, bytes]:
    """Size and root of a checkpoint that the log's key has signed under its origin."""
    lines = open_note(note, origin, public).split("\n")
    assert lines[0] == origin
    assert lines[-1] == ""
    assert len(lines) >= 4
    assert all(lines[:-1])
    assert re.fullmatch("0|[1-9][0-9]*", lines[1])
    root = base64.b64decode(lines[2], validate=True)
    assert len(root) == 32
    return int(lines[1]), root


def tile_path(level: str, n: int, width: int) -> str:
    """tile/<L>/<N>[.p/<W>]"""
    digits = str(n)
    digits = "0" * (-len(digits) % 3) + digits
    groups = [digits[i : i + 3] for i in range(0, len(digits), 3)]
    index = "/".join([*("x" + group for group in groups[:-1]), groups[-1]])
    return f"tile/{level}/{index}" + (f".p/{width}" if width < 256 else "")


def check_log(fetch: Fetch, origin: str, public: bytes) -> list[bytes]:
    """Every resource of the log at its checkpoint: tiles of each level, bundles. Its entries, all checked."""
    size, root = open_checkpoint(fetch("checkpoint"), origin, public)
    entries: list[bytes] = []
    for n in range((size + 255) // 256):
        bundle = fetch(tile_path("entries", n, min(256, size - n * 256)))
        while bundle:
            length = int.from_bytes(bundle[:2], "big")
            assert len(bundle) >= 2 + length
            entries.append(bundle[2 : 2 + length])
            bundle = bundle[2 + length :]
    assert len(entries) == size
    hashes = [h(b"\x00", entry) for entry in entries]
    assert mth(hashes) == root
    level = 0
    while hashes:
        for n in range((len(hashes) + 255) // 256):
            part = hashes[n * 256 : n * 256 + 256]
            assert fetch(tile_path(str(level), n, len(part))) == b"".join(part)
        whole = len(hashes) // 256
        hashes = [mth(hashes[n * 256 : n * 256 + 256]) for n in range(whole)]
        level += 1
    return entries


def check_tlog_proof(said: bytes, entry: bytes, origin: str, public: bytes) -> int:
    """The index at which a tlog-proof shows the entry."""
    head, _, checkpoint = said.partition(b"\n\n")
    lines = head.decode().split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    found = re.fullmatch("index (0|[1-9][0-9]*)", lines[1])
    assert found is not None
    size, root = open_checkpoint(checkpoint, origin, public)
    hashes = [base64.b64decode(line, validate=True) for line in lines[2:]]
    check_inclusion(int(found[1]), size, h(b"\x00", entry), root, hashes)
    return int(found[1])


def check_add_checkpoint(said: bytes, old_root: bytes, origin: str, public: bytes) -> tuple[int, int]:
    """Old and new size, of what a witness would be sent."""
    head, _, checkpoint = said.partition(b"\n\n")
    lines = head.decode().split("\n")
    found = re.fullmatch("old (0|[1-9][0-9]*)", lines[0])
    assert found is not None
    size, root = open_checkpoint(checkpoint, origin, public)
    hashes = [base64.b64decode(line, validate=True) for line in lines[1:]]
    check_consistency(int(found[1]), size, old_root, root, hashes)
    return int(found[1]), size


def open_cosigned(note: bytes, name: str, public: bytes) -> tuple[int, int, bytes]:
    """Time, size and root of a checkpoint that a witness has cosigned. Source: c2sp.org/tlog-cosignature."""
    said = note.decode("utf-8")
    at = said.rindex("\n\n")
    text = said[: at + 1]
    key_id = h(name.encode(), b"\n\x04", public)[:4]
    for line in said[at + 2 : -1].split("\n"):
        _, key, encoded = line.split(" ")
        blob = base64.b64decode(encoded, validate=True)
        if key == name and blob[:4] == key_id:
            assert len(blob) == 4 + 8 + 64
            time = int.from_bytes(blob[4:12], "big")
            message = f"cosignature/v1\ntime {time}\n{text}".encode()
            Ed25519PublicKey.from_public_bytes(public).verify(blob[12:], message)
            lines = text.split("\n")
            return time, int(lines[1]), base64.b64decode(lines[2], validate=True)
    raise AssertionError(f"{name} has not cosigned it")
