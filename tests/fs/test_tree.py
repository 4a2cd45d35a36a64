"""Directories, and what becomes a file in them."""

from __future__ import annotations

import asyncio
import io
import stat
from typing import Any

import pytest

from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.local import local
from skep.fs.messages import QT
from skep.fs.node import Caller, How
from skep.fs.shapes import Memory, Text
from skep.fs.tree import BLOCK, Clone, Dir, Exclusive, Listing, as_node, new_block, number

ME = Caller("unix:glenda", "operator", user="glenda")


class Folder:
    """An object with ``read``."""

    def read(self) -> str:
        return "read\n"


async def _later(caller: Caller) -> bytes:
    await asyncio.sleep(0)
    return f"{caller.role}\n".encode()


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        ("text\n", b"text\n"),
        (b"\0\xff", b"\0\xff"),
        (lambda: "called\n", b"called\n"),
        (_later, b"operator\n"),
        (Folder(), b"read\n"),
        (io.StringIO("a file of Python's\n"), b"a file of Python's\n"),
        (Memory(b"memory"), b"memory"),
    ],
)
def test_a_thing_is_read_as_what_it_is(thing: Any, expected: bytes) -> None:
    async def visit() -> None:
        async with await local({"thing": thing}) as client:
            for _ in range(2):
                assert expected == await client.read_file("/thing")

    asyncio.run(visit())


def test_a_thing_that_cannot_be_served_is_refused_when_the_tree_is_made() -> None:
    with pytest.raises(TypeError, match="7 is no file"):
        as_node({"x": 7})


def test_mappings_are_directories_all_the_way_down() -> None:
    async def visit() -> None:
        async with await local({"a": {"b": {"c": "deep\n"}}}) as client:
            assert b"deep\n" == await client.read_file("/a/b/c")
            assert stat.S_ISDIR((await client.stat("/a/b")).mode)
            assert ["b"] == [entry.name for entry in await client.listdir("/a")]
            with pytest.raises(FsError, match="file does not exist"):
                await client.read_file("/a/c")

    asyncio.run(visit())


def test_a_listing_has_the_names_of_the_moment() -> None:
    names = {"one": "1\n", "two": "2\n"}
    tree = {"names": Listing(lambda caller: sorted(names), lambda name, caller: names.get(name))}

    async def visit() -> None:
        async with await local(tree) as client:
            assert ["one", "two"] == await listed(client)
            del names["one"]
            names["three"] = "3\n"
            assert ["three", "two"] == await listed(client)
            assert b"3\n" == await client.read_file("/names/three")
            with pytest.raises(FsError) as missing:
                await client.stat("/names/one")
            assert E.MISSING is missing.value.kind

    asyncio.run(visit())


async def listed(client: Client) -> list[str]:
    return [entry.name for entry in await client.listdir("/names")]


def test_what_is_made_at_each_walk_keeps_its_number_until_it_is_gone() -> None:
    names = {"one": {"inner": "1\n"}, "two": {"inner": "2\n"}}
    tree = {"names": Listing(lambda caller: names, lambda name, caller: names.get(name))}

    async def visit() -> None:
        async with await local(tree) as client:

            async def numbers() -> list[int]:
                paths = ("/names/one", "/names/one/inner", "/names/two", "/names/two/inner")
                return [(await client.stat(path)).qid.path for path in paths]

            before = await numbers()
            assert 4 == len(set(before))
            assert before == await numbers()
            assert before[0] == (await client.listdir("/names"))[0].qid.path
            gone = names.pop("one")
            with pytest.raises(FsError):
                await client.stat("/names/one")
            names["one"] = gone
            after = await numbers()
            assert before[2:] == after[2:]
            assert not {*before} & {*after[:2]}

    asyncio.run(visit())


def test_a_listing_of_one_kind_of_file_walks_to_none() -> None:
    walks: list[str] = []

    def walk(name: str, caller: Caller) -> str:
        walks.append(name)
        return "text\n"

    tree = {"names": Listing(lambda caller: ["a", "b"], walk, listed=stat.S_IFREG)}

    async def visit() -> None:
        async with await local(tree) as client:
            entries = await client.listdir("/names")
            assert [] == walks
            assert [entry.qid.path for entry in entries] == [
                (await client.stat(f"/names/{name}")).qid.path for name in "ab"
            ]

    asyncio.run(visit())


def test_a_listing_may_take_its_time() -> None:
    async def names(caller: Caller) -> list[str]:
        await asyncio.sleep(0)
        return ["a"]

    async def walk(name: str, caller: Caller) -> str | None:
        await asyncio.sleep(0)
        return "A\n" if name == "a" else None

    async def visit() -> None:
        async with await local({"names": Listing(names, walk)}) as client:
            assert ["a"] == await listed(client)
            assert b"A\n" == await client.read_file("/names/a")
            with pytest.raises(FsError, match="file does not exist"):
                await client.read_file("/names/b")

    asyncio.run(visit())


def test_a_clone_is_another_file_at_each_open() -> None:
    made: list[Memory] = []

    def new(caller: Caller) -> Memory:
        made.append(Memory(f"{len(made)} of {caller.role}\n".encode()))
        return made[-1]

    async def visit() -> None:
        async with await local({"clone": Clone(new)}) as client:
            assert b"0 of operator\n" == await client.read_file("/clone")
            assert b"1 of operator\n" == await client.read_file("/clone")
            await client.stat("/clone")
            assert 2 == len(made)

    asyncio.run(visit())


def test_an_exclusive_file_is_free_again_when_its_open_failed() -> None:
    opens: list[str] = []

    def content() -> str:
        opens.append("x")
        if len(opens) == 1:
            raise FsError(E.IO, "not today")
        return "text\n"

    async def visit() -> None:
        async with await local({"lock": Exclusive(Text(content))}) as client:
            with pytest.raises(FsError, match="i/o error"):
                await client.read_file("/lock")
            async with await client.open("/lock"):
                with pytest.raises(FsError) as busy:
                    await client.open("/lock")
                assert E.BUSY is busy.value.kind
            assert b"text\n" == await client.read_file("/lock")
            assert (await client.stat("/lock")).qid.type & QT.EXCL

    asyncio.run(visit())


def test_an_exclusive_file_is_cut_like_what_it_is_of() -> None:
    async def visit() -> None:
        memory = Memory(b"0123456789")
        async with await local({"lock": Exclusive(memory)}) as client:
            await client.write_file("/lock", b"new")
            assert b"new" == await client.read_file("/lock")

    asyncio.run(visit())


def test_numbers_are_given_in_blocks_to_a_branch_as_a_whole() -> None:
    first, second = new_block(), new_block()
    assert BLOCK == second - first
    branch = Dir({"a": "A", "b": {"c": "C"}})
    assert first + 4 == number(branch, first)
    inner = branch.walk("b", ME)
    assert isinstance(inner, Dir)
    numbers = [node.path for node in (branch, branch.children["a"], inner, inner.children["c"])]  # type: ignore[attr-defined]
    assert list(range(first, first + 4)) == numbers


def test_a_directory_is_opened_for_reading_alone() -> None:
    with pytest.raises(FsError, match="not permitted"):
        Dir({}).open(How(write=True), ME)
