"""A file's report: its kind, its segments, every rule of its kind, and what is in it the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from skep.boot.layout import cpio, pe, rules_all, rules_kernel, rules_loader, rules_root
from skep.boot.layout.kinds import PE_MAGIC, kind_of, target_of
from skep.boot.layout.reading import PT_LOAD, SHF_ALLOC, Elf, NotElf, Problem, read
from skep.boot.layout.rule import LOADERS, TARGETS, Found, Kind, Range, Severity, Subject, Unknown

FILE_MAX: Final = 256 << 20  # bytes; an image with debug information has some ten MiB
FINDINGS_MAX: Final = 16  # of one rule in one file; how many more there are is said
PARTS_MAX: Final = 2  # files in files: an image and its members

RULES: Final = (*rules_all.RULES, *rules_kernel.RULES, *rules_root.RULES, *rules_loader.RULES)


class Stated(NamedTuple):
    """What is said of a rule, wherever its check is."""

    severity: Severity
    kinds: tuple[Kind, ...]
    says: str
    reason: str
    source: str


ALL: Final = (Kind.KERNEL, Kind.IMAGE, Kind.ROOT, Kind.EFI, Kind.PE)
# Those without a check in the tables: they are of reading, or take more than a file.
OTHERS: Final = {
    "K6": Stated(
        Severity.E, (Kind.KERNEL,), "an ELF32 has the entry, paddr and bytes of the ELF64 it was made from",
        "objcopy cuts addresses off, and they must have fitted; it takes both files",
        "measured: vaddr is cut off, paddr is not",
    ),
    "P1": Stated(
        Severity.E, (Kind.PE,), "its headers can be followed, and are of PE32+",
        "firmware refuses anything else", "PE Format",
    ),
    "S1": Stated(
        Severity.E, ALL, "it is within the budgets that were given with --budget",
        "filesz is what is stored and copied, memsz what is cleared: they differ by 40 times", "asked for",
    ),
    "X1": Stated(
        Severity.E, (Kind.KERNEL,), "the log has the kernel's addresses: those of this file",
        "what booted was another file, or was loaded elsewhere", "seL4's boot code, elfloader-tool",
    ),
    "X2": Stated(
        Severity.E, (Kind.ROOT,), "the log has the root task's addresses: those of this file",
        "what booted was another file", "seL4's boot code, elfloader-tool",
    ),
    "X3": Stated(
        Severity.E, (Kind.IMAGE,), "the log has the elfloader's addresses: _text to _end of this file",
        "what booted was another file", "elfloader-tool",
    ),
}  # fmt: skip
STATED: Final[dict[str, Stated]] = {
    **{each.id: Stated(each.severity, each.kinds, each.says, each.reason, each.source) for each in RULES},
    **{each.id: Stated(each.severity, (Kind.PE,), each.says, each.reason, each.source) for each in pe.RULES},
    **OTHERS,
}


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """``expected``: "" where the rule only tells."""

    rule: str
    severity: Severity
    place: str
    said: str
    expected: str = ""

    def __str__(self) -> str:
        expected = f", expected {self.expected}" if self.expected else ""
        return f"{self.severity} {self.rule} {self.place}: {self.said}{expected}"


class SegmentRow(msgspec.Struct, frozen=True):
    """Numbers as 0x…: JSON's have not 64 bits everywhere."""

    type: int
    flags: int
    vaddr: str
    paddr: str
    filesz: int
    memsz: int


class Change(msgspec.Struct, frozen=True):
    """Bytes of a section, a symbol or a sum, in the base and now; 0: it is not there. ``member``: "": of the
    file itself; ``kind``: size or symbol."""

    member: str
    kind: str
    name: str
    was: int
    now: int

    @property
    def by(self) -> int:
        return self.now - self.was


class Report(msgspec.Struct, omit_defaults=True):
    """Of one file. ``sizes``: bytes by what has them: file, filesz, memsz, each section. ``unknown``: why
    a rule cannot be checked. ``members``: of what is inside; ``growth``: against a base;
    ``allowed``: rules whose findings do not count."""

    name: str
    sha256: str
    size: int
    kind: str
    target: str = ""
    bits: int = 0
    segments: list[SegmentRow] = []
    sizes: dict[str, int] = {}
    findings: list[Finding] = []
    unknown: dict[str, str] = {}
    members: list[Report] = []
    growth: list[Change] = []
    allowed: list[str] = []

    def all(self) -> Iterator[Report]:
        """This one, and those of what is inside."""
        yield self
        for each in self.members:
            yield from each.all()

    def errors(self) -> list[tuple[str, Finding]]:
        """The findings that make it invalid, each with the name of its file."""
        return [
            (report.name, found)
            for report in self.all()
            for found in report.findings
            if found.severity is Severity.E and found.rule not in self.allowed
        ]


class Asked(NamedTuple):
    """What is known beside the bytes. Absent: it is to be found."""

    kind: Kind | None = None
    target: str | None = None
    ram: Range | None = None
    allowed: tuple[str, ...] = ()  # rules


ANYTHING: Final = Asked()


