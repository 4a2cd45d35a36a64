"""``skep annex``: what is asked about GPU work. An annex is run by ``skep serve --role cuda-annex``."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import click
import msgspec

from skep.cli.exits import Failed
from skep.cli.logs import NoLog, of_log
from skep.cli.serving_annex import devices_command
from skep.cli.traces import LEDGER
from skep.cli.verifying import Inconsistent, file_of
from skep.trace.clock import SECOND

if TYPE_CHECKING:  # cryptography takes a while to import
    from skep.validator.gpu.proof import Report
    from skep.validator.verify.sources import Source

BROKEN_MAX: Final = 20  # of what contradicts a claim that is told; --json has all.


@click.group()
def annex_command() -> None:
    """Show the devices of this machine, and prove what became of GPU work. An annex is run by `skep serve
    --role cuda-annex`.

    \b
    Examples:
      skep annex devices
      skep annex prove n/hive
    """


annex_command.add_command(devices_command)


@annex_command.command("prove")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.argument("place")
def prove_command(as_json: bool, place: str) -> None:
    """Prove from a ledger alone that no GPU work was lost, and that no device gave more than it had.

    PLACE is as `skep verify` has it: a mounted hive, a directory of tiles, a hive's directory or its
    ledger.db, or a hive's address. It is verified first.

    \b
    Exit status: 0 proven, 1 not, 2 usage, 3 cannot reach the hive, 4 refused; 10 to 18 as `skep verify`.
    Examples:
      skep annex prove ~/.local/state/skep/hive
      skep annex prove --json tls:hive.example.org:5640
    """
    from skep.trace.ledger import LedgerTampered
    from skep.validator.verify.found import Finding

    try:
        found = _proved(place)
    except NoLog as error:
        expected = f"a mount, a directory of tiles, a hive's directory, its {LEDGER} or an address"
        raise click.UsageError(f"{place}: there is no log: expected {expected}") from error
    except Finding as error:
        raise Inconsistent(f"{place}: {error}", error.kind.value) from error
    except LedgerTampered as error:
        raise Failed(f"{place}: {error}") from error
    if as_json:
        click.echo(msgspec.json.encode(found))
    else:
        for line in lines(found):
            click.echo(line)
    if not found.proven:
        broken = sum(1 for claim in found.claims if claim.broken)
        raise Failed(f"{place}: {broken} of {len(found.claims)} claims do not hold")


def _proved(place: str) -> Report:
    """Raises NoLog, Failed, Finding, LedgerTampered."""
    from skep.validator.verify.sources import LedgerSource

    file = file_of(place)
    return of_log(place, _of_source) if file is None else _of_source(LedgerSource(file))


def _of_source(source: Source) -> Report:
    """What is proved is what was verified, were it served otherwise the second time."""
    from skep.validator.gpu.proof import prove
    from skep.validator.verify.entries import Entries
    from skep.validator.verify.verify import verify

    head = verify(source).head
    entries = Entries(source)
    found = prove(entries.tail())
    entries.finish()
    found.origin, found.root = head.origin, b64encode(head.root).decode()
    return found


def lines(found: Report) -> Iterator[str]:
    """The report for people."""
    from skep.validator.gpu.claims import CLAIMS

    yield f"verified: {found.entries} entries of {found.origin}, root {found.root}"
    for claim in found.claims:
        if claim.broken:
            yield f"broken: {CLAIMS[claim.name]}: {claim.broken} of {claim.asked}"
        else:
            yield f"holds: {CLAIMS[claim.name]} ({claim.asked} looked at)"
    for each in found.broken[:BROKEN_MAX]:
        about = " ".join(name for name in (each.job, each.annex) if name)
        yield f"    entry {each.entry}: {each.claim}: {about}{': ' if about else ''}{each.text}"
    ends = f"{found.right} right, {found.error} with an error, {found.cancelled} cancelled"
    yield f"{_jobs(found.jobs)}: {ends}, {found.open} open, {found.silent} silent"
    on_gpu = f"{found.on_gpu} on a GPU; {found.leases} leases of devices"
    yield f"where they were meant to be: {_jobs(found.on_device)}, {on_gpu}"
    reasons = ", ".join(f"{count} {reason}" for reason, count in found.reasons.items())
    yield f"fell back: {_jobs(found.fell_back)}{f': {reasons}' if reasons else ''}"
    if found.ratio is not None:
        part = f"{found.ratio:.2%} of those without a device"
        if found.refused and found.ratio_allowed is not None:
            part += f", {found.ratio_allowed:.2%} without the {found.refused} that refused one"
        yield f"right after a fallback: {_jobs(found.right_after)}, {part}"
    if found.recovered is not None:
        median, p99 = (ns / SECOND for ns in (found.recovered.median_ns, found.recovered.p99_ns))
        yield f"from a fallback to the end: median {median:.3f} s, p99 {p99:.3f} s"


def _jobs(count: int) -> str:
    return f"{count} job{'' if count == 1 else 's'}"
