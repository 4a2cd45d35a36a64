"""Cosignatures are those of the public text: to the byte, and no other key's or kind's."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.trace.checkpoint import Checkpoint
from skep.trace.cosignature import TIME_MAX, cosign, cosignatures
from skep.trace.note import COSIGNER, NoteError, Signing, Vkey, parse_note, parse_vkey, sign_note
from tests.trace import tlog

# The example of c2sp.org/tlog-cosignature.
EXAMPLE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "— witness.example.com/w1 "
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)
LOG, W1, W2 = (Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in range(3))
TEXT = Checkpoint("h1/log/trace", 7, bytes(32)).text()
VKEY = Vkey("w1.example.org", W1.public, COSIGNER)


def cosigned(*lines: str) -> bytes:
    return sign_note(TEXT, "h1/log/trace", [LOG]) + "".join(lines).encode()


def test_the_published_example_is_taken_apart() -> None:
    note = parse_note(EXAMPLE.encode())
    name, data = note.signatures[1]
    assert "witness.example.com/w1" == name
    assert (4 + 8 + 64, 1679315147) == (len(data), int.from_bytes(data[4:12], "big"))
    assert "example.com/behind-the-sofa\n20852163" == note.text.rpartition("\n")[0].rpartition("\n")[0]


@given(time_s=st.integers(0, TIME_MAX))
@settings(max_examples=30, deadline=None)
def test_a_cosignature_is_what_the_text_says(time_s: int) -> None:
    made = cosign(TEXT, "w1.example.org", W1, time_s)
    assert (VKEY, time_s) == (made.vkey, made.time_s)
    note = cosigned(made.line())
    assert (time_s, 7, bytes(32)) == tlog.open_cosigned(note, "w1.example.org", W1.public)
    # Who knows no witnesses reads the checkpoint as ever.
    assert (7, bytes(32)) == tlog.open_checkpoint(note, "h1/log/trace", LOG.public)
    assert [made] == cosignatures(parse_note(note), [VKEY])


def test_a_key_of_one_kind_is_none_of_the_other() -> None:
    assert VKEY == parse_vkey(str(VKEY), COSIGNER)
    with pytest.raises(NoteError, match="kind 01"):
        parse_vkey(str(VKEY))
    plain = Vkey("w1.example.org", W1.public)
    assert plain.id != VKEY.id
    with pytest.raises(NoteError, match="kind 04"):
        parse_vkey(str(plain), COSIGNER)
    # The log's own kind of signature is no cosignature, by whomever.
    note = parse_note(sign_note(TEXT, "w1.example.org", [W1]))
    assert [] == cosignatures(note, [VKEY])
    assert [plain] == note.signers([plain])


def test_what_is_not_good_is_passed_over() -> None:
    good, later = cosign(TEXT, VKEY.name, W1, 5), cosign(TEXT, VKEY.name, W1, 9)
    other = cosign(TEXT.replace("7", "8"), VKEY.name, W1, 6)
    forged = good._replace(data=good.data[:11] + b"\xff" + good.data[12:])
    short = good._replace(data=good.data[:9])
    another = cosign(TEXT, "w2.example.org", W2, 7)
    lines = [each.line() for each in (another, forged, good, other, short)]
    assert [good] == cosignatures(parse_note(cosigned(*lines)), [VKEY])
    assert [later] == cosignatures(parse_note(cosigned(later.line(), good.line())), [VKEY])
    assert [good, another] == cosignatures(parse_note(cosigned(*lines)), [VKEY, another.vkey])
    assert [] == cosignatures(parse_note(cosigned(other.line())), [VKEY])


def test_the_time_is_signed() -> None:
    moved = cosign(TEXT, VKEY.name, W1, 5)
    moved = moved._replace(data=moved.data[:4] + (6).to_bytes(8, "big") + moved.data[12:])
    assert [] == cosignatures(parse_note(cosigned(moved.line())), [VKEY])
    beyond = cosign(TEXT, VKEY.name, W1, TIME_MAX).data[4:]
    assert VKEY.verifies(beyond, TEXT)
