"""The stories in transcripts/*.txt, played to a server: each T line is sent, each R line must be the answer.

A story begins at a comment that names its cases, ``# case 34: …`` or ``# cases 57, 69: …``. Lines:

    T…                  a request; those on adjacent lines are sent in one segment
    R…                  an answer, in the order of the server's; after them nothing else may have come
    > directive …       something done beside the protocol: the table DIRECTIVES below
    ! close             the server has closed the connection

In an answer ``$name`` stands for any value, the same wherever it is said again; ``*`` for any; ``...`` for
whatever fields are not told. With UPDATE=1 the answers that differ are written into the file: read the diff.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from skep.fs import transcript
from skep.fs.conversation import Peer
from skep.fs.messages import NOFID, NOTAG, Rattach, Rversion, Tattach, Tversion
from skep.native.hot import AVAILABLE
from tests.fs.grounds import Grounds, Raw, calm, played, wait_until

FILES = sorted((Path(__file__).parent / "transcripts").glob("*.txt"))
HEAD = re.compile(r"# cases? ((?:\d+(?:, )?)+):")


class Story:
    """Lines ``first`` to ``last`` (exclusive) of a file."""

    def __init__(self, path: Path, first: int, lines: list[str]) -> None:
        self.path = path
        self.first = first
        self.lines = lines
        head = HEAD.match(lines[0])
        assert head is not None
        self.cases = [int(number) for number in head[1].split(", ")]

    def __str__(self) -> str:
        numbers = "_".join(f"{case:03}" for case in self.cases)
        return f"case_{numbers}-{self.path.stem}-{self.first + 1}"


def stories(path: Path) -> list[Story]:
    lines = path.read_text().split("\n")
    starts = [i for i, line in enumerate(lines) if HEAD.match(line)]
    ends = [*starts[1:], len(lines)]
    return [Story(path, first, lines[first:last]) for first, last in zip(starts, ends, strict=True)]


STORIES = [story for path in FILES for story in stories(path)]


class Mismatch(AssertionError):
    pass


class Player:
    """Plays one story on fresh grounds."""

    def __init__(self, grounds: Grounds, kernel: bool) -> None:
        self.grounds = grounds
        self.kernel = kernel
        self.connections: dict[str, Raw] = {}
        self.heard: dict[str, int] = {}  # answers compared so far
        self.current = "1"
        self.bound: dict[str, Any] = {}
        self.lines: list[str] = []  # what was played, with the answers as they came

    @property
    def raw(self) -> Raw:
        if self.current not in self.connections:
            self.connect(self.current, Peer("local"))
        return self.connections[self.current]

    def connect(self, name: str, peer: Peer) -> None:
        self.connections[name] = Raw(self.grounds, peer, kernel=self.kernel)
        self.heard[name] = 0
        self.current = name

    async def play(self, lines: list[str]) -> None:
        groups = [(kind, list(group)) for kind, group in itertools.groupby(lines, _kind)]
        for (kind, some), (following, _) in itertools.pairwise([*groups, ("", [])]):
            if kind == "T":
                self.raw.send(b"".join(self.frame(line) for line in some))
                self.lines += some
                if following != "R":
                    await self.answers([])
            elif kind == "R":
                await self.answers(some)
            elif kind == ">":
                for line in some:
                    await self.direct(line)
            elif kind == "!":
                await wait_until(lambda: self.raw.closed)
                self.lines += some
            else:
                self.lines += some
        for name in self.connections:
            self.current = name
            await self.answers([])

    def frame(self, line: str) -> bytes:
        return self.raw.frame(*transcript.parse(line, self.raw.saying))

    async def direct(self, line: str) -> None:
        words = transcript.tokens(line[1:])
        name, *rest = (transcript.unquote(word).decode() for word in words)
        await DIRECTIVES[name](self, *rest)
        self.lines.append(line)

    async def answers(self, expected: list[str]) -> None:
        """Compare what has come, or comes now, on this connection with these lines."""
        raw, before = self.raw, self.heard[self.current]
        await calm()
        if len(raw.answers) - before < len(expected):
            with contextlib.suppress(TimeoutError):
                await wait_until(lambda: len(raw.answers) - before >= len(expected))
        came = [transcript.show(tag, message, raw.hearing) for tag, message in raw.answers[before:]]
        self.heard[self.current] = len(raw.answers)
        for line, actual in itertools.zip_longest(expected, came):
            if line is not None and actual is not None and self.matches(line, actual):
                self.lines.append(line)
            elif UPDATE:
                self.lines += [] if actual is None else [self.generalised(actual)]
            else:
                raise Mismatch(f"expected {line or 'nothing'}\n     got {actual or 'nothing'}")

    def matches(self, line: str, actual: str) -> bool:
        """Whether ``actual`` is told by ``line``; binds its names."""
        name, tag, wanted = transcript.split(line)
        got_name, got_tag, got = transcript.split(actual)
        bound = dict(self.bound)
        rest = wanted.pop(transcript.REST, None) is not None
        if (name, tag) != (got_name, got_tag) or not (rest or wanted.keys() == got.keys()):
            return False
        if not all(field in got and _like(wanted[field], got[field], bound) for field in wanted):
            return False
        self.bound = bound
        return True

    def generalised(self, actual: str) -> str:
        """The line with known qids by their names, and times left open."""
        for name, value in self.bound.items():
            if isinstance(value, list):
                actual = actual.replace(_text(value), f"${name}")
        return re.sub(r"\b([amc]time(?:_n?sec)?|btime(?:_n?sec)?) \d+", r"\1 *", actual)


def _kind(line: str) -> str:
    return line[:1]


def _like(wanted: Any, got: Any, bound: dict[str, Any]) -> bool:
    if isinstance(wanted, str) and wanted.startswith("$"):
        return bool(bound.setdefault(wanted[1:], got) == got)
    if wanted == "*":
        return True
    if isinstance(wanted, list) and isinstance(got, list):
        if wanted and wanted[-1] == transcript.REST:
            pairs = dict(zip(got[::2], got[1::2], strict=True))
            named = zip(wanted[:-1:2], wanted[1:-1:2], strict=True)
            return all(name in pairs and _like(value, pairs[name], bound) for name, value in named)
        return len(wanted) == len(got) and all(_like(w, g, bound) for w, g in zip(wanted, got, strict=True))
    return bool(wanted == got)


def _text(tree: Any) -> str:
    return tree if isinstance(tree, str) else f"({' '.join(_text(item) for item in tree)})"


# Directives


async def session(player: Player, dialect: str, *options: str) -> None:
    """session DIALECT [aname A] [uname U] [msize N]: agree on a version, and attach fid 0."""
    told = {"aname": "", "uname": "alice", "msize": "8192"}
    told |= dict(zip(options[::2], options[1::2], strict=True))
    raw, msize = player.raw, int(told["msize"])
    before = len(raw.answers)
    raw.say((NOTAG, Tversion(msize, dialect)), (0, Tattach(0, NOFID, told["uname"], told["aname"])))
    await raw.heard(before + 2)
    assert (NOTAG, Rversion(msize, dialect)) == raw.answers[before]
    assert isinstance(raw.answers[before + 1][1], Rattach)
    player.heard[player.current] = before + 2


async def connection(player: Player, name: str, *peer: str) -> None:
    """connection NAME [tls USER]: speak on another connection, opened when it is first named."""
    player.current = name
    if peer:
        player.connect(name, Peer(peer[0], peer[1]))


async def disconnect(player: Player) -> None:
    """The client is gone."""
    player.raw.leave()
    await calm()


async def feed(player: Player, name: str, piece: str) -> None:
    """feed events PIECE: something happens. Whoever has the file open is told."""
    await calm()
    player.grounds.events.feed(piece.encode())


async def undelivered(player: Player, *pieces: str) -> None:
    """undelivered PIECE…: what opens of events had taken and nobody read when they were closed."""
    await calm()
    assert [piece.encode() for piece in pieces] == player.grounds.events.undelivered


async def let(player: Player, name: str) -> None:
    """let NAME: slow, slowly or journal goes on."""
    await calm()
    player.grounds.lets[name].set()


async def raw_bytes(player: Player, *words: str) -> None:
    """bytes HEX…: these bytes are sent."""
    player.raw.send(bytes.fromhex("".join(words)))


async def host(player: Player, verb: str, *words: str) -> None:
    """host VERB …: something is done to, or asked of, the exported directory by others: HOST below."""
    await calm()
    HOST[verb](player.grounds.host, *words)


async def opens(player: Player, count: str) -> None:
    """opens N: events is open so many times."""
    await calm()
    assert int(count) == player.grounds.events.waiting


DIRECTIVES: dict[str, Callable[..., Awaitable[None]]] = {
    "session": session,
    "connection": connection,
    "disconnect": disconnect,
    "feed": feed,
    "undelivered": undelivered,
    "let": let,
    "bytes": raw_bytes,
    "host": host,
    "opens": opens,
}


def holds(root: Path, name: str, text: str) -> None:
    assert text.encode() == (root / name).read_bytes()


def lacks(root: Path, name: str) -> None:
    assert not os.path.lexists(root / name)


def lists(root: Path, name: str, *names: str) -> None:
    assert sorted(names) == sorted(os.listdir(root / name))


def has_mode(root: Path, name: str, mode: str) -> None:
    assert int(mode, 8) == (root / name).stat().st_mode & 0o7777


def write(root: Path, name: str, text: str) -> None:
    (root / name).write_text(text)
    (root / name).chmod(0o644)


def mkdir(root: Path, name: str, mode: str = "755") -> None:
    (root / name).mkdir()
    (root / name).chmod(int(mode, 8))


HOST: dict[str, Callable[..., None]] = {
    "write": write,
    "mkdir": mkdir,
    "symlink": lambda root, name, target: (root / name).symlink_to(target),
    "rename": lambda root, name, new: (root / name).rename(root / new),
    "remove": lambda root, name: (root / name).unlink(),
    "chmod": lambda root, name, mode: (root / name).chmod(int(mode, 8)),
    "holds": holds,
    "lacks": lacks,
    "lists": lists,
    "mode": has_mode,
}

UPDATE = bool(os.environ.get("UPDATE"))
KERNELS = [False, True] if AVAILABLE and not UPDATE else [False]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: "kernel" if kernel else "python")
@pytest.mark.parametrize("story", STORIES, ids=str)
def test_the_story_goes_as_told(story: Story, kernel: bool) -> None:
    async def play(grounds: Grounds) -> None:
        player = Player(grounds, kernel)
        await player.play(story.lines)
        if UPDATE and player.lines != story.lines:
            text = story.path.read_text()
            story.path.write_text(text.replace("\n".join(story.lines), "\n".join(player.lines)))

    played(play)


def test_every_directive_is_used() -> None:
    text = "\n".join(path.read_text() for path in FILES)
    assert [] == [name for name in DIRECTIVES if f"\n> {name}" not in text]
    assert [] == [name for name in HOST if f"\n> host {name}" not in text]


def test_a_line_that_tells_another_answer_is_not_taken_for_the_same() -> None:
    async def play(grounds: Grounds) -> None:
        player = Player(grounds, kernel=False)
        actual = "Rwalk tag 1 wqid (80 0 1) (0 0 2)"
        assert player.matches("Rwalk tag 1 wqid $a $b", actual)
        assert not player.matches("Rwalk tag 1 wqid $b $a", actual)
        assert not player.matches("Rwalk tag 1 wqid (80 0 1)", actual)
        assert not player.matches("Rwalk tag 2 wqid * *", actual)
        assert player.matches("Rgetattr tag 1 mode 0o644 ...", "Rgetattr tag 1 valid 0 mode 0o644")
        assert not player.matches("Rgetattr tag 1 mode 0o644", "Rgetattr tag 1 valid 0 mode 0o644")

    played(play)
