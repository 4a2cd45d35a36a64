"""One run of a validator: the log of a hive verified, and replayed, as any outsider can; or two files of
it compared.

What it comes to is a report: what was asked, what was found, and both checkpoints, the one that was served
and the one that was kept, which are the proof where a log was forked or rewound."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec

from skep.namespaces.policy.bundle import BundleError, unpack
from skep.namespaces.policy.core import check_all
from skep.namespaces.validator.runs import REPLAY, Asked
from skep.trace.ledger import LedgerTampered
from skep.trace.note import Vkey, parse_note
from skep.validator.diff.diff import diff
from skep.validator.diff.lines import change_lines, last_lines
from skep.validator.diff.report import SAME
from skep.validator.diff.report import Report as Compared
from skep.validator.diff.rules import Rules
from skep.validator.diff.traces import NotTold
from skep.validator.replay.lines import differences, summary
from skep.validator.replay.policies import OtherPolicy
from skep.validator.replay.replay import Replay, Unfoldable
from skep.validator.replay.report import Report, report
from skep.validator.verify.entries import Entries
from skep.validator.verify.found import Finding
from skep.validator.verify.sources import Read, TileSource
from skep.validator.verify.verify import verify

VERSION: Final = 1  # of the report's form


class Impossible(Exception):
    """The run cannot be done as it was asked; the text says why."""


class Place(msgspec.Struct, frozen=True):
    """The first place that is not consistent, as ``skep verify`` tells it; ``entry`` 0: it is not about one.
    ``kind`` replay: it is consistent, and cannot be replayed."""

    kind: str
    entry: int
    text: str


class Examined(msgspec.Struct):
    """The report of a run. ``good``: all is as it should be; ``verdict`` tells in one line.

    ``checkpoint`` and ``kept`` are signed notes; "": there was none. ``seconds``: how long it took."""

    run: str
    what: str
    asked: Asked
    release: str
    kept: str = ""
    checkpoint: str = ""
    good: bool = False
    verdict: str = ""
    signers: list[str] = []
    finding: Place | None = None  # None: the log is consistent
    replay: Report | None = None  # None: it was not asked for, or there is nothing to replay
    diff: Compared | None = None  # None: it was not asked for
    seconds: float = 0.0
    v: int = VERSION

    def lines(self) -> list[str]:
        """What was found, a line each; none where all is as it should be."""
        if self.diff is not None:
            changes = (change_lines(change) for change in self.diff.changes if not change.excused)
            return [] if self.good else [*chain.from_iterable(changes), *last_lines(self.diff)]
        said = [self.finding.text] if self.finding is not None else []
        return [*said, *(differences(self.replay) if self.replay is not None else ())]


def examine(examined: Examined, content: str, read: Read, pinned: Sequence[Vkey] = ()) -> None:
    """Do the run, whose report this will be, on the log that is read by ``read``. ``content``: the bundle
    that is asked besides, packed; ``pinned``: as verify has it.

    Raises Impossible, and NoteError when what was kept is no checkpoint; whatever the log says is a
    finding."""
    rules = _rules(examined.asked.policy, content)

    def kept(name: str) -> bytes | None:
        data = read(name)
        if name == "checkpoint":
            examined.checkpoint = (data or b"").decode("utf-8", "replace")
        return data

    old = parse_note(examined.kept.encode()) if examined.kept else None
    try:
        source = TileSource(kept)
        verified = verify(source, old, pinned)
        examined.signers = [str(signer) for signer in verified.signers]
        root = b64encode(verified.head.root).decode()
        examined.good = True
        examined.verdict = f"consistent: {verified.head.size} entries of {verified.head.origin}, root {root}"
        if examined.what == REPLAY:
            _replay(examined, Entries(source), Replay(rules))
    except Finding as finding:
        _find(examined, finding.kind.name.lower(), finding.entry, str(finding))
    except (LedgerTampered, Unfoldable) as error:
        _find(examined, "replay", 0, str(error))


def compare(examined: Examined, directory: Path) -> None:
    """Do the run, which compares two files that were fetched into the directory, under the names that they
    have in the log. Raises Impossible."""
    asked = examined.asked
    try:
        found = diff(str(directory / asked.a), str(directory / asked.b), Rules())
    except NotTold as error:
        raise Impossible(str(error).replace(f"{directory}/", "")) from error
    *_, said = last_lines(found)
    examined.diff, examined.good = found, found.status == SAME
    examined.verdict = f"{'same' if examined.good else 'different'}: {said}"


def _rules(policy: str, content: str) -> OtherPolicy | None:
    if not policy:
        return None
    try:
        bundle = unpack(content)
        check_all(bundle)
    except BundleError as error:
        raise Impossible(f"policy={policy}: {error}") from error
    return OtherPolicy(policy, bundle)


def _replay(examined: Examined, entries: Entries, replay: Replay) -> None:
    size, asked = entries.head.size, examined.asked
    if asked.first > size:
        raise Impossible(f"from={asked.first}: the checkpoint has {size} entries")
    found = report(entries, replay, asked.first, min(asked.last or size, size), to_end=True)
    entries.finish()
    examined.replay, examined.good = found, found.same
    examined.verdict = f"{'same' if found.same else 'different'}: {summary(found)}, state {found.digest}"


def _find(examined: Examined, kind: str, entry: int, text: str) -> None:
    examined.finding, examined.replay, examined.good = Place(kind, entry, text), None, False
    examined.verdict = text
