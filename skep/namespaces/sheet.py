"""Sheets: records as CSV, for spreadsheets and back.

    nodes.v1,principal,role …
    w1,spiffe://hive/drone-worker/w1,drone-worker …

The first name of the header has the form that the sheet has. Records are in a fixed order, and lines end as
RFC 4180 has it, so that a sheet that was exported, imported and exported again is the same bytes. A text is
what it is: one that begins with ``=`` is not made harmless, as it would come back as another. Who opens one
in a spreadsheet program imports its columns as text.
Source: RFC 4180.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from skep.fs.errors import E, FsError
from skep.fs.node import Attr, Caller, Maybe
from skep.fs.shapes import File, Memory, Stream
from skep.trace.entry import ENTRY_MAX

BYTES_MAX: Final = 16 << 20  # of a sheet to be imported: it is read and checked as a whole, in memory.
EVENT_MAX: Final = 512  # bytes that an event has beside what its line says
PIECE: Final = 32 * 1024  # bytes given to a reader at once, or a record more

Row = Mapping[str, str]


class Form(NamedTuple):
    """What a sheet has: ``name`` with its version, and its columns; the first one names the record.

    ``later``: the columns that sheets written before do not have; what is in them is empty then."""

    name: str
    columns: tuple[str, ...]
    later: frozenset[str] = frozenset()

    @property
    def header(self) -> tuple[str, ...]:
        return (self.name, *self.columns[1:])


class Line(NamedTuple):
    """A record of a sheet and the line that it begins on, from 1."""

    number: int
    row: Row

    def error(self, column: str, why: str, kind: E = E.USAGE) -> FsError:
        return FsError(kind, f"line {self.number}: column {column}: {why}")


# writing


class Export:
    """The source of a sheet's stream: ``rows`` are the records, as they are when it is opened."""

    def __init__(self, form: Form, rows: Iterable[Sequence[str]]) -> None:
        self._rows: Iterator[Sequence[str]] = iter([form.header])
        self._more: Iterator[Sequence[str]] | None = iter(rows)  # None: that is all

    async def next(self) -> bytes | None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        while text.tell() < PIECE:
            row = next(self._rows, None)
            if row is not None:
                writer.writerow(row)
            elif self._more is not None:
                self._rows, self._more = self._more, None
            else:
                break
        return text.getvalue().encode() or None

    def close(self, undelivered: bytes | None) -> None:
        """Nothing is taken by reading."""


def written(rows: Iterable[Sequence[str]]) -> bytes:
    """The rows as lines of a sheet."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def export(form: Form, rows: Callable[[Caller], Iterable[Sequence[str]]]) -> Stream:
    """A file that is the sheet."""
    return Stream(lambda caller: Export(form, rows(caller)))


# reading


def read(form: Form, data: bytes) -> list[Line]:
    """The records of a sheet. Raises FsError(E.USAGE) that names the line, and the column if it is one's."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise FsError(E.USAGE, f"line {number}: byte {error.start}: not UTF-8") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: list[Line] = []
    empty, columns = dict.fromkeys(form.columns, ""), form.columns
    began = 1
    try:
        for fields in reader:
            if began == 1:
                columns = _columns(form, fields)
            elif len(fields) != len(columns):
                raise FsError(E.USAGE, f"line {began}: {len(fields)} columns, expected {len(columns)}")
            else:
                found.append(Line(began, empty | dict(zip(columns, fields, strict=True))))
            began = reader.line_num + 1
    except csv.Error as error:
        raise FsError(E.USAGE, f"line {reader.line_num}: {error}") from error
    if began == 1:
        _columns(form, [])
    _check_once(form, found)
    return found


def _columns(form: Form, fields: list[str]) -> tuple[str, ...]:
    """The columns of a sheet that has this header. Raises FsError when that is none of the form's."""
    columns = tuple(each for each in form.columns if each in fields or each not in form.later)
    if tuple(fields) == (form.name, *columns[1:]):
        return columns
    expected = ",".join(form.header)
    if fields and fields[0].partition(".v")[0] == form.name.partition(".v")[0] and fields[0] != form.name:
        raise FsError(E.VERSION, f"line 1: column 1: {fields[0]}, expected {form.name}")
    raise FsError(E.USAGE, f"line 1: expected the header {expected}")


def _check_once(form: Form, lines: list[Line]) -> None:
    seen: dict[str, int] = {}
    for line in lines:
        name = line.row[form.columns[0]]
        if name in seen:
            raise line.error(form.columns[0], f"{name} is on line {seen[name]} too")
        seen[name] = line.number


def entries(lines: Sequence[str]) -> Iterator[Sequence[str]]:
    """The lines in parts that are an entry of the ledger each: what follows from a line is about as long."""
    first = size = 0
    for n, line in enumerate(lines):
        size += 3 * len(line.encode()) + EVENT_MAX
        if size > ENTRY_MAX and n > first:
            yield lines[first:n]
            first, size = n, 3 * len(line.encode()) + EVENT_MAX
    if lines:
        yield lines[first:]


# staging


class Draft(Memory):
    """A sheet on its way in. Its times are the tree's, as of all files whose times say nothing."""

    def attr(self, caller: Caller) -> Maybe[Attr]:
        self.version = self.data.version
        return File.attr(self, caller)


class Staged:
    """What tenants have written to ``import.csv`` and not imported yet, in memory."""

    def __init__(self) -> None:
        self._files: dict[str, Draft] = {}

    def file(self, caller: Caller) -> Draft:
        """The tenant's file, begun when it is looked at."""
        found = self._files.get(caller.tenant)
        if found is None:
            found = self._files[caller.tenant] = Draft(size_max=BYTES_MAX)
        return found

    def read(self, form: Form, caller: Caller, digest: str) -> list[Line]:
        """Its records, when its SHA-256 is ``digest``. Raises FsError."""
        data = self.file(caller).data.read(0, BYTES_MAX)
        found = sha256(data).hexdigest()
        if found != digest.removeprefix("sha256:"):
            raise FsError(E.TAMPER, f"sha256={digest}: import.csv is {found}")
        return read(form, data)

    def done(self, caller: Caller) -> None:
        """It was imported."""
        self._files.pop(caller.tenant, None)
