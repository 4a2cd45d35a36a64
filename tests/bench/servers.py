"""The servers that are measured side by side: a row of SERVERS is a column of the table.

A command's words may hold {socket}, where it must listen, {files}, a directory in memory with the files that
are read and written, {disk}, a directory on a disk, {python} and {here}, this directory."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from skep.native.load import Place, attach

HERE = Path(__file__).parent
FILE_SIZES = {"f64": 64, "mem": 64, "bulk": 1 << 20}  # what {files} holds
START_S = 10.0
STOP_S = 5.0


@dataclass(frozen=True)
class Server:
    """One column. A server without a file for some use has no cell in the rows of that use."""

    name: str
    needs: str  # the program, or the module when it has a dot, without which there is no column
    command: tuple[str, ...]
    dialect: str
    files: Mapping[str, str]  # use -> path from the attach point
    aname: str = ""
    line: str = ""  # for a file of use ctl
    version: tuple[str, ...] = ()  # a command whose first line says it

    @property
    def present(self) -> bool:
        if "." in self.needs:
            return bool(find_spec(self.needs.partition(".")[0]) and find_spec(self.needs))
        return shutil.which(self.needs) is not None

    @property
    def is_skep(self) -> bool:
        return self.name.startswith("skep")


EXPORTED = {
    "read": "f64",
    "write": "mem",
    "stat": "f64",
    "walk": "f64",
    "bulk read": "bulk",
    "bulk write": "bulk",
    "idle": "",
}

FLOOR = Server("floor", "cc", ("{disk}/floor", "{socket}"), "9P2000.L", EXPORTED, version=("cc", "--version"))
DIOD = Server(
    "diod",
    "diod",
    ("diod", "-f", "-n", "-N", "-c", "/dev/null", "-L", "stderr", "-e", "{files}", "-l", "{socket}"),
    "9P2000.L",
    EXPORTED,
    aname="{files}",
    version=("dpkg-query", "-W", "-f", "${Version}", "diod"),
)
PYROUTE2 = Server(
    "pyroute2",
    "pyroute2.plan9",
    ("{python}", "{here}/peer_pyroute2.py", "{socket}", "{files}"),
    "9P2000",
    EXPORTED,
    version=(sys.executable, "-c", "from importlib.metadata import version; print(version('pyroute2'))"),
)

SKEP_CONTROL = Server(
    "skep control",
    "skep.fs.server",
    ("{python}", "{here}/serve_skep.py", "control", "{socket}"),
    "9P2000.L",
    {"read": "f64", "write": "mem", "stat": "f64", "walk": "f64", "idle": ""},
)
SKEP_EXPORT = Server(
    "skep export",
    "skep.fs.server",
    ("{python}", "{here}/serve_skep.py", "export", "{socket}", "{files}"),
    "9P2000.L",
    EXPORTED,
)
SKEP_HIVE = Server(
    "skep hive",
    "skep.fs.server",
    ("{python}", "-m", "skep", "serve", "--dir", "{disk}/hive", "--listen", "unix:{socket}"),
    "9P2000.L",
    {"stat": "version", "walk": "version", "ctl": "jobs/ctl", "idle": ""},
    line="submit topic=sha256 input=bench key=b%d\n",
)

SERVERS = [FLOOR, DIOD, PYROUTE2, SKEP_CONTROL, SKEP_EXPORT, SKEP_HIVE]


@dataclass
class Grounds:
    """The directories of a run, and the words that stand for them."""

    files: Path
    disk: Path
    taskset: tuple[str, ...]  # what pins a server; empty: nothing does
    words: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.words = {
            "files": str(self.files),
            "disk": str(self.disk),
            "python": sys.executable,
            "here": str(HERE),
        }

    def said(self, server: Server, text: str) -> str:
        return text.format(**self.words, socket=self.socket(server))

    def socket(self, server: Server) -> Path:
        return self.files / f"{server.name.replace(' ', '-')}.sock"

    def place(self, server: Server, use: str) -> Place:
        """Where the use's operations go."""
        return Place(
            f"unix:{self.socket(server)}",
            server.files[use],
            server.dialect,
            self.said(server, server.aname),
        )


@contextmanager
def grounds(core: int | None) -> Iterator[Grounds]:
    """Fresh directories with the files in them and the floor built; servers run on `core` (None: on any)."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="skep-bench-", dir=memory) as files, ExitStack() as stack:
        disk = stack.enter_context(tempfile.TemporaryDirectory(prefix="skep-bench-", dir="/var/tmp"))
        for name, size in FILE_SIZES.items():
            (Path(files) / name).write_bytes(b"x" * size)
        build_floor(Path(disk) / "floor")
        yield Grounds(Path(files), Path(disk), () if core is None else ("taskset", "-c", str(core)))


def version(server: Server) -> str:
    """As the server's own package says it; empty: it has none."""
    if not server.version:
        return ""
    said = subprocess.run(server.version, capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0]


def build_floor(program: Path) -> None:
    subprocess.run(
        [os.environ.get("CC", "cc"), "-O2", "-Wall", "-o", str(program), str(HERE / "floor.c")], check=True
    )


@contextmanager
def running(server: Server, where: Grounds) -> Iterator[subprocess.Popen[bytes]]:
    """The server, answering. Raises RuntimeError with the end of its log when it does not come up."""
    log = where.disk / f"{server.name}.log"
    where.socket(server).unlink(missing_ok=True)
    command = [*where.taskset, *(where.said(server, word) for word in server.command)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        _wait_answering(server, where, process, log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_answering(server: Server, where: Grounds, process: subprocess.Popen[bytes], log: Path) -> None:
    place = where.place(server, next(iter(server.files)))
    give_up = time.monotonic() + START_S
    while True:
        try:
            attach(place, 65536)[0].close()
            return
        except OSError as e:
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(f"{server.name} does not answer: {e}\n{log.read_text()[-2000:]}") from e
        time.sleep(0.02)
