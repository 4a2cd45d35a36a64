"""Whatever the bytes: a report, in bounded time and memory."""

from __future__ import annotations

import random
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.boot.layout.checking import FINDINGS_MAX, Asked, Checked, check, pairs
from skep.boot.layout.cpio import BadArchive, members
from skep.boot.layout.crosscheck import crosscheck
from skep.boot.layout.growth import changes
from skep.boot.layout.rule import Kind
from tests.boot.elves import PeFile, archive, arm_kernel, build, image, x86_kernel, x86_root

SEEDS = (
    build(x86_kernel()),
    build(x86_kernel(32)),
    build(x86_root()),
    build(image()),
    PeFile(content=archive(), certificate=bytes(64)).build(),
)
KINDS = (None, *Kind)
INTERESTING = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 63, (1 << 64) - 1)
MEMORY_MAX = 64 << 20  # bytes, for files of some ten KiB
LOG = b"Kernel loaded to: start=0x100000 end=0x0\n  paddr=[0..ffffffffffffffff]\nsize=0x1 v_entry=0x1\n"


def looked_at(data: bytes, kind: Kind | None = None) -> Checked:
    """Everything is done with it; what is said of it is bounded."""
    file = check("file", data, Asked(kind))
    pairs([file, check("file", SEEDS[0])])
    crosscheck(LOG, [file])
    list(changes(file, check("file", SEEDS[3])))
    for report in file.report.all():
        assert all(each.said.isprintable() and each.place.isprintable() for each in report.findings)
        for rule in {each.rule for each in report.findings}:
            assert sum(each.rule == rule for each in report.findings) <= FINDINGS_MAX + 2
    return file


def mutated(chance: random.Random) -> bytes:
    """A good file with some numbers of its tables replaced, cut off or spliced."""
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 6)):
        size = chance.choice((1, 2, 4, 8))
        # Most of what is read stands at both ends.
        at = chance.choice(
            (chance.randrange(600), len(data) - chance.randrange(1, 900), chance.randrange(len(data)))
        )
        value = chance.choice((*INTERESTING, chance.getrandbits(64), len(data))) % (1 << 8 * size)
        data[at : at + size] = value.to_bytes(size, "little")
    if chance.random() < 0.2:
        del data[chance.randrange(len(data)) :]
    if chance.random() < 0.1:
        at = chance.randrange(len(data) + 1)
        data[at:at] = chance.choice(SEEDS)[: chance.randrange(4096)]
    return bytes(data)


@pytest.mark.parametrize("seed", range(8))
def test_numbers_that_are_others_give_findings_and_never_more(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(40):
        looked_at(mutated(chance), chance.choice(KINDS))


@pytest.mark.slow
@given(
    st.binary(max_size=400),
    st.sampled_from(KINDS),
    st.sampled_from((b"", b"\x7fELF\1\1\1", b"\x7fELF\2\1\1", b"MZ")),
)
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_report(data: bytes, kind: Kind | None, head: bytes) -> None:
    looked_at(head + data, kind)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_bytes_of_a_good_file_may_be_others(data: st.DataObject) -> None:
    good = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good) - 1))
        other = data.draw(st.binary(min_size=1, max_size=16))
        good[at : at + len(other)] = other
    looked_at(bytes(good), data.draw(st.sampled_from(KINDS)))


@given(st.binary(max_size=2000), st.integers(0, 100), st.integers(0, 4000))
def test_any_bytes_are_an_archive_or_are_not(data: bytes, at: int, end: int) -> None:
    made = archive()[:900] + data
    try:
        found = list(members(made, at, end))
    except BadArchive:
        return
    assert all(0 <= each.begin <= each.end <= len(made) for each in found)


@pytest.mark.slow
def test_memory_is_bounded_whatever_a_table_says() -> None:
    """As many symbols as are read, each with as long a name as there may be."""
    data = bytearray(build(arm_kernel()))
    shoff = struct.unpack_from("<Q", data, 40)[0]
    symbols = next(at for at in range(shoff, len(data), 64) if struct.unpack_from("<I", data, at + 4)[0] == 2)
    names, count = b"\0" + b"n" * 40_000, 40_000
    struct.pack_into("<QQ", data, symbols + 24, len(data), count * 24)
    data += b"".join(struct.pack("<IBBHQQ", 1 + n, 0x10, 0, 1, n, 8) for n in range(count))
    struct.pack_into("<QQ", data, symbols + 64 + 24, len(data), len(names))
    data += names
    tracemalloc.start()
    try:
        looked_at(bytes(data))
        assert tracemalloc.get_traced_memory()[1] < MEMORY_MAX
    finally:
        tracemalloc.stop()
