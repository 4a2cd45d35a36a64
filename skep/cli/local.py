"""``skep up`` and ``skep down``: a queen, a worker and a mount on this machine, each a process of its own.

DIR/<part>.pid    its process; locked as long as that lives, whoever started it
DIR/<part>.log    what it prints
DIR/handlers.toml what the worker does; written when missing, then yours
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple

import click

from skep.cli.connect import ADDRESS, dialled, reached_at
from skep.cli.exits import Failed
from skep.fs.address import Address, parse

READY_S: Final = 30.0  # a ledger of a million entries is read in less
STOP_S: Final = 60.0  # a worker ends what it runs
STEP_S: Final = 0.05
NODE: Final = "w1"
HANDLERS: Final = """\
# What the worker does: a topic, the program for it, its limits. Never a shell. {input} is the input's file.
[sha256]
argv = ["sha256sum", "{input}"]
timeout = "10m"
result = "first-word"   # of the last line it prints: the hash without the file's name
"""


class Part(NamedTuple):
    """One process: what is run, and the line by which it says that it can be used."""

    name: str
    args: tuple[str, ...]
    ready: str


def parts(
    directory: Path, mount: Path, listen: tuple[Address, ...] = (), name: str | None = None
) -> tuple[Part, ...]:
    """What makes a hive on this machine, in the order of starting. ``listen``: for others to come by."""
    hive, workers = f"unix:{directory}/hive.sock", f"unix:{directory}/worker.sock"
    state, handlers = f"{directory}/worker", f"{directory}/handlers.toml"
    where = [word for address in (hive, *map(str, listen)) for word in ("--listen", address)]
    nodes = ("--listen-workers", workers, "--listen-annexes", f"unix:{directory}/annexes.sock")
    called = ("--name", name) if name else ()
    return (
        Part("queen", ("serve", "--dir", str(directory), *where, *nodes, *called), "ready"),
        Part(
            "worker",
            ("worker", "-H", workers, "--handlers", handlers, "--node", NODE, "--dir", state),
            f"ready {NODE}",
        ),
        Part("mount", ("mount", hive, str(mount)), "mounted"),
    )


_directory: Final = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("var/hive"),
    show_default=True,
    help="Where the hive is kept.",
)
_mount: Final = click.option(
    "--mount",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("n/hive"),
    show_default=True,
    help="Where it is mounted.",
)


@click.command()
@_directory
@_mount
@click.option(
    "--listen",
    type=ADDRESS,
    multiple=True,
    envvar="SKEP_LISTEN",
    help="Where others reach it, tls:host:port; again for more. Default: SKEP_LISTEN, else nowhere.",
)
@click.option(
    "--name", envvar="SKEP_NAME", help="A new hive's, in its certificates. Default: SKEP_NAME, else made up."
)
def up_command(directory: Path, mount: Path, listen: tuple[Address, ...], name: str | None) -> None:
    """Start a hive and a worker here, and mount it. What runs already is left alone.

    Its keys are made at the first start, in --dir. Other workers of this machine come in at worker.sock
    there, an annex at annexes.sock (skep serve --role cuda-annex).

    \b
    Examples:
      skep up
      skep up --dir /srv/hive --mount /n/hive
      skep up --listen tls:0.0.0.0:5640
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    # It may be there already: as a directory, or as the mount of a hive that was killed, which tells nothing.
    with contextlib.suppress(FileExistsError):
        mount.mkdir(parents=True)
    handlers = directory / "handlers.toml"
    if not handlers.exists():
        handlers.write_text(HANDLERS)
    for part in parts(directory, mount, listen, name):
        pid = running(directory, part)
        if pid:
            click.echo(f"{part.name:6} runs already (pid {pid})")
            continue
        pid = start(directory, part)
        click.echo(f"{part.name:6} started (pid {pid}), its log is {directory / part.name}.log")
    for address in asyncio.run(_reached_at(parse(f"unix:{directory}/hive.sock"))):
        click.echo(f"others reach it at {address}")
    click.echo(f"the hive is mounted at {mount}; without the mount:")
    click.echo(f"  export SKEP_HIVE=unix:{(directory / 'hive.sock').absolute()}")


async def _reached_at(hive: Address) -> list[str]:
    async with dialled(hive) as client:
        return await reached_at(client)


@click.command()
@_directory
@_mount
def down_command(directory: Path, mount: Path) -> None:
    """Drain, unmount and stop what `skep up` started. The worker ends its jobs first.

    \b
    Examples:
      skep down
      skep down --dir /srv/hive --mount /n/hive
    """
    queen, worker, mounted = parts(directory, mount)
    for part in (worker, mounted, queen):
        pid = running(directory, part)
        if not pid:
            click.echo(f"{part.name:6} does not run")
            continue
        in_time = stop(directory, part, pid)
        click.echo(f"{part.name:6} {'stopped' if in_time else f'killed: it ran on for {STOP_S:.0f} s'}")
    if os.path.ismount(mount):
        raise Failed(f"{mount} is mounted still: skep umount --lazy {mount}")


def running(directory: Path, part: Part) -> int:
    """The pid of the part; 0: it does not run."""
    try:
        with (directory / f"{part.name}.pid").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0)
            return 0
    except FileNotFoundError:
        return 0


def start(directory: Path, part: Part) -> int:
    """The pid of the part, started and ready. Raises Failed with what it printed."""
    with (
        (directory / f"{part.name}.pid").open("w") as pid,
        (directory / f"{part.name}.log").open("a+b") as log,
    ):
        fcntl.flock(pid, fcntl.LOCK_EX)
        began = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "skep", *part.args],
            # What they say is in the arguments: said twice, the queen would take them for all she serves at.
            env={name: said for name, said in os.environ.items() if name not in ("SKEP_LISTEN", "SKEP_NAME")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # The lock is the open file's: it lasts until the process has ended.
            pass_fds=(pid.fileno(),),
        )
        pid.write(f"{process.pid}\n")
        pid.flush()
        until = time.monotonic() + READY_S
        while True:
            log.seek(began)
            said = log.read()
            if part.ready.encode() in said.splitlines():
                return process.pid
            if process.poll() is not None or time.monotonic() > until:
                why = "has ended" if process.poll() is not None else f"is not ready after {READY_S:.0f} s"
                process.terminate()
                tail = said.decode(errors="replace").strip() or "it said nothing"
                raise Failed(f"the {part.name} {why}:\n{tail}")
            time.sleep(STEP_S)


def stop(directory: Path, part: Part, pid: int) -> bool:
    """End the part; whether it did so by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        until = time.monotonic() + STOP_S
        while time.monotonic() < until:
            if not running(directory, part):
                return number is signal.SIGTERM
            time.sleep(STEP_S)
    raise Failed(f"the {part.name} (pid {pid}) does not end")
