"""Good files spoilt in one place each, several hundred times; and what is found then."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import pytest

from skep.boot.guest.build import cpio
from skep.boot.layout.checking import STATED, Asked, Checked, check, pairs
from skep.boot.layout.reading import SECTIONS_MAX, SEGMENTS_MAX
from skep.boot.layout.rule import Kind, Range, Severity
from tests.boot.elves import (
    ALLOC,
    CODE,
    DYN,
    DYNAMIC,
    EXECUTE,
    HIGH,
    INTERP,
    LOAD,
    PROGBITS,
    RELA,
    SHAPES,
    STACK,
    TLS,
    WRITE,
    File,
    R,
    Sec,
    Seg,
    Sym,
    W,
    X,
    arm_kernel,
    arm_root,
    build,
    image,
    multiboot,
    x86_kernel,
    x86_root,
)
from tests.boot.test_layout_shapes import KINDS

ALL: dict[str, Callable[[], File]] = {**SHAPES, "x86 kernel as ELF32": lambda: x86_kernel(32)}
KIND_OF = {**KINDS, "x86 kernel as ELF32": Kind.KERNEL}
TARGETS = {"x86": "x86_64", "arm": "aarch64", "elf": "aarch64", "EFI": "aarch64", "sel": "x86_64"}
FAR = 0x7FFFFF00
TOP = 0x7FFFFFFFE000  # two pages and a byte more than there are, behind it


class Case(NamedTuple):
    """``rules``: one of them at least must be broken."""

    name: str
    data: Callable[[], bytes]
    rules: str
    kind: Kind


@cache
def made(shape: str) -> File:
    return ALL[shape]()


def spoilt(shape: str, name: str, rules: str, change: Callable[[File], File]) -> Case:
    return Case(f"{shape}: {name}", lambda: build(change(made(shape))), rules, KIND_OF[shape])


def headers(shape: str) -> Iterator[Case]:
    """What the header says is not so."""
    ident = b"\x7fELF" + bytes([made(shape).bits // 32, 1, 1]) + bytes(9)
    for name, rules, fields in (
        ("magic", "E1", {"ident": b"\x7fELE" + ident[4:]}),
        ("no class", "E1", {"ident": ident[:4] + b"\0" + ident[5:]}),
        ("class 3", "E1", {"ident": ident[:4] + b"\3" + ident[5:]}),
        ("the other class", "E1 E2 E9", {"ident": ident[:4] + bytes([ident[4] ^ 3]) + ident[5:]}),
        ("big endian", "E1", {"ident": ident[:5] + b"\2" + ident[6:]}),
        ("version of ident", "E1", {"ident": ident[:6] + b"\0" + ident[7:]}),
        ("version", "E1", {"version": 2}),
        ("RISC-V", "E1", {"machine": 243}),
        ("no machine", "E1", {"machine": 0}),
        ("PowerPC", "E1", {"machine": 21}),
        ("segments of another size", "E2", {"phentsize": 40}),
        ("segments of no size", "E2", {"phentsize": 0}),
        ("no segments", "E2", {"phnum": 0}),
        ("too many segments", "E2", {"phnum": SEGMENTS_MAX + 1}),
        ("PN_XNUM segments", "E2", {"phnum": 0xFFFF}),
        ("segments behind the file", "E2", {"phoff": FAR}),
        ("sections behind the file", "E9", {"shoff": FAR}),
        ("sections of another size", "E9", {"shentsize": 1}),
        ("too many sections", "E9", {"shnum": SECTIONS_MAX + 1}),
        ("names in no section", "E9", {"shstrndx": 0xFFFF}),
        ("entry 0", "E6", {"entry": 1}),
        ("entry far away", "E6", {"entry": FAR}),
    ):  # fmt: skip
        yield spoilt(shape, name, rules, lambda file, fields=fields: file.with_header(**fields))


def segments(shape: str) -> Iterator[Case]:
    """A PT_LOAD that does not add up."""
    file = made(shape)
    top = (1 << file.bits) - 1
    for n, each in enumerate(file.segments):
        if each.type != LOAD:
            continue
        paddr = each.vaddr if each.paddr < 0 else each.paddr
        for name, rules, fields in (
            ("filesz > memsz", "E3", {"filesz": each.memsz + 1, "content": None}),
            ("behind the file", "E3", {"offset": FAR & ~0xFFF, "content": None}),
            ("offset wraps", "E3", {"offset": top, "content": None}),
            ("vaddr wraps", "E3", {"vaddr": top - 0xFFF, "memsz": 0x1000 + each.memsz, "paddr": paddr}),
            ("memsz wraps", "E3", {"memsz": top, "vaddr": each.vaddr or 0x1000}),
            ("paddr wraps", "E3", {"paddr": top - each.memsz // 2}),
            ("aligned to 3", "E4", {"align": 3}),
            ("aligned to 2^n - 1", "E4", {"align": 0xFFF}),
            ("not congruent", "E4", {"vaddr": each.vaddr + 8, "paddr": paddr + 8, "align": 0x10}),
        ):  # fmt: skip
            yield spoilt(
                shape,
                f"segment {n} {name}",
                rules,
                lambda file, n=n, fields=fields: file.with_segment(n, **fields),
            )

        def doubled(file: File, each: Seg = each) -> File:
            return file.but(segments=(*file.segments, replace(each, content=None)))

        def shifted(file: File, each: Seg = each, paddr: int = paddr) -> File:
            other = replace(each, content=None, vaddr=each.vaddr + 0x2000_0000, paddr=paddr)
            return file.but(segments=(*file.segments, other))

        yield spoilt(shape, f"segment {n} twice", "E5", doubled)
        yield spoilt(shape, f"segment {n} twice at one paddr", "E5 E3", shifted)


def parts(shape: str) -> Iterator[Case]:
    """Segments, sections and symbols that must not be there, or not like this."""
    symbol = Sym("missing", 0, 0, 0)
    interpreter = Seg(INTERP, R, 0x1000, 0, 16, 16, align=1)

    def section(n: int, **fields: Any) -> Callable[[File], File]:
        def change(file: File) -> File:
            sections = list(file.sections)
            sections[n] = replace(sections[n], **fields)
            return file.but(sections=tuple(sections))

        return change

    yield spoilt(shape, "interpreter", "E7", lambda f: f.but(segments=(*f.segments, interpreter)))
    yield spoilt(shape, "undefined", "E8", lambda f: f.but(symbols=(*f.symbols, symbol)))
    first = made(shape).sections[0]
    yield spoilt(shape, "section behind the file", "E9", section(0, offset=FAR, type=PROGBITS))
    yield spoilt(shape, "section longer than the file", "E9", section(0, size=FAR, type=PROGBITS))
    yield spoilt(
        shape,
        "sections overlap",
        "E10",
        lambda f: f.but(sections=(*f.sections, replace(first, name=".again", type=PROGBITS))),
    )
    if KIND_OF[shape] is not Kind.EFI:
        dynamic = Seg(DYNAMIC, R, 0x1000, 0x1000, 16, 16, align=1)
        rela = Sec(".rela", RELA, ALLOC, 0, 0x40, 48, 24)
        yield spoilt(shape, "ET_DYN", "E11", lambda f: f.but(type=DYN))
        yield spoilt(shape, "to be linked", "E11", lambda f: f.but(segments=(*f.segments, dynamic)))
        yield spoilt(shape, "to be relocated", "E11", lambda f: f.but(sections=(*f.sections, rela)))


def cut(shape: str) -> Iterator[Case]:
    """The file ends early."""
    for n in range(12):

        def data(n: int = n) -> bytes:
            whole = build(made(shape))
            return whole[: len(whole) * n // 12]

        yield Case(f"{shape}: cut at {n}/12", data, "E1 E2 E3 E9", KIND_OF[shape])


def kernels() -> Iterator[Case]:
    for shape in ("x86 kernel", "x86 kernel as ELF32"):
        high = HIGH & ((1 << made(shape).bits) - 1)
        for name, rules, change in (
            ("enters the high part", "K1", lambda f, high=high: f.but(entry=high + 0x801C40)),
            ("another offset", "K2", lambda f: f.with_segment(2, paddr=0x901C40)),
            ("too low", "K3", lambda f: f.with_segment(0, vaddr=0x7E000, paddr=0x7E000)),
            ("too high", "K3", lambda f: f.with_segment(2, paddr=0xFFFFFC40)),
            ("no .boot", "K4", lambda f: f.but(sections=tuple(s for s in f.sections if s.name != ".boot"))),
            ("ki_end in a page", "K4", lambda f: f.but(symbols=(*f.symbols[:3], Sym("ki_end", 0x808001)))),
            ("no multiboot", "K5", lambda f: f.with_segment(0, content=bytes(16) + b"\x90" * 496)),
            ("multiboot sum", "K5", lambda f: f.with_segment(0, content=multiboot()[:8] + b"\x90" * 504)),
            ("multiboot askew", "K5", lambda f: f.with_segment(0, content=b"\x90" + multiboot() + CODE)),
        ):  # fmt: skip
            yield spoilt(shape, name, rules, change)
    late = Seg(LOAD, R | W, 0x9000, 0x100000, 0x200, 0x200, content=multiboot() + b"\x90" * 500)
    yield spoilt("x86 kernel", "multiboot late", "K5", lambda f: f.but(segments=(late, *f.segments[1:])))
    for name, rules, change in (
        ("not executable", "K1", lambda f: f.with_segment(0, flags=R | W)),
        ("too low", "K3", lambda f: f.with_segment(0, paddr=0x3FFFE000)),
        ("ki_boot_end in a page", "K4", lambda f: f.but(symbols=(Sym("ki_boot_end", 0x10),))),
        ("odd entry", "E6", lambda f: f.but(entry=f.entry + 2)),
    ):  # fmt: skip
        yield spoilt("arm kernel", name, rules, change)


def roots() -> Iterator[Case]:
    for shape in ("x86 root", "arm root", "sel4test root"):
        last = next(n for n, s in reversed(list(enumerate(made(shape).segments))) if s.type == LOAD)
        tls = Seg(TLS, R, 0x1000, 0x400000, 8, 8, align=8)
        lost = Seg(TLS, R, 0x1000, 0x600000, 8, 8, align=8)
        stack = Seg(STACK, R | W | X, 0, 0, 0, 0)
        for name, rules, change in (
            ("not at a page", "R1", lambda f: f.with_segment(0, vaddr=0x400010, offset=0x1010)),
            ("beyond user space", "R2", lambda f, n=last: f.with_segment(n, memsz=0x7FFFFFFFE000)),
            ("up to its end", "R2", lambda f, n=last: f.with_segment(n, memsz=TOP - f.segments[n].vaddr)),
            ("entry behind the image", "R3", lambda f: f.but(entry=0x700000)),
            ("entry before the image", "R3", lambda f: f.but(entry=0x3FF000)),
            ("at page 0", "R5", lambda f: f.with_segment(0, vaddr=0)),
            ("two PT_TLS", "R7", lambda f, tls=tls: f.but(segments=(*f.segments, tls))),
            ("PT_TLS elsewhere", "R7", lambda f, lost=lost: f.but(
                segments=(*(s for s in f.segments if s.type != TLS), lost))),
            ("writable and executable", "R8", lambda f: f.with_segment(0, flags=R | W | X)),
            ("executable stack", "R8", lambda f, stack=stack: f.but(segments=(*f.segments[:-1], stack))),
        ):  # fmt: skip
            yield spoilt(shape, name, rules, change)
    clear = Seg(0x6474E553, R, 0x2000, 0x401000, 0, 0x10)
    yield spoilt("sel4test root", "a note clears code", "R6", lambda f: f.but(segments=(*f.segments, clear)))
    yield Case("root: 32 bits", lambda: build(x86_kernel(32)), "R4", Kind.ROOT)


def without(*names: str) -> Callable[[File], File]:
    return lambda f: f.but(symbols=tuple(s for s in f.symbols if s.name not in names))


def packed(*members: tuple[str, bytes]) -> Callable[[], bytes]:
    return lambda: build(image(cpio(members)))


def images() -> Iterator[Case]:
    for shape in ("elfloader", "EFI elfloader"):
        yield spoilt(shape, "no _end", "L2", without("_end"))
        yield spoilt(
            shape, "_end too early", "L2", lambda f: f.but(symbols=(*f.symbols[:4], Sym("_end", 0x1000)))
        )
        yield spoilt(shape, "no archive", "L4", lambda f: f.with_segment(0, content=CODE_ALONE))
        yield spoilt(
            shape,
            "archive elsewhere",
            "L4",
            lambda f: f.but(symbols=(f.symbols[0], Sym("_archive_start", FAR), *f.symbols[2:])),
        )
    yield spoilt("elfloader", "enters behind _text", "L1", lambda f: f.but(entry=f.entry + 4))
    for name, base in (
        ("on the kernel", 0x40000000),
        ("on the device tree", 0x40008000),
        ("below RAM", 0x3F000000),
    ):

        def on(base: int = base) -> bytes:
            return build(image(base=base))

        yield Case(f"elfloader {name}", on, "L3", Kind.IMAGE)
    kernel, root = build(arm_kernel()), build(arm_root())
    for name, rules, *members in (
        ("no kernel", "L4", ("app", root)),
        ("no root task", "L4", ("kernel.elf", kernel), ("kernel.dtb", b"d")),
        ("nothing", "L4"),
        ("kernel twice", "L4", ("kernel.elf", kernel), ("kernel.elf", kernel), ("app", root)),
        ("empty kernel", "E1", ("kernel.elf", b""), ("app", root)),
        ("root task is none", "E1", ("kernel.elf", kernel), ("app", b"#!/bin/sh\n")),
        ("kernel of x86", "E1", ("kernel.elf", build(x86_kernel())), ("app", root)),
        ("root task of x86", "E1", ("kernel.elf", kernel), ("app", build(x86_root()))),
        ("kernel cut", "E3 E9", ("kernel.elf", kernel[:-600]), ("app", root)),
        ("root task cut", "E3 E9", ("kernel.elf", kernel), ("app", root[:-600])),
        ("another hash", "L5", ("kernel.elf", kernel), ("app", root), ("kernel.bin", bytes(32))),
        ("hash of another size", "L5", ("kernel.elf", kernel), ("app", root), ("app.bin", b"1234")),
        ("hash of no file", "L5", ("kernel.bin", bytes(16)), ("app", root)),
    ):  # fmt: skip
        yield Case(f"archive: {name}", packed(*members), rules, Kind.IMAGE)


CODE_ALONE = bytes(0x1000) + bytes(range(1, 129))


def archives() -> Iterator[Case]:
    """Each number of each member's header, spoilt in several ways."""
    good = cpio([("kernel.elf", build(arm_kernel())), ("app", build(arm_root()))])
    heads, at = [], 0
    for size, named in ((len(build(arm_kernel())), 11), (len(build(arm_root())), 4), (0, 11)):
        heads.append(at)
        at = -(-(-(-(at + 110 + named) // 4) * 4 + size) // 4) * 4
    fields = {"magic": (0, 6), "filesize": (54, 8), "namesize": (94, 8)}
    for n, head in enumerate(heads):
        for field, (offset, size) in fields.items():
            for value in (
                b"ffffffff",
                b"zzzzzzzz",
                b" 0000001",
                b"-0000001",
                b"00000000",
                b"0x000010",
                b"7fffffff",
            ):
                if (field, value) == ("filesize", b"00000000") or (field == "filesize" and n == 2):
                    continue

                def data(at: int = head + offset, size: int = size, value: bytes = value) -> bytes:
                    return build(image(good[:at] + value[:size] + good[at + size :]))

                yield Case(f"archive: member {n} {field} {value.decode()}", data, "L4", Kind.IMAGE)
        for end in (head + 6, head + 60, head + 112):
            yield Case(
                f"archive: cut at {end}", lambda end=end: build(image(good[:end])), "L4 E9", Kind.IMAGE
            )


CASES = [
    *(case for shape in ALL for family in (headers, segments, parts, cut) for case in family(shape)),
    *kernels(),
    *roots(),
    *images(),
    *archives(),
]


def broken(file: Checked) -> set[str]:
    """The rules of which it says more than that all is well."""
    return {
        each.rule for part in file.report.all() for each in part.findings if each.severity is not Severity.I
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_spoilt_is_found(case: Case) -> None:
    target = TARGETS.get(case.name[:3])
    found = broken(check("file", case.data(), Asked(case.kind, target)))
    assert found & set(case.rules.split()), found


def test_there_are_several_hundred_and_every_rule_is_among_them() -> None:
    assert len(CASES) > 600
    names = {case.name for case in CASES}
    assert len(names) == len(CASES)
    elsewhere = {"K6", "S1", "X1", "X2", "X3", "W1"} | {rule for rule in STATED if rule.startswith("P")}
    told = {rule for rule, stated in STATED.items() if stated.severity is Severity.I}
    tried = {rule for case in CASES for rule in case.rules.split()}
    assert set(STATED) - elsewhere - told == tried


def test_segments_out_of_order_are_told_of() -> None:
    file = x86_root()
    first, second, *rest = file.segments
    assert "W1" in broken(check("file", build(file.but(segments=(second, first, *rest)))))


def test_without_symbols_what_takes_symbols_is_not_checkable() -> None:
    report = check("file", build(image().but(symbols=(), sections=()))).report
    assert Kind.IMAGE == report.kind
    assert {"E8", "E10", "L1", "L2"} == set(report.unknown)
    assert [] == report.errors()


def test_memory_of_another_board_is_told_with_ram() -> None:
    data = build(arm_kernel().with_segment(0, paddr=0x80000000))
    assert "K3" in broken(check("file", data, Asked(ram=Range(0x40000000, 0x80000000))))
    assert "K3" not in broken(check("file", data, Asked(ram=Range(0x80000000, 0x90000000))))


def test_digests_of_what_is_packed_are_right() -> None:
    kernel, root = build(arm_kernel()), build(arm_root())
    sha, md5 = hashlib.sha256(kernel).digest(), hashlib.md5(root, usedforsecurity=False).digest()
    data = packed(("kernel.elf", kernel), ("app", root), ("kernel.bin", sha), ("app.bin", md5))()
    assert {"R8"} == broken(check("file", data))


def test_the_elf32_of_a_kernel_is_compared_with_the_elf64() -> None:
    big, small = check("kernel.elf", build(x86_kernel())), check("kernel", build(x86_kernel(32)))
    pairs([big, small])
    assert set() == broken(small)
    for spoil in (
        lambda f: f.but(entry=0x100014),
        lambda f: f.with_segment(2, paddr=0x803C40),
        lambda f: f.with_segment(2, content=bytes(0x300)),
        lambda f: f.with_segment(2, memsz=0x6000),
        lambda f: f.but(segments=f.segments[:2]),
    ):
        other = check("kernel", build(spoil(x86_kernel(32))))
        pairs([big, other])
        assert "K6" in broken(other)


def test_of_an_elf32_alone_it_is_said_that_there_is_nothing_beside_it() -> None:
    small = check("kernel", build(x86_kernel(32)))
    pairs([small])
    assert {"K6"} == set(small.report.unknown)


def test_a_rule_broken_often_is_told_of_some_times_and_counted() -> None:
    symbols = tuple(Sym(f"missing_{n}", 0, 0, 0) for n in range(100))
    report = check("file", build(arm_kernel().but(symbols=symbols))).report
    found = [each for each in report.findings if each.rule == "E8"]
    assert 17 == len(found)
    assert "84 more" == found[-1].said


def test_names_are_shown_such_that_no_terminal_acts_on_them() -> None:
    symbol = Sym("\x1b[2J\x07evil", 0, 0, 0)
    report = check("file", build(arm_kernel().but(symbols=(symbol,)))).report
    found = next(each for each in report.findings if each.rule == "E8")
    assert "symbol \\x1b[2J\\x07evil" == found.place


def test_the_same_file_gives_the_same_report() -> None:
    data = build(image())
    assert check("file", data).report == check("file", data).report
    assert hashlib.sha256(data).hexdigest() == check("file", data).report.sha256


def test_a_table_that_points_into_itself_is_read_in_bounded_time() -> None:
    """A megabyte of symbols, each with a name that runs through the whole table."""
    count = 1 << 15
    row = struct.pack("<IBBHQQ", 1, 0x10, 0, 1, 0, 0)
    file = arm_kernel().but(sections=(Sec("x" * 100, PROGBITS, WRITE | EXECUTE, 0, 0x100, 0),))
    data = bytearray(build(file))
    shoff = struct.unpack_from("<Q", data, 40)[0]
    table = shoff + 2 * 64
    struct.pack_into("<QQ", data, table + 24, len(data), count * len(row))
    struct.pack_into("<QQ", data, table + 64 + 24, len(data), count * len(row))
    data += row.replace(b"\0", b"a") * count
    check("file", bytes(data))
