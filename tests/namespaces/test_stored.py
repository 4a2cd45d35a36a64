"""A state that came back from its bytes is the one that went, and goes on like it."""

from __future__ import annotations

import types
import typing
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec
import pytest

from skep.namespaces.hive import HiveRules, HiveState
from skep.namespaces.jobs.record import Attempt, Job, Submitted
from skep.namespaces.policy.engine import Engine
from skep.namespaces.stored import pack_state, unpack_state
from skep.trace.digest import digest
from skep.trace.snapshot import SnapshotError
from skep.validator.replay.replay import Replay
from tests.validator.recorded import simulated, story

# What is remembered to be quick, and how it comes back: made anew from what it is of, or empty.
REMEMBERED = {"Config._layers", "Config._made", "Config.known", "Policy.live"}
# What a state is made of besides dataclasses, Structs and tuples.
HELD = {
    str,
    int,
    bool,
    None,
    type(None),
    dict,
    list,
    set,
    frozenset,
    ...,
    Mapping,
    types.UnionType,
    OrderedDict,
}
SEEDS = ("m0", "m1", "m3", "7")


def is_made(kind: Any) -> bool:
    """Whether it has fields with types of their own."""
    return is_dataclass(kind) or (isinstance(kind, type) and issubclass(kind, msgspec.Struct | tuple))


def kinds(kind: Any, seen: set[Any]) -> set[Any]:
    """All that a type is made of."""
    for inner in typing.get_args(kind):
        kinds(inner, seen)
    origin = typing.get_origin(kind) or kind
    if origin not in seen:
        seen.add(origin)
        if is_made(origin):
            # Imported there for types alone.
            names = {"Job": Job, "Submitted": Submitted, "Attempt": Attempt}
            for inner in typing.get_type_hints(origin, localns=names).values():
                kinds(inner, seen)
    return seen


def same(one: Any, other: Any, at: str = "state") -> None:
    """Equal in value, in type and in order, all the way down."""
    assert type(one) is type(other), at
    if isinstance(one, Mapping):
        assert list(one) == list(other), at
        for key in one:
            same(one[key], other[key], f"{at}[{key!r}]")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), at
        for i, (this, that) in enumerate(zip(one, other, strict=True)):
            same(this, that, f"{at}[{i}]")
    elif is_dataclass(one):
        for each in fields(one):
            if each.compare:
                same(getattr(one, each.name), getattr(other, each.name), f"{at}.{each.name}")
    elif isinstance(one, msgspec.Struct):
        for name in one.__struct_fields__:
            same(getattr(one, name), getattr(other, name), f"{at}.{name}")
    else:
        assert one == other, at


def test_what_is_only_remembered_is_known_here() -> None:
    found = {
        f"{kind.__qualname__}.{each.name}"
        for kind in kinds(HiveState, set())
        if isinstance(kind, type) and is_dataclass(kind)
        for each in fields(kind)
        if not each.compare
    }
    assert found <= REMEMBERED


def test_what_is_only_remembered_is_a_nouns_own() -> None:
    nouns = {type(getattr(HiveState(), each.name)).__name__ for each in fields(HiveState)}
    assert {name.partition(".")[0] for name in REMEMBERED} <= nouns


def test_a_state_is_made_of_what_bytes_can_hold() -> None:
    strange = {kind for kind in kinds(HiveState, set()) if not is_made(kind)}
    assert strange <= HELD | {Engine}


def replayed(bodies: tuple[bytes, ...], step: int) -> None:
    """Decide the ledger again, on a state that is packed and unpacked before every so many entries."""
    replay = Replay()
    for seq, body in enumerate(bodies, 1):
        if seq % step == 0:
            back = unpack_state(pack_state(replay.state))
            same(replay.state, back)
            replay.state = back
        assert replay.judge(replay.decode(seq, body), body) is None
    assert replay.touched(replay.digest()) is None


def test_a_state_that_came_back_decides_and_folds_as_the_one_that_went() -> None:
    replayed(story(), 9)


@pytest.mark.slow
def test_it_does_so_wherever_it_was_cut() -> None:
    replayed(story(), 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_simulated_hives_state_comes_back(seed: str) -> None:
    replayed(simulated(seed, 150), 7)


def test_a_fresh_state_comes_back() -> None:
    fresh = HiveRules().fresh()
    same(fresh, unpack_state(pack_state(fresh)))
    assert digest(fresh) == digest(unpack_state(pack_state(fresh)))


def test_the_order_in_which_locks_were_left_comes_back() -> None:
    state = HiveRules().fresh()
    state.locks.idle["t"] = OrderedDict.fromkeys("cab")
    state.locks.idle["t"].move_to_end("c")
    same(state, unpack_state(pack_state(state)))


@pytest.mark.parametrize("packed", [b"", b"\xc0", b"\x81", pack_state(HiveState())[:-1]])
def test_bytes_that_are_no_state_are_refused(packed: bytes) -> None:
    with pytest.raises(SnapshotError, match="its state: "):
        unpack_state(packed)
