"""What can be told of one job, and what cannot."""

from __future__ import annotations

from skep.sim.linear import NEVER, Op, job, linearization

Word = tuple[str, int, str | int, str | None]


def told(*words: Word) -> bool:
    """Whether a job that gives these answers, one after the other, can be; an answer of None came never."""
    ops = [
        Op(i, (verb, fence, text), answer, 2 * i, NEVER if answer is None else 2 * i + 1)
        for i, (verb, fence, text, answer) in enumerate(words)
    ]
    return linearization(ops, job(fence_max=9)) is not None


SUBMIT: Word = ("submit", 0, "", "ok")
LEASE: Word = ("lease", 1, 1, "ok")
START: Word = ("start", 1, "", "ok")
ACK: Word = ("ack", 1, "done", "ok")


def test_a_life() -> None:
    assert told(SUBMIT, LEASE, START, ("renew", 1, "", "ok"), ACK, ("look", 0, "", "succeeded"))


def test_words_are_said_again_when_their_answer_was_lost() -> None:
    assert told(SUBMIT, SUBMIT, LEASE, START, ("ack", 1, "done", None), ACK, ACK)


def test_a_lease_may_be_lost_at_any_time() -> None:
    for verb, text in (("ack", "done"), ("nack", "late"), ("start", ""), ("renew", ""), ("release", "")):
        assert told(SUBMIT, LEASE, START, ("lease", 3, 2, "ok"), (verb, 1, text, "FENCED"))


def test_a_lease_that_nobody_was_told_of_counts() -> None:
    assert told(SUBMIT, ("lease", 3, 2, "ok"))


def test_a_fence_never_falls_or_stays() -> None:
    assert not told(SUBMIT, LEASE, ("lease", 1, 2, "ok"))
    assert not told(SUBMIT, ("lease", 3, 2, "ok"), ("lease", 2, 3, "ok"))


def test_attempts_never_start_again() -> None:
    assert not told(SUBMIT, LEASE, START, ("lease", 3, 1, "ok"))


def test_a_late_word_never_counts() -> None:
    assert not told(SUBMIT, LEASE, ("lease", 3, 2, "ok"), ("renew", 1, "", "ok"))
    assert not told(SUBMIT, LEASE, START, ("lease", 3, 2, "ok"), ACK)


def test_the_newest_word_is_not_fenced() -> None:
    assert not told(SUBMIT, LEASE, START, ("ack", 1, "done", "FENCED"), ACK)


def test_the_end_is_the_end() -> None:
    assert not told(SUBMIT, LEASE, START, ACK, ("cancel", 0, "", "ok"))
    assert not told(SUBMIT, LEASE, START, ACK, ("look", 0, "", "queued"))
    assert not told(SUBMIT, LEASE, START, ACK, ("ack", 1, "other", "ok"))
    assert not told(SUBMIT, ("cancel", 0, "", "ok"), LEASE)


def test_nothing_is_before_its_submit() -> None:
    assert not told(LEASE, SUBMIT)
    assert told(("submit", 0, "", None), LEASE)
