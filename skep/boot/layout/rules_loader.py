"""The rules for elfloader images: an archive of kernel and root task inside a program that unpacks them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from skep.boot.layout import cpio
from skep.boot.layout.reading import SHF_EXECINSTR, Elf, NotElf, read
from skep.boot.layout.rule import (
    LOADERS,
    Found,
    Kind,
    Range,
    Rule,
    Severity,
    Subject,
    Unknown,
    extent,
    round_up,
)

Said = Iterator[Found | Unknown]
DEVICE_TREE: Final = "kernel.dtb"
HASH: Final = ".bin"  # kernel.bin is the kernel's digest, app.bin the root task's
DIGESTS: Final = {16: "md5", 32: "sha256"}


def place_of(elf: Elf | None, data: bytes) -> tuple[int, int] | None:
    """Where the archive is in the file, from its symbols or, without those, by looking for it."""
    begin, end = (elf.symbol(f"_archive_{which}") if elf is not None else None for which in ("start", "end"))
    if elf is not None and begin is not None and end is not None:
        for each in elf.loads:
            if each.vaddr <= begin.value <= end.value <= each.vaddr + each.filesz:
                offset = each.offset - each.vaddr
                return begin.value + offset, end.value + offset
        return None
    at = cpio.find(data)
    return None if at is None else (at, len(data))


def unpacked(elf: Elf | None, data: bytes) -> tuple[dict[str, bytes], Found | None]:
    """The members by name, as far as they can be read, and what is wrong with the archive."""
    place, members = place_of(elf, data), dict[str, bytes]()
    if place is None:
        return members, Found("file", "there is no archive", f"one that begins with {cpio.MAGIC.decode()}")
    try:
        for each in cpio.members(data, *place):
            if each.name in members:
                return members, Found(f"member {each.name}", "twice in the archive", "once")
            members[each.name] = data[each.begin : each.end]
    except cpio.BadArchive as error:
        return members, Found(error.place, error.said, error.expected)
    return members, None


def root_of(members: dict[str, bytes]) -> str | None:
    """The name of the root task: it goes by the application's."""
    known = (cpio.KERNEL, DEVICE_TREE)
    return next((name for name in members if name not in known and not _is_hash(name)), None)


def _is_hash(name: str) -> bool:
    return name.endswith(HASH)


def enters(elf: Elf, subject: Subject) -> Said:
    text = elf.symbol("_text")
    if text is None:
        yield Unknown("there is no symbol _text")
        return
    # Where headers are loaded with it, _text may stand before the first instruction.
    code = [each.addr for each in elf.sections if each.flags & SHF_EXECINSTR]
    if elf.entry not in (text.value, min(code, default=text.value)):
        yield Found("header", f"entry {elf.entry:#x}", f"_text, {text.value:#x}")


def knows_its_end(elf: Elf, subject: Subject) -> Said:
    if elf.symbols is None:
        yield Unknown("there is no symbol table that can be read")
        return
    end, bss_end = elf.symbol("_end"), elf.symbol("_bss_end")
    if end is None:
        yield Found("symbols", "_end is not defined", "defined: by it the loader knows its own size")
    elif bss_end is not None and end.value < bss_end.value:
        yield Found("symbol _end", f"{end.value:#x}", f"{bss_end.value:#x} at least, where _bss_end is")


def stays_clear(elf: Elf, subject: Subject) -> Said:
    own = extent(elf, physical=True)
    if subject.ram is not None and elf.loads and not own.within(subject.ram):
        yield Found("program headers", f"it is loaded at {own}", f"in RAM, {subject.ram}")
    try:
        kernel = read(subject.members.get(cpio.KERNEL, b""), named=False)
    except NotElf:
        yield Unknown("there is no kernel in it whose addresses are known")
        return
    for name, place in unpacked_to(kernel, subject.members):
        if own.overlaps(place):
            yield Found(
                "program headers", f"it is loaded at {own}", f"clear of {name}, which goes to {place}"
            )


def unpacked_to(kernel: Elf, members: dict[str, bytes]) -> Iterator[tuple[str, Range]]:
    """Where the elfloader puts what is in it: the kernel where it belongs, the rest behind."""
    place = extent(kernel, physical=True)
    yield cpio.KERNEL, place
    behind = round_up(place.end)
    if DEVICE_TREE in members:
        yield DEVICE_TREE, Range(behind, behind + len(members[DEVICE_TREE]))
        behind = round_up(behind + len(members[DEVICE_TREE]))
    name = root_of(members)
    if name is not None:
        try:
            root = extent(read(members[name], named=False))
        except NotElf:
            return
        yield name, Range(behind, behind + round_up(root.end) - root.begin)


def carries_both(elf: Elf, subject: Subject) -> Said:
    _, wrong = unpacked(elf, elf.data)
    if wrong is not None:
        yield wrong
        return
    yield from lacking(subject.members)


def lacking(members: dict[str, bytes]) -> Iterator[Found]:
    """What an archive that can be read does not have."""
    if cpio.KERNEL not in members:
        yield Found("archive", f"no {cpio.KERNEL}", "one")
    if root_of(members) is None:
        yield Found("archive", "no root task", f"one beside {cpio.KERNEL}")


def has_their_hashes(elf: Elf, subject: Subject) -> Said:
    yield from mismatched(subject.members)


def mismatched(members: dict[str, bytes]) -> Iterator[Found]:
    root, known = root_of(members), dict[tuple[str, str], str]()
    for name, content in members.items():
        if not _is_hash(name):
            continue
        of = cpio.KERNEL if name == f"kernel{HASH}" else root
        digest = DIGESTS.get(len(content))
        if of is None or of not in members or digest is None:
            yield Found(f"member {name}", f"{len(content)} bytes", f"a digest of {of}, of 16 or 32 bytes")
            continue
        if (of, digest) not in known:
            known[of, digest] = hashlib.new(digest, members[of], usedforsecurity=False).hexdigest()
        if content.hex() != known[of, digest]:
            expected = f"{known[of, digest]}, that of {of} as it is packed"
            yield Found(f"member {name}", f"{digest} {content.hex()}", expected)


SOURCE: Final = "seL4's elfloader-tool, linker.lds and load_images"
RULES: Final = (
    Rule("L1", Severity.E, (Kind.IMAGE,), "the entry is _text, where the code begins",
         "a loader jumps there without looking", SOURCE, enters),
    Rule("L2", Severity.E, LOADERS, "_end is defined, and not before _bss_end",
         "the loader takes it for its own end, and refuses to unpack over itself",
         "measured: made for EFI without it, it aborted", knows_its_end),
    Rule("L3", Severity.E, (Kind.IMAGE,), "it is in RAM, clear of where kernel, device tree and root task go",
         "it would unpack over itself", f"{SOURCE}; shoehorn.py", stays_clear),
    Rule("L4", Severity.E, LOADERS, "its archive can be read, and has kernel.elf and a root task",
         "what cannot be found cannot be loaded; and the elfloader goes on with a root task that is none",
         "measured: of a spoilt root task the kernel tells, reserved region 2 in wrong order", carries_both),
    Rule("L5", Severity.W, LOADERS, "digests in the archive are those of the files as they are packed",
         "digests of files before they were stripped never match: ERROR: Hashes are different, at every boot",
         "measured: builds with hash_sha", has_their_hashes),
)  # fmt: skip
