"""``skep boot run``: boot an image, count to its milestones, and say what became of it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from skep.cli.boot_verify import seen_file, trust_options
from skep.cli.connect import json_option
from skep.cli.exits import Failed

if TYPE_CHECKING:  # these take a while to import
    from skep.boot.baseline import Baseline
    from skep.boot.classes import Verdict
    from skep.boot.manifest import Manifest
    from skep.boot.report import Report
    from skep.boot.run import Boot
    from skep.boot.staging import Staged


WIDTH = 120  # of the table, where nobody looks at a terminal


class NotAsExpected(Failed):
    """The boot did not end as its manifest says; the status is its cause's."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@click.command()
@click.option(
    "--boots", type=click.IntRange(0), default=1, show_default=True, help="Boots by the clock on the wall."
)
@click.option(
    "--max-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Budget of the last milestone, virtual ms less waits.",
)
@click.option(
    "--baseline", type=click.Path(dir_okay=False, path_type=Path), help="Default: beside the manifest."
)
@click.option("--accept", is_flag=True, help="Write what is counted now as the baseline.")
@click.option("--need-baseline", is_flag=True, help="Fail when there is no baseline that holds.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep serial logs, JSON, JUnit XML and an SVG in this directory.",
)
@trust_options
@json_option
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def run_command(
    boots: int,
    max_ms: float | None,
    baseline: Path | None,
    accept: bool,
    need_baseline: bool,
    out: Path | None,
    trust: tuple[Path, ...],
    seen: Path | None,
    as_json: bool,
    manifest: Path,
) -> None:
    """Boot what MANIFEST says in QEMU: once exactly, counting instructions to each symbol, then by the clock.

    Counts are compared with the baseline, budgets with virtual milliseconds. Wall times are told, and judge
    nothing. With --trust, or where the manifest names a key, it boots what was signed or not at all.

    \b
    Exit status: 0 as expected, 1 no baseline where one is needed, 2 usage; else the cause:
    40 qemu_start_failed, 41 firmware_stuck, 42 no_output, 43 kernel_reject, 44 kernel_panic,
    45 user_fault, 46 reset, 47 kernel_halted, 48 boot_timeout, 49 test_timeout, 50 over_budget,
    51 layout_invalid, 52 signature_invalid, 53 harness_error.

    \b
    Examples:
      skep boot run boot.toml --accept
      skep boot run boot.toml --max-ms 200 --out build/boot
      skep boot run boot.toml --trust release.pub
    """
    from skep.boot.baseline import SUFFIX
    from skep.boot.classes import Class

    kept = baseline or manifest.with_suffix(SUFFIX)
    with _termination():
        report, done = booted(manifest, Asked(boots, max_ms, trust=trust, seen=seen), kept)
    if accept and report.stages and (report.verdict is None or report.verdict.cause is Class.OVER_BUDGET):
        report = _accepted(report, kept)
    lacking = f"{kept}: {_without(report)}: --accept writes one" if report.gate == "none" else ""
    if out is not None:
        _keep(out, report, done, lacking if need_baseline and report.verdict is None else "")
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        _tell(report)
    if report.verdict is not None:
        raise NotAsExpected(cause_of(report.verdict), report.verdict.cause.row.status)
    if need_baseline and lacking:
        raise Failed(lacking)


@contextmanager
def _termination() -> Iterator[None]:
    """SIGTERM ends it as ^C does, where it waits and not amid whatever it begins: nothing of that is left."""
    told = False

    def tell(number: int, frame: object) -> None:
        nonlocal told
        told = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    except KeyboardInterrupt:
        if told:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


class Asked(NamedTuple):
    """How it is to be booted. None: as the manifest has it."""

    boots: int = 1
    max_ms: float | None = None
    shift: int | None = None
    trust: tuple[Path, ...] = ()
    seen: Path | None = None


