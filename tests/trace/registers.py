"""A toy state machine for the trace's tests: named registers, and every way a line can go wrong."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from skep.trace.clock import ManualClock
from skep.trace.entry import Line
from skep.trace.rules import Decision, Meta, Refusal


class Set(msgspec.Struct, frozen=True, tag_field="type", tag="register.set"):
    name: str
    value: float | None


class Noted(msgspec.Struct, frozen=True, tag_field="type", tag="register.noted"):
    note: str


class Broke(msgspec.Struct, frozen=True, tag_field="type", tag="register.broke"):
    """Cannot be applied."""


Event = Set | Noted | Broke


class Register(NamedTuple):
    value: float | None
    rev: int
    time_ns: int
    trace: str


State = dict[str, Register]
Reply = float | str | None


class Registers:
    """``set a 1``, ``add a 1``, ``need a 1`` (or refused), ``hide``, ``note <length>``, ``break``."""

    event_type = Event

    def fresh(self) -> State:
        return {}

    def copy(self, state: State) -> State:
        return dict(state)

    def decide(self, state: State, line: Line, k: int) -> Decision[Event, Reply]:
        verb, *words = line.lines[k].split(" ")
        match verb:
            case "set":
                return Decision((Set(words[0], float(words[1])),), line.id(k))
            case "add":
                value = value_of(state, words[0]) + float(words[1])
                return Decision((Set(words[0], value),), value)
            case "need":
                if value_of(state, words[0]) != float(words[1]):
                    raise Refusal("CONFLICT", f"conflict: {words[0]} is {value_of(state, words[0])}")
                return Decision((), None)
            case "hide":
                raise Refusal("MISSING", "file does not exist")
            case "note":
                return Decision((Noted("n" * int(words[0])),), None)
            case "break":
                return Decision((Set("broken", 1.0), Broke()), None)
            case _:
                raise ZeroDivisionError(verb)

    def apply(self, state: State, event: Event, meta: Meta) -> None:
        match event:
            case Set(name, value):
                state[name] = Register(value, meta.seq, meta.time_ns, meta.trace)
            case Noted():
                pass
            case Broke():
                raise ZeroDivisionError("apply")


def value_of(state: State, name: str) -> float:
    register = state.get(name)
    return 0.0 if register is None else register.value or 0.0


_clock = ManualClock()


def line(*lines: str, trace: str | None = None) -> Line:
    """A write of these lines to /registers/ctl."""
    _clock.advance(1_000_000)
    return Line(
        "ann", "observer", "o/p/e", "/registers/ctl", lines, _clock.now_ns(), trace or _clock.new_id()
    )
