"""The submitters: a process that submits as many jobs as each line of its stdin says, and tells how it went.

    python -m tests.bench.queues_load QUEUE WHERE

QUEUE is a name of SUBMIT, WHERE the address its client takes. The answer to a line is a line of JSON: began
and ended, CLOCK_MONOTONIC in ns, which the processes of a machine share, and took, ns of each submit.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final

from tests.bench.queues_sdk import SDK

PAYLOAD: Final = "x" * 100  # what every job of every queue carries


def skep(where: str, topic: str = "sha256") -> Callable[[], object]:
    from skep.native.load import FILE, Place, attach, call, reach

    place = Place(where, "jobs/ctl")
    sock, _ = attach(place, 65536, 30.0)
    reach(sock, place, 1)
    line = f"submit topic={topic} input={PAYLOAD}\n".encode()
    body = FILE.to_bytes(4, "little") + bytes(8) + len(line).to_bytes(4, "little") + line
    return lambda: call(sock, 0, 118, body)


def celery(where: str) -> Callable[[], object]:
    from tests.bench.queues_apps import celery_app

    task = celery_app(where).tasks["noop"]
    return lambda: task.delay(PAYLOAD)


def rq(where: str) -> Callable[[], object]:
    from redis import Redis
    from rq import Queue

    from tests.bench.queues_apps import noop

    queue = Queue(connection=Redis(unix_socket_path=where, db=1))
    return lambda: queue.enqueue(noop, PAYLOAD)


def huey(where: str) -> Callable[[], object]:
    from tests.bench.queues_apps import huey_app

    task = huey_app(where).noop
    return lambda: task(PAYLOAD)


def procrastinate(where: str) -> Callable[[], object]:
    from procrastinate import SyncPsycopgConnector

    from tests.bench.queues_apps import procrastinate_app

    app = procrastinate_app(SyncPsycopgConnector(conninfo=where))
    app.open()
    task = app.tasks["noop"]
    return lambda: task.defer(text=PAYLOAD)


SUBMIT: Final[Mapping[str, Callable[[str], Callable[[], object]]]] = {
    "skep": skep,
    "skep sdk": lambda where: skep(where, SDK),
    "celery": celery,
    "rq": rq,
    "huey": huey,
    "procrastinate": procrastinate,
}


def submitted(submit: Callable[[], object], jobs: int) -> dict[str, object]:
    """Submit so many, one after the other."""
    took = []
    began = last = time.monotonic_ns()
    for _ in range(jobs):
        submit()
        now = time.monotonic_ns()
        took.append(now - last)
        last = now
    return {"began": began, "ended": last, "took": took}


def main() -> None:
    queue, where = sys.argv[1:]
    submit = SUBMIT[queue](where)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(submitted(submit, int(line))), flush=True)


if __name__ == "__main__":
    main()
