"""``skep boot check``: the layout of boot files against the rules of their kinds."""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from skep.cli.boot_run import NotAsExpected
from skep.cli.connect import json_option
from skep.cli.exits import Failed

if TYPE_CHECKING:  # these take a while to import
    from skep.boot.layout.checking import Checked, Report
    from skep.boot.layout.rule import Range

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
BUDGET: Final = "S1"


def _explained(ctx: click.Context, param: click.Parameter, rule: str | None) -> None:
    """``--explain`` needs no file."""
    if rule is None:
        return
    from skep.boot.layout.checking import STATED

    stated = STATED.get(rule.upper())
    if stated is None:
        raise click.UsageError(f"--explain {rule}: expected one of {' '.join(STATED)}")
    click.echo(f"{rule.upper()} ({stated.severity}) for {', '.join(stated.kinds)}")
    for noun, text in (("rule", stated.says), ("why", stated.reason), ("source", stated.source)):
        if text:
            click.echo(f"  {noun}: {text}")
    ctx.exit()


@click.command()
@click.option("--target", type=click.Choice(["x86_64", "aarch64"]), help="Default: by each file's machine.")
@click.option(
    "--kind",
    type=click.Choice(["kernel", "image", "root", "efi", "pe"]),
    help="What FILE is. Default: by its content.",
)
@click.option("--ram", metavar="BEGIN-END", help="Where memory is, e.g. 0x80000000-0x100000000.")
@click.option("--against", type=FILE, help="Tell by how much FILE is larger than this one.")
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="[MEMBER:]NAME=[+]BYTES",
    help="Of a section, or of file, filesz, memsz; +: more than the base. May be repeated.",
)
@click.option(
    "--allow", "allowed", multiple=True, metavar="ID", help="A rule that may be broken. May be repeated."
)
@click.option("--log", type=FILE, help="Compare with the addresses in this serial log.")
@click.option("--sign", "key", type=FILE, help="Sign the reports with this Ed25519 key (PEM).")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write each report as SHA256.json, named after its file. Default with --sign: here.",
)
@click.option(
    "--explain", metavar="ID", is_eager=True, expose_value=False, callback=_explained,
    help="Tell what a rule demands, and why.",
)  # fmt: skip
@json_option
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=FILE)
def check_command(
    target: str | None,
    kind: str | None,
    ram: str | None,
    against: Path | None,
    budgets: tuple[str, ...],
    allowed: tuple[str, ...],
    log: Path | None,
    key: Path | None,
    out: Path | None,
    as_json: bool,
    files: tuple[Path, ...],
) -> None:
    """Check the layout of each FILE, and of what an elfloader image has inside, by the rules of its kind.

    \b
    A finding is a line: severity, rule, place, what is there, what was expected. E: it will not boot, or not
    as meant; W: look at it; I: good to know; ?: it cannot be checked.

    \b
    Exit status: 0 no E, 2 usage, 50 over_budget (and nothing else), 51 layout_invalid.

    \b
    Examples:
      skep boot check kernel kernel.elf rootserver --log serial.log
      skep boot check image --against release/image --budget kernel.elf:memsz=+65536
      skep boot check --explain K2
    """
    from skep.boot.classes import Class
    from skep.boot.layout.checking import STATED, Asked, check, pairs
    from skep.boot.layout.crosscheck import LOG_MAX, crosscheck
    from skep.boot.layout.growth import BadBudget, changes, compare, parse_budget
    from skep.boot.layout.rule import Kind

    if against is not None and len(files) != 1:
        raise click.UsageError("--against: expected one FILE")
    try:
        limits = [parse_budget(each) for each in budgets]
    except BadBudget as error:
        raise click.UsageError(str(error)) from error
    if against is None and any(each.relative for each in limits):
        raise click.UsageError("--budget NAME=+BYTES: expected --against")
    for rule in allowed:
        if rule not in STATED:
            raise click.UsageError(f"--allow {rule}: expected one of {' '.join(STATED)}")
    asked = Asked(Kind(kind) if kind else None, target, _range(ram), allowed)
    checked = [check(_shown(path.name), _content(path), asked) for path in files]
    pairs(checked)
    base = check(_shown(against.name), _content(against), asked) if against is not None else None
    for each in checked:
        if base is not None:
            each.report.growth = list(changes(each, base))
        compare(limits, each, base)
    if log is not None:
        with log.open("rb") as file:
            crosscheck(file.read(LOG_MAX), checked)
    if out is not None or key is not None:
        _write(checked, out or Path(), key)
    for path, each in zip(files, checked, strict=True):
        if as_json:
            click.echo(encoded(each.report))
        else:
            _tell(_shown(str(path)), each.report)
    errors = [found for each in checked for _, found in each.report.errors()]
    if errors:
        broken = sorted({found.rule for found in errors})
        cause = Class.OVER_BUDGET if broken == [BUDGET] else Class.LAYOUT_INVALID
        count = f"{len(errors)} error{'s' if len(errors) > 1 else ''}"
        raise NotAsExpected(f"{cause.value}: {count} ({' '.join(broken)})", cause.row.status)


def _range(text: str | None) -> Range | None:
    from skep.boot.layout.rule import Range

    if text is None:
        return None
    try:
        begin, end = (int(each, 0) for each in text.split("-"))
    except ValueError:
        begin = end = 0
    if not 0 <= begin < end:
        raise click.UsageError(f"--ram {text}: expected BEGIN-END, as 0x40000000-0x80000000")
    return Range(begin, end)


def _shown(name: str) -> str:
    """A name of a file, whatever bytes it has."""
    from skep.boot.layout.reading import printable

    return printable(os.fsencode(name))


def _content(path: Path) -> bytes:
    """The whole file, read once: what is hashed is what is checked."""
    from skep.boot.layout.checking import FILE_MAX

    try:
        # A pipe that nobody writes to does not block us.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > FILE_MAX:
            raise click.UsageError(f"{path}: expected a plain file of at most {FILE_MAX} bytes")
        return file.read(FILE_MAX)


def encoded(report: Report) -> bytes:
    """The one encoding of a report: the same file, checked the same way, gives the same bytes."""
    return msgspec.json.encode({"format": "skep boot check 1", **msgspec.to_builtins(report)})


def _write(checked: list[Checked], out: Path, key: Path | None) -> None:
    from skep.trace.pem import PemError, private_key
    from skep.trace.whole import write_whole

    try:
        signer = private_key(key) if key is not None else None
    except PemError as error:
        raise click.UsageError(f"--sign: {error}") from error
    try:
        out.mkdir(parents=True, exist_ok=True)
        for each in checked:
            said, path = encoded(each.report), out / f"{each.report.sha256}.json"
            write_whole(path, said)
            if signer is not None:
                write_whole(path.with_suffix(".json.sig"), b64encode(signer.sign(said)) + b"\n")
    except OSError as error:
        raise Failed(f"{error.filename}: {error.strerror}") from error


def _tell(path: str, report: Report) -> None:
    for each in report.all():
        facts = [each.kind, each.target, f"{each.bits} bits" if each.bits else "", f"{each.size} bytes"]
        click.echo(f"{path}{each.name[len(report.name) :]}: {', '.join(filter(None, facts))}")
        for finding in each.findings:
            click.echo(f"  {finding}")
        for rule, why in each.unknown.items():
            click.echo(f"  ? {rule}: {why}")
    for change in report.growth:
        place = f"{change.member}:" if change.member else ""
        click.echo(f"  {change.by:+} {place}{change.name}: {change.was} to {change.now}")
