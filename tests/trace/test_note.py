from __future__ import annotations

import pytest
import tlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.trace.checkpoint import (
    Checkpoint,
    handover_text,
    origin_of,
    parse_checkpoint,
    parse_handovers,
    vouched,
)
from skep.trace.note import NoteError, Signing, Vkey, parse_note, parse_vkey, sign_note

# From the text of golang.org/x/mod/sumdb/note: a key, and what it signed.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SIGNED = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM="
    "\n"
)
KEYS = [Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in range(3)]
NAME = "h1/log/trace"
VKEYS = [Vkey(NAME, key.public) for key in KEYS]
TEXT = Checkpoint(NAME, 7, bytes(32)).text()


def test_the_published_note_is_believed() -> None:
    key = parse_vkey(PETER)
    note = parse_note(SIGNED.encode())
    assert [key] == note.signers([key])
    assert PETER == str(key)
    assert note.text == tlog.open_note(SIGNED.encode(), key.name, key.public)


def test_a_note_of_ours_is_read_by_others() -> None:
    note = sign_note(TEXT, NAME, KEYS[:2])
    for key in KEYS[:2]:
        assert (7, bytes(32)) == tlog.open_checkpoint(note, NAME, key.public)
    with pytest.raises(AssertionError):
        tlog.open_checkpoint(note, NAME, KEYS[2].public)


def test_who_signed_is_told_of_those_who_are_known() -> None:
    note = parse_note(sign_note(TEXT, NAME, KEYS[:2]))
    assert [VKEYS[1]] == note.signers(VKEYS[1:])
    assert VKEYS[:2] == note.signers(VKEYS)
    with pytest.raises(NoteError, match="expected a key that is known"):
        note.signers([VKEYS[2], Vkey("another", KEYS[0].public)])


def test_a_text_that_was_changed_is_noticed() -> None:
    note = parse_note(sign_note(TEXT, NAME, KEYS[:1]).replace(b"\n7\n", b"\n8\n"))
    with pytest.raises(NoteError, match="is of another text"):
        note.signers(VKEYS)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"text\n", b"text\n\n", b"text\n\n\xe2\x80\x94 name AAAAAAAA", b"text\n\n- name AAAAAAAA\n",
        b"text\n\n\xe2\x80\x94 na+me AAAAAAAA\n", b"text\n\n\xe2\x80\x94 name AAAA\n",
        b"te\rxt\n\n\xe2\x80\x94 name AAAAAAAA\n", b"\xff\n\n\xe2\x80\x94 name AAAAAAAA\n",
        b"text\n\n\xe2\x80\x94 name AAAAAAA\n", b"text\n\n" + 65 * b"\xe2\x80\x94 name AAAAAAAA\n",
        bytes(70000),
    ],
)  # fmt: skip
def test_what_is_no_note_is_refused(data: bytes) -> None:
    with pytest.raises(NoteError):
        parse_note(data)


@pytest.mark.parametrize("key", ["", "name", "name+00000000+AAAA", PETER.replace("c7", "c8"), PETER[:-4]])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(NoteError):
        parse_vkey(key)


def test_the_published_checkpoint_is_read() -> None:
    root = "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I="
    found = parse_checkpoint(f"example.com/behind-the-sofa\n20852163\n{root}\n")
    assert ("example.com/behind-the-sofa", 20852163) == found[:2]
    assert f"example.com/behind-the-sofa\n20852163\n{root}\n" == found.text()
    assert found == parse_checkpoint(f"{found.text()}what others add\n")


@pytest.mark.parametrize(
    "text",
    ["", "o\n1\n", "o\n01\nAAAA\n", "\n1\n" + "A" * 43 + "=\n", "o\n-1\n" + "A" * 43 + "=\n",
     "o\n1\n" + "A" * 42 + "B=\n", "o\n1\n" + "A" * 43 + "=\n\n", "o\n1\n" + "A" * 43 + "="],
)  # fmt: skip
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError, match="no checkpoint"):
        parse_checkpoint(text)


def test_a_key_is_believed_that_a_chain_of_handovers_leads_to() -> None:
    first = sign_note(handover_text(NAME, VKEYS[1]), NAME, KEYS[:1])
    second = sign_note(handover_text(NAME, VKEYS[2]), NAME, KEYS[1:2])
    notes = parse_handovers(second + b"\n" + first)
    assert [handover_text(NAME, VKEYS[2]), handover_text(NAME, VKEYS[1])] == [note.text for note in notes]
    assert VKEYS == vouched(VKEYS[:1], notes)
    assert VKEYS[1:] == vouched(VKEYS[1:2], notes)
    assert [] == vouched([], notes)
    assert [] == parse_handovers(b"")


def test_a_handover_is_of_who_signed_it_alone() -> None:
    forged = sign_note(handover_text(NAME, VKEYS[2]), NAME, KEYS[2:])
    checkpoint = sign_note(TEXT, NAME, KEYS[:1])
    elsewhere = sign_note(handover_text("h2/log/trace", VKEYS[2]), NAME, KEYS[:1])
    notes = parse_handovers(b"\n".join((forged, checkpoint, elsewhere)))
    assert VKEYS[:1] == vouched(VKEYS[:1], notes)


def test_a_log_is_named_after_its_hive() -> None:
    assert "h1/log/trace" == origin_of("h1")
    assert "hive/log/trace" == origin_of("")
