"""What the queues keep their jobs in: a queen, Redis and PostgreSQL, each in a temporary directory, on Unix
sockets, fsync at every commit; and how processes are begun, waited for and ended."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).parents[2]
START_S: Final = 60.0
STOP_S: Final = 10.0
POSTGRES_USER: Final = "postgres"  # the server does not run as root


@contextmanager
def process(
    command: list[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    told: bool = False,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[str]]:
    """It within the ``with``, a leader of its own group, and what it began ended with it. ``told``: its stdin
    and stdout are ours. ``stop``: what it is asked to end with."""
    with log.open("a") as out:
        begun = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.PIPE if told else subprocess.DEVNULL,
            stdout=subprocess.PIPE if told else out,
            stderr=out,
            text=True,
            start_new_session=True,
        )
    try:
        yield begun
    finally:
        end(begun, stop)


def end(begun: subprocess.Popen[str], stop: signal.Signals) -> None:
    """Ask it to end, then end it and whatever is left of its group."""
    begun.send_signal(stop)
    with suppress(subprocess.TimeoutExpired):
        begun.wait(STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    for pipe in (begun.stdin, begun.stdout):
        if pipe is not None:
            pipe.close()


def wait_until(ready: Callable[[], bool], what: str, log: Path) -> None:
    """Return when it is. Raises RuntimeError with the end of the log when that takes too long."""
    give_up = time.monotonic() + START_S
    while not ready():
        if time.monotonic() > give_up:
            raise RuntimeError(f"{what}: not ready in {START_S:.0f} s\n{log.read_text()[-2000:]}")
        time.sleep(0.02)


def line_of(pipe: IO[str] | None, log: Path) -> str:
    """The next line that a process tells. Raises RuntimeError with the end of its log when it has ended."""
    assert pipe is not None
    line = pipe.readline()
    if not line:
        raise RuntimeError(f"it has ended\n{log.read_text()[-2000:]}")
    return line


@contextmanager
def queen(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A hive with the default pool; hive.sock and worker.sock in the directory."""
    log = directory / "queen.log"
    command = [sys.executable, "-m", "skep", "serve", "--dir", str(directory / "hive")]
    command += ["--listen", f"unix:{directory}/hive.sock"]
    with process(command, log) as begun:
        wait_until(lambda: (directory / "worker.sock").exists(), "skep serve", log)
        yield begun


@contextmanager
def redis(directory: Path) -> Iterator[str]:
    """Its socket. Every command is in the append-only file, on the disk, before its answer leaves."""
    log, socket = directory / "redis.log", directory / "redis.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(directory)]
    command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    with process(command, log):
        wait_until(socket.exists, "redis-server", log)
        yield str(socket)


@contextmanager
def postgres(directory: Path) -> Iterator[str]:
    """A connection string. Its defaults are the durable ones: fsync and synchronous_commit are on."""
    log, data = directory / "postgres.log", directory / "postgres"
    data.mkdir()
    as_user: list[str] = []
    if os.getuid() == 0:
        found = pwd.getpwnam(POSTGRES_USER)
        os.chown(data, found.pw_uid, found.pw_gid)
        directory.chmod(0o711)
        as_user = ["setpriv", f"--reuid={found.pw_uid}", f"--regid={found.pw_gid}", "--init-groups"]
    made = [*as_user, _program("initdb"), "-D", str(data / "db"), "-A", "trust", "-U", POSTGRES_USER]
    with log.open("w") as out:
        subprocess.run(made, cwd="/", stdout=out, stderr=out, check=True)
    command = [*as_user, _program("postgres"), "-D", str(data / "db"), "-k", str(data)]
    # Its fast shutdown: clients that are still there are cut off.
    with process([*command, "-c", "listen_addresses="], log, stop=signal.SIGINT):
        wait_until((data / ".s.PGSQL.5432").exists, "postgres", log)
        yield f"host={data} user={POSTGRES_USER} dbname=postgres"


def _program(name: str) -> str:
    """Debian keeps PostgreSQL's programs out of PATH, a directory for each version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name) or name


def has(*programs: str) -> bool:
    return all(Path(_program(name)).is_absolute() for name in programs)
