"""A hive that listens with TLS on loopback, for tests: its papers, whom it refused, and outsiders to it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop

from skep.fs.address import Address
from skep.fs.chan import EVERYTHING, Chan
from skep.fs.conversation import Conversation, Peer
from skep.fs.dial import Client
from skep.fs.doorway import LIMITS, Doorway, Limits
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.server import Listener, listen
from skep.fs.spiffe import parse
from skep.fs.tree import Dir
from skep.fs.trust import Refusal
from tests.fs.authority import QUEEN, WORKER, Authority, Issued, Papers
from tests.fs.grounds import Grounds, wait_until

CA = Authority()
OTHER_CA = Authority("another CA")
W1 = CA.issue(WORKER)
W2 = CA.issue("spiffe://hive/drone-worker/w2")
Q1 = CA.issue(QUEEN)


class Gate:
    """The grounds, for whom the certificate names; a uname that says otherwise is refused."""

    def __init__(self, grounds: Grounds) -> None:
        self.grounds = grounds
        self.conversations: list[Conversation] = []
        self.peers: list[Peer] = []
        self.left = 0

    def greet(self, conversation: Conversation) -> Door:
        self.conversations.append(conversation)
        return Door(self)


class Door:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        raise FsError(E.NOTSUP)

    def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
        if peer.enrolling:
            self.gate.peers.append(peer)
            return Chan(Dir({"enroll": "here\n"}), Caller("enrolling", ""), EVERYTHING)
        if not parse(peer.spiffe).is_called(uname):
            raise FsError(E.UNAUTHENTICATED, f"uname {uname!r}: the certificate says {peer.spiffe}")
        self.gate.peers.append(peer)
        root = self.gate.grounds.export.root if aname == "host" else self.gate.grounds.root
        return Chan(root, Caller(peer.spiffe, peer.role, user="alice"), EVERYTHING)

    def left(self) -> None:
        self.gate.left += 1


class Hive:
    """A TLS listener on loopback, its papers, and what it refused."""

    def __init__(self, gate: Gate, papers: Papers) -> None:
        self.gate = gate
        self.papers = papers
        self.refusals: list[Refusal] = []
        self.listener: Listener

    @property
    def address(self) -> Address:
        return self.listener.address

    @property
    def doorway(self) -> Doorway:
        assert self.listener.doorway is not None
        return self.listener.doorway

    async def connect(self, issued: Issued = W1, *trusted: Authority, **options: Any) -> Client:
        identity = Papers(issued, *(trusted or (CA,))).identity
        return await Client.connect(self.address, identity=identity, **options)

    async def refused(self) -> Refusal:
        """The one refusal there is."""
        await wait_until(lambda: len(self.refusals) > 0 and not self.doorway.half_open.members)
        assert {self.refusals[0].reason: 1} == self.doorway.refusals
        assert self.refusals[0].address.startswith("127.0.0.1:")
        return self.refusals[0]


@contextlib.asynccontextmanager
async def serving(
    host: Path,
    papers: Papers | None = None,
    limits: Limits = LIMITS,
    address: str = "tls:127.0.0.1:0",
    enrol: bool = False,
) -> AsyncIterator[Hive]:
    hive = Hive(Gate(Grounds(host)), papers or Papers(Q1, CA))
    async with listen(
        hive.gate,
        address,
        identity=hive.papers.identity,
        refused=hive.refusals.append,
        limits=limits,
        enrol=enrol,
    ) as hive.listener:
        yield hive


def play(
    story: Callable[[Hive], Awaitable[None]],
    host: Path,
    papers: Papers | None = None,
    limits: Limits = LIMITS,
    enrol: bool = False,
    loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> None:
    """Run ``story`` with a hive; nothing may stay behind."""

    async def run() -> None:
        async with serving(host, papers, limits, enrol=enrol) as hive:
            await story(hive)
        crowds = hive.doorway.half_open, hive.doorway.open, hive.doorway.enrolling
        await wait_until(lambda: not hive.papers.identity.held and not any(crowd.members for crowd in crowds))
        assert [{}] * 3 == [crowd.networks for crowd in crowds]
        assert hive.papers.identity._timer is None

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


def dial(hive: Hive) -> socket.socket:
    """A connection that has said nothing yet."""
    return socket.create_connection((hive.address.host, hive.address.port), timeout=10)


async def said(sock: socket.socket) -> bytes:
    """What comes until the server closes."""

    def read() -> bytes:
        data = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := sock.recv(4096):
                data += piece
        return data

    return await asyncio.to_thread(read)


async def s_client(hive: Hive, *options: str, issued: Issued | None = None, pem: bytes = b"") -> str:
    """What OpenSSL's own client says of the hive; once it is connected, it is told to leave."""
    with tempfile.TemporaryDirectory() as directory:
        bundle = Path(directory, "ca.pem")
        bundle.write_bytes(CA.pem)
        where = ["-connect", f"127.0.0.1:{hive.address.port}", "-CAfile", str(bundle)]
        ours: list[str] = []
        if issued is not None:
            certificate, key = written(Path(directory), issued)
            certificate.write_bytes(pem or issued.pem)
            ours = ["-cert", str(certificate), "-key", str(key)]
        process = await asyncio.create_subprocess_exec(
            "openssl",
            "s_client",
            *[*where, *ours, *options],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            await wait_until(lambda: bool(hive.listener.connections or hive.refusals))
            output, _ = await asyncio.wait_for(process.communicate(None if hive.refusals else b"Q\n"), 10)
        finally:
            if process.returncode is None:
                process.kill()
    return output.decode(errors="replace")


def written(directory: Path, issued: Issued) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    certificate.write_bytes(issued.pem)
    key.touch(mode=0o600)
    key.write_bytes(issued.key_pem)
    return certificate, key


@contextlib.contextmanager
def stdlib(hive: Hive, issued: Issued) -> Any:
    """A blocking connection with Python's own ssl."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=CA.pem.decode())
    with tempfile.TemporaryDirectory() as directory:
        context.load_cert_chain(*written(Path(directory), issued))
    with dial(hive) as plain, context.wrap_socket(plain) as sock:
        yield sock
