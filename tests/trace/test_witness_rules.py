"""What a witness may cosign, and what a log that lies leaves in its hands."""

from __future__ import annotations

from base64 import b64encode
from itertools import combinations

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.trace.checkpoint import Checkpoint
from skep.trace.entry import leaf_hash
from skep.trace.note import Signing, Vkey, sign_note
from skep.trace.witness import (
    Answer,
    Contradiction,
    Declined,
    Seen,
    Split,
    check,
    is_evidence,
    parse_shown,
    unproven,
)
from tests.trace import tlog

ORIGIN = "h1/log/trace"
KEY, OTHER = (Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in range(2))
VKEY = Vkey(ORIGIN, KEY.public)


class View:
    """A log as it shows itself to somebody: entries, the same as ``shared`` up to a place."""

    def __init__(self, size: int, fork: int = 0, shared: View | None = None) -> None:
        same = shared.leaves[:fork] if shared is not None else []
        self.leaves = same + [leaf_hash(f"{id(self)} {n}".encode()) for n in range(len(same), size)]

    def note(self, size: int, key: Signing = KEY, origin: str = ORIGIN) -> bytes:
        return sign_note(Checkpoint(origin, size, tlog.mth(self.leaves[:size])).text(), origin, [key])

    def show(self, old: int, size: int, key: Signing = KEY) -> bytes:
        """An add-checkpoint."""
        proof = tlog.proof(old, self.leaves[:size]) if old else []
        lines = [f"old {old}", *(b64encode(each).decode() for each in proof), "", ""]
        return "\n".join(lines).encode() + self.note(size, key)


def seen(view: View, size: int) -> Seen:
    return Seen(ORIGIN, (str(VKEY),), view.note(size).decode() if size else "")


def answer(known: Seen, body: bytes) -> Answer | Split | None:
    """What becomes of it; None: it may be cosigned."""
    try:
        check(known, parse_shown(body))
    except Declined as error:
        return error.answer
    except Contradiction as error:
        return error.split
    return None


sizes = st.integers(0, 40)


@given(sizes, sizes)
@settings(max_examples=40, deadline=None)
def test_what_continues_the_last_may_be_cosigned(a: int, b: int) -> None:
    old, new = sorted((a, b))
    view = View(new)
    assert answer(seen(view, old), view.show(old, new)) is None


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_no_other_view_is_ever_cosigned_and_the_proof_of_it_is_kept(data: st.DataObject) -> None:
    fork = data.draw(st.integers(0, 20), "fork")
    old = data.draw(st.integers(fork + 1, 30), "old")
    new = data.draw(st.integers(old, 40), "new")
    one = View(old)
    other = View(new, fork, one)
    found = answer(seen(one, old), other.show(old, new))
    if isinstance(found, Split):
        assert is_evidence(found, [VKEY])
        assert (old, new) == tuple(checkpoint.size for checkpoint in found.checkpoints)
    else:
        # Of a complete tree the proof does not have the root: what the log says of as many entries does.
        assert Answer.UNPROVEN is found
        assert 0 == old & (old - 1)
        again = answer(seen(one, old), other.show(old, old))
        assert isinstance(again, Split)
        assert is_evidence(again, [VKEY])


@pytest.mark.slow
@given(st.data())
@settings(max_examples=200, deadline=None)
def test_nobody_makes_evidence_against_a_log_that_has_one_view(data: st.DataObject) -> None:
    old = data.draw(st.integers(1, 20))
    new = data.draw(st.integers(old, 30))
    view, forged = View(new), View(new)
    split = unproven(seen(view, old), parse_shown(view.show(old, new)))
    assert not is_evidence(split, [VKEY])
    root = data.draw(
        st.sampled_from([tlog.mth(forged.leaves[:old]), tlog.mth(view.leaves[:old]), b"", bytes(32)])
    )
    said = msgspec.structs.replace(split, root=b64encode(root).decode())
    assert not is_evidence(said, [VKEY])
    by_other = msgspec.structs.replace(said, second=forged.note(new, OTHER).decode())
    assert not is_evidence(by_other, [VKEY])
    elsewhere = msgspec.structs.replace(said, second=forged.note(new, KEY, "h2/log/trace").decode())
    assert not is_evidence(elsewhere, [VKEY])


