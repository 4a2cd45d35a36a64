"""``skep replay``: a ledger's lines decided again, by these rules and under another policy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from skep.cli.exits import Failed

if TYPE_CHECKING:  # the rules take a while to import
    from skep.trace.ledger import Ledger
    from skep.validator.replay import Replay
    from skep.validator.report import Report

LEDGER: Final = "ledger.db"  # of a hive's directory


@click.command()
@click.argument("ledger")
@click.option("--from", "first", type=click.IntRange(1), default=1, help="The first entry to decide again.")
@click.option("--to", "last", type=click.IntRange(1), help="The last one. Default: the ledger's.")
@click.option("--all", "to_end", is_flag=True, help="Go on after the first difference.")
@click.option("--every", type=click.IntRange(1), help="Also tell the state's digest after every so many.")
@click.option(
    "--policy",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Also decide under this bundle, in the place of the live one of its name.",
)
@click.option("--bundle", "name", help="That bundle's name in the hive. Default: the directory's.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def replay_command(
    ledger: str,
    first: int,
    last: int | None,
    to_end: bool,
    every: int | None,
    policy: Path | None,
    name: str | None,
    as_json: bool,
) -> None:
    """Decide every line of a ledger again, and tell what was decided otherwise.

    LEDGER is a hive's directory, its ledger.db, or sqlite:///path. Nothing is executed. A difference is a
    mistake, a changed ledger, or a change of rules; those that are declared are named and do not count.

    \b
    Exit status: 0 the same, 1 a difference, 2 usage.
    Examples:
      skep replay ~/.local/state/skep/hive
      skep replay ledger.db --from 1000 --to 2000 --json
      skep replay ledger.db --policy ./operator
    """
    from skep.trace.ledger import LedgerError
    from skep.validator.replay import Unfoldable
    from skep.validator.report import report

    if last is not None and last < first:
        raise click.UsageError(f"--to {last}: expected --from {first} or more")
    opened = _opened(ledger)
    try:
        found = report(opened, _replay(policy, name), first, last, to_end, every)
    except (LedgerError, Unfoldable) as error:
        raise Failed(f"{ledger}: {error}") from error
    finally:
        opened.close()
    if found.last < first:
        raise click.UsageError(f"--from {first}: the ledger ends at entry {found.last}")
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        _tell(found)
    if not found.same:
        raise Failed(f"{ledger}: {_wrong(found)}")


def _opened(said: str) -> Ledger:
    """The ledger that is there already."""
    from skep.trace.ledger import LedgerError, open_ledger

    path = Path(said.removeprefix("sqlite://"))
    path = path / LEDGER if path.is_dir() else path
    if not path.is_file():
        raise click.UsageError(f"{said}: there is no ledger, expected a hive's directory or its {LEDGER}")
    try:
        return open_ledger(str(path))
    except LedgerError as error:
        raise Failed(str(error)) from error


def _replay(policy: Path | None, name: str | None) -> Replay:
    from skep.namespaces.policy.bundle import BundleError, read
    from skep.namespaces.policy.core import check_all
    from skep.validator.policies import OtherPolicy
    from skep.validator.replay import Replay

    if policy is None:
        return Replay()
    try:
        bundle = read(policy)
        check_all(bundle)
    except BundleError as error:
        raise click.UsageError(f"{policy}/{error}") from error
    return Replay(OtherPolicy(name or policy.resolve().name, bundle))


def _tell(found: Report) -> None:
    from skep.validator.lines import differences, summary

    for seq, digest in found.digests.items():
        click.echo(f"entry {seq}: state {digest}")
    for line in differences(found):
        click.echo(line)
    click.echo(summary(found))
    click.echo(f"state {found.digest}")


def _wrong(found: Report) -> str:
    if found.differ:
        return "it is decided otherwise"
    return "the policy would decide otherwise"
