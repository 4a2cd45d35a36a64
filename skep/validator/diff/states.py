"""Differences of what a ledger came to: of two checkpoints, of two snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from skep.trace.checkpoint import parse_checkpoint
from skep.trace.entry import canonical
from skep.trace.note import Note
from skep.trace.snapshot import SnapshotError, read_snapshot
from skep.validator.diff.report import Change, Field, Report, Tally
from skep.validator.diff.rules import Rules
from skep.validator.diff.traces import NotTold, Shown
from skep.validator.replay.replay import differing

ROW_DEPTH: Final = 3  # noun, table, row


def diff_checkpoints(a: Note, b: Note, rules: Rules) -> Report:
    """What two signed heads say, as far as they tell it alone. Raises NoteError."""
    heads = [parse_checkpoint(note.text) for note in (a, b)]
    old, new = heads
    values: list[dict[str, Any]] = [
        {"origin": head.origin, "size": head.size, "root": head.root.hex()} for head in heads
    ]
    fields = tuple(Field(*each) for each in differing(values[0], values[1]))
    report = Report("entries", old.size, new.size, same=int(not fields))
    if fields:
        shown = [Shown(head.size, head.origin, "", "", "checkpoint", "") for head in heads]
        report.counts["changed"] = 1
        report.changes.append(Change("changed", shown[0], shown[1], fields))
        report.note = _told(old.origin == new.origin, old.size, new.size)
    return report.close(rules)


def _told(one_log: bool, old: int, new: int) -> str:
    if not one_log:
        return "they are of two logs"
    if old == new:
        return f"forked: two roots of {old} entries"
    older = "first" if old < new else "second"
    return f"the {older} is older: whether the other continues it, skep verify tells from the log"


def diff_snapshots(a: Path, b: Path, rules: Rules) -> Report:
    """The rows of their tables, by their names: an id stands for itself. Who signed is not asked. Raises
    NotTold."""
    (head_a, rows_a), (head_b, rows_b) = _rows_of(a), _rows_of(b)
    report = Report("rows", len(rows_a), len(rows_b))
    if head_a != head_b:
        report.note = f"of {head_a} and of {head_b}"
    tally = Tally(report, rules)
    shown_a, shown_b = _shown(rows_a), _shown(rows_b)
    for path in sorted(rows_a.keys() | rows_b.keys()):
        if path not in rows_b:
            tally.add(Change("removed", shown_a[path], None))
        elif path not in rows_a:
            tally.add(Change("added", None, shown_b[path]))
        elif rows_a[path] == rows_b[path]:
            report.same += 1
        else:
            fields = tuple(Field(*each) for each in differing(rows_a[path], rows_b[path]))
            tally.add(Change("changed", shown_a[path], shown_b[path], fields))
    return report.close(rules)


def _rows_of(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        found = read_snapshot(path)
        state = msgspec.msgpack.decode(found.packed)
    except (SnapshotError, msgspec.DecodeError) as error:
        raise NotTold(f"{path}: {error}") from error
    return f"{found.head.size} entries of {found.head.origin}", dict(_rows(state, "", 0))


def _rows(value: Any, at: str, depth: int) -> Iterator[tuple[str, Any]]:
    """``/jobs/by_id/<id>`` and what stands there: a noun has tables, and those have rows."""
    if depth < ROW_DEPTH and isinstance(value, Mapping):
        for name, of in value.items():
            yield from _rows(of, f"{at}/{_name(name)}", depth + 1)
    else:
        yield at, _plain(value)


def _plain(value: Any) -> Any:
    """The same for JSON, whose names are texts."""
    if isinstance(value, Mapping):
        return {_name(name): _plain(of) for name, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return value.hex() if isinstance(value, bytes) else value


def _name(name: Any) -> str:
    return name if isinstance(name, str) else canonical(name).decode()


def _shown(rows: Mapping[str, Any]) -> dict[str, Shown]:
    return {path: Shown(n, "", "", path, "", "") for n, path in enumerate(sorted(rows), 1)}
