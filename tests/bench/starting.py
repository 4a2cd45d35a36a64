"""What the start of a hive takes that has a long ledger: python -m tests.bench.starting

In process: the ledger of a hive in which jobs were submitted, leased, started and acknowledged is verified
and folded, as a queen does before she serves: from its first entry, and from a snapshot of its first nine
tenths. Processor time is of all threads.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from skep.namespaces.evidence import KEY_FILE
from skep.namespaces.hive import UNRECORDED, Event, HiveRules
from skep.namespaces.live import Hive
from skep.namespaces.policy.keys import load_or_create
from skep.namespaces.stored import Begun, newest
from skep.roles.snapshots import make, own_keys, signing_by
from skep.trace.clock import ManualClock
from skep.trace.entry import entry_decoder
from skep.trace.fold import apply_entry, tail_entries
from skep.trace.snapshot import listed
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Turn
from tests.bench.history import NODE, Filled

PORTION = 1024  # jobs done between two looks at how long the ledger is


class Found(msgspec.Struct):
    """Seconds of processor time, and the entries that each has to do with."""

    entries: int
    folded_s: float  # a start without a snapshot
    made_s: float  # the snapshot, from the ledger's first entry
    behind: int  # entries that came after it
    begun_s: float  # a start with it
    snapshot_bytes: int


async def fill(directory: Path, entries: int, snapshot: Callable[[], None]) -> int:
    """A ledger of so many entries, of which the last tenth comes after ``snapshot``; how many it has."""
    with closing(SqliteLedger(str(directory / "ledger.db"))) as ledger:
        turn = Turn(ledger, HiveRules(), UNRECORDED)
        hive = Hive(turn, ManualClock(), directory)
        await hive.start(("create pool=default queue=100000", "map topic=sum pool=default"))
        await hive.join(NODE)
        filled = Filled(hive, hive.clock)  # type: ignore[arg-type]
        for upto, then in ((entries * 9 // 10, snapshot), (entries, lambda: None)):
            while turn.seq < upto:
                await filled.fill(filled.done + PORTION)
            then()
        await hive.close()
        await turn.close()
        return turn.seq


def started(directory: Path) -> int:
    """Verify and fold the ledger, from a snapshot if there is one; the entries that were folded."""
    rules = HiveRules()
    with closing(SqliteLedger(str(directory / "ledger.db"))) as ledger:
        begun = newest(directory, ledger, own_keys(directory, ""))
        state, seq = begun or Begun(rules.fresh(), 0)
        for entry in tail_entries(ledger, entry_decoder(Event), seq):
            apply_entry(rules, state, entry)
        return ledger.size - seq


def timed(work: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    began = time.process_time()
    work()
    took = time.process_time() - began
    gc.enable()
    return took


def measured(directory: Path, entries: int) -> Found:
    load_or_create(directory / KEY_FILE)
    keys = own_keys(directory, "")
    made_s = 0.0

    def snapshot() -> None:
        nonlocal made_s
        with closing(SqliteLedger(str(directory / "ledger.db"))) as ledger:
            made_s = timed(lambda: make(directory, ledger, keys, signing_by(keys)))

    size = asyncio.run(fill(directory, entries, snapshot))
    (upto, path), *_ = listed(directory)
    begun_s = timed(lambda: started(directory))
    snapshot_bytes = path.stat().st_size
    path.unlink()
    folded_s = timed(lambda: started(directory))
    return Found(size, folded_s, made_s, size - upto, begun_s, snapshot_bytes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--directory", default="/dev/shm", help="where the ledger is laid, and removed again")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.directory) as directory:
        found = measured(Path(directory), args.entries)
    if args.json:
        print(msgspec.json.encode(found).decode())
        return 0
    print(f"{found.entries} entries, s of processor")
    print(f"folded from the first    {found.folded_s:8.2f}")
    print(f"from a snapshot          {found.begun_s:8.2f}  ({found.behind} entries came after it)")
    print(f"the snapshot             {found.made_s:8.2f}  ({found.snapshot_bytes >> 10} KiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
