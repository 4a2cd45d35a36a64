"""What conformance finds in trees that are well made, and in those that are not."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Sequence
from typing import Any

import pytest

from examples.hello import TREE
from skep.fs.conformance import conformance
from skep.fs.errors import E, FsError
from skep.fs.messages import Qid
from skep.fs.node import Attr, Caller, Entry, Handle, How, Node
from skep.fs.shapes import Text
from skep.fs.tree import Dir
from tests.fs.grounds import Grounds, played


def found(tree: Any) -> list[str]:
    """The findings of one dialect."""
    findings = asyncio.run(conformance(tree))
    return [line.removeprefix("9P2000.L ") for line in findings if line.startswith("9P2000.L ")]


def test_a_tree_of_the_ready_made_shapes_has_no_fault() -> None:
    assert [] == asyncio.run(conformance(TREE))


@pytest.mark.slow
def test_files_that_wait_break_and_fail_are_told_apart() -> None:
    async def play(grounds: Grounds) -> None:
        # Not slow: that directory lets every name be walked to.
        grounds.root.children.pop("slow")
        findings = [line for line in await conformance(grounds.root) if line.startswith("9P2000 ")]
        assert [
            "9P2000 /closing: it fails: i/o error: the last bytes could not be kept",
            "9P2000 /broken: its mode lets it be read, opening says: i/o error: the server failed at Topen",
        ] == findings

    played(play)


class Wanderer(Text):
    """A file that is another one each time it is asked."""

    def attr(self, caller: Caller) -> Attr:
        self.number += 1
        return Attr(Qid(0, 0, self.number), 0o100444)


class Bytes(Handle):
    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)

    def read(self, offset: int, count: int) -> bytes:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class Odd(Text):
    """A file whose opens give these answers whatever is asked."""

    def __init__(self, *answers: bytes, mode: int = 0o444) -> None:
        super().__init__("", mode)
        self.answers = answers

    def opened(self, how: How, caller: Caller) -> Handle:
        return Bytes(*self.answers)


class Careless(Odd):
    """A file that is opened for whatever one likes."""

    def open(self, how: How, caller: Caller) -> Handle:
        return Bytes(*self.answers)


class Entries(Handle):
    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = lambda: entries  # type: ignore[method-assign]


class Folder(Dir):
    """A directory that lists these names, whatever it holds."""

    def __init__(self, names: list[str], children: dict[str, Any]) -> None:
        super().__init__(children)
        self.names = names

    def opened(self, how: How, caller: Caller) -> Handle:
        return Entries([Entry(name, Qid(0, 0, 7), stat.S_IFREG) for name in self.names])


class Everywhere(Dir):
    def walk(self, name: str, caller: Caller) -> Node:
        return Text("here too\n")


class Refusing(Dir):
    def walk(self, name: str, caller: Caller) -> Node:
        raise FsError(E.IO, "no")


@pytest.mark.parametrize(
    ("tree", "finding"),
    [
        ({"f": Wanderer("x")}, "/f: walked to Qid"),
        ({"f": Odd(b"x" * 100)}, "/f: 100 bytes were read where 7 were asked for"),
        ({"f": Odd(b"one", b"two", b"two")}, "/f: a second read of the same open gives something else"),
        ({"f": Odd(b"same")}, "/f: it does not end where it ended"),
        ({"f": Odd(b"same")}, "/f: it has something at 2^62"),
        ({"f": Odd(b"longer than that")}, "/f: a read at 7 does not go on there"),
        ({"f": Careless(b"", mode=0o222)}, "/f: its mode says it cannot be read, and it was opened for that"),
        ({"f": Careless(b"", mode=0o444)}, "/f: its mode says it cannot be written"),
        (Folder(["a", "a"], {"a": "A"}), "/: a name is listed twice"),
        (Folder(["a"], {"a": "A"}), "/a: listed as Qid(type=0, vers=0, path=7)"),
        (Folder(["a/b"], {}), "/: 'a/b' is no file's name"),
        (Everywhere({}), "/: every name can be walked to"),
        (Refusing({"a": "A"}), "/: a name that is not there is refused by: i/o error"),
        (Refusing({"a": "A"}), "/a: it is listed, and walking to it fails: i/o error"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_fault_is_found(tree: Any, finding: str) -> None:
    assert any(line.startswith(finding) for line in found(tree)), found(tree)
