"""``skep trace``: ledgers and recorded conversations, shown and checked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click
import msgspec

from skep.cli.exits import Failed
from skep.cli.traces import ledger_at, ledger_beside, recording_at, target_of

if TYPE_CHECKING:  # the namespaces take a while to import
    from skep.fs.ninept import Reading
    from skep.trace.ledger import Ledger
    from skep.validator.assertions.assertions import Checked
    from skep.validator.assertions.facts import Fact
    from skep.validator.assertions.rules import Rule
    from skep.validator.show import Paint

RULES: Final = "default.rules"
RULE_ERROR: Final = 32


class BadRules(Failed):
    """The rules cannot be read."""

    status = RULE_ERROR


@click.group()
def trace_command() -> None:
    """Show and check ledgers and recorded conversations.

    \b
    Examples:
      skep trace show var/hive --actor unix:ann
      skep trace show 01JD….9pt
      skep trace assert var/hive
    """


# show


class Range(NamedTuple):
    """From one to another, each None for no bound: numbers of entries or records, or times in ns."""

    first: int | None
    last: int | None
    first_ns: int | None
    last_ns: int | None

    def has(self, number: int, time_ns: int) -> bool:
        return (
            (self.first is None or number >= self.first)
            and (self.last is None or number <= self.last)
            and (self.first_ns is None or time_ns >= self.first_ns)
            and (self.last_ns is None or time_ns <= self.last_ns)
        )


def _range(first: str | None, last: str | None) -> Range:
    numbers, times = [], []
    for option, said in (("--from", first), ("--to", last)):
        number, time_ns = None, None
        if said is not None and said.isdecimal():
            number = int(said)
        elif said is not None:
            time_ns = _time(option, said)
        numbers.append(number)
        times.append(time_ns)
    return Range(numbers[0], numbers[1], times[0], times[1])


def _time(option: str, said: str) -> int:
    from skep.trace.clock import parse_rfc3339

    try:
        return parse_rfc3339(said)
    except ValueError as error:
        raise click.UsageError(
            f"{option} {said!r}: expected a number, or a time like 2025-11-21T08:00:00Z"
        ) from error


@trace_command.command("show")
@click.argument("file")
@click.option("--from", "first", help="The first entry or record, by its number or time.")
@click.option("--to", "last", help="The last one.")
@click.option("--actor", help="Only what this actor said; * and ? stand for others.")
@click.option("--path", "place", help="Only what is at this path, or under it; * and ? stand for others.")
@click.option("--session", help="Only this session; of a hive's directory, what was recorded of it.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, for programs.")
def show_command(
    file: str,
    first: str | None,
    last: str | None,
    actor: str | None,
    place: str | None,
    session: str | None,
    as_json: bool,
) -> None:
    """Print a ledger, or a recorded conversation.

    FILE is a hive's directory, its ledger.db, a .9pt file, or - for one on stdin. What was changed in it ends
    the command at the first entry or record that is not what was written.

    \b
    Exit status: 0 shown, 1 it is not what was written, 2 usage.
    Examples:
      skep trace show var/hive --from 2025-11-21T08:00:00Z --actor 'unix:*'
      skep trace show var/hive --session 01JD…
    """
    target = target_of(file, session)
    wanted = _Wanted(_range(first, last), actor, place, session)
    paint = _paint()
    lines = (
        _ledger_lines(target.ledger, wanted, as_json, paint)
        if target.ledger is not None
        else _talk_lines(target.talk or Path("-"), wanted, as_json, paint)
    )
    for line in lines:
        click.echo(line)


class _Wanted(NamedTuple):
    range: Range
    actor: str | None
    path: str | None
    session: str | None

    def has(self, number: int, time_ns: int, actor: str, path: str) -> bool:
        return (
            self.range.has(number, time_ns)
            and (self.actor is None or fnmatchcase(actor, self.actor))
            and (
                self.path is None
                or fnmatchcase(path, self.path)
                or f"{path}/".startswith(f"{self.path.rstrip('/')}/")
            )
        )


def _ledger_lines(path: Path, wanted: _Wanted, as_json: bool, paint: Paint) -> Iterator[str]:
    from skep.validator.show import decoded, entry_line

    if wanted.session is not None:
        raise click.UsageError(
            f"--session: {path} is a ledger, which knows no sessions: expected its hive's directory"
        )
    with ledger_at(path) as ledger:
        for seq, body in ledger.tail():
            entry = decoded(seq, body)
            if wanted.has(seq, entry.time, entry.actor, entry.path):
                yield body.decode() if as_json else entry_line(entry, paint)
            if wanted.range.last is not None and seq >= wanted.range.last:
                return


def _talk_lines(path: Path, wanted: _Wanted, as_json: bool, paint: Paint) -> Iterator[str]:
    from skep.namespaces.order import actor_of
    from skep.validator.conversation.talk import talk
    from skep.validator.show import end_line, header_line, said_line, said_object

    with recording_at(path) as reading:
        header = reading.header
        if wanted.session not in (None, header.session):
            return
        actor = actor_of(header.principal, header.node)
        yield msgspec.json.encode(header).decode() if as_json else header_line(header)
        for said in talk(header, reading):
            if wanted.has(said.n, said.time_ns, actor, said.path):
                yield msgspec.json.encode(said_object(said)).decode() if as_json else said_line(said, paint)
        # The end is read, if there is one.
        for _ in reading:
            pass
        if as_json:
            yield msgspec.json.encode({"end": reading.end, "cut": reading.cut}).decode()
        else:
            yield end_line(reading.end)


def _paint() -> Paint:
    """Colours, on a terminal."""
    from skep.validator.show import plain

    return (lambda text, colour: click.style(text, fg=colour)) if sys.stdout.isatty() else plain


# assert


@trace_command.command("assert")
@click.argument("file")
@click.argument("rules", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--ledger",
    "beside",
    metavar="DIR",
    help="The hive in whose ledger a conversation's rules look. Default: that in which the file lies.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def assert_command(file: str, rules: Path | None, beside: str | None, as_json: bool) -> None:
    """Check rules about what happened: docs/ASSERTIONS.md. Without RULES, those that hold in every hive.

    FILE is a hive's directory, its ledger.db, a .9pt file, or - for one on stdin.

    \b
    Exit status: 0 all hold, 1 one is broken or FILE is not what was written, 32 the rules cannot be read,
    2 usage.
    Examples:
      skep trace assert var/hive
      skep trace assert 01JD….9pt house.rules
    """
    from skep.validator.assertions.assertions import check

    target = target_of(file, None)
    asked = _rules(rules)
    ledger = target.ledger or ledger_beside(target.talk, beside)
    with contextlib.ExitStack() as stack:
        reading = stack.enter_context(recording_at(target.talk)) if target.talk is not None else None
        opened = stack.enter_context(ledger_at(ledger)) if ledger is not None else None
        found = check(asked, _facts(opened, reading), opened is not None, reading is not None)
    if as_json:
        click.echo(msgspec.json.encode({"rules": found, "broken": sum(each.broken for each in found)}))
    else:
        for each in found:
            for line in _told(each):
                click.echo(line)
    if broken := sum(bool(each.broken) for each in found):
        raise Failed(f"{file}: {broken} of {len(found)} rules {'is' if broken == 1 else 'are'} broken")


def _rules(path: Path | None) -> list[Rule]:
    from importlib.resources import files

    from skep.validator.assertions.rules import RuleError, read

    try:
        text = (files("skep.validator.assertions") / RULES).read_text() if path is None else path.read_text()
        return read(text)
    except (RuleError, UnicodeDecodeError) as error:
        raise BadRules(f"{path or RULES}: {error}") from error


def _facts(ledger: Ledger | None, reading: Reading | None) -> Iterator[Fact]:
    """The facts of both; where there are both, a message comes when the ledger had as many entries."""
    from skep.roles.outside import outside_of
    from skep.validator.assertions.facts import LedgerFacts, talk_facts
    from skep.validator.conversation.talk import talk

    outside = outside_of()
    entries = LedgerFacts(outside)
    messages = (
        [] if reading is None else list(talk_facts(reading.header, talk(reading.header, reading), outside))
    )
    at = 0
    for seq, body in ledger.tail() if ledger is not None else ():
        while at < len(messages) and int(messages[at].fields["seq"]) < seq:
            yield messages[at]
            at += 1
        yield from entries.of(seq, body)
    yield from messages[at:]


def _told(found: Checked) -> Iterator[str]:
    if found.skipped:
        yield f"not asked: {found.title}: {found.skipped}"
    elif not found.broken:
        yield f"holds: {found.title} ({found.asked} looked at)"
    else:
        yield f"broken: {found.title}: {found.broken} of {found.asked}: {found.rule}"
        for witness in found.witnesses:
            yield f"    {witness.where}: {witness.text}"
        if found.broken > len(found.witnesses):
            yield f"    and {found.broken - len(found.witnesses)} more"
