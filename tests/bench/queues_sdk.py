"""The no-op job as users of skep.worker write it: python -m tests.bench.queues_sdk ADDRESS WORKERS."""

from __future__ import annotations

import sys
from typing import Final

SDK: Final = "sdk"  # the pool, and the topic mapped to it


def main() -> None:
    from skep.worker import Job, Worker

    where, workers = sys.argv[1:]
    worker = Worker(where, node="sdk", pools=[SDK], concurrency=int(workers))

    @worker.handles(SDK)
    async def noop(job: Job) -> str:
        return "ok"

    worker.run()


if __name__ == "__main__":
    main()