def booted(
    manifest: Path, asked: Asked, kept: Path, printed: Callable[[bytes], None] = lambda data: None
) -> tuple[Report, list[Boot]]:
    """Boot it. ``kept``: the baseline's file; ``printed`` gets what the guest prints, and a newline after
    each boot. Raises ClickException, Failed."""
    from skep.boot.baseline import BaselineError, load
    from skep.boot.layout.gate import invalid
    from skep.boot.manifest import ManifestError
    from skep.boot.report import unbooted, unsigned
    from skep.boot.run import SymbolError
    from skep.boot.signing import Seen, SignatureError
    from skep.boot.staging import staged
    from skep.trace.clock import SystemClock
    from skep.trace.pem import PemError

    try:
        with staged(manifest, asked.trust, Seen(seen_file(asked.seen)), SystemClock().now_ns()) as stage:
            said = _bounded(stage.manifest, asked.max_ms)
            if asked.shift is not None:
                said = msgspec.structs.replace(said, shift=asked.shift)
            if (found := invalid(said, stage.base)) is not None:
                return unbooted(said.name, found), []
            return asyncio.run(_booted(stage, said, load(kept), asked.boots, printed))
    except SignatureError as error:
        return unsigned(manifest.stem, str(error)), []
    except (ManifestError, BaselineError, SymbolError, PemError) as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise Failed(str(error)) from error


def _bounded(manifest: Manifest, max_ms: float | None) -> Manifest:
    """With the budget of the command line at its last milestone."""
    if max_ms is None:
        return manifest
    if not manifest.counted:
        raise click.UsageError("--max-ms: the manifest has no milestone with symbol or entry to count to")
    last = manifest.counted[-1].name
    milestones = tuple(
        msgspec.structs.replace(each, max_ms=max_ms) if each.name == last else each
        for each in manifest.milestones
    )
    return msgspec.structs.replace(manifest, milestones=milestones)


async def _booted(
    stage: Staged, manifest: Manifest, kept: Baseline | None, boots: int, printed: Callable[[bytes], None]
) -> tuple[Report, list[Boot]]:
    from skep.boot.baseline import key_of, unlike
    from skep.boot.report import Played, Report, ceiled, gated, stages_of, wall_of
    from skep.boot.run import exact, played, wall
    from skep.boot.scenario import read as read_scenario

    done: list[Boot] = []
    scenarios = {name: read_scenario(stage.base, name, manifest.arch) for name in manifest.scenario}
    plays: list[Played] = []
    verdict: Verdict | None = None
    if manifest.counted:
        done.append(await exact(manifest, stage.base, printed))
        printed(b"\n")
        verdict = done[0].verdict
    with _counted(boots) as advance:
        for _ in range(boots if verdict is None else 0):
            done.append(await wall(manifest, stage.base, printed))
            printed(b"\n")
            advance()
            verdict = done[-1].verdict
            if verdict is not None:
                break
    for name, scenario in scenarios.items() if verdict is None else ():
        boot = await played(manifest, stage.base, scenario)
        found = boot.verdict
        if found is not None:
            found = msgspec.structs.replace(found, message=f"scenario {name}: {found.message}")
        plays.append(Played(name, scenario.about, found))
        verdict = verdict or found
    files = stage.hashes
    key = key_of(manifest, files, done[0].qemu if done else "", done[0].rom if done else "")
    accepted = kept if kept is not None and kept.key == key else None
    stages = stages_of(manifest, done[0].reached, accepted) if manifest.counted else []
    gate, over = gated(stages, accepted, manifest.tolerance)
    walls = wall_of([boot for boot in done if not boot.exact])
    slow = ceiled(walls, manifest.wall.max_ms) if manifest.wall is not None else None
    report = Report(
        manifest.name, key.qemu, manifest.shift, stages, walls, files, key, gate, verdict or over or slow
    )
    report.bootinfo = done[0].bootinfo if done else None
    report.scenarios = plays
    report.unlike = unlike(kept.key, key) if kept is not None else ()
    report.tried = [each for boot in done for each in boot.tried]
    return report, done


