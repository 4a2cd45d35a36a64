"""The no-op job as each peer's users write it, with the most durable settings the peer has.

Workers import this module by name and find the server's address in the environment, as WHERE says.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, Final

WHERE: Final = "SKEP_BENCH_QUEUE"
RESULT: Final = "ok"
# Celery's advice for many short tasks: "try 50 or 150".
# Source: docs.celeryq.dev, Optimizing, Prefetch Limits.
PREFETCH: Final = 64
CONNECTIONS: Final = 200  # of a process to Redis


def noop(text: str) -> str:
    """The job of RQ, which names it by its path."""
    return RESULT


def celery_app(where: str) -> Any:
    """Acknowledged after it ran, no result backend: the acknowledgement is what Redis is told."""
    from celery import Celery

    app = Celery("bench", broker=f"redis+socket://{where}?virtual_host=0", set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    app.task(noop, name="noop")
    return app


def huey_app(where: str) -> Any:
    """``where``: Redis' socket, or a file for SQLite. Huey takes a job off its queue before it runs it;
    what it stores afterwards is the result."""
    if where.endswith(".sqlite"):
        from huey import SqliteHuey

        app = SqliteHuey("bench", filename=where, fsync=True)  # synchronous=FULL
    else:
        from huey import RedisHuey
        from redis import ConnectionPool, UnixDomainSocketConnection

        # Its own pool has fewer connections than workers may be.
        pool = ConnectionPool(UnixDomainSocketConnection, max_connections=CONNECTIONS, path=where, db=2)
        app = RedisHuey("bench", connection_pool=pool)
    return SimpleNamespace(app=app, noop=app.task(name="noop")(noop))


def procrastinate_app(connector: Any) -> Any:
    from procrastinate import App

    app = App(connector=connector)
    app.task(noop, name="noop")
    return app


def __getattr__(name: str) -> Any:
    """The app that a worker is told to run: celery, huey or procrastinate."""
    where = os.environ.get(WHERE)
    if where is None:
        raise AttributeError(name)
    match name:
        case "celery":
            return celery_app(where)
        case "huey":
            return huey_app(where).app
        case "procrastinate":
            from procrastinate import PsycopgConnector

            return procrastinate_app(PsycopgConnector(conninfo=where))
    raise AttributeError(name)
