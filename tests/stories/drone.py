"""A worker of the story of 20,000 jobs: drone.py ADDRESS RECORD, a line of RECORD for each job done."""

from __future__ import annotations

import asyncio
import sys
from hashlib import sha256
from pathlib import Path

from skep.worker import Job, Worker

AT_A_TIME = 16
LONG_S = 0.3


def main(address: str, record: str) -> None:
    worker = Worker(address, pools=["brief"], concurrency=AT_A_TIME)
    with Path(record).open("a", buffering=1) as done:

        @worker.handles("sum")
        async def total(job: Job) -> str:
            if job.fence > 1 or job.id[-1] == "0":
                # Some take a while, so that a worker that is stopped has begun something.
                await asyncio.sleep(LONG_S)
            done.write(f"{job.id} {job.fence}\n")
            return sha256(job.input_file().read_bytes()).hexdigest()

        worker.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