@contextmanager
def _counted(boots: int) -> Iterator[Callable[[], None]]:
    """To be called after each boot: tells how many there were, where somebody looks on."""
    if boots < 2 or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("boots", total=boots)
        yield lambda: shown.advance(task)


def _accepted(report: Report, path: Path) -> Report:
    from skep.boot.baseline import Baseline, save

    counts = {stage.name: stage.from_reset for stage in report.stages}
    save(path, Baseline(report.key, counts, report.files))
    # It may be slower now; what is over its budget, or later than its ceiling, still is.
    forgiven = report.gate == "slower" and not any(stage.over for stage in report.stages)
    return msgspec.structs.replace(report, gate="accepted", verdict=None if forgiven else report.verdict)


def _keep(out: Path, report: Report, done: list[Boot], lacking: str) -> None:
    from skep.boot.report import junit, waterfall

    out.mkdir(parents=True, exist_ok=True)
    (out / "boot.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    (out / "junit.xml").write_bytes(junit(report, lacking))
    (out / "stages.svg").write_text(waterfall(report))
    walls = count(1)
    for boot in done:
        name = "exact" if boot.exact else f"wall-{next(walls)}"
        (out / f"serial-{name}.log").write_bytes(boot.serial)
        times = "".join(f"{ms:.3f} {size}\n" for ms, size in boot.stamps)
        (out / f"serial-{name}.times").write_text(times)
        if boot.page:
            (out / "bootinfo.bin").write_bytes(boot.page)


def _tell(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = Table(
        "stage", "instructions", "virtual ms", "from reset", "less waits", "budget", "baseline", box=None
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for stage in report.stages:
        budget = f"{stage.max_ms:g}" if stage.max_ms is not None else ""
        was = (
            ""
            if stage.baseline is None
            else "same"
            if stage.baseline == stage.from_reset
            else f"{stage.from_reset - stage.baseline:+d}"
        )
        style = "red" if stage.over else "dim" if stage.wait else None
        table.add_row(
            stage.name + (" (wait)" if stage.wait else ""),
            str(stage.instructions),
            f"{stage.virtual_ms:.3f}",
            f"{stage.from_reset_ms:.3f}",
            f"{stage.less_waits_ms:.3f}",
            budget,
            was,
            style=style,
        )
    if report.stages:
        with console.capture() as shown:
            console.print(table)
        click.echo("\n".join(line.rstrip() for line in shown.get().splitlines()))
    for each in report.wall:
        click.echo(
            f"wall {each.name}: median {each.median:.1f} ms, {each.least:.1f} to {each.most:.1f}, "
            f"{each.boots} boot{'s' if each.boots > 1 else ''}"
        )
    if report.stages:
        click.echo(f"baseline: {_without(report) if report.gate == 'none' else report.gate}")
    for failure in report.tried:
        click.echo(f"tried again after {failure}")
    if report.bootinfo is not None:
        empty, end = report.bootinfo.regions["empty"]
        click.echo(f"bootinfo: {len(report.bootinfo.untyped)} untyped, {end - empty} empty slots")
    for play in report.scenarios:
        click.echo(
            f"scenario {play.name}: {'as it must' if play.verdict is None else play.verdict.cause.value}"
        )
    tell_evidence(report.verdict)


def _without(report: Report) -> str:
    return f"none for this {', '.join(report.unlike)}" if report.unlike else "none"


def tell_evidence(verdict: Verdict | None) -> None:
    for line in verdict.evidence if verdict is not None else ():
        click.echo(f"  | {line}")


def cause_of(verdict: Verdict) -> str:
    after = f" (after {verdict.milestone})" if verdict.milestone else ""
    return f"{verdict.cause.value}: {verdict.message}{after}"
