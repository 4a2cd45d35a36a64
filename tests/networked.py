"""A hive that listens with TLS on loopback, and people and machines enrolled in it, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skep.fs.dial import Client
from skep.fs.messages import Dialect
from skep.roles.papers import Papers
from tests.daemons import Daemon, Hive, daemon, run
from tests.decided import check_directory

NAME = "testhive"
HANDLERS = """
[sha256]
argv = ["sha256sum", "{input}"]
result = "first-word"

[sleep]
argv = ["sleep", "{text}"]

[copy]
argv = ["cp", "{input}", "out/copy"]

["boot.run"]
argv = ["cp", "{input}", "out/timing.json"]
"""


class Enrolled:
    """Somebody with an identity in ``directory``, far from the hive."""

    def __init__(self, hive: Networked, directory: Path) -> None:
        self.hive = hive
        self.directory = directory
        self.env = {"SKEP_IDENTITY": str(directory), "SKEP_HIVE": hive.tls}

    def skep(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return run(*args, stdin=stdin, env=self.env)

    def ask(self, *args: str, stdin: str = "") -> str:
        done = self.skep(*args, stdin=stdin)
        assert (0, "") == (done.returncode, done.stderr), done
        return done.stdout.rstrip("\n")

    def told(self) -> dict[str, str]:
        """What ``skep identity`` tells."""
        found: dict[str, str] = json.loads(self.ask("identity", "--json"))
        return found

    async def connect(self, **more: Any) -> Client:
        """A session over TLS in this process."""
        identity = Papers(self.directory).identity()
        return await Client.connect(self.hive.tls, identity=identity, **{"dialect": Dialect.U} | more)

    @contextlib.contextmanager
    def working(self, slots: int = 1, pools: str = "default") -> Iterator[Daemon]:
        """A worker, ready."""
        handlers = self.directory.parent / "handlers.toml"
        handlers.write_text(HANDLERS)
        place = ("--dir", f"{self.directory}-jobs", "--slots", str(slots), "--pools", pools)
        with daemon("ready ", "worker", "--handlers", str(handlers), *place, env=self.env) as began:
            yield began


class Networked(Hive):
    """A queen; ``tls``: where it is reached from elsewhere."""

    tls = ""

    def invite(self, role: str, node: str, *more: str) -> str:
        done = self.skep("invite", "--role", role, "--node", node, *more)
        assert 0 == done.returncode, done
        return done.stdout.strip()

    def enroll(self, role: str, node: str, *more: str) -> Enrolled:
        """A new member, by the commands that make one."""
        found = Enrolled(self, self.directory.parent / f"identity-{node}")
        found.ask("enroll", self.tls, "--invite", "-", stdin=self.invite(role, node, *more))
        return found


@contextlib.contextmanager
def networked(directory: Path, *args: str, tls: str = "tls:127.0.0.1:0") -> Iterator[Networked]:
    """A hive in ``directory``/hive, served within the ``with``."""
    hive = Networked(directory / "hive")
    listen = ("--listen", hive.address, "--listen", tls, "--name", NAME)
    pools = ("--pool", "default=sha256,sleep")
    home = {"XDG_CONFIG_HOME": os.fspath(directory / "config")}
    with daemon("ready", "serve", "--dir", str(hive.directory), *listen, *pools, *args, env=home) as began:
        hive.tls = next(line.split()[1] for line in began.lines if line.startswith("serving tls:"))
        yield hive
    check_directory(hive.directory)
