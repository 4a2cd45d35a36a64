"""Is a history of concurrent operations one that a sequential object could have given?

A history is linearizable when each operation can be given one moment between its call and its answer such
that, done one after the other at those moments, they give the answers that were given. What was never
answered may have been done at any moment after its call, or not at all.

The search tries operations whose call comes before every answer that is still to be placed, depth first, and
remembers which sets of done operations led to which state in vain.
Sources: J. M. Wing, C. Gong, "Testing and Verifying Concurrent Objects" (1993); G. Lowe, "Testing for
linearizability" (2017), for the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)

NEVER: Final = 1 << 62  # the moment of an answer that did not come


@dataclass(frozen=True)
class Op:
    """One operation: what was asked, what was answered (None: nothing was), and when, in any unit."""

    client: int
    asked: tuple[Any, ...]
    answer: Any
    called: int
    answered: int = NEVER


class Object(NamedTuple, Generic[S]):
    """A sequential object: its first state, and the states that an operation with its answer may lead to
    (none: it cannot have given that answer)."""

    first: S
    step: Callable[[S, Op], Iterable[S]]


def linearization(history: Sequence[Op], of: Object[S]) -> list[Op] | None:
    """An order that explains the history; None: there is none, it is not linearizable."""
    ops = sorted(history, key=lambda op: op.called)
    wanted = sum(1 << i for i, op in enumerate(ops) if op.answered != NEVER)
    seen: set[tuple[int, S]] = set()
    # Each level: what is done, the state then, and what may still be tried there.
    path: list[int] = []
    levels = [(0, _choices(ops, 0, of.first, of.step))]
    while levels:
        done, choices = levels[-1]
        if done & wanted == wanted:
            return [ops[i] for i in path]
        for i, state in choices:
            after = done | 1 << i
            if (after, state) not in seen:
                seen.add((after, state))
                path.append(i)
                levels.append((after, _choices(ops, after, state, of.step)))
                break
        else:
            levels.pop()
            if path:
                path.pop()
    return None


def _choices(
    ops: Sequence[Op], done: int, state: S, step: Callable[[S, Op], Iterable[S]]
) -> Iterable[tuple[int, S]]:
    """What can come next: operations that were called before any that is not done was answered."""
    left = [i for i in range(len(ops)) if not done >> i & 1]
    first = min((ops[i].answered for i in left), default=NEVER)
    near = [i for i in left if ops[i].called < first]
    return iter([(i, after) for i in near for after in step(state, ops[i])])


# a lock


class Held(NamedTuple):
    """``holders``: client, mode and fence of each grant; -n: it was not told, and is above n. ``newest``:
    the highest fence that is known."""

    holders: frozenset[tuple[int, str, int]] = frozenset()
    newest: int = 0


def _acquire(held: Held, op: Op) -> Iterable[Held]:
    _, mode = op.asked
    if op.answer == "BUSY":
        # A queue counts as busy too, and it is not to be seen from here; nobody queues for a free lock.
        return [held] if held.holders else []
    together = all(other == "s" for _, other, _ in held.holders) and (mode == "s" or not held.holders)
    if not together or (op.answer is not None and op.answer <= held.newest):
        return []
    grant = (op.client, mode, -held.newest if op.answer is None else op.answer)
    return [Held(held.holders | {grant}, max(held.newest, op.answer or 0))]


def _by_fence(held: Held, op: Op) -> set[tuple[int, str, int]]:
    return {grant for grant in held.holders if 0 < grant[2] == op.asked[1]}


def _release(held: Held, op: Op) -> Iterable[Held]:
    grants = _by_fence(held, op)
    if op.answer == "FENCED":
        return [] if grants else [held]
    return [Held(held.holders - grants, held.newest)] if grants else []


def _check(held: Held, op: Op) -> Iterable[Held]:
    if _by_fence(held, op):
        return [] if op.answer == "FENCED" else [held]
    return [held] if op.answer == "FENCED" else _guessed(held, op.asked[1])


def _guessed(held: Held, fence: int) -> Iterator[Held]:
    """It is the fence of a grant that was not told."""
    for client, mode, above in held.holders:
        if above <= 0 and fence > -above:
            grants = held.holders - {(client, mode, above)} | {(client, mode, fence)}
            yield Held(grants, max(held.newest, fence))


def _die(held: Held, op: Op) -> Iterable[Held]:
    """The client's session ends, sooner or later: all it holds goes at once."""
    return [Held(frozenset(grant for grant in held.holders if grant[0] != op.client), held.newest)]


