"""``skep replay``: a ledger's lines decided again, by these rules and under another policy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from skep.cli.exits import Failed
from skep.cli.logs import NoLog, of_log

if TYPE_CHECKING:  # the rules take a while to import
    from skep.validator.replay import Replay
    from skep.validator.report import Report, Tail
    from skep.validator.sources import Source

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

    LEDGER is a hive's directory, its ledger.db, sqlite:///path; or a mounted hive, a directory of tiles, a
    hive's address: these are verified first. Nothing is executed. A difference is a mistake, a changed
    ledger, or a change of rules; those that are declared are named and do not count.

    \b
    Exit status: 0 the same, 1 a difference, 2 usage.
    Examples:
      skep replay ~/.local/state/skep/hive
      skep replay ledger.db --from 1000 --to 2000 --json
      skep replay tls:hive.example.org:5640
      skep replay ledger.db --policy ./operator
    """
    from skep.trace.ledger import LedgerError
    from skep.validator.found import Finding
    from skep.validator.replay import Unfoldable
    from skep.validator.report import report

    if last is not None and last < first:
        raise click.UsageError(f"--to {last}: expected --from {first} or more")
    replay = _replay(policy, name)

    def replayed(entries: Tail) -> Report:
        return report(entries, replay, first, last, to_end, every)

    try:
        found = _of_ledger(ledger, replayed)
    except (LedgerError, Finding, Unfoldable) as error:
        raise Failed(f"{ledger}: {error}") from error
    if found.last < first:
        raise click.UsageError(f"--from {first}: the ledger ends at entry {found.last}")
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        _tell(found)
    if not found.same:
        raise Failed(f"{ledger}: {_wrong(found)}")


def _of_ledger(said: str, work: Callable[[Tail], Report]) -> Report:
    """What ``work`` makes of the entries of the ledger that is there already. Raises LedgerError, Finding."""
    from skep.trace.ledger import open_ledger

    path = Path(said.removeprefix("sqlite://"))
    path = path / LEDGER if (path / LEDGER).exists() else path
    if path.is_file():
        with closing(open_ledger(str(path))) as opened:
            return work(opened)
    try:
        return of_log(said, lambda source: _of_source(source, work))
    except NoLog as error:
        expected = f"a hive's directory, its {LEDGER}, a mount, a directory of tiles or an address"
        raise click.UsageError(f"{said}: there is no ledger: expected {expected}") from error


def _of_source(source: Source, work: Callable[[Tail], Report]) -> Report:
    """The same of a log in tiles: it is verified first, and what is read then is what was verified."""
    from skep.validator.entries import Entries
    from skep.validator.verify import verify

    verify(source)
    entries = Entries(source)
    found = work(entries)
    entries.finish()
    return found


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
