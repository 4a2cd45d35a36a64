"""What a manifest hides answers as what is not there: the same frames, and nothing is asked of the tree."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from skep.fs.errors import E
from skep.fs.export import Export
from skep.fs.messages import (
    DM,
    NOFID,
    Dialect,
    LockType,
    Message,
    Qid,
    Rerror,
    Rlerror,
    Rwalk,
    Tattach,
    Tcreate,
    Tlcreate,
    Tlink,
    Tlock,
    Tlopen,
    Tmkdir,
    Tmknod,
    Treadlink,
    Trenameat,
    Tstatfs,
    Tsymlink,
    Tunlinkat,
    Twalk,
    Txattrcreate,
    Txattrwalk,
)
from skep.fs.node import Caller, Maybe, Node
from skep.fs.tree import Dir
from skep.roles.manifest import Manifest, parse
from tests.fs.grounds import Raw
from tests.roles.spaces import Space

DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
ROOT, DIRECTORY, FILE, NEW = 0, 1, 2, 9
ACCESS = {"writer": "allow all /**", "reader": "allow read /**", "maker": "allow read,create /**"}
BINDS = {"plain": (), "bound": ("bind -b /other /d",)}


def read(*lines: str) -> Manifest:
    return parse("test", "\n".join(("mount hive /", *lines)).encode())


def answers(root: Node, manifest: Manifest, dialect: Dialect, asked: list[Message]) -> list[Message]:
    """To each request, after an attach, and walks to /d and /d/file."""

    async def run() -> list[Message]:
        raw = Raw(Space(root, manifest), msize=8192)
        await raw.version(dialect)
        await raw.ask(1, Tattach(ROOT, NOFID, "test", ""))
        await raw.ask(1, Twalk(ROOT, DIRECTORY, ("d",)))
        await raw.ask(1, Twalk(ROOT, FILE, ("other", "file")))
        found = [await raw.ask(1, request) for request in asked]
        raw.leave()
        return [_told(answer) for answer in found]

    return asyncio.run(run())


def _told(answer: Message) -> Message:
    """The answer, whichever tree it is of."""
    if isinstance(answer, Rwalk):
        return Rwalk(tuple(Qid(qid.type, 0, 0) for qid in answer.wqid))
    return answer


def host(where: Path, hidden: bool) -> Node:
    """A directory of the host with /d/hidden in it, or without."""
    for name in ("d", "other"):
        (where / name).mkdir(parents=True)
        (where / name / "seen").touch()
    (where / "other" / "file").touch()
    if hidden:
        (where / "d/hidden").mkdir()
        (where / "d/hidden/below").touch()
    return Export(where).root


def synthetic(where: Path, hidden: bool) -> Node:
    inside = {"hidden": {"below": "x"}} if hidden else {}
    return Dir({"d": {"seen": "x", **inside}, "other": {"seen": "x", "file": "x"}})


TREES: Mapping[str, Callable[[Path, bool], Node]] = {"host": host, "synthetic": synthetic}


def looking(name: str, dialect: Dialect) -> list[Message]:
    """All that may be asked about a name that is not there."""
    common: list[Message] = [
        Twalk(DIRECTORY, NEW, (name,)),
        Twalk(DIRECTORY, NEW, (name, "below")),
        Twalk(DIRECTORY, NEW, (name, "..", "seen")),
        Twalk(ROOT, NEW, ("d", name)),
    ]
    if dialect is not Dialect.L:
        return common
    return [
        *common,
        Tunlinkat(DIRECTORY, name, 0),
        Tunlinkat(DIRECTORY, name, 0x200),
        Trenameat(DIRECTORY, name, DIRECTORY, "z"),
        Trenameat(DIRECTORY, name, ROOT, "z"),
    ]


def making(name: str, dialect: Dialect) -> list[Message]:
    """All that would put something there."""
    if dialect is not Dialect.L:
        return [Tcreate(DIRECTORY, name, perm, 0) for perm in (0o644, DM.DIR | 0o755)]
    return [
        Tlcreate(DIRECTORY, name, 0o2, 0o644, 0),
        Tmkdir(DIRECTORY, name, 0o755, 0),
        Tsymlink(DIRECTORY, name, "seen", 0),
        Tmknod(DIRECTORY, name, 0o10644, 0, 0, 0),
        Tlink(DIRECTORY, FILE, name),
        Trenameat(ROOT, "other", DIRECTORY, name),
        Trenameat(DIRECTORY, "seen", DIRECTORY, name),
    ]


@DIALECTS
@pytest.mark.parametrize("tree", list(TREES))
@pytest.mark.parametrize("access", list(ACCESS))
@pytest.mark.parametrize("binds", list(BINDS))
def test_whether_something_hidden_is_there_changes_no_answer(
    tmp_path: Path, dialect: Dialect, tree: str, access: str, binds: str
) -> None:
    manifest = read(ACCESS[access], "deny all /d/hidden/**", *BINDS[binds])
    asked = looking("hidden", dialect) + making("hidden", dialect)
    there, gone = (
        answers(TREES[tree](tmp_path / str(hidden), hidden), manifest, dialect, asked)
        for hidden in (True, False)
    )
    assert gone == there
    assert all(isinstance(answer, Rerror | Rlerror) for answer in there[:1])


@DIALECTS
@pytest.mark.parametrize("tree", list(TREES))
@pytest.mark.parametrize("access", list(ACCESS))
@pytest.mark.parametrize("binds", list(BINDS))
def test_what_is_hidden_answers_as_a_name_that_nothing_has(
    tmp_path: Path, dialect: Dialect, tree: str, access: str, binds: str
) -> None:
    manifest = read(ACCESS[access], "deny all /d/hidden/**", *BINDS[binds])
    hidden, missing = (
        answers(TREES[tree](tmp_path / name, True), manifest, dialect, looking(name, dialect))
        for name in ("hidden", "missing")
    )
    assert missing == hidden


def test_nothing_is_asked_of_the_tree_about_what_is_hidden(tmp_path: Path) -> None:
    class Watched(Dir):
        def walk(self, name: str, caller: Caller) -> Maybe[Node]:
            assert name != "hidden", "asked"
            return super().walk(name, caller)

    root = Watched({"hidden": {"below": "x"}, "d": {"seen": "x"}, "other": {"file": "x"}})
    manifest = read("allow all /**", "deny all /hidden/**")
    asked: list[Message] = [
        Twalk(ROOT, NEW, ("hidden",)),
        Twalk(ROOT, NEW, ("hidden", "below")),
        Tunlinkat(ROOT, "hidden", 0),
        Trenameat(ROOT, "hidden", ROOT, "z"),
        Tmkdir(ROOT, "hidden", 0o755, 0),
    ]
    missing, denied = Rlerror(E.MISSING.value.errno), Rlerror(E.DENIED.value.errno)
    assert [missing, missing, missing, missing, denied] == answers(root, manifest, Dialect.L, asked)


# what is there asks for the right of each operation


def refused(where: Path, rules: tuple[str, ...], *asked: Message) -> list[int]:
    """The errno of each answer on fid FILE, a symbolic link being /d/link; 0: it is done."""
    root = host(where, hidden=False)
    (where / "d/link").symlink_to("seen")
    found = answers(root, read("allow read /d", *rules), Dialect.L, list(asked))
    return [answer.ecode if isinstance(answer, Rlerror) else 0 for answer in found]


LINK = Twalk(DIRECTORY, 3, ("link",))
WRONLY, RDONLY, ANY = "allow write /other/file", "allow read /other/file", "allow read,write /other/file"


def lock(kind: LockType) -> Message:
    return Tlock(FILE, kind, 0, 0, 0, 1, "test")


@pytest.mark.parametrize(
    ("rules", "asked", "expected"),
    [
        (("allow read /d/link",), (LINK, Treadlink(3)), [0, 0]),
        (("allow write /d/link",), (LINK, Treadlink(3)), [0, 13]),
        ((RDONLY,), (Tstatfs(FILE),), [0]),
        ((WRONLY,), (Tstatfs(FILE),), [13]),
        ((RDONLY,), (Txattrwalk(FILE, NEW, ""), Txattrcreate(FILE, "user.x", 1, 0)), [0, 13]),
        ((WRONLY,), (Txattrwalk(FILE, NEW, ""), Txattrwalk(FILE, NEW, "user.x")), [13, 13]),
        ((RDONLY,), (Tlopen(FILE, 0), lock(LockType.WRLCK), lock(LockType.RDLCK)), [0, 13, 0]),
        ((ANY,), (Tlopen(FILE, 2), lock(LockType.WRLCK), lock(LockType.UNLCK)), [0, 0, 0]),
        ((RDONLY,), (Tlopen(FILE, 1),), [13]),
        ((RDONLY,), (Tlopen(FILE, 0o1000),), [13]),
        ((WRONLY,), (Tlopen(FILE, 0),), [13]),
    ],
)  # fmt: skip
def test_every_operation_asks_for_its_right(
    tmp_path: Path, rules: tuple[str, ...], asked: tuple[Message, ...], expected: list[int]
) -> None:
    assert expected == refused(tmp_path, rules, *asked)


@pytest.mark.parametrize("access", ["write", "create", "remove", "write,create,remove"])
def test_a_link_gives_nobody_more_than_the_file_does(tmp_path: Path, access: str) -> None:
    rules = (RDONLY, "allow create /d", f"allow {access} /d/new", "allow read /d/copy")
    asked = (Tlink(DIRECTORY, FILE, "new"), Tlink(DIRECTORY, FILE, "copy"))
    assert [13, 0] == refused(tmp_path, rules, *asked)
    assert ["copy", "link", "seen"] == sorted(os.listdir(tmp_path / "d"))


def test_a_create_of_what_is_there_opens_no_more_than_an_open_does(tmp_path: Path) -> None:
    rules = ("allow create /d", "allow read /d/seen")
    asked = (Tlcreate(DIRECTORY, "seen", 0o2, 0o644, 0), Tlcreate(DIRECTORY, "seen", 0o1000, 0o644, 0))
    assert [13, 13] == refused(tmp_path, rules, *asked)


def test_a_name_cannot_be_made_outside_the_namespace(tmp_path: Path) -> None:
    rules = ("allow create /d", "allow read /d/x")
    assert [0, 13] == refused(
        tmp_path, rules, Tmkdir(DIRECTORY, "x", 0o755, 0), Tmkdir(DIRECTORY, "y", 0o755, 0)
    )
