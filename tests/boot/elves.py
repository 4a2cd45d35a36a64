"""ELF, CPIO and PE files made to measure, in construct's words, and the shapes of images that boot.

The shapes are those of real seL4 (16.0.0-dev: kernels, root tasks, elfloader images), without its code."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from construct import Bytes, Construct, Int16ul, Int32ul, Int64ul, Struct  # type: ignore[import-untyped]

from skep.boot.guest.build import cpio

EXEC, DYN = 2, 3
I386, X86_64, AARCH64 = 3, 62, 183
LOAD, DYNAMIC, INTERP, NOTE, TLS, STACK = 1, 2, 3, 4, 7, 0x6474E551
R, W, X = 4, 2, 1
PROGBITS, SYMTAB, STRTAB, RELA, NOTES, NOBITS = 1, 2, 3, 4, 7, 8
WRITE, ALLOC, EXECUTE, THREAD = 1, 2, 4, 0x400
HIGH = 0xFFFFFFFF80000000
CODE = bytes(range(1, 129)) * 4  # 512 bytes, none of them zero


@dataclass(frozen=True)
class Seg:
    """A program header. ``content``: its bytes in the file; None: another segment's."""

    type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    paddr: int = -1  # -1: as vaddr
    align: int = 0x1000
    content: bytes | None = None


@dataclass(frozen=True)
class Sec:
    name: str
    type: int
    flags: int
    addr: int
    offset: int
    size: int
    entsize: int = 0


@dataclass(frozen=True)
class Sym:
    """``section``: 0 undefined, 1 defined in the first. ``info``: bind << 4 | type."""

    name: str
    value: int
    size: int = 0
    section: int = 1
    info: int = 0x10


