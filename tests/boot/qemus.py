"""A QEMU that is none: what stands at the other end of the lab's sockets, as a program of its own.

    python qemus.py WAY QEMU-ARGUMENTS...

Ways: see WAYS. Where SKEP_QEMU_X86_64 names a script that runs this, the lab takes it for QEMU."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

GREETING = {
    "QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}, "capabilities": []}
}
VERSION = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}


def written(into: Path, way: str) -> Path:
    """A script to name as QEMU."""
    path = into / f"qemu-{way}"
    # -I -S: it starts in a few milliseconds.
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {way} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class Monitor:
    """The lab's monitor socket, from the other end."""

    def __init__(self, argv: list[str]) -> None:
        (self.fd,) = (int(found[1]) for each in argv if (found := re.search(r"qmp0,fd=(\d+)", each)))
        self.socket = socket.socket(fileno=self.fd)

    def say(self, what: object) -> None:
        self.socket.sendall(json.dumps(what).encode() + b"\n")

    def answer(self, what: object) -> None:
        """To what is asked next."""
        asked = self.asked()
        self.say({"return": what} | {key: asked[key] for key in ("id",) if key in asked})

    def asked(self) -> dict[str, str]:
        """What is asked next: no newline follows it."""
        data = b""
        while True:
            data += self.socket.recv(4096)
            with contextlib.suppress(ValueError):
                return dict(json.loads(data))

    def open(self) -> None:
        self.say(GREETING)
        self.answer({})


def hang() -> None:
    while True:
        signal.pause()


def ends(monitor: Monitor) -> None:
    sys.exit(3)


def complains(monitor: Monitor) -> None:
    sys.exit("toaster: there is no bread")


def silent(monitor: Monitor) -> None:
    hang()


def garbage(monitor: Monitor) -> None:
    monitor.socket.sendall(b"\xff\x00 {]\n" * 100)
    hang()


def endless(monitor: Monitor) -> None:
    while True:
        monitor.socket.sendall(b"x" * 65536)


def unfriendly(monitor: Monitor) -> None:
    monitor.say(GREETING)
    hang()


def mute(monitor: Monitor) -> None:
    monitor.open()
    hang()


def odd(monitor: Monitor) -> None:
    monitor.open()
    monitor.answer({"qemu": 7})
    hang()


def mad(monitor: Monitor) -> None:
    monitor.open()
    monitor.answer(VERSION)
    monitor.asked()
    monitor.socket.sendall(b'{"return": [}\n')
    hang()


def gone(monitor: Monitor) -> None:
    """Hangs up, and stays."""
    monitor.open()
    monitor.asked()
    monitor.socket.shutdown(socket.SHUT_RDWR)
    hang()


def hasty(monitor: Monitor) -> None:
    monitor.open()
    monitor.socket.shutdown(socket.SHUT_RDWR)
    hang()


def chatty(monitor: Monitor) -> None:
    """Fills the pipe of its errors."""
    monitor.open()
    monitor.answer(VERSION)
    end = time.monotonic() + 0.2
    while time.monotonic() < end:
        sys.stderr.write("warning: " * 1000)
    sys.exit(1)


WAYS: dict[str, Callable[[Monitor], None]] = {
    each.__name__: each
    for each in (ends, complains, silent, garbage, endless, unfriendly, mute, odd, mad, gone, hasty, chatty)
}

if __name__ == "__main__":
    WAYS[sys.argv[1]](Monitor(sys.argv[2:]))
