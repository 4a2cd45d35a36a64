"""A worker that does what the conformance kit asks for.

skep conformance worker -- python examples/worker.py
"""

import asyncio

from skep.worker import Fail, Job, ThreadJob, Worker

worker = Worker()


@worker.handles("kit.echo")
async def echo(job: Job) -> str | None:
    return job.text


@worker.handles("kit.fail")
def fail(job: ThreadJob) -> None:
    raise RuntimeError(job.text)


@worker.handles("kit.slow")
async def slow(job: Job) -> None:
    try:
        seconds = float(job.text or "")
    except ValueError:
        raise Fail(f"{job.text}: expected seconds", code="bad-input") from None
    await asyncio.sleep(seconds)


@worker.handles("kit.artifact")
def copy(job: ThreadJob) -> str:
    return job.put("copy", job.input_file())


if __name__ == "__main__":
    worker.run()