class Checked(NamedTuple):
    """``elves``: of the file and what is inside that could be read, by its report's name."""

    report: Report
    elves: dict[str, Elf]


def check(name: str, data: bytes, asked: Asked = ANYTHING, parts: int = PARTS_MAX) -> Checked:
    """Never raises, whatever the bytes. They are FILE_MAX at most: the caller sees to that."""
    digest = hashlib.sha256(data).hexdigest()
    is_pe = asked.kind is Kind.PE or (asked.kind is None and data[:2] == PE_MAGIC)
    kind = Kind.PE if is_pe else asked.kind
    report = Report(name, digest, len(data), kind or "unknown", asked.target or "")
    report.sizes["file"] = len(data)
    report.allowed = sorted(asked.allowed)
    elves: dict[str, Elf] = {}
    try:
        if is_pe:
            members = _check_pe(report, data, asked)
        else:
            elf = read(data)
            elves[name] = elf
            members = _check_elf(report, elf, asked)
    except (NotElf, pe.NotPe) as error:
        _add(report, error.problem.rule, [_found(error.problem)])
        return Checked(report, elves)
    if parts > 1 and report.kind in (*LOADERS, Kind.PE):
        for member, its in _members(name, members, report.target, asked):
            report.members.append(member)
            elves |= its
    return Checked(report, elves)


def _found(problem: Problem) -> Found:
    return Found(problem.place, problem.said, problem.expected)


def _check_elf(report: Report, elf: Elf, asked: Asked) -> dict[str, bytes]:
    kind, target = asked.kind or kind_of(elf), asked.target or target_of(elf)
    members = rules_loader.unpacked(elf, elf.data)[0] if kind in LOADERS else {}
    subject = Subject(kind, target, _ram(target, asked), members)
    report.kind, report.target, report.bits = kind, target or "", elf.bits
    report.segments = [
        SegmentRow(each.type, each.flags, hex(each.vaddr), hex(each.paddr), each.filesz, each.memsz)
        for each in elf.segments
    ]
    report.sizes |= sizes_of(elf)
    for rule in RULES:
        if kind in rule.kinds:
            _add(report, rule.id, rule.check(elf, subject))
    return members


def _check_pe(report: Report, data: bytes, asked: Asked) -> dict[str, bytes]:
    file = pe.read(data)
    target = asked.target or next(
        (name for name, target in TARGETS.items() if target.pe_machine == file.machine), None
    )
    members = rules_loader.unpacked(None, data)[0]
    subject = Subject(Kind.PE, target, _ram(target, asked), members)
    report.target, report.bits = target or "", 64
    report.sizes |= {"memsz": file.optional.size}
    for rule in pe.RULES:
        _add(report, rule.id, rule.check(file, subject))
    return members


def _ram(target: str | None, asked: Asked) -> Range | None:
    return asked.ram or (TARGETS[target].ram if target is not None else None)


def _members(
    name: str, members: Mapping[str, bytes], target: str, asked: Asked
) -> Iterator[tuple[Report, dict[str, Elf]]]:
    root = rules_loader.root_of(dict(members))
    kinds = {cpio.KERNEL: Kind.KERNEL} | ({root: Kind.ROOT} if root is not None else {})
    for member, kind in kinds.items():
        if member in members:
            inside = Asked(kind, target or None, asked.ram)
            report, elves = check(f"{name}:{member}", members[member], inside, 1)
            yield report, elves


def _add(report: Report, rule: str, said: Iterable[Found | Unknown]) -> None:
    severity, more = STATED[rule].severity, 0
    for n, each in enumerate(said):
        if isinstance(each, Unknown):
            report.unknown[rule] = each.why
        elif n < FINDINGS_MAX:
            report.findings.append(Finding(rule, severity, *each))
        else:
            more += 1
    if more:
        report.findings.append(Finding(rule, severity, "file", f"{more} more"))


def sizes_of(elf: Elf) -> dict[str, int]:
    """Bytes in the file and in memory, of all that is loaded and of each section that is."""
    loads = [each for each in elf.segments if each.type == PT_LOAD]
    sizes = {"filesz": sum(each.filesz for each in loads), "memsz": sum(each.memsz for each in loads)}
    for each in elf.sections:
        if each.flags & SHF_ALLOC:
            sizes[each.name] = sizes.get(each.name, 0) + each.size
    return sizes


def add(report: Report, rule: str, said: Iterable[Found | Unknown]) -> None:
    """What was found of it later, beside another file."""
    _add(report, rule, said)


def pairs(files: Sequence[Checked]) -> None:
    """Add what rule K6 says, where there is one kernel of each class for x86_64."""
    kernels = [
        (file.report, file.elves[file.report.name])
        for file in files
        if file.report.kind == Kind.KERNEL and file.report.target == "x86_64" and file.elves
    ]
    small = [each for each in kernels if each[1].bits == 32]
    big = [each for each in kernels if each[1].bits == 64]
    if len(small) == len(big) == 1:
        _add(small[0][0], "K6", rules_kernel.pair(small[0][1], big[0][1]))
    elif len(small) == 1:
        _add(small[0][0], "K6", [Unknown("the ELF64 it was made from is not given")])