_STEPS: Final = {"acquire": _acquire, "release": _release, "check": _check, "die": _die}

LOCK: Final = Object(Held(), lambda held, op: _STEPS[op.asked[0]](held, op))


# a job


class Known(NamedTuple):
    """``leases``: how many it has had; ``text``: what it was acknowledged with, or the last error."""

    state: str = ""  # "": it was not submitted yet
    fence: int = 0
    leases: int = 0
    text: str = ""


ENDED: Final = ("succeeded", "failed", "cancelled")
_HELD: Final = ("leased", "running")


def _by_itself(job: Known, fence_max: int) -> Iterator[Known]:
    """What may become of it without any word that was answered: time passes, answers are lost."""
    state, fence, leases, text = job
    if state == "queued" and fence < fence_max:
        yield Known("leased", fence + 1, leases + 1, text)
    if state in _HELD:
        yield Known("queued", fence + 1, leases, text)
        yield Known("failed", fence + 1, leases, "*")
    if state == "running":
        yield Known("delayed", fence + 1, leases, "*")
    if state in ("queued", "delayed"):
        yield Known("failed", fence, leases, "*")
    if state == "delayed":
        yield Known("queued", fence, leases, text)


def _told(job: Known, op: Op) -> Iterator[Known]:
    """What ``op`` makes of it with the answer it got: "ok", a refusal's class, None for none."""
    verb, fence, text = op.asked
    state, newest, leases, _ = job
    mine = fence == newest
    match verb, op.answer:
        case "submit", _:
            yield job if state else Known("queued")
        case "lease", _ if state == "queued" and fence > newest and leases + 1 == text:
            yield Known("leased", fence, leases + 1, job.text)
        case (("ack" | "nack" | "start" | "renew" | "release" | "fallback"), "FENCED") if not mine and state:
            yield job
        case "start", "ok" | None if state == "leased" and mine:
            yield Known("running", newest, leases, job.text)
        case "renew", "ok" | None if state in _HELD and mine:
            yield job
        case "release", "ok" | None if state in _HELD and mine:
            yield Known("queued", newest + 1, leases, job.text)
        case "ack", "ok" | None if mine and (state == "running" or (state, job.text) == ("succeeded", text)):
            yield Known("succeeded", newest, leases, text)
        case "nack", "ok" | None if mine and state in ("failed", "delayed") and job.text == text:
            yield job
        case "nack", "ok" | None if mine and state in _HELD:
            yield Known("delayed", newest, leases, text)
            yield Known("failed", newest, leases, text)
        case "fallback", "ok" | None if mine and state == "failed":
            yield job
        case "fallback", "ok" | None if mine and state in (*_HELD, "queued"):
            yield Known("queued", newest, leases, "*")
            yield Known("failed", newest, leases, "*")
        case "cancel", "ok" | None if state and state not in ENDED:
            yield Known("cancelled", newest + (state in _HELD), leases, "")
        case "look", answer if answer == state:
            yield job
        case "other", _:
            yield job


def job(fence_max: int) -> Object[Known]:
    """A job whose fence never rose above ``fence_max``. ``asked``: verb, fence, and the result, the error or,
    of a lease, the attempt's number; ``other`` is asked and answered in any state."""

    @cache
    def may_be(known: Known) -> frozenset[Known]:
        found, new = {known}, [known]
        while new:
            new = [after for of in new for after in _by_itself(of, fence_max) if after not in found]
            found.update(new)
        return frozenset(found)

    def step(known: Known, op: Op) -> Iterable[Known]:
        return [after for now in sorted(may_be(known)) for after in _told(now, op)]

    return Object(Known(), step)
