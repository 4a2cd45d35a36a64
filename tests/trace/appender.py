"""A process that writes to a ledger until it is killed, or ``count`` times: appender.py path name [count].

Each answered write is a line ``seq value`` on its output: what the ledger must never lose."""

from __future__ import annotations

import asyncio
import os
import sys

from registers import Event, Registers, Reply, State, line

from skep.trace.clock import SystemClock
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Turn

WRITERS = 8
clock = SystemClock()


async def write(turn: Turn[State, Event, Reply], name: str, count: int) -> None:
    for _ in range(count):
        done = await turn.submit(line(f"add {name} 1", "add total 1", trace=clock.new_id()))
        os.write(1, b"%d %d\n" % (done.seq, int(float(done.replies[0] or 0))))


async def main(path: str, name: str, count: int) -> None:
    turn: Turn[State, Event, Reply] = Turn(SqliteLedger(path), Registers())
    os.write(1, b"ready\n")
    await asyncio.gather(*(write(turn, f"{name}{n}", count) for n in range(WRITERS)))
    await turn.close()
    turn.ledger.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else sys.maxsize))
