"""Whether a checkpoint has been cosigned by enough of the witnesses that somebody trusts."""

from __future__ import annotations

from collections.abc import Sequence

from skep.trace.cosignature import Cosignature, cosignatures
from skep.trace.note import Note, Vkey
from skep.validator.verify.found import Finding, Kind


def check_witnessed(note: Note, witnesses: Sequence[Vkey], need: int) -> list[Cosignature]:
    """The cosignatures of ``witnesses`` under it. Raises Finding when there are fewer than ``need``."""
    found = cosignatures(note, witnesses)
    if len(found) < need:
        cosigners = {each.vkey for each in found}
        missing = " ".join(vkey.name for vkey in witnesses if vkey not in cosigners)
        text = f"{len(found)} of {len(witnesses)} witnesses have cosigned it, expected {need}: not {missing}"
        raise Finding(Kind.UNWITNESSED, 0, text)
    return found
