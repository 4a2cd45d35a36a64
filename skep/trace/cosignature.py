"""Cosignatures: a witness says that it has seen a checkpoint, when, and that it continues all those before.

    — <witness> base64(key id[4] time[8, big-endian] signature[64])

The time is in seconds since 1970, and signed. One line more under the note, so that who knows nothing of
witnesses reads the checkpoint as ever.
Source: c2sp.org/tlog-cosignature, the Ed25519 kind."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from typing import Final, NamedTuple

from skep.trace.note import COSIGNER, PREFIX, TIME_SIZE, Note, Signing, Vkey, cosigned_text

TIME_MAX: Final = (1 << 63) - 1


class Cosignature(NamedTuple):
    """Of ``vkey``, whose signature has been verified."""

    vkey: Vkey
    time_s: int
    data: bytes  # key id[4] time[8] signature[64]

    def line(self) -> str:
        """As it stands under a note."""
        return f"{PREFIX}{self.vkey.name} {b64encode(self.data).decode()}\n"


def cosign(text: str, name: str, key: Signing, time_s: int) -> Cosignature:
    """``name``'s cosignature of the checkpoint ``text``, whose consistency has been verified."""
    assert 0 <= time_s <= TIME_MAX
    vkey = Vkey(name, key.public, COSIGNER)
    signature = key.sign(cosigned_text(time_s, text).encode())
    return Cosignature(vkey, time_s, vkey.id + time_s.to_bytes(TIME_SIZE, "big") + signature)


def cosignatures(note: Note, witnesses: Iterable[Vkey]) -> list[Cosignature]:
    """Those under the note that are of ``witnesses``, one of each: the newest. What is not good is passed
    over, as one that nobody knows."""
    found: dict[Vkey, Cosignature] = {}
    for vkey in witnesses:
        for name, data in note.signatures:
            if (name, data[:4]) != (vkey.name, vkey.id) or not vkey.verifies(data[4:], note.text):
                continue
            time_s = int.from_bytes(data[4 : 4 + TIME_SIZE], "big")
            if time_s <= TIME_MAX and (vkey not in found or time_s > found[vkey].time_s):
                found[vkey] = Cosignature(vkey, time_s, data)
    return list(found.values())