VIEW = View(9)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (VIEW.show(4, 9, OTHER), Answer.UNSIGNED),
        (VIEW.show(3, 9), Answer.CONFLICT),
        (VIEW.show(0, 3), Answer.CONFLICT),
        (VIEW.show(4, 9).replace(b"old 4", b"old 10"), Answer.MALFORMED),
        (VIEW.show(4, 9).replace(b"old 4", b"old 04"), Answer.MALFORMED),
        (b"old 4\n" + VIEW.show(4, 9), Answer.MALFORMED),
        (b"", Answer.MALFORMED),
        (b"old 4\n\n", Answer.MALFORMED),
        (b"old 4\n" + 64 * (b"A" * 43 + b"=\n") + b"\n" + VIEW.note(9), Answer.MALFORMED),
        (b"old 4\n" + 63 * (b"A" * 43 + b"=\n") + b"\n" + VIEW.note(9), Answer.UNPROVEN),
        (b"old 4\n\n" + VIEW.note(9), Answer.UNPROVEN),
        (VIEW.show(4, 4), None),
    ],
)
def test_each_answer_is_that_of_the_text(body: bytes, expected: Answer | None) -> None:
    assert expected is answer(seen(VIEW, 4), body)


def test_a_conflict_tells_the_last_size() -> None:
    with pytest.raises(Declined) as caught:
        check(seen(VIEW, 4), parse_shown(VIEW.show(3, 9)))
    assert (Answer.CONFLICT, 4) == (caught.value.answer, caught.value.size)
    with pytest.raises(Declined) as caught:
        check(seen(VIEW, 0), parse_shown(VIEW.show(3, 9)))
    assert (Answer.CONFLICT, 0) == (caught.value.answer, caught.value.size)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_majority_never_agrees_upon_two_views(data: st.DataObject) -> None:
    """Whatever a lying log shows to whom in which order, and though some witnesses cosign all they are
    shown: of two checkpoints that enough have cosigned, one continues the other."""
    n = data.draw(st.integers(1, 5), "witnesses")
    liars = data.draw(st.integers(0, n - 1), "liars")
    need = data.draw(st.integers((n + liars) // 2 + 1, n), "need")
    trunk = View(12)
    views = [trunk, *(View(16, data.draw(st.integers(0, 11), "fork"), trunk) for _ in range(2))]
    known = [Seen(ORIGIN, (str(VKEY),)) for _ in range(n)]
    cosigned: dict[tuple[int, bytes], set[int]] = {}
    for _ in range(data.draw(st.integers(0, 25), "shows")):
        who = data.draw(st.integers(0, n - 1))
        view = data.draw(st.sampled_from(views))
        size = data.draw(st.integers(0, len(view.leaves)))
        old = known[who].size if data.draw(st.booleans()) else data.draw(st.integers(0, size))
        body = view.show(min(old, size), size)
        if who < liars or answer(known[who], body) is None:
            known[who] = msgspec.structs.replace(known[who], note=view.note(size).decode())
            cosigned.setdefault((size, tlog.mth(view.leaves[:size])), set()).add(who)
    agreed = sorted(each for each, who in cosigned.items() if len(who) >= need)
    for (small, root), (large, other) in combinations(agreed, 2):
        assert any(
            tlog.mth(view.leaves[:small]) == root and tlog.mth(view.leaves[:large]) == other
            for view in views
            if large <= len(view.leaves)
        )


def test_one_liar_of_three_makes_two_of_three_too_few() -> None:
    one, other = View(9), View(9)
    honest = [seen(one, 0), seen(one, 0)]
    assert [None, None] == [
        answer(known, view.show(0, 9)) for known, view in zip(honest, (one, other), strict=True)
    ]
    # With the liar's, each view has two cosignatures; but neither of the honest will ever cosign the other.
    for known, view in ((seen(one, 9), other), (seen(other, 9), one)):
        assert isinstance(answer(known, view.show(9, 9)), Split)
