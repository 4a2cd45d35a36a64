"""How fast a ledger is decided again: python -m tests.bench.replaying

A hive's ledger is made in memory by a mix of what people, workers and the hive write: jobs from submit to
ack, some renewed, failed and tried again, lost; locks, triggers, configuration, and refusals. Then what
replaying it is made of is timed apart: read and verified, decoded, folded, decided and compared, and ``skep
replay`` as a whole, with what starts it. All of it is processor time of one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from skep.fs.node import Caller
from skep.namespaces.hive import HiveState
from skep.namespaces.order import HIVE_TENANT
from skep.trace.clock import MS, SECOND
from skep.trace.sqlite import SqliteLedger
from skep.validator.replay.replay import Replay
from tests.namespaces.hives import ANN, BOB, EYE
from tests.validator.recorded import HIVE, Recorder, ledger

ENTRIES: Final = 100_000
JOB_NS: Final = 20 * MS  # of the hive's clock between two submits: a busy hive's
WAITING: Final = 64  # jobs that stand in the queue
WORKERS: Final = 16
RUNS: Final = Caller("hive", "hive", tenant=HIVE_TENANT)


class Busy(Recorder):
    """A hive that has much to do. No state is kept to take a write back: none is refused after its first
    line."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = [Caller("unix:work", "drone-worker", node=f"w{n}") for n in range(1, WORKERS + 1)]
        self.jobs = 0
        for worker in self.workers[2:]:
            self.write(f"/nodes/{worker.node}", "join principal=unix:work role=drone-worker", who=HIVE)
        self.write("/pools/ctl", "create pool=slim queue=1", "map topic=slim pool=slim")
        self.write("/triggers/ctl", "create trigger=next on=job.ended on-topic=sum topic=after input=event")
        self.write("/pools/ctl", "create pool=after queue=1000", "map topic=after pool=after")
        self.write("/jobs/ctl", "submit topic=slim")
        for _ in range(WAITING):
            self.ask()

    def _before(self) -> HiveState:
        return self.state

    def ask(self) -> None:
        """One more job, as various as they come."""
        n, self.jobs = self.jobs, self.jobs + 1
        who = BOB if n % 4 == 3 else ANN
        more = (
            f"input='part {n}'",
            f"input='part {n}' priority={n % 10} labels=batch:{n % 7} key=k{n}",
            f"input='part {n}' retries=2 timeout=10m workflow=nightly run=r{n // 50}",
            f"input={n}",
        )
        self.submit(more[n % 4], who)

    def work(self) -> None:
        """A job is asked for, and another is done, or not at once."""
        self.clock.advance(JOB_NS)
        n = self.jobs
        self.ask()
        worker = self.workers[n % WORKERS]
        job = self.lease(worker)
        match n % 20:
            case 0:
                self.tell(job, "start", who=worker)
                self.tell(job, "renew", who=worker)
                self.tell(job, "ack", who=worker)
            case 1:
                self.tell(job, "start", "nack delay=2s error='exit status 1'", who=worker)
                self.clock.advance(2 * SECOND)
                if self.state.jobs.by_id[job].state == "delayed":
                    self.write(f"/jobs/{job}", "wake", who=HIVE)
            case 2:
                self.clock.advance(31 * SECOND)
                self.write(f"/jobs/{job}", "expire fence=1", who=HIVE)
                self.tell(job, "ack", who=worker, fence=1)
            case 3:
                self.tell(job, "start", who=worker)
                self.write("/jobs/ctl", f"cancel job={job} reason='no longer needed'")
            case _:
                self.tell(job, "start", "ack", who=worker)
        self._aside(n, job)

    def _aside(self, n: int, job: str) -> None:
        if n % 10 == 0:
            fence = self.write("/locks/ctl", "acquire name=door mode=x ttl=30s")
            self.write("/locks/ctl", "acquire name=door mode=x ttl=30s", who=self.workers[0])
            self.write("/locks/ctl", f"release name=door fence={fence}")
        if n % 10 == 5:
            self.submit("input=a", EYE)
            self.write("/jobs/ctl", "submit topic=slim", who=BOB)
        if n % 10 == 7:
            event = f'{{"type":"job.ended","job":"{job}","state":"succeeded"}}'
            fire = f"fire seq={len(self.bodies)} k=0 depth=0 event='{event}'"
            after = self.write("/triggers/next", fire, who=RUNS)
            self.write("/jobs/ctl", f"cancel job={after}")
        if n % 200 == 9:
            self.publish("system", {"limits": {"waiting": 1000 + n}})


def made(entries: int) -> list[bytes]:
    """The ledger's entries: so many, or a few more."""
    hive = Busy()
    while len(hive.bodies) < entries:
        hive.work()
    return hive.bodies


def timed(run: Callable[[], object]) -> float:
    """Seconds of processor time."""
    began = time.process_time()
    run()
    return time.process_time() - began


def read(path: Path) -> None:
    with closing(SqliteLedger(str(path))) as opened:
        for _ in opened.tail():
            pass


def measured(path: Path, bodies: list[bytes]) -> dict[str, float]:
    """Entries a second, by what is done."""
    first, again = Replay(), Replay()
    entries = [first.decode(seq, body) for seq, body in enumerate(bodies, 1)]
    # A replay has one entry in hand, and cycles are not looked for among those that are held here.
    gc.freeze()

    def decode() -> None:
        for seq, body in enumerate(bodies, 1):
            first.decode(seq, body)

    def fold() -> None:
        for entry in entries:
            first.fold(entry)

    def judge() -> None:
        for entry, body in zip(entries, bodies, strict=True):
            assert again.judge(entry, body) is None, entry

    def whole() -> None:
        command = [sys.executable, "-m", "skep", "replay", str(path)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    took = {
        "read and verified": timed(lambda: read(path)),
        "decoded": timed(decode),
        "folded": timed(fold),
        "decided and compared": timed(judge),
    }
    before = os.times()
    whole()
    after = os.times()
    took["skep replay"] = sum(after[2:4]) - sum(before[2:4])
    return {name: len(bodies) / seconds for name, seconds in took.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    parser.add_argument("--directory", default="/dev/shm", help="where the ledger is laid, and removed again")
    args = parser.parse_args()
    bodies = made(args.entries)
    with TemporaryDirectory(dir=args.directory) as directory:
        rates = measured(ledger(Path(directory) / "ledger.db", bodies), bodies)
    if args.json:
        print(json.dumps({"entries": len(bodies), "entries a second": rates}))
        return 0
    print(f"{len(bodies)} entries, {sum(map(len, bodies)) // len(bodies)} bytes each; entries a second:")
    for name, rate in rates.items():
        print(f"{name:>22} {rate:10,.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
