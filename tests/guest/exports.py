"""What the guest mounts: servers of a directory of the host, where it finds the same, and a running hive."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_S = 30.0


@contextmanager
def diod(root: Path, folder: Path) -> Iterator[Path]:
    """Debian's diod serving ``root`` to anybody until the block ends; the Unix socket it listens on."""
    address, log = folder / "diod.socket", folder / "diod.log"
    command = ["diod", "-f", "-n", "-c", "/dev/null", "-L", str(log), "-l", str(address), "-e", str(root)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not address.exists():
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "diod does not listen"
        yield address
    finally:
        server.kill()
        server.wait()


@contextmanager
def skep_export(root: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """``skep export`` serving ``root`` on loopback until the block ends; the host and port it listens on."""
    with _process([sys.executable, "-m", "skep", "export", str(root), "--listen", "tcp:127.0.0.1:0"]) as said:
        yield "127.0.0.1", int(next(said).rpartition(":")[2])


@contextmanager
def hive(folder: Path) -> Iterator[tuple[str, int]]:
    """A queen on loopback, whose guests are operators, and a worker for the topic sha256, until the block
    ends; topic idle has a pool that nobody works for. The queen's host and port."""
    place = folder / "hive"
    handlers = folder / "handlers.toml"
    handlers.write_text('[sha256]\nargv = ["sha256sum", "{input}"]\n')
    queen = [sys.executable, "-m", "skep", "serve", "--dir", str(place), "--tcp-role", "operator"]
    queen += ["--listen", f"unix:{place}/hive.sock", "--listen", "tcp:127.0.0.1:0"]
    queen += ["--pool", "default=sha256", "--pool", "idle=idle"]
    worker = [sys.executable, "-m", "skep", "worker", "-H", f"unix:{place}/worker.sock", "--node", "w1"]
    worker += ["--handlers", str(handlers), "--dir", str(folder / "worker")]
    with ExitStack() as running:
        said = running.enter_context(_process(queen))
        port = next(
            int(line.split()[1].rpartition(":")[2]) for line in said if line.startswith("serving tcp:")
        )
        assert any(line == "ready\n" for line in said)
        running.enter_context(_process(worker))
        yield "127.0.0.1", port


@contextmanager
def _process(command: list[str]) -> Iterator[Iterator[str]]:
    """A process until the block ends; the lines it prints."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield iter(process.stdout)
    finally:
        process.terminate()
        process.wait(START_S)
