"""A BootInfo page is read in each of its forms, and what must hold of it is checked; any bytes will do."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.__main__ import run
from skep.boot.bootinfo import BootInfoError, Chunk, Untyped, decode, layout, misplaced
from skep.boot.classes import Class

FORMS = [(64, False), (64, True), (32, False), (32, True)]
WORDS = {
    "extraLen": 0, "nodeID": 0, "numNodes": 1, "numIOPTLevels": -1, "ipcBuffer": 0x408000,
    "initThreadCNodeSizeBits": 12, "initThreadDomain": 0,
}  # fmt: skip
REGIONS = {
    "empty": (30, 4096), "sharedFrames": (0, 0), "userImageFrames": (19, 27), "userImagePaging": (16, 19),
    "ioSpaceCaps": (0, 0), "extraBIPages": (0, 0), "schedcontrol": (27, 28), "untyped": (28, 30),
}  # fmt: skip
UNTYPED = [(0x8000000, 24, 0), (0xFEE00000, 12, 1)]
ADDRESS, IMAGE = 0x409000, (0x400000, 0x4070F0)


def page(
    bits: int = 64,
    mcs: bool = False,
    words: dict[str, int] | None = None,
    regions: dict[str, tuple[int, int]] | None = None,
    untyped: list[tuple[int, int, int]] = UNTYPED,
    extra: bytes = b"",
) -> bytes:
    """Packed by hand: construct is what is tested."""
    said, slots = WORDS | (words or {}), REGIONS | (regions or {})
    names = list(REGIONS)
    values = [said[name] for name in list(WORDS)[:5]]
    values += [value for name in names[:6] for value in slots[name]]
    values += [said["initThreadCNodeSizeBits"], said["initThreadDomain"]]
    values += [value for name in names[6 if mcs else 7 :] for value in slots[name]]
    code = "Q" if bits == 64 else "I"
    made = b"".join(struct.pack(f"<{code}", value & ((1 << bits) - 1)) for value in values)
    for paddr, size, device in untyped:
        made += struct.pack(f"<{code}BB{bits // 8 - 2}x", paddr, size, device)
    return made.ljust(4096, b"\0") + extra


def offset(name: str, bits: int = 64, mcs: bool = False) -> int:
    """Where the first byte of a field is: found by the one byte that is set."""
    form = layout(bits, mcs)
    for at in range(form.sizeof()):
        said = form.parse(b"\0" * at + b"\1" + b"\0" * (form.sizeof() - at - 1))
        value = said[name]
        if (value if isinstance(value, int) else value.start) == 1:
            return at
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "at"),
    {
        "extraLen": 0, "nodeID": 8, "numNodes": 16, "numIOPTLevels": 24, "ipcBuffer": 32, "empty": 40,
        "sharedFrames": 56, "userImageFrames": 72, "userImagePaging": 88, "ioSpaceCaps": 104,
        "extraBIPages": 120, "initThreadCNodeSizeBits": 136, "initThreadDomain": 144, "untyped": 152,
    }.items(),
)  # fmt: skip
def test_fields_are_where_they_were_measured(name: str, at: int) -> None:
    assert at == offset(name)
    assert at // 2 == offset(name, 32)
    assert at + (16 if name == "untyped" else 0) == offset(name, mcs=True)


def test_the_list_of_untyped_memory_begins_where_it_was_measured() -> None:
    assert (168, 184) == (layout(64, False).sizeof(), layout(64, True).sizeof())
    assert 152 == offset("schedcontrol", mcs=True)


@pytest.mark.parametrize(("bits", "mcs"), FORMS)
def test_a_page_is_read_in_every_form(bits: int, mcs: bool) -> None:
    info = decode(page(bits, mcs), bits, mcs)
    assert WORDS == info.words
    assert {name: region for name, region in REGIONS.items() if mcs or name != "schedcontrol"} == info.regions
    assert [Untyped(paddr, size, bool(device)) for paddr, size, device in UNTYPED] == info.untyped
    assert info.broken == []
    assert list(misplaced(info, ADDRESS, IMAGE)) == []


def test_chunks_behind_the_page_are_read() -> None:
    extra = struct.pack("<QQIQQ", 5, 20, 2400, 0, 4096 - 20) + bytes(4096 - 36)
    info = decode(page(words={"extraLen": 4096}, regions={"extraBIPages": (27, 28)}, extra=extra))
    assert [Chunk(5, "TSC frequency, MHz", 20, 2400), Chunk(0, "padding", 4076)] == info.extra
    assert info.broken == []


BROKEN: list[tuple[dict[str, object], str]] = [
    ({"words": {"ipcBuffer": 0x408010}}, "ipcBuffer is 0x408010, expected a page"),
    ({"words": {"initThreadCNodeSizeBits": 13}}, "empty.end is 4096, expected 8192"),
    ({"words": {"initThreadCNodeSizeBits": 200}}, "initThreadCNodeSizeBits is 200, expected 1 to 47"),
    ({"words": {"nodeID": 4}}, "nodeID is 4 of numNodes 1"),
    ({"words": {"extraLen": 10}}, "extraLen is 10, extraBIPages has 0 pages"),
    ({"regions": {"empty": (31, 4096)}}, "empty.start is 31, expected 30, untyped.end"),
    ({"regions": {"sharedFrames": (3, 2)}}, "sharedFrames begins at 3, after its end 2"),
    ({"regions": {"userImagePaging": (17, 19)}}, "userImagePaging.start is 17, expected 16"),
    ({"regions": {"untyped": (28, 1028), "empty": (1028, 4096)}}, "there is room to list 245"),
    ({"untyped": [(0x8000000, 24, 0), (0xFEE00800, 12, 1)]}, "untypedList[1] is at 0xfee00800, no multiple"),
    ({"untyped": [(0, 2, 0), (0, 12, 0)]}, "untypedList[0].sizeBits is 2"),
    ({"words": {"extraLen": 4}, "regions": {"extraBIPages": (9, 10)}, "extra": b"\0" * 4}, "have 0 bytes"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "told"), BROKEN)
def test_what_does_not_hold_is_told(change: dict[str, object], told: str) -> None:
    info = decode(page(**change))  # type: ignore[arg-type]
    assert any(told in each for each in info.broken), info.broken


def test_what_does_not_fit_its_place_is_told() -> None:
    info = decode(page())
    assert list(misplaced(info, 0x500000, None)) == ["it is at 0x500000, expected 0x409000, behind ipcBuffer"]
    assert list(misplaced(info, None, (0x400000, 0x408001))) == [
        "ipcBuffer is 0x408000, expected 0x409000, behind the image",
        "userImageFrames has 8, the image has 9 pages",
    ]


@settings(deadline=None)
@given(st.binary(max_size=5000), st.sampled_from(FORMS))
def test_any_bytes_are_read_or_refused(data: bytes, form: tuple[int, bool]) -> None:
    if len(data) < layout(*form).sizeof():
        with pytest.raises(BootInfoError):
            decode(data, *form)
        return
    info = decode(data, *form)
    assert len(info.untyped) <= 512
    list(misplaced(info, ADDRESS, IMAGE))


def test_the_command_tells_it_in_words_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.bin"
    path.write_bytes(page(mcs=True))
    assert run(["boot", "bootinfo", "--mcs", "--at", "0x409000", str(path)]) == 0
    out = capsys.readouterr().out
    assert "ipcBuffer                0x408000\n" in out
    assert "untyped                  0xfee00000, 1 << 12 bytes of device\n" in out
    assert run(["boot", "bootinfo", "--json", str(path)]) == Class.LAYOUT_INVALID.row.status
    out, err = capsys.readouterr()
    assert json.loads(out)["broken"]
    assert "bootinfo: empty.start is 30, expected 28, untyped.end" in err
    path.write_bytes(b"short")
    assert run(["boot", "bootinfo", str(path)]) == 2
    assert "5 bytes: expected at least 168" in capsys.readouterr().err
