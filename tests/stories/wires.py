"""Machines on one network: network namespaces joined by a bridge, and what goes over the wire between them.

Where namespaces are not to be had (no root), several loopback addresses stand for the machines.
Needs iproute2 and tcpdump, which the test set-up installs.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

HEARD = b"listening on"
CAPTURE_S = 10.0  # for tcpdump to begin, and to end


class Machine(NamedTuple):
    """``prefix`` goes before a command that is to run there."""

    name: str
    address: str
    prefix: tuple[str, ...]


class Wires(NamedTuple):
    """The machines, and the interface on which all that they say to each other is heard."""

    machines: dict[str, Machine]
    interface: str
    prefix: tuple[str, ...]  # before a command that listens there

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Within it, the machine's cable is out: what is sent either way is lost, and nobody is told."""
        port = ("link", "set", f"port{list(self.machines).index(name) + 1}")
        assert self.prefix, "loopback addresses have no cable"
        subprocess.run([*self.prefix, self.prefix[0], *port, "down"], check=True)
        try:
            yield
        finally:
            subprocess.run([*self.prefix, self.prefix[0], *port, "up"], check=True)

    @contextmanager
    def captured(self, path: Path, port: int) -> Iterator[None]:
        """Within it, the packets of the port are written to ``path``, whole."""
        tcpdump = shutil.which("tcpdump", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert tcpdump is not None, "tcpdump is not installed: make test installs it"
        options = ("-s", "0", "-U", "-Z", "root", "-B", "65536", "--immediate-mode")
        command = [*self.prefix, tcpdump, "-i", self.interface, *options, "-w", str(path)]
        command += ["tcp", "port", str(port)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
            assert process.stderr is not None
            try:
                said = b""
                while HEARD not in said:
                    line = process.stderr.readline()
                    assert line, said.decode()
                    said += line
                yield
                _wait_quiet(path)
            finally:
                process.send_signal(signal.SIGINT)
                said = process.communicate(timeout=CAPTURE_S)[1]
        assert b"0 packets dropped by kernel" in said, said.decode()


def _wait_quiet(path: Path) -> None:
    """Return when the capture has stopped to grow: packets reach it a little late."""
    before, until = -1, time.monotonic() + CAPTURE_S
    while time.monotonic() < until and (now := path.stat().st_size) != before:
        before = now
        time.sleep(0.3)


@contextmanager
def wired(*names: str) -> Iterator[Wires]:
    """Machines of these names on one network, gone afterwards."""
    ip = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert ip is not None, "ip is not installed: make test installs it"
    tag = secrets.token_hex(3)
    with ExitStack() as stack:
        try:
            wires = _namespaces(stack, ip, tag, names)
        except subprocess.CalledProcessError:
            stack.close()
            wires = _loopbacks(names)
        yield wires


def _namespaces(stack: ExitStack, ip: str, tag: str, names: Sequence[str]) -> Wires:
    """A namespace for the switch, with a bridge in it; one for each machine, with one end of a veth."""

    def run(*words: str) -> None:
        subprocess.run([ip, *words], check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def namespace(name: str) -> tuple[str, ...]:
        run("netns", "add", name)
        stack.callback(run, "netns", "delete", name)
        return (ip, "netns", "exec", name)

    switch = f"skep-{tag}"
    prefix = namespace(switch)
    inside = ("-n", switch)
    run(*inside, "link", "add", "hub", "type", "bridge")
    run(*inside, "link", "set", "hub", "up")
    machines = {}
    for number, name in enumerate(names, 1):
        there = f"{switch}-{name}"
        machines[name] = Machine(name, f"10.77.{int(tag[:2], 16)}.{number}", namespace(there))
        port = f"port{number}"
        run(*inside, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", there)
        run(*inside, "link", "set", port, "master", "hub", "up")
        run("-n", there, "address", "add", f"{machines[name].address}/24", "dev", "eth0")
        run("-n", there, "link", "set", "lo", "up")
        run("-n", there, "link", "set", "eth0", "up")
    return Wires(machines, "hub", prefix)


def _loopbacks(names: Sequence[str]) -> Wires:
    machines = {name: Machine(name, f"127.77.0.{number}", ()) for number, name in enumerate(names, 1)}
    return Wires(machines, "lo", ())
