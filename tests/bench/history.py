"""What a job costs when very many were done before it: python -m tests.bench.history

In process: lines through the turn and the policies, the ledger and its index on tmpfs. A hive is filled with
jobs that were submitted, leased, started and acknowledged; after 10^3, 10^5 and 10^6 of them the same is
timed again, one job after the other. What is forgotten, and when, is as in every hive.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from skep.fs.node import Caller
from skep.namespaces.hive import UNRECORDED, HiveRules
from skep.namespaces.live import Hive
from skep.trace.clock import ManualClock
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Turn

ANN = Caller("unix:ann", "operator")
NODE = Caller("unix:work", "drone-worker", node="w1")
AT_ONCE = 64  # jobs of one write while filling: entries are that much fewer, jobs are not.
COLUMNS = ("jobs done", "median µs", "p99 µs", "CPU µs", "in memory", "RSS MiB", "index behind")
STEP_NS = 1_000_000  # of the hive's clock for each job: a thousand a second.


class Filled:
    """A hive and what is done in it."""

    def __init__(self, hive: Hive, clock: ManualClock) -> None:
        self.hive = hive
        self.clock = clock
        self.done = 0

    async def write(self, who: Caller, path: str, *lines: str) -> list[str]:
        return [reply.partition(" ")[0] for reply in await self.hive.command(who, path, lines)]

    async def work(self, jobs: int) -> list[float]:
        """Do jobs, one after the other; seconds of each, from its submit to its ack's answer."""
        took = []
        for _ in range(jobs):
            self.clock.time_ns += STEP_NS
            began = time.perf_counter()
            (job,) = await self.write(ANN, "/jobs/ctl", "submit topic=sum input=1")
            await self.write(NODE, "/pools/default/next", "lease")
            await self.write(NODE, f"/jobs/{job}/ctl", "start fence=1", "ack fence=1 result=1")
            took.append(time.perf_counter() - began)
        self.done += jobs
        return took

    async def fill(self, done: int) -> None:
        """Have so many jobs done, the node's words in fewer writes."""
        while self.done < done:
            some = min(AT_ONCE, done - self.done)
            self.clock.time_ns += some * STEP_NS
            jobs = await self.write(ANN, "/jobs/ctl", *["submit topic=sum input=1"] * some)
            await self.write(NODE, "/pools/default/next", *["lease"] * some)
            await asyncio.gather(
                *(
                    self.write(NODE, f"/jobs/{job}/ctl", "start fence=1", "ack fence=1 result=1")
                    for job in jobs
                )
            )
            self.done += some
            self.hive.history.write()

    async def queue(self, jobs: int) -> int:
        """Bytes of memory for each of so many jobs that wait."""
        gc.collect()
        before = resident()
        for _ in range(jobs // AT_ONCE):
            await self.write(ANN, "/jobs/ctl", *["submit topic=sum input=1"] * AT_ONCE)
        gc.collect()
        return (resident() - before) // jobs


def resident() -> int:
    """Bytes of memory that the process has now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


async def measured(sizes: list[int], samples: int, queued: int, directory: Path) -> None:
    clock = ManualClock()
    # On a file system in memory, if the caller says so: what is measured is not the disk.
    ledger = SqliteLedger(str(directory / "ledger.db"))
    turn = Turn(ledger, HiveRules(), UNRECORDED)
    hive = Hive(turn, clock, directory)
    await hive.start(("create pool=default queue=100000", "map topic=sum pool=default"))
    await hive.join(NODE)
    filled = Filled(hive, clock)
    print(" ".join(f"{title:>12}" for title in COLUMNS), flush=True)
    for size in sizes:
        await filled.fill(size)
        behind = turn.seq - hive.history.seq
        await hive.history.wait_reached(turn.seq)
        gc.collect()
        began = time.process_time()
        took = sorted(await filled.work(samples))
        busy = (time.process_time() - began) / samples
        p99 = took[-max(samples // 100, 1)]
        row = (
            size, *(round(each * 1e6) for each in (median(took), p99, busy)),
            len(turn.state.jobs.by_id), resident() >> 20, behind,
        )  # fmt: skip
        print(" ".join(f"{cell:12}" for cell in row), flush=True)
    print(f"a job that waits: {await filled.queue(queued)} bytes of memory, with both states")
    await hive.close()
    await turn.close()
    ledger.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--done", type=int, nargs="+", default=[10**3, 10**5, 10**6])
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--queued", type=int, default=20_000)
    parser.add_argument("--directory", default="/dev/shm", help="where the ledger is laid, and removed again")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.directory) as directory:
        asyncio.run(measured(args.done, args.samples, args.queued, Path(directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