@dataclass(frozen=True)
class File:
    """An ELF file to be. ``header``: fields that shall be others than they would."""

    bits: int
    machine: int
    entry: int
    segments: tuple[Seg, ...]
    sections: tuple[Sec, ...] = ()
    symbols: tuple[Sym, ...] = ()
    type: int = EXEC
    header: dict[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> File:
        return replace(self, **changes)

    def with_segment(self, index: int, **changes: Any) -> File:
        segments = list(self.segments)
        segments[index] = replace(segments[index], **changes)
        return replace(self, segments=tuple(segments))

    def with_header(self, **changes: Any) -> File:
        return replace(self, header=self.header | changes)


def layouts(bits: int) -> tuple[Construct, Construct, Construct, Construct]:
    word = Int64ul if bits == 64 else Int32ul
    names = ("offset", "vaddr", "paddr", "filesz", "memsz")
    flags, places = ["flags" / Int32ul], [name / word for name in names]
    middle = [*flags, *places] if bits == 64 else [*places, *flags]
    tail = ["info" / Bytes(1), "other" / Bytes(1), "section" / Int16ul]
    extent = ["value" / word, "size" / word]
    return (
        Struct(
            "ident" / Bytes(16), "type" / Int16ul, "machine" / Int16ul, "version" / Int32ul, "entry" / word,
            "phoff" / word, "shoff" / word, "flags" / Int32ul, "ehsize" / Int16ul, "phentsize" / Int16ul,
            "phnum" / Int16ul, "shentsize" / Int16ul, "shnum" / Int16ul, "shstrndx" / Int16ul,
        ),
        Struct("type" / Int32ul, *middle, "align" / word),
        Struct(
            "name" / Int32ul, "type" / Int32ul, "flags" / word, "addr" / word, "offset" / word, "size" / word,
            "link" / Int32ul, "info" / Int32ul, "addralign" / word, "entsize" / word,
        ),
        Struct("name" / Int32ul, *((*tail, *extent) if bits == 64 else (*extent, *tail))),
    )  # fmt: skip


class Names:
    """A string table."""

    def __init__(self) -> None:
        self.data = b"\0"

    def add(self, name: str) -> int:
        at = len(self.data)
        self.data += name.encode() + b"\0"
        return at


def build(file: File) -> bytes:
    """The bytes: header, program headers, contents, symbols, names, section headers."""
    header, segment, section, symbol = layouts(file.bits)
    phoff = header.sizeof()
    data = bytearray(phoff + segment.sizeof() * len(file.segments))
    for each in file.segments:
        if each.content is not None:
            data.extend(bytes(max(each.offset + each.filesz - len(data), 0)))
            content = (each.content * (each.filesz // max(len(each.content), 1) + 1))[: each.filesz]
            begin = max(each.offset, phoff + segment.sizeof() * len(file.segments))
            data[begin : each.offset + each.filesz] = content[begin - each.offset :]
    rows, names = [dict.fromkeys(("name", "type", "flags", "addr", "offset", "size"), 0)], Names()
    for sec in file.sections:
        rows.append({"name": names.add(sec.name), "type": sec.type, "flags": sec.flags, "addr": sec.addr,
                     "offset": sec.offset, "size": sec.size, "entsize": sec.entsize})  # fmt: skip
    if file.symbols:
        strings = Names()
        table = bytes(symbol.sizeof())
        for sym in file.symbols:
            table += symbol.build({"name": strings.add(sym.name), "info": bytes([sym.info]), "other": b"\0",
                                   "section": sym.section, "value": sym.value, "size": sym.size})  # fmt: skip
        rows.append({"name": names.add(".symtab"), "type": SYMTAB, "flags": 0, "addr": 0,
                     "offset": len(data), "size": len(table), "link": len(rows) + 1,
                     "entsize": symbol.sizeof()})  # fmt: skip
        data += table
        rows.append({"name": names.add(".strtab"), "type": STRTAB, "flags": 0, "addr": 0,
                     "offset": len(data), "size": len(strings.data)})  # fmt: skip
        data += strings.data
    if file.sections:
        rows.append({"name": names.add(".shstrtab"), "type": STRTAB, "flags": 0, "addr": 0,
                     "offset": len(data), "size": len(names.data)})  # fmt: skip
        data += names.data
    shoff = len(data) if file.sections else 0
    for row in rows if file.sections else []:
        data += section.build({"link": 0, "info": 0, "addralign": 1, "entsize": 0} | row)
    facts = {
        "ident": b"\x7fELF" + bytes([file.bits // 32, 1, 1]) + bytes(9), "type": file.type,
        "machine": file.machine, "version": 1, "entry": file.entry, "phoff": phoff, "shoff": shoff,
        "flags": 0, "ehsize": phoff, "phentsize": segment.sizeof(), "phnum": len(file.segments),
        "shentsize": section.sizeof(), "shnum": len(rows) if file.sections else 0,
        "shstrndx": len(rows) - 1 if file.sections else 0,
    } | file.header  # fmt: skip
    data[:phoff] = header.build(facts)
    for n, each in enumerate(file.segments):
        at = phoff + n * segment.sizeof()
        paddr = each.vaddr if each.paddr < 0 else each.paddr
        data[at : at + segment.sizeof()] = segment.build(
            {"type": each.type, "flags": each.flags, "offset": each.offset, "vaddr": each.vaddr,
             "paddr": paddr, "filesz": each.filesz, "memsz": each.memsz, "align": each.align}
        )  # fmt: skip
    return bytes(data)


def multiboot(flags: int = 3) -> bytes:
    return b"".join(n.to_bytes(4, "little") for n in (0x1BADB002, flags, -(0x1BADB002 + flags) % (1 << 32)))


# the shapes


def x86_kernel(bits: int = 64) -> File:
    """Three PT_LOAD: at its physical address without PF_X, boot, and the rest, the last two high."""
    cut = (1 << bits) - 1
    high = HIGH & cut
    return File(
        bits,
        X86_64 if bits == 64 else I386,
        0x100010,
        (
            Seg(LOAD, R | W, 0x1000, 0x100000, 0x200, 0x200, content=multiboot() + CODE),
            Seg(LOAD, R | W | X, 0x234F, high + 0x10834F, 0x200, 0x200, 0x10834F, 0x20, CODE),
            Seg(LOAD, R | W | X, 0x3C40, high + 0x801C40, 0x300, 0x63C0, 0x801C40, 0x2000, CODE),
        ),
        (
            Sec(".phys", PROGBITS, ALLOC | WRITE, 0x100000, 0x1000, 0x200),
            Sec(".boot", PROGBITS, ALLOC | WRITE | EXECUTE, high + 0x10834F, 0x234F, 0x200),
            Sec(".text", PROGBITS, ALLOC | EXECUTE, high + 0x801C40, 0x3C40, 0x300),
            Sec(".bss", NOBITS, ALLOC | WRITE, high + 0x801F40, 0x3F40, 0x60C0),
        ),
        (
            Sym("_start", 0x100010),
            Sym("init_kernel", high + 0x801C40, 0x80, 3),
            Sym("ki_boot_end", high + 0x109000, 0, 2),
            Sym("ki_end", high + 0x808000, 0, 4),
        ),
    )


def arm_kernel() -> File:
    begin = 0xFFFFFFFFC0000000
    return File(
        64,
        AARCH64,
        begin,
        (
            Seg(LOAD, R | W | X, 0x2000, begin, 0x600, 0x8000, 0x40000000, 0x2000, CODE),
            Seg(STACK, R | W, 0, 0, 0, 0, align=16),
        ),
        (
            Sec(".boot", PROGBITS, ALLOC | EXECUTE, begin, 0x2000, 0x100),
            Sec(".text", PROGBITS, ALLOC | EXECUTE, begin + 0x100, 0x2100, 0x500),
            Sec(".bss", NOBITS, ALLOC | WRITE, begin + 0x600, 0x2600, 0x7A00),
        ),
        (Sym("_start", begin), Sym("ki_boot_end", begin + 0x1000), Sym("ki_end", begin + 0x8000, 0, 3)),
    )


def x86_root() -> File:
    """R, RE and RW; its .tbss lies on the bytes of .data, and its PT_TLS has no bytes."""
    return File(
        64,
        X86_64,
        0x401000,
        (
            Seg(LOAD, R, 0x1000, 0x400000, 0x200, 0x200, content=CODE),
            Seg(LOAD, R | X, 0x2000, 0x401000, 0x400, 0x400, content=CODE),
            Seg(LOAD, R | W, 0x3000, 0x402000, 0x200, 0x1200, content=CODE),
            Seg(NOTE, R, 0x1000, 0x400000, 0x24, 0x24, align=4),
            Seg(TLS, R, 0x3008, 0x402010, 0, 0x18, align=16),
            Seg(STACK, R | W, 0, 0, 0, 0, align=16),
        ),
        (
            Sec(".note.gnu.build-id", NOTES, ALLOC, 0x400000, 0x1000, 0x24),
            Sec(".text", PROGBITS, ALLOC | EXECUTE, 0x401000, 0x2000, 0x400),
            Sec(".tbss", NOBITS, ALLOC | WRITE | THREAD, 0x402010, 0x3010, 0x18),
            Sec(".data", PROGBITS, ALLOC | WRITE, 0x402000, 0x3000, 0x200),
            Sec(".bss", NOBITS, ALLOC | WRITE, 0x402200, 0x3200, 0x1000),
        ),
        (
            Sym("_sel4_start", 0x401000, 0, 2),
            Sym("main", 0x401100, 0x80, 2, 0x12),
            Sym("_end", 0x403200, 0, 5),
            Sym("__sel4_ipc_buffer", 0x10, 8, 3, 0x16),
            Sym("optional", 0, 0, 0, 0x20),
        ),
    )


def arm_root() -> File:
    """One segment for all, and the same .tbss."""
    file = x86_root()
    return file.but(
        machine=AARCH64,
        segments=(
            Seg(LOAD, R | W | X, 0x1000, 0x400000, 0x2200, 0x3200, align=0x1000, content=CODE),
            *file.segments[3:],
        ),
    )


def sel4test_root() -> File:
    """As the root task for x86_64, but its .tbss lies on zeros, and its stack is executable."""
    file = x86_root().with_segment(5, flags=R | W | X)
    return file.with_segment(2, content=bytes(0x28) + CODE)


def archive() -> bytes:
    return cpio([("kernel.elf", build(arm_kernel())), ("kernel.dtb", bytes(700)), ("app", build(arm_root()))])


def image(packed: bytes | None = None, base: int = 0x40280000) -> File:
    """The elfloader: headers, code, and the archive in .rodata, all in one segment."""
    packed = archive() if packed is None else packed
    size = 0x1400 + len(packed)
    end = base + size + 0x400
    return File(
        64,
        AARCH64,
        base + 0x1000,
        (
            Seg(LOAD, R | W | X, 0, base, size, size + 0x400, align=0x10000,
                content=bytes(0x1000) + CODE * 2 + packed),
            Seg(STACK, R | W, 0, 0, 0, 0, align=16),
        ),
        (
            Sec(".text", PROGBITS, ALLOC | EXECUTE, base + 0x1000, 0x1000, 0x400),
            Sec(".rodata", PROGBITS, ALLOC | WRITE, base + 0x1400, 0x1400, len(packed)),
            Sec(".bss", NOBITS, ALLOC | WRITE, base + size, size, 0x400),
        ),
        (
            Sym("_text", base + 0x1000),
            Sym("_archive_start", base + 0x1400, 0, 2),
            Sym("_archive_end", base + size, 0, 2),
            Sym("_bss_end", end, 0, 3),
            Sym("_end", end, 0, 3),
        ),
    )  # fmt: skip


def efi_image() -> File:
    """The elfloader as it is linked for EFI: it relocates itself."""
    file = image(base=0)
    at = len(archive()) + 0x1400
    text, rodata, bss = file.sections
    return file.but(
        type=DYN,
        segments=(
            replace(file.segments[0], filesz=at + 0x60, memsz=at + 0x460,
                    content=bytes(0x1000) + CODE * 2 + archive() + bytes(0x60)),
            Seg(DYNAMIC, R | W, at, at, 0x30, 0x30, align=8),
            file.segments[1],
        ),
        sections=(
            text,
            rodata,
            Sec(".rela", RELA, ALLOC, at + 0x30, at + 0x30, 0x30, 24),
            replace(bss, addr=at + 0x60, offset=at + 0x60),
        ),
        symbols=(*file.symbols[:3], Sym("_bss_end", at + 0x460, 0, 4), Sym("_end", at + 0x460, 0, 4)),
    )  # fmt: skip


SHAPES = {
    "x86 kernel": x86_kernel,
    "arm kernel": arm_kernel,
    "x86 root": x86_root,
    "arm root": arm_root,
    "elfloader": image,
    "EFI elfloader": efi_image,
    "sel4test root": sel4test_root,
}


@dataclass(frozen=True)
class PeFile:
    """A PE32+ file to be, with one section for all. ``certificate``: what stands behind it; None: nothing."""

    machine: int = 0xAA64
    subsystem: int = 10
    entry: int = 0x1010
    content: bytes = CODE * 8
    flags: int = 0xE0000020
    certificate: bytes | None = None
    sections: int = 1
    offset: int = 0x400
    size: int = 0x100000
    magic: int = 0x20B
    signature: bytes = b"PE\0\0"

    def build(self) -> bytes:
        end = -(-(0x400 + len(self.content)) // 8) * 8
        found = self.certificate if self.certificate is not None else b""
        optional = bytearray(240)
        for at, size, value in (
            (0, 2, self.magic), (16, 4, self.entry), (24, 8, 0), (32, 4, 0x1000), (36, 4, 0x200),
            (56, 4, self.size), (60, 4, 0x400), (68, 2, self.subsystem), (108, 4, 16),
            (144, 4, end if found else 0), (148, 4, len(found)),
        ):  # fmt: skip
            optional[at : at + size] = value.to_bytes(size, "little")
        coff = b"".join(
            n.to_bytes(size, "little")
            for n, size in ((self.machine, 2), (self.sections, 2), (0, 4), (0, 8), (240, 2), (0x22, 2))
        )
        row = b".text\0\0\0" + b"".join(
            n.to_bytes(4, "little")
            for n in (len(self.content), 0x1000, len(self.content), self.offset, 0, 0, 0, self.flags)
        )
        head = b"MZ" + bytes(58) + (0x80).to_bytes(4, "little") + bytes(64)
        data = (head + self.signature + coff + bytes(optional) + row * self.sections).ljust(0x400, b"\0")
        return (data + self.content).ljust(end, b"\0") + found
