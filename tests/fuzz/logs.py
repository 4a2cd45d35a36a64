"""What a guest prints, what QEMU logs of it and what is in its memory: read whatever it is, in any pieces.

The first byte of an input picks the reader, the second the place of a cut."""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from skep.boot.bootinfo import BootInfoError, decode, misplaced
from skep.boot.diagnose import arch_of, of_log, read
from skep.boot.grammar import LINE_MAX
from skep.boot.interrupts import Interrupts, in_words
from skep.boot.syscalls import differences, kind_of, read_header
from tests.fuzz.holding import holds

LENGTH_MAX = 8192
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def one(data: bytes) -> None:
    if len(data) > 1:
        READERS[data[0] % len(READERS)](data[2:], data[1] * max(len(data) - 2, 1) // 256)


def _log(data: bytes, cut: int) -> None:
    whole, cut_up = read([data]), read([data[:cut], data[cut:]])
    verdict = of_log(whole, arch_of(whole, []), [])
    holds(verdict == of_log(cut_up, arch_of(cut_up, []), []), ValueError("another verdict when it is cut"))
    if verdict is not None:
        msgspec.json.encode(verdict)
        for line in verdict.evidence:
            holds(len(line) <= LINE_MAX, ValueError(line))
            holds(not CONTROL.search(line), ValueError(line))


def _interrupts(data: bytes, cut: int) -> None:
    whole, cut_up = Interrupts(), Interrupts()
    whole.feed(data)
    cut_up.feed(data[:cut])
    cut_up.feed(data[cut:])
    holds(
        (whole.fault, whole.lines, whole.triple) == (cut_up.fault, cut_up.lines, cut_up.triple), ValueError()
    )
    if whole.fault is not None:
        in_words(whole.fault)


def _bootinfo(data: bytes, cut: int) -> None:
    try:
        info = decode(data, 32 if cut & 1 else 64, bool(cut & 2))
    except BootInfoError:
        return
    msgspec.json.encode(info)
    list(misplaced(info, cut, (0, cut)))


def _header(data: bytes, cut: int) -> None:
    found = read_header(data.decode("utf-8", "replace"))
    for each in differences(found, kind_of(found)):
        holds(each.text != "", ValueError(each))


READERS = (_log, _interrupts, _bootinfo, _header)


def seeds() -> Iterator[bytes]:
    from tests.boot.test_bootinfo import FORMS, page
    from tests.boot.test_diagnose_logs import LOGS
    from tests.boot.test_interrupts import ARM, X86
    from tests.boot.test_syscalls import enum

    for path in sorted(LOGS.glob("*.log")):
        yield b"\0\x80" + path.read_bytes()[: LENGTH_MAX - 2]
    for text in (*X86.values(), *ARM.values()):
        yield b"\1\x80" + text.encode()
    for form in FORMS:
        yield b"\2\0" + page(*form)[: LENGTH_MAX - 2]
    yield b"\3\0" + enum("mcs").encode()
