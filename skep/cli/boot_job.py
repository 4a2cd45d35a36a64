"""``skep boot job``: a run of a hive's boot lab, as a worker's handler does it."""

from __future__ import annotations

import os
import sys
import tempfile
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from skep.cli.boot_check import encoded
from skep.cli.boot_run import Asked, booted, cause_of
from skep.cli.boot_verify import trust_options
from skep.cli.exits import Failed
from skep.fs.ctl import labels as parsed
from skep.namespaces.boot.runs import BOOTS_MAX, DIAGNOSTICS, JUNIT, STAGES, TIMING

if TYPE_CHECKING:  # these take a while to import
    from skep.boot.report import Report

CHECKS_MAX: Final = 24  # files whose layout is told: a worker keeps 64 outputs
OUT: Final = "out"  # what is left there, the worker makes artifacts of


class Said(msgspec.Struct, frozen=True, rename="kebab"):
    """The labels of the job that say how; others say other things."""

    shift: int | None = None
    boots: int = 1
    max_ms: float | None = None


@click.command()
@click.option("--labels", default="", help="How, as the job's labels say it: shift:4,boots:3,max-ms:200.")
@click.option(
    "--sign",
    "key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Sign the reports of layouts with this Ed25519 key (PEM).",
)
@trust_options
@click.argument("image", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def job_command(
    labels: str, key: Path | None, trust: tuple[Path, ...], seen: Path | None, image: Path
) -> None:
    """Boot IMAGE, an archive of `skep boot pack`, for a worker's handlers: its reports are left in ./out.

    What the guest prints goes to stderr as it comes, what became of it to stdout, one line. The exit status
    is 0 whatever became of it, and not 0 when that could not be found out.

    \b
    Example, of a handlers file (examples/boot-lab.toml):
      ["boot.run"]
      argv = ["skep", "boot", "job", "--labels={labels}", "{input}"]
    """
    from skep.boot.archive import ArchiveError, unpack
    from skep.boot.baseline import SUFFIX

    try:
        said = msgspec.convert(parsed(labels), Said, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        raise click.UsageError(f"--labels {labels}: {error}") from error
    if not 0 <= said.boots <= BOOTS_MAX:
        raise click.UsageError(f"--labels {labels}: boots: expected 0 to {BOOTS_MAX}")
    asked = Asked(said.boots, said.max_ms, said.shift, trust, seen)
    with tempfile.TemporaryDirectory(prefix="skep-image-") as into:
        try:
            manifest = unpack(image, Path(into))
        except ArchiveError as error:
            raise Failed(f"{image.name}: {error}") from error
        Path(OUT).mkdir(exist_ok=True)
        report, _ = booted(manifest, asked, manifest.with_suffix(SUFFIX), _print)
        _check(manifest, key)
    _leave(report)
    verdict = report.verdict
    if verdict is not None and verdict.cause.row.retried:
        raise Failed(cause_of(verdict))
    click.echo(_summary(report) if verdict is None else cause_of(verdict))


def _print(data: bytes) -> None:
    """It is a log: what cannot be written now is not waited for longer than the pipe holds us up."""
    sys.stderr.flush()
    os.write(sys.stderr.fileno(), data)


def _leave(report: Report) -> None:
    from skep.boot.report import junit, waterfall

    out = Path(OUT)
    timing = msgspec.structs.replace(report, verdict=None)
    (out / TIMING).write_bytes(msgspec.json.encode(timing) + b"\n")
    (out / DIAGNOSTICS).write_bytes(msgspec.json.encode(report.verdict) + b"\n")
    (out / JUNIT).write_bytes(junit(report))
    (out / STAGES).write_text(waterfall(report))


def _check(manifest: Path, key: Path | None) -> None:
    """Leave a report of the layout of each ELF and PE file that is booted, as `skep boot check` writes it."""
    from skep.boot.layout.checking import FILE_MAX, Asked, check
    from skep.boot.manifest import files_of, read
    from skep.trace.pem import PemError, private_key

    try:
        signer = private_key(key) if key is not None else None
    except PemError as error:
        raise click.UsageError(f"--sign: {error}") from error
    for name in files_of(read(manifest))[:CHECKS_MAX]:
        with (manifest.parent / name).open("rb") as file:
            content = file.read(FILE_MAX + 1)
        if len(content) > FILE_MAX or not content.startswith((b"\x7fELF", b"MZ")):
            continue
        report = check(name, content, Asked(None, None, None, ())).report
        said, path = encoded(report), Path(OUT) / f"{report.sha256}.json"
        path.write_bytes(said)
        if signer is not None:
            path.with_suffix(".json.sig").write_bytes(b64encode(signer.sign(said)) + b"\n")


def _summary(report: Report) -> str:
    """One line for who has no time: the last milestone, and what the gate says."""
    if not report.stages:
        return "as expected"
    last = report.stages[-1]
    said = f"{last.name} after {last.from_reset} instructions, {last.less_waits_ms:.3f} virtual ms less waits"
    return f"as expected: {said}, baseline {report.gate}"
