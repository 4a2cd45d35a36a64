"""BootInfo, the page in which the kernel tells the root task what it has: read and checked.

    extraLen nodeID numNodes numIOPTLevels ipcBuffer               a word each
    empty sharedFrames userImageFrames userImagePaging ioSpaceCaps extraBIPages   start end
    initThreadCNodeSizeBits initThreadDomain                       a word each
    [MCS: schedcontrol start end] untyped start end
    untypedList: paddr sizeBits[1] isDevice[1], padded to words; as many as the slots of untyped
    4096 bytes from its beginning: extraLen bytes of chunks, id len content, len with its header

A word is 8 or 4 bytes, little endian. Offsets of 64 bits were measured on x86_64 and aarch64, with MCS and
without; 32 bits have the same order. Source: libsel4's bootinfo_types.h."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Final

import msgspec
from construct import (  # type: ignore[import-untyped]
    Array,
    Construct,
    Flag,
    Int8ul,
    Int32sl,
    Int32ul,
    Int64sl,
    Int64ul,
    Padding,
    StreamError,
    Struct,
)

PAGE: Final = 4096
EXTRA_MAX: Final = 1 << 20  # bytes of chunks that are read; a device tree is the largest
CHUNKS_MAX: Final = 64
FIRST_PAGING: Final = 16  # slots before it are the initial capabilities'
WORDS: Final = {32: (Int32ul, Int32sl), 64: (Int64ul, Int64sl)}
ADDRESS_BITS: Final = {32: 32, 64: 48}
SMALLEST_UNTYPED: Final = 4  # bits
CHUNKS: Final = {
    0: "padding", 1: "VBE", 2: "multiboot memory map", 3: "ACPI RSDP", 4: "frame buffer",
    5: "TSC frequency, MHz", 6: "device tree",
}  # fmt: skip
REGIONS: Final = (
    "empty", "sharedFrames", "userImageFrames", "userImagePaging", "ioSpaceCaps", "extraBIPages",
    "schedcontrol", "untyped",
)  # fmt: skip


class BootInfoError(Exception):
    """The bytes are no BootInfo: there are too few of them."""


class Untyped(msgspec.Struct, frozen=True):
    """Memory that is the root task's: 2**``bits`` bytes."""

    paddr: int
    bits: int
    device: bool


class Chunk(msgspec.Struct, frozen=True):
    """``size`` bytes with its header; ``value``: where it is a number."""

    id: int
    name: str
    size: int
    value: int | None = None


class BootInfo(msgspec.Struct, omit_defaults=True):
    """``regions``: slots, from and to before; ``broken``: the invariants that do not hold, in words."""

    words: dict[str, int]
    regions: dict[str, tuple[int, int]]
    untyped: list[Untyped]
    extra: list[Chunk]
    broken: list[str] = []


@cache
def layout(bits: int, mcs: bool) -> Construct:
    """All before untypedList."""
    word, signed = WORDS[bits]
    region = Struct("start" / word, "end" / word)
    names = [name for name in REGIONS if name != "schedcontrol" or mcs]
    return Struct(
        "extraLen" / word,
        "nodeID" / word,
        "numNodes" / word,
        "numIOPTLevels" / signed,
        "ipcBuffer" / word,
        *(name / region for name in names[:6]),
        "initThreadCNodeSizeBits" / word,
        "initThreadDomain" / word,
        *(name / region for name in names[6:]),
    )


@cache
def untyped_layout(bits: int) -> Construct:
    word, _ = WORDS[bits]
    return Struct("paddr" / word, "bits" / Int8ul, "device" / Flag, Padding(word.sizeof() - 2))


def decode(data: bytes, bits: int = 64, mcs: bool = False) -> BootInfo:
    """The page, and the chunks behind it as far as they are there. Raises BootInfoError."""
    head, entry = layout(bits, mcs), untyped_layout(bits)
    try:
        said = head.parse(data)
    except StreamError as error:
        raise BootInfoError(f"{len(data)} bytes: expected at least {head.sizeof()}") from error
    regions = {name: (said[name].start, said[name].end) for name in REGIONS if name in said}
    words = {name: value for name, value in said.items() if isinstance(value, int)}
    count = regions["untyped"][1] - regions["untyped"][0]
    room = (min(len(data), PAGE) - head.sizeof()) // entry.sizeof()
    listed = Array(max(min(count, room), 0), entry).parse(data[head.sizeof() :])
    info = BootInfo(
        words,
        regions,
        [Untyped(each.paddr, each.bits, each.device) for each in listed],
        list(_chunks(data[PAGE : PAGE + min(words["extraLen"], EXTRA_MAX)], bits)),
    )
    info.broken = list(_broken(info, bits, len(data)))
    return info


