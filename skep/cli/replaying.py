"""``skep replay``: a ledger's lines decided again, by these rules and under another policy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from skep.cli.exits import Failed
from skep.cli.logs import NoLog, of_log

if TYPE_CHECKING:  # the rules take a while to import
    from skep.namespaces.hive import HiveRules
    from skep.validator.replay.report import Report, Tail
    from skep.validator.replay.snapshots import Beside
    from skep.validator.verify.sources import Source

LEDGER: Final = "ledger.db"  # of a hive's directory


@click.command()
@click.argument("ledger", required=False, metavar="LEDGER | ADDRESS")
@click.option(
    "--wire",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Play this recorded conversation instead, and compare what is answered.",
)
@click.option("--fresh", is_flag=True, help="With --wire: on a fresh hive in memory, as without an ADDRESS.")
@click.option(
    "--ledger",
    "beside",
    metavar="DIR",
    help="With --wire: the hive in whose ledger the rest is. Default: that in which FILE lies.",
)
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
@click.option("--jobs", type=click.IntRange(1), default=1, help="Processes that share the work; of a file.")
@click.option("--no-snapshots", is_flag=True, help="With --from: fold from the first entry all the same.")
@click.option("--check-snapshots", is_flag=True, help="Hold the hive's snapshots against what is folded.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def replay_command(
    ledger: str | None,
    wire: Path | None,
    fresh: bool,
    beside: str | None,
    first: int,
    last: int | None,
    to_end: bool,
    every: int | None,
    policy: Path | None,
    name: str | None,
    jobs: int,
    no_snapshots: bool,
    check_snapshots: bool,
    as_json: bool,
) -> None:
    """Decide every line of a ledger again, and tell what was decided otherwise.

    LEDGER is a hive's directory, its ledger.db, sqlite:///path; or a mounted hive, a directory of tiles, a
    hive's address: these are verified first. Nothing is executed. A difference is a mistake, a changed
    ledger, or a change of rules; those that are declared are named and do not count.

    With --wire, what a client said is said again, to a hive in memory as it was then or to the one at
    ADDRESS, and the answers are compared.

    What is before --from is not folded as far as a snapshot goes that the hive has signed and that is beside
    its ledger's file.

    \b
    Exit status: 0 the same, 1 a difference, 2 usage.
    Examples:
      skep replay ~/.local/state/skep/hive
      skep replay ledger.db --from 1000 --to 2000 --json
      skep replay tls:hive.example.org:5640
      skep replay ledger.db --policy ./operator --jobs 4
      skep replay --wire ~/.local/state/skep/hive/log/trace/sessions/01JD….9pt
    """
    if wire is None and (fresh or beside is not None):
        raise click.UsageError("--fresh and --ledger are about a conversation: expected --wire FILE")
    of_ledger = (first > 1, last, every, policy, name, jobs > 1, no_snapshots, check_snapshots)
    if wire is not None and any(of_ledger):
        raise click.UsageError("--wire: expected none of the options that are about a ledger")
    if wire is not None:
        from skep.cli.playing import play

        play(wire, ledger, fresh, beside, to_end, as_json)
        return
    if ledger is None:
        raise click.UsageError("expected a LEDGER, or --wire FILE")
    from skep.trace.ledger import LedgerError
    from skep.validator.replay.replay import Replay, Unfoldable
    from skep.validator.replay.report import report
    from skep.validator.verify.found import Finding

    if last is not None and last < first:
        raise click.UsageError(f"--to {last}: expected --from {first} or more")
    if check_snapshots and not _file_of(ledger).is_file():
        raise click.UsageError(f"{ledger}: --check-snapshots: expected a hive's directory or its {LEDGER}")
    rules = _rules(policy, name)

    def replayed(entries: Tail, beside: Beside | None) -> Report:
        checks = beside.checks() if beside is not None and check_snapshots else None
        begin = beside is not None and not no_snapshots and not check_snapshots
        begun = beside.before(first) if beside is not None and begin else None
        return report(entries, Replay(rules, begun), first, last, to_end, every, checks)

    try:
        if jobs > 1:
            if check_snapshots:
                raise click.UsageError("--check-snapshots goes through the ledger once: expected no --jobs")
            asked = (_file_of(ledger), policy, name, to_end, every, not no_snapshots)
            found = _shared(asked, first, last, jobs)
        else:
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


def _file_of(said: str) -> Path:
    """The file of a ledger, as a path, a hive's directory or an sqlite address; it may not be there."""
    path = Path(said.removeprefix("sqlite://"))
    return path / LEDGER if (path / LEDGER).exists() else path


def _shared(asked: tuple[Any, ...], first: int, last: int | None, jobs: int) -> Report:
    """The same, by several processes. Raises LedgerError, Finding, Unfoldable."""
    from skep.validator.replay.shares import Asked, replayed
    from skep.validator.verify.sources import LedgerSource

    how = Asked(*asked)
    if not how.ledger.is_file():
        raise click.UsageError(f"{how.ledger}: --jobs: expected a hive's directory or its {LEDGER}")
    size = LedgerSource(how.ledger).head.size
    if size < first:
        raise click.UsageError(f"--from {first}: the ledger ends at entry {size}")
    return replayed(how, first, min(last or size, size), jobs)


def _of_ledger(said: str, work: Callable[[Tail, Beside | None], Report]) -> Report:
    """What ``work`` makes of the entries of the ledger that is there already, and of the snapshots beside it
    (None: they are not there). Raises LedgerError, Finding."""
    from skep.trace.ledger import open_ledger
    from skep.validator.replay.snapshots import Beside

    path = _file_of(said)
    if path.is_file():
        with closing(open_ledger(str(path))) as opened:
            return work(opened, Beside(path, opened))
    try:
        return of_log(said, lambda source: _of_source(source, work))
    except NoLog as error:
        expected = f"a hive's directory, its {LEDGER}, a mount, a directory of tiles or an address"
        raise click.UsageError(f"{said}: there is no ledger: expected {expected}") from error


def _of_source(source: Source, work: Callable[[Tail, Beside | None], Report]) -> Report:
    """The same of a log in tiles: it is verified first, and what is read then is what was verified."""
    from skep.validator.verify.entries import Entries
    from skep.validator.verify.verify import verify

    verify(source)
    entries = Entries(source)
    found = work(entries, None)
    entries.finish()
    return found


def _rules(policy: Path | None, name: str | None) -> HiveRules:
    from skep.namespaces.policy.bundle import BundleError
    from skep.validator.replay.policies import rules_under

    try:
        return rules_under(policy, name)
    except BundleError as error:
        raise click.UsageError(f"{policy}/{error}") from error
    except OSError as error:
        raise click.UsageError(f"{error.filename}: {error.strerror}: expected a file of a bundle") from error


def _tell(found: Report) -> None:
    from skep.validator.replay.lines import differences, summary

    if found.begun:
        click.echo(f"begun from the snapshot of entry {found.begun}")
    for each in found.snapshots:
        click.echo(f"snapshot of entry {each.size}: {each.said}")
    for seq, digest in found.digests.items():
        click.echo(f"entry {seq}: state {digest}")
    for line in differences(found):
        click.echo(line)
    click.echo(summary(found))
    click.echo(f"state {found.digest}")


def _wrong(found: Report) -> str:
    if found.differ:
        return "it is decided otherwise"
    if any(each.wrong for each in found.snapshots):
        return "a snapshot is not what the ledger means"
    return "the policy would decide otherwise"
