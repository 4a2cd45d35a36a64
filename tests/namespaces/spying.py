"""One who looks at everything in a hive, over 9P, and keeps what was answered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from skep.fs import messages as m
from skep.fs.chan import EVERYTHING, Chan
from skep.fs.conversation import Conversation, Peer
from skep.fs.errors import E, FsError
from skep.fs.idiom import how, open_request, stat_request
from skep.fs.messages import NOFID, NONUNAME, Dialect, Message
from skep.fs.node import Caller, Node
from skep.fs.transcript import quote, show
from skep.fs.wire import Dirent, pack_dirent, unpack_dirents, unpack_stat
from skep.namespaces.live import Hive
from skep.namespaces.sessions.core import Session
from tests.fs.grounds import Raw, calm

ROOT = 0
COUNT = 4000
DT_DIR = 4
# Times that the file system gives: of what the spy stages and prints.
TIMED = re.compile(r"/artifacts/stage\b|/(log|out)$")


class Gate:
    """Whoever says who he is is believed, and sees all that is there for him: no manifest hides it."""

    def __init__(self, hive: Hive, root: Node) -> None:
        self.hive = hive
        self.root = root
        self.callers: dict[str, Caller] = {}

    def add(self, name: str, caller: Caller) -> Caller:
        """Somebody who is attached from now on."""
        self.callers[name] = caller = replace(caller, session=f"session-of-{name}")
        since = self.hive.clock.now_ns()
        session = Session(
            caller.session, caller, f"peer-of-{name}", since, lambda: 1, "mount hive /\n", _stay
        )
        self.hive.sessions.add(session)
        return caller

    def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
        return Chan(self.root, self.callers[uname], EVERYTHING)

    def auth(self, peer: Peer, uname: str, aname: str, n_uname: int) -> Chan:
        raise FsError(E.NOTSUP)


def _stay() -> None:
    """Kicked, and not impressed."""


class Spy:
    """One session. ``seen`` is all that was answered, a line each: where, what was asked, the answer."""

    def __init__(self, gate: Gate, name: str, dialect: Dialect) -> None:
        self.raw = Raw(gate)
        self.name = name
        self.dialect = dialect
        self.seen: list[str] = []
        self._fid = ROOT

    @property
    def conversation(self) -> Conversation:
        return self.raw.conversation

    async def attach(self) -> None:
        await self.raw.version(self.dialect)
        await self.ask("/", m.Tattach(ROOT, NOFID, self.name, "", NONUNAME))

    def keep(self, path: str, asked: str, told: str) -> None:
        self.seen.append(f"{path} {asked} {told}")

    async def ask(self, path: str, message: Message) -> Message:
        answer = await self.raw.ask(1, message)
        self.keep(path, type(message).__name__, show(1, _timeless(path, answer), self.dialect))
        return answer

    async def walk(self, path: str) -> int | None:
        """A fid there; None: there is no such file."""
        names = tuple(path.strip("/").split("/")) if path != "/" else ()
        self._fid += 1
        answer = await self.ask(path, m.Twalk(ROOT, self._fid, names))
        return self._fid if isinstance(answer, m.Rwalk) and len(answer.wqid) == len(names) else None

    async def open(self, path: str, mode: str = "r") -> int | None:
        fid = await self.walk(path)
        if fid is None:
            return None
        answer = await self.ask(path, open_request(self.dialect, fid, how(mode)))
        return fid if isinstance(answer, m.Ropen | m.Rlopen) else None

    async def read(self, path: str) -> bytes:
        """All of a file, or what is there before its reads wait."""
        fid = await self.open(path)
        return b"" if fid is None else await self.rest(path, fid)

    async def rest(self, path: str, fid: int) -> bytes:
        data = b""
        while True:
            answer = await self._read(m.Tread(fid, len(data), COUNT))
            if not isinstance(answer, m.Rread) or not answer.data:
                # In one piece: where the pieces end depends on how long the ledger's numbers are.
                end = "waits" if answer is None else show(1, answer, self.dialect)
                self.keep(path, "is", f"{quote(data)} {end}")
                return data
            data += answer.data

    async def _read(self, message: m.Tread) -> Message | None:
        """The answer; None: there was none, and the read was given up."""
        before = len(self.raw.answers)
        self.raw.say((1, message))
        await calm(200)
        if len(self.raw.answers) == before:
            self.raw.say((2, m.Tflush(1)))
            await self.raw.heard(before + 1)
        answers = [answer for tag, answer in self.raw.answers[before:] if tag == 1]
        return answers[0] if answers else None

    async def write(self, path: str, text: str, mode: str = "rw") -> str:
        """Write to a file, and read what it says to that."""
        fid = await self.open(path, mode)
        if fid is None:
            return ""
        await self.ask(path, m.Twrite(fid, 0, text.encode()))
        reply = b"" if mode == "w" else await self.rest(path, fid)
        await self.ask(path, m.Tclunk(fid))
        return reply.decode()

    async def create(self, path: str, data: bytes) -> None:
        where, _, name = path.rpartition("/")
        fid = await self.walk(where)
        linux = m.Tlcreate(fid or 0, name, m.LO.RDWR | m.LO.CREAT | m.LO.EXCL, 0o644, 0)
        plain = m.Tcreate(fid or 0, name, 0o644, m.ORDWR)
        await self.ask(path, linux if self.dialect is Dialect.L else plain)
        await self.ask(path, m.Twrite(fid or 0, 0, data))
        await self.ask(path, m.Tclunk(fid or 0))

    async def look(self, path: str) -> None:
        """Everything that can be asked about a name without changing what it stands for."""
        fid = await self.walk(path)
        if fid is None:
            return
        await self.ask(path, stat_request(self.dialect, fid))
        if self.dialect is Dialect.L:
            await self.ask(path, m.Tstatfs(fid))
            await self.ask(path, m.Txattrwalk(fid, 9999, ""))
        await self.ask(path, m.Tclunk(fid))

    async def crawl(self, path: str = "/") -> None:
        """Look at everything below ``path``, as far as names are listed."""
        await self.look(path)
        for name, is_directory in await self.names(path):
            below = f"{path.rstrip('/')}/{name}"
            if is_directory:
                await self.crawl(below)
            else:
                await self.look(below)
                await self.read(below)

    async def names(self, path: str) -> list[tuple[str, bool]]:
        """What a directory lists, and whether it is one in turn."""
        fid = await self.open(path)
        if fid is None:
            return []
        found: list[tuple[str, bool]] = []
        at = 0
        while True:
            if self.dialect is Dialect.L:
                entries = await self._dirents(path, m.Treaddir(fid, at, COUNT))
                at = entries[-1].offset if entries else at
                found += [
                    (each.name, each.type == DT_DIR) for each in entries if each.name not in (".", "..")
                ]
            else:
                entries = await self._stats(path, m.Tread(fid, at, COUNT))
                at += sum(size for _, size in entries)
                found += [(each.name, bool(each.mode & m.DM.DIR)) for each, _ in entries]
            if not entries:
                return found

    async def _dirents(self, path: str, message: m.Treaddir) -> list[Dirent]:
        answer = await self.ask(path, message)
        return unpack_dirents(memoryview(answer.data)) if isinstance(answer, m.Rreaddir) else []

    async def _stats(self, path: str, message: m.Tread) -> list[tuple[m.Stat, int]]:
        """The entries of one read of a directory, and the size of each."""
        answer = await self.raw.ask(1, message)
        if not isinstance(answer, m.Rread):
            self.keep(path, "lists", show(1, answer, self.dialect))
            return []
        entries, rest = [], memoryview(answer.data)
        while rest:
            entry, size = unpack_stat(rest, self.dialect)
            self.keep(path, "lists", show(1, _timeless(path, m.Rstat(entry)), self.dialect))
            entries.append((entry, size))
            rest = rest[size:]
        return entries


def _timeless(path: str, answer: Message) -> Message:
    """The answer without the times that the file system gave, and the versions made of them."""
    if not TIMED.search(path):
        return answer
    match answer:
        case m.Rgetattr():
            times = dict.fromkeys((f"{of}time_{unit}" for of in "amcb" for unit in ("sec", "nsec")), 0)
            return replace(answer, qid=_unversioned(answer.qid), **times)
        case m.Rstat(entry):
            return m.Rstat(replace(entry, qid=_unversioned(entry.qid), atime=0, mtime=0))
        case m.Rwalk(qids):
            return m.Rwalk(tuple(map(_unversioned, qids)))
        case m.Ropen() | m.Rlopen() | m.Rcreate() | m.Rlcreate():
            return replace(answer, qid=_unversioned(answer.qid))
        case m.Rreaddir(data):
            entries = [
                entry._replace(qid=_unversioned(entry.qid)) for entry in unpack_dirents(memoryview(data))
            ]
            return m.Rreaddir(b"".join(map(pack_dirent, entries)))
    return answer


def _unversioned(qid: m.Qid) -> m.Qid:
    return qid._replace(vers=0)


# The numbers that a hive's tenants share: those of the ledger, and of files.
LEDGER = re.compile(r'(\brev=|\\"seq\\":|"seq":)(\d+)')
QID = re.compile(r"\((\w+) (\d+) (\d+)\)")


def compared(seen: Sequence[str]) -> list[str]:
    """The lines with the shared numbers as ranks: their order is left, how far apart they are is not."""
    ledger = _ranks(int(n) for line in seen for n in _ledger_numbers(line))
    files = _ranks(int(path) for line in seen for _, _, path in QID.findall(line))
    return [
        QID.sub(
            lambda found: f"({found[1]} v{ledger[int(found[2])]} f{files[int(found[3])]})",
            LEDGER.sub(lambda found: f"{found[1]}#{ledger[int(found[2])]}", line),
        )
        for line in seen
    ]


def _ledger_numbers(line: str) -> list[str]:
    return [n for _, n in LEDGER.findall(line)] + [vers for _, vers, _ in QID.findall(line)]


def _ranks(numbers: Iterable[int]) -> dict[int, int]:
    return {number: rank for rank, number in enumerate(sorted(set(numbers)))}
