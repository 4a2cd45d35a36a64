"""What is told of a boot: stages with their budgets, the gate's verdict, the wall beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from statistics import median
from typing import Final
from xml.etree import ElementTree

import msgspec

from skep.boot.baseline import Baseline, Key, slower
from skep.boot.bootinfo import BootInfo
from skep.boot.classes import Class, Verdict
from skep.boot.manifest import Manifest
from skep.boot.run import Boot, Reached


class Stage(msgspec.Struct, frozen=True, omit_defaults=True):
    """From the milestone before to ``name``: instructions and virtual ms, and both counted from reset.

    ``less_waits_ms``: from reset, without what the guest waits on purpose; ``max_ms`` is compared with it."""

    name: str
    instructions: int
    virtual_ms: float
    from_reset: int
    from_reset_ms: float
    less_waits_ms: float
    max_ms: float | None = None
    max_instructions: int | None = None
    baseline: int | None = None
    wait: bool = False

    @property
    def over(self) -> str:
        """Which budget it is over, in words."""
        if self.max_ms is not None and self.less_waits_ms > self.max_ms:
            return f"{self.name}: {self.less_waits_ms:.3f} virtual ms less waits, budget {self.max_ms:g}"
        if self.max_instructions is not None and self.from_reset > self.max_instructions:
            return f"{self.name}: {self.from_reset} instructions, budget {self.max_instructions}"
        return ""


class Wall(msgspec.Struct, frozen=True):
    """Of one milestone, over ``boots`` boots, ms."""

    name: str
    boots: int
    median: float
    least: float
    most: float


class Played(msgspec.Struct, frozen=True, omit_defaults=True):
    """A scenario. ``verdict`` None: it ended as it must."""

    name: str
    about: str
    verdict: Verdict | None = None


class Report(msgspec.Struct, omit_defaults=True):
    """``gate``: "same", "none" (there is no baseline, or another key's), "better" or "slower"."""

    name: str
    qemu: str
    shift: int
    stages: list[Stage]
    wall: list[Wall]
    files: dict[str, str]
    key: Key
    gate: str
    verdict: Verdict | None = None
    bootinfo: BootInfo | None = None
    scenarios: list[Played] = []
    unlike: tuple[str, ...] = ()  # in what the baseline that there is has another key
    tried: list[str] = []  # what became of attempts that were made again


def unsigned(name: str, why: str) -> Report:
    """Of what was not booted: it is not what was signed."""
    return unbooted(name, Verdict(Class.SIGNATURE_INVALID, why))


def unbooted(name: str, verdict: Verdict) -> Report:
    """Of what was found out before anything was booted."""
    return Report(name, "", 0, [], [], {}, Key("", (), {}), "none", verdict)


def stages_of(manifest: Manifest, reached: Sequence[Reached], accepted: Baseline | None) -> list[Stage]:
    """A stage for each milestone that was counted to."""
    counts = {each.name: each.instructions or 0 for each in reached}
    waits = {wait.end: counts[wait.end] - counts[wait.begin] for wait in manifest.waits if wait.end in counts}
    ms = _ms(manifest.shift)
    made: list[Stage] = []
    before = waited = 0
    for each in manifest.counted:
        if each.name not in counts:
            break
        now = counts[each.name]
        waited += waits.get(each.name, 0)
        made.append(
            Stage(
                each.name,
                now - before,
                ms(now - before),
                now,
                ms(now),
                ms(now - waited),
                each.max_ms,
                each.max_instructions,
                accepted.counts.get(each.name) if accepted is not None else None,
                each.name in waits,
            )
        )
        before = now
    return made


def _ms(shift: int) -> Callable[[int], float]:
    return lambda count: (count << shift) / 1e6


def wall_of(boots: Sequence[Boot]) -> list[Wall]:
    """Each milestone that all boots reached."""
    made = []
    names = [each.name for each in boots[0].reached] if boots else []
    for name in names:
        times = [
            each.wall_ms for boot in boots for each in boot.reached if each.name == name and each.wall_ms
        ]
        if len(times) == len(boots):
            made.append(Wall(name, len(times), median(times), min(times), max(times)))
    return made


def ceiled(walls: Sequence[Wall], max_ms: float) -> Verdict | None:
    """Whether all boots by the clock came to the last milestone later than that."""
    if not walls or walls[-1].least <= max_ms:
        return None
    last = walls[-1]
    said = f"{last.name}: {last.least:.1f} ms by the clock in the fastest boot, ceiling {max_ms:g}"
    return Verdict(Class.OVER_BUDGET, said, last.name)


def gated(stages: Sequence[Stage], accepted: Baseline | None, tolerance: float) -> tuple[str, Verdict | None]:
    """The gate's word, which is of the baseline alone, and a verdict where something is over its budget or
    above its baseline."""
    last = stages[-1].name if stages else ""
    over = next((Verdict(Class.OVER_BUDGET, stage.over, last) for stage in stages if stage.over), None)
    if accepted is None:
        return "none", over
    found = slower(accepted.counts, [(each.name, each.from_reset) for each in stages], tolerance)
    if found:
        name, was, now = found[0]
        more = (now - was) / was * 100
        said = f"{name}: {now} instructions, the baseline has {was} (+{more:.3f} %)"
        return "slower", over or Verdict(Class.OVER_BUDGET, said, last)
    better = any(stage.baseline is not None and stage.from_reset < stage.baseline for stage in stages)
    return "better" if better else "same", over


def junit(report: Report, lacking: str = "") -> bytes:
    """JUnit XML: a case for the boot, for each stage, with its virtual seconds, and for each scenario.

    ``lacking``: what is said of a baseline that must be there and is not."""
    suite = ElementTree.Element("testsuite", name=f"skep boot {report.name}")
    played = [each.verdict for each in report.scenarios]
    boot = report.verdict if report.verdict not in played else None
    shown = boot.evidence if boot is not None else ()
    cases: list[tuple[str, str, Sequence[str]]] = [("boot", _told(boot), shown)]
    cases += [(stage.name, stage.over, shown) for stage in report.stages]
    seconds = {stage.name: f"{stage.virtual_ms / 1000:.9f}" for stage in report.stages}
    cases += [
        (each.name, _told(each.verdict), each.verdict.evidence if each.verdict is not None else ())
        for each in report.scenarios
    ]
    if lacking:
        cases.append(("baseline", lacking, ()))
    for name, failure, evidence in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=f"boot.{report.name}", name=name)
        if name in seconds:
            case.set("time", seconds[name])
        if failure:
            child = ElementTree.SubElement(case, "failure", message=_printable(failure))
            child.text = _printable("\n".join(evidence))
    suite.set("tests", str(len(cases)))
    suite.set("failures", str(sum(1 for _, failure, _ in cases if failure)))
    made: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return made


