"""What is written to ctl files: parsed, checked, written again, and decided by the hive's rules.

The first byte of an input picks the file and the writer, the rest is the write.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.hive import TABLES, route
from skep.namespaces.order import actor_of
from skep.trace.clock import ulid
from skep.trace.entry import Line, canonical
from skep.trace.rules import Refusal
from tests.fuzz.holding import holds
from tests.namespaces.hives import ANN, BOB, EYE, W1, Folded

LENGTH_MAX = 512
WRITERS = (ANN, BOB, EYE, W1)
PATHS = (
    "/ctl", "/jobs/ctl", "/jobs/known/ctl", "/jobs/other/ctl", "/pools/ctl", "/pools/default/next",
    "/nodes/ctl", "/artifacts/ctl", "/trust/ctl", "/policy/ctl",
)  # fmt: skip
DECLARED = {kind.name for kind in E}


def _hive() -> Folded:
    hive = Folded()
    hive.write("/jobs/known/ctl", "submit topic=sum key=k")
    hive.write("/pools/default/next", "lease", W1)
    return hive


def told() -> str:
    """The state, as far as it is small."""
    state = HIVE.state
    return repr((state.mode, state.jobs, state.pools, state.nodes, state.artifacts))


HIVE = _hive()
BEFORE = told()


def one(data: bytes) -> None:
    if not data:
        return
    path, writer = PATHS[(data[0] >> 2) % len(PATHS)], WRITERS[data[0] & 3]
    try:
        commands = ctl.parse(data[1:])
    except FsError as error:
        holds(error.kind in (E.USAGE, E.TOOBIG), error)
        error.text.encode()
        return
    for command in commands:
        check(command)
        decide(path, command, writer)


def check(command: Command) -> None:
    """A command can be written so that it is the same command, whatever is in it."""
    line = ctl.line(command.verb, command.args)
    assert "\n" not in line
    again = ctl.parse_line(line)
    assert (command.verb, command.args) == (again.verb, again.args), line
    # In the ledger it is JSON.
    assert command.text == msgspec.json.decode(msgspec.json.encode(command.text), type=str)


def decide(path: str, command: Command, writer: Caller) -> None:
    """It has an outcome: what it would do, or why not. The state is not touched by asking."""
    noun, place, _ = route(path)
    try:
        ctl.check(command, TABLES[noun][place])
    except FsError as error:
        holds(error.kind is E.USAGE, error)
    actor, now_ns = actor_of(writer.principal, writer.node), HIVE.clock.now_ns()
    line = Line(actor, writer.role, writer.tenant, path, (command.text,), now_ns, ulid(now_ns, 1))
    try:
        decision = HIVE.rules.decide(HIVE.state, line, 0)
        # What it would do can be written down.
        canonical(decision.events)
    except Refusal as refusal:
        holds(refusal.code in DECLARED and refusal.text.startswith(E[refusal.code].value.text), refusal)
    assert told() == BEFORE


def seeds() -> Iterator[bytes]:
    for number, path in enumerate(PATHS):
        noun, place, _ = route(path)
        for verb in TABLES[noun][place].values():
            yield bytes([number << 2]) + verb.example.encode()
            args = {arg.name: "1" for arg in verb.args}
            yield bytes([number << 2 | 3]) + ctl.line(verb.name, args).encode()
            yield bytes([number << 2]) + msgspec.json.encode({"verb": verb.name} | args)
    yield b"\4submit topic=sum key=k labels='a:b,c:''d'' ' priority=9 timeout=1h\n"
    yield b"\4# more\n\ncancel job=known if-rev=9"