def _chunks(data: bytes, bits: int) -> Iterator[Chunk]:
    word, _ = WORDS[bits]
    header: Any = Struct("id" / word, "len" / word)
    at = 0
    for _ in range(CHUNKS_MAX):
        if len(data) - at < header.sizeof():
            return
        said = header.parse(data[at:])
        content = data[at + header.sizeof() : at + said.len]
        value = int.from_bytes(content, "little") if said.id == 5 and len(content) <= 8 else None
        yield Chunk(said.id, CHUNKS.get(said.id, "unknown"), said.len, value)
        if said.len < header.sizeof():
            return
        at += said.len


def _broken(info: BootInfo, bits: int, size: int) -> Iterator[str]:
    """Each held on every image that was looked at."""
    words, regions = info.words, info.regions
    for name, (start, end) in regions.items():
        if start > end:
            yield f"{name} begins at {start}, after its end {end}"
    slots = words["initThreadCNodeSizeBits"]
    if not 0 < slots < ADDRESS_BITS[bits]:
        yield f"initThreadCNodeSizeBits is {slots}, expected 1 to {ADDRESS_BITS[bits] - 1}"
    elif regions["empty"][1] != 1 << slots:
        yield f"empty.end is {regions['empty'][1]}, expected {1 << slots}, 1 << initThreadCNodeSizeBits"
    if regions["untyped"][1] != regions["empty"][0]:
        yield f"empty.start is {regions['empty'][0]}, expected {regions['untyped'][1]}, untyped.end"
    if regions["userImagePaging"][0] != FIRST_PAGING:
        yield f"userImagePaging.start is {regions['userImagePaging'][0]}, expected {FIRST_PAGING}"
    if words["ipcBuffer"] % PAGE or not words["ipcBuffer"]:
        yield f"ipcBuffer is {words['ipcBuffer']:#x}, expected a page"
    if not words["nodeID"] < words["numNodes"]:
        yield f"nodeID is {words['nodeID']} of numNodes {words['numNodes']}"
    yield from _broken_memory(info, bits)
    pages = regions["extraBIPages"][1] - regions["extraBIPages"][0]
    if words["extraLen"] > max(pages, 0) * PAGE:
        yield f"extraLen is {words['extraLen']}, extraBIPages has {pages} pages"
    if size >= PAGE + words["extraLen"] and words["extraLen"] <= EXTRA_MAX:
        told = sum(each.size for each in info.extra)
        if told != words["extraLen"]:
            yield f"extraLen is {words['extraLen']}, its chunks have {told} bytes"


def _broken_memory(info: BootInfo, bits: int) -> Iterator[str]:
    start, end = info.regions["untyped"]
    if end - start != len(info.untyped):
        yield f"untyped has {end - start} slots, there is room to list {len(info.untyped)}"
    for number, each in enumerate(info.untyped):
        if not SMALLEST_UNTYPED <= each.bits < ADDRESS_BITS[bits]:
            yield f"untypedList[{number}].sizeBits is {each.bits}"
        elif each.paddr % (1 << each.bits):
            yield f"untypedList[{number}] is at {each.paddr:#x}, no multiple of its size, 1 << {each.bits}"


def misplaced(info: BootInfo, address: int | None, image: tuple[int, int] | None) -> Iterator[str]:
    """What does not fit where it was found, at a virtual ``address``, or the root task's ``image``, its first
    address and the one behind it. None: not known."""
    ipc_buffer = info.words["ipcBuffer"]
    if address is not None and address != ipc_buffer + PAGE:
        yield f"it is at {address:#x}, expected {ipc_buffer + PAGE:#x}, behind ipcBuffer"
    if image is not None:
        end = -(-image[1] // PAGE) * PAGE
        if ipc_buffer != end:
            yield f"ipcBuffer is {ipc_buffer:#x}, expected {end:#x}, behind the image"
        frames, pages = info.regions["userImageFrames"], (end - image[0] // PAGE * PAGE) // PAGE
        if frames[1] - frames[0] != pages:
            yield f"userImageFrames has {frames[1] - frames[0]}, the image has {pages} pages"
