"""``skep diff``: what is not the same in two traces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from skep.cli.exits import Failed

if TYPE_CHECKING:  # the rules of a hive take a while to import
    from skep.validator.diff.report import Report
    from skep.validator.diff.rules import Rules

LINES_MAX: Final = 1000  # of differences that are printed; --json and --html have more
COLOURS: Final = {"added": "green", "removed": "red", "changed": "yellow", "moved": "blue"}
RULE_ERROR: Final = 32


class Drifted(Failed):
    """They are not the same, or cannot be compared; the status says which."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@click.command()
@click.argument("a")
@click.argument("b")
@click.option(
    "--rules",
    "rules_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What may differ, how many entries there must be, where traces may lie. docs/DIFF.md has its form.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.option(
    "--html", "html_file", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Also write a page that needs nothing else.",
)  # fmt: skip
def diff_command(a: str, b: str, rules_file: Path | None, as_json: bool, html_file: Path | None) -> None:
    """Tell what was added, removed, changed and moved from trace A to trace B.

    Each is a hive's directory, a ledger's file, a directory of tiles or a recorded conversation; or both are
    checkpoints, or snapshots. Numbers, times and ids of entries are not compared, but where an id stands
    again is.

    \b
    Exit status: 0 the same, 30 they differ, 31 too few entries, 32 a mistake in the rules, 2 usage.
    Examples:
      skep diff monday.db tuesday.db
      skep diff --rules ci.toml --html diff.html before after
    """
    from skep.validator.diff.diff import diff
    from skep.validator.diff.page import page
    from skep.validator.diff.report import SAME
    from skep.validator.diff.traces import NotTold

    rules = _rules(rules_file)
    try:
        found = diff(a, b, rules)
    except NotTold as error:
        raise click.UsageError(str(error)) from error
    if html_file is not None:
        html_file.write_text(page(found, a, b), encoding="utf-8")
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        _tell(found)
    if found.status != SAME:
        raise Drifted(f"{a} and {b}: {_wrong(found)}", found.status)


def _rules(file: Path | None) -> Rules:
    from skep.validator.diff.rules import RuleError, Rules, parse_rules

    if file is None:
        return Rules()
    try:
        return parse_rules(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise Drifted(f"{file}: byte {error.start} is not UTF-8", RULE_ERROR) from error
    except RuleError as error:
        raise Drifted(f"{file}: {error}", RULE_ERROR) from error


def _tell(found: Report) -> None:
    from skep.validator.diff.lines import change_lines, last_lines, stray_lines

    shown = [change for change in found.changes if not change.excused]
    for change in shown[:LINES_MAX]:
        head, *more = change_lines(change)
        click.echo("\n".join([click.style(head, COLOURS[change.kind]), *more]))
    if len(shown) > LINES_MAX:
        click.echo(f"… and {sum(found.counts.values()) - LINES_MAX} more")
    for line in stray_lines(found):
        click.echo(click.style(line, "red"))
    for line in last_lines(found):
        click.echo(line)


def _wrong(found: Report) -> str:
    from skep.validator.diff.report import TOO_FEW

    if found.status == TOO_FEW:
        return f"too few {found.noun}"
    return "they differ" if any(found.counts.values()) else "a trace lies where none may"
