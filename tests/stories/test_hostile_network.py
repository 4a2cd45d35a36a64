"""A hive on a network that nobody trusts: four machines, what they may do, and what a listener hears.

One story, because each part needs the one before: enrolment, work, rotation under load, revocation, a stolen
token. Everything that goes over the wire is captured, and holds no 9P that could be read.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from people import SKEP, Person, ready, wait_until
from queens import ROOT
from wires import Wires, wired

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CANARIES = (b"9P2000", b"honey", b"jobs", b"whoami", b"heartbeat", b"skep1.", b"sha256", b"spiffe://")
"""What goes through the hive in the story, as a plaintext conversation would have it."""
OVERLAP_S = 20


class Session:
    """laptop.py, asked line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert "ready" == self.answer()

    def begin(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it has ended"
        return json.loads(line)

    def says(self, line: str) -> Any:
        self.begin(line)
        return self.answer()


@contextmanager
def session(person: Person, address: str) -> Iterator[Session]:
    laptop = str(Path(__file__).with_name("laptop.py"))
    with person.runs(sys.executable, laptop, address, str(person.identity)) as process:
        yield Session(process)


@pytest.fixture
def wires() -> Iterator[Wires]:
    with wired("queen", "w1", "w2", "laptop", "thief") as found:
        yield found


def test_a_hive_stands_on_a_hostile_network(wires: Wires, tmp_path: Path) -> None:
    people = {name: Person(machine, tmp_path / name) for name, machine in wires.machines.items()}
    queen, w1, w2, laptop, thief = people.values()
    hive = tmp_path / "hive"
    here = f"unix:{hive}/hive.sock"
    host = queen.machine.address
    capture = tmp_path / "heard.pcap"

    with ExitStack() as stack:
        listens = ("--listen", here, "--listen", f"tls:{host}:0")
        serving = stack.enter_context(queen.runs(*SKEP, "serve", "--dir", str(hive), *listens))
        address = ready(serving)
        stack.enter_context(wires.captured(capture, int(address.rpartition(":")[2])))

        # Whom nobody invited stays outside, and so does who brings another hive's invite.
        stranger = thief.run("-H", address, "cat", "/version")
        assert (0, "") != (stranger.returncode, stranger.stdout)
        assert "no identity" in stranger.stderr

        # Enrolment: the invite goes by hand, the key never.
        for person, role in ((w1, "drone-worker"), (w2, "drone-worker"), (laptop, "operator")):
            name = person.machine.name
            invite = queen.does("invite", "-H", here, "--role", role, "--node", name, "--ttl", "10m").strip()
            person.does("enroll", address, "--invite", "-", stdin=f"{invite}\n")
            assert 0o600 == (person.identity / "key.pem").stat().st_mode & 0o777
            again = thief.run("enroll", address, "--invite", "-", stdin=f"{invite}\n")
            assert 0 != again.returncode, "an invite is good once"
        assert not (thief.identity / "cert.pem").exists()

        # Work over TLS.
        for worker in (w1, w2):
            handlers = ("--handlers", str(ROOT / "examples" / "handlers.toml"))
            stack.enter_context(worker.runs(*SKEP, "worker", "--hive", address, *handlers))
        boss = stack.enter_context(session(laptop, address))
        assert {"succeeded": 10, "attempts": 1} == boss.says("submit 10 first")

        # Rotation under load: whoever renews within the overlap notices nothing.
        boss.begin("submit 40 rotating")
        queen.does("write", "-H", here, "/trust/ctl", f"rotate what=ca overlap={OVERLAP_S}s")
        authorities = queen.does("cat", "-H", here, "/trust/ca.pem").count("BEGIN CERTIFICATE")
        assert 2 == authorities
        assert {"succeeded": 40, "attempts": 1} == boss.answer()
        laptop.does("renew", address)
        assert "ok" == boss.says("hand-over")
        assert {"succeeded": 10, "attempts": 1} == boss.says("submit-on rotated")

        # A token bound to the operator's channel is nothing on the thief's.
        channel = boss.says("read /trust/tokens/channel")
        bound = f"ops=read paths=/whoami,/jobs ttl=10m binding={channel}"
        minted = tmp_path / "minted"
        minted.write_text(boss.says(f"tell /trust/tokens/clone {bound}"))
        assert "token " in boss.says(f"token-here {minted}")
        refused = boss.says(f"token {minted}")
        assert "rule=token-channel" in refused["refused"]

        # Revocation: the worker's living session ends at once, its work goes on elsewhere.
        began = time.monotonic()
        queen.does("revoke", "-H", here, "--node", "w2")
        wait_until("w2 to be gone", lambda: not queen.does("cat", "-H", here, "/nodes/w2/sessions"))
        print(f"revoked and gone after {time.monotonic() - began:.2f} s, commands included")
        assert {"succeeded": 10, "attempts": 1} == boss.says("submit 10 bereaved")
        assert 0 != w2.run("-H", address, "cat", "/version").returncode

        # All of it stands in the log that the refused cannot touch.
        log = queen.does("cat", "-H", here, "/log/net_trace_secure9p.log").splitlines()
        connects = [line for line in map(json.loads, log) if line["op"] == "connect"]
        revoked = [line for line in connects if "revoked" in line["why"]]
        assert revoked, connects
        if w2.machine.prefix:  # else every machine's address is that of the loopback
            assert any(w2.machine.address in line["peer"] for line in revoked), revoked

    heard = capture.read_bytes()
    assert b"\x16\x03\x01" in heard, "no handshake was captured"
    assert len(heard) > 100_000
    assert [] == [canary for canary in CANARIES if canary in heard]


def test_a_listener_would_have_heard_plaintext(wires: Wires, tmp_path: Path) -> None:
    """The control: what is looked for above is found when it is there."""
    host, away = wires.machines["queen"], wires.machines["w1"]
    listen = f"s = socket.create_server(('{host.address}', 0)); print(s.getsockname()[1], flush=True)"
    serve = f"import socket; {listen}; s.accept()[0].recv(99)"
    with subprocess.Popen([*host.prefix, sys.executable, "-c", serve], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        dial = f"import socket; socket.create_connection(('{host.address}', {port})).sendall(b'9P2000.L')"
        with wires.captured(tmp_path / "heard.pcap", port):
            subprocess.run([*away.prefix, sys.executable, "-c", dial], check=True)
            server.wait()
    assert b"9P2000.L" in (tmp_path / "heard.pcap").read_bytes()