def _told(verdict: Verdict | None) -> str:
    return "" if verdict is None else f"{verdict.cause.value}: {verdict.message}"


def _printable(text: str) -> str:
    """Without what XML cannot have."""
    return "".join(
        ch if ch in "\t\n" or " " <= ch <= "\ud7ff" or "\ue000" <= ch <= "\ufffd" else "?" for ch in text
    )


ROW: Final = 28
WIDTH: Final = 640
LABEL: Final = 160


def waterfall(report: Report) -> str:
    """The stages as bars over virtual time, an SVG of its own."""
    total = report.stages[-1].from_reset_ms if report.stages else 1.0
    height = ROW * (len(report.stages) + 1) + 8
    bars = []
    for row, (before, stage) in enumerate(pairwise([None, *report.stages])):
        assert stage is not None
        begin = before.from_reset_ms if before is not None else 0.0
        x, width = LABEL + begin / total * WIDTH, max(stage.virtual_ms / total * WIDTH, 1.0)
        y = 8 + row * ROW
        colour = "#999999" if stage.wait else "#c0392b" if stage.over else "#2980b9"
        bars.append(
            f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 8}" fill="{colour}"/>'
            f'<text x="{LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(stage.name)}</text>'
            f'<text x="{LABEL + WIDTH + 8}" y="{y + 15}">{stage.virtual_ms:.3f} ms</text>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LABEL + WIDTH + 120}" height="{height}" '
        'font-family="sans-serif" font-size="13">'
        f"<title>{escape(report.name)}: {total:.3f} virtual ms</title>"
        f'<rect width="100%" height="100%" fill="white"/>{"".join(bars)}'
        f'<text x="{LABEL}" y="{height - 10}" fill="#666666">virtual ms at shift {report.shift}; '
        "grey: waits</text></svg>\n"
    )
