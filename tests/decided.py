"""What a hive of the tests has written down is decided again by the validator: no line comes out other. What
holds in every hive, holds of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from skep.roles.outside import outside_of
from skep.trace.ledger import Ledger, open_ledger
from skep.validator.assertions import rules
from skep.validator.assertions.assertions import check
from skep.validator.assertions.facts import LedgerFacts
from skep.validator.replay.lines import differences
from skep.validator.replay.replay import Replay
from skep.validator.replay.report import Tail, report

DEFAULT = Path(rules.__file__).with_name("default.rules")
ENTRIES_MAX = 5000  # of one ledger: of long stories the beginning


class Written:
    """An open ledger, from its beginning on."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def tail(self, known: int = 0) -> Iterator[tuple[int, bytes]]:
        while rows := self.ledger.read(known):
            yield from rows
            known = rows[-1][0]


def check_decided(ledger: Tail) -> None:
    """Replay it, which is closed to others."""
    found = report(ledger, Replay(), last=ENTRIES_MAX, to_end=True)
    assert found.same, "\n".join(differences(found))


def check_directory(directory: Path) -> None:
    """The ledger of a hive that has ended: a copy, as who opens it last takes its write-ahead log away."""
    with TemporaryDirectory(prefix="skep-decided-") as copy:
        for file in directory.glob("ledger.db*"):
            shutil.copy(file, copy)
        for checked in (check_decided, check_asserted):
            with closing(open_ledger(f"{copy}/ledger.db")) as ledger:
                checked(ledger)


def check_asserted(ledger: Ledger) -> None:
    """No rule is broken that holds in every hive."""
    facts = LedgerFacts(outside_of())
    told = (fact for seq, body in ledger.tail() if seq <= ENTRIES_MAX for fact in facts.of(seq, body))
    found = check(rules.read(DEFAULT.read_text()), told, talk=False)
    assert not [each for each in found if each.broken]
