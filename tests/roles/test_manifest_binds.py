"""Name spaces: bind, mount, unmount and cd over a tree, as a client of any dialect finds them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from skep.fs.chan import Chan, Right, View
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.export import Export
from skep.fs.local import joined
from skep.fs.messages import Dialect, Trenameat, Tunlinkat
from skep.fs.node import Caller, How
from skep.roles.manifest import Manifest, parse
from tests.roles.spaces import Space

T = TypeVar("T")
DIALECTS = pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
_READ = How(read=True)
FILES = ("a/one", "a/both", "b/two", "b/both", "b/deep/x", "c/three", "secrets/key", "top")


@pytest.fixture
def where(tmp_path: Path) -> Path:
    for file in FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(f"{file}\n")
    return tmp_path


def read(*lines: str, rules: tuple[str, ...] = ("allow all /**",)) -> Manifest:
    return parse("test", "\n".join(("mount hive /", *rules, *lines)).encode())


def seen(
    where: Path, manifest: Manifest, look: Callable[[Client], Awaitable[T]], dialect: Dialect = Dialect.L
) -> T:
    async def run() -> T:
        join = joined(Space(Export(where).root, manifest))
        async with await Client.over(join, dialect=dialect, msize=4096) as client:
            return await look(client)

    return asyncio.run(run())


def names(where: Path, manifest: Manifest, path: str, dialect: Dialect = Dialect.L) -> list[str]:
    return seen(where, manifest, lambda client: _names(client, path), dialect)


async def _names(client: Client, path: str) -> list[str]:
    return [entry.name for entry in await client.listdir(path)]


def text(where: Path, manifest: Manifest, path: str, dialect: Dialect = Dialect.L) -> str:
    return seen(where, manifest, lambda client: client.read_file(path), dialect).decode().strip()


def refusal(where: Path, manifest: Manifest, do: Callable[[Client], Awaitable[object]]) -> FsError:
    with pytest.raises(FsError) as caught:
        seen(where, manifest, do, Dialect.U)
    return caught.value


def _stat_of(path: str) -> Callable[[Client], Awaitable[object]]:
    return lambda client: client.stat(path)


# binds


@DIALECTS
def test_a_bind_replaces(where: Path, dialect: Dialect) -> None:
    space = read("bind /b /a")
    assert ["both", "deep", "two"] == sorted(names(where, space, "/a", dialect))
    assert "b/both" == text(where, space, "/a/both", dialect)
    assert "b/deep/x" == text(where, space, "/a/deep/x", dialect)


@DIALECTS
def test_a_file_is_bound_on_a_file(where: Path, dialect: Dialect) -> None:
    space = read("bind /a/one /b/two")
    assert "a/one" == text(where, space, "/b/two", dialect)
    assert ["both", "deep", "two"] == sorted(names(where, space, "/b", dialect))


@DIALECTS
@pytest.mark.parametrize(
    ("flag", "first", "order"), [("-a", "a", ["one", "two"]), ("-b", "b", ["two", "one"])]
)
def test_a_union_shows_all_and_of_the_same_name_the_first(
    where: Path, dialect: Dialect, flag: str, first: str, order: list[str]
) -> None:
    space = read(f"bind {flag} /b /a")
    found = names(where, space, "/a", dialect)
    assert ["both", "deep", "one", "two"] == sorted(found)
    assert order == [name for name in found if name in order]
    assert f"{first}/both" == text(where, space, "/a/both", dialect)
    assert "a/one" == text(where, space, "/a/one", dialect)
    assert "b/deep/x" == text(where, space, "/a/deep/x", dialect)


@DIALECTS
def test_a_union_is_listed_in_pieces_without_gap_or_duplicate(where: Path, dialect: Dialect) -> None:
    for i in range(200):
        (where / "ab"[i % 2] / f"file-{i:03}").touch()
        (where / "a" / f"both-{i:03}").touch()
        (where / "b" / f"both-{i:03}").touch()
    found = names(where, read("bind -a /b /a"), "/a", dialect)
    assert 404 == len(found) == len(set(found))


@DIALECTS
def test_what_lists_and_what_walks_tell_of_the_same_files(where: Path, dialect: Dialect) -> None:
    async def look(client: Client) -> list[bool]:
        listed = {entry.name: entry.qid for entry in await client.listdir("/")}
        stats = dict(await client.scan("/"))
        return [
            listed[name] == attr.qid == (await client.stat(f"/{name}")).qid for name, attr in stats.items()
        ]

    assert all(seen(where, read("bind -b /b /a", "bind /c /b", "bind /a/one /top"), look, dialect))


@DIALECTS
def test_dot_dot_goes_back_the_way_one_came(where: Path, dialect: Dialect) -> None:
    space = read("bind /b/deep /a", "bind -a /c /b")

    async def look(client: Client) -> list[bytes]:
        async with await client.walk("/a") as fid, await fid.walk("..", "top") as top:
            await top.open(_READ)
            one = await top.read(0, 100)
        async with await client.walk("/b/deep") as fid, await fid.walk("..", "three") as three:
            await three.open(_READ)
            return [one, await three.read(0, 100)]

    assert [b"top\n", b"c/three\n"] == seen(where, space, look, dialect)


def test_the_root_is_its_own_parent_whatever_is_bound_on_it(where: Path) -> None:
    space = read("bind -b /a /")
    assert "a/one" == text(where, space, "/one")
    assert "a/one" == text(where, space, "/../one")
    assert "top" == text(where, space, "/a/../top")


def test_a_name_means_what_it_means_at_its_line(where: Path) -> None:
    # What was bound stays what it is, whatever is bound on its name later.
    assert "a/one" == text(where, read("bind /a /c", "bind /b /a"), "/c/one")
    # And the other way round the second line sees what the first did.
    assert "b/two" == text(where, read("bind /b /a", "bind /a /c"), "/c/two")


def test_what_is_bound_on_a_place_shows_by_every_way_to_it(where: Path) -> None:
    assert "c/three" == text(where, read("bind /c /b/deep", "bind /b /a"), "/a/deep/three")
    assert "c/three" == text(where, read("bind /b /a", "bind /c /b/deep"), "/a/deep/three")


def test_a_union_that_is_bound_comes_with_all_its_elements(where: Path) -> None:
    space = read("bind -a /b /a", "bind /a /c")
    assert ["both", "deep", "one", "two"] == sorted(names(where, space, "/c"))
    assert "a/both" == text(where, space, "/c/both")
    assert ["both", "deep", "one", "three", "two"] == sorted(
        names(where, read("bind -a /b /a", "bind -b /a /c"), "/c")
    )


def test_an_unmount_takes_one_or_all_away(where: Path) -> None:
    union = ("bind -a /b /a", "bind -b /c /a")
    assert ["both", "deep", "one", "three", "two"] == sorted(names(where, read(*union), "/a"))
    assert ["both", "one", "three"] == sorted(names(where, read(*union, "unmount /b /a"), "/a"))
    assert ["both", "one"] == sorted(names(where, read(*union, "unmount /a"), "/a"))
    assert ["both", "deep", "two"] == sorted(names(where, read(*union, "unmount /c /a", "unmount /a"), "/b"))


def test_another_mount_is_the_tree_without_the_binds(where: Path) -> None:
    space = read("bind /b /a", "mount hive /c")
    assert "b/two" == text(where, space, "/a/two")
    assert "a/one" == text(where, space, "/c/a/one")
    assert sorted(names(where, read(), "/")) == sorted(names(where, space, "/c"))
    assert "three" in names(where, read("mount -a hive /c"), "/c")


def test_a_cd_holds_for_the_lines_after_it(where: Path) -> None:
    space = read("cd /b", "bind deep /a", "cd /", "bind c b")
    assert "b/deep/x" == text(where, space, "/a/x")
    assert "c/three" == text(where, space, "/b/three")


@pytest.mark.parametrize(
    ("line", "kind", "why"),
    [
        ("bind /none /a", E.MISSING, ""),
        ("bind /a /none", E.MISSING, ""),
        ("bind /secrets /a", E.MISSING, ""),
        ("unmount /a", E.INVALID, "test.ns:4: unmount /a: nothing is bound there"),
        ("cd top\nbind x /a", E.NOTDIR, "test.ns:4: cd top: "),
        ("bind /top /a", E.INVALID, "test.ns:4: bind /top /a: inconsistent: a directory goes on a directory, "
         "a file in a file's place"),
        ("bind -a /top /a/one", E.INVALID, "test.ns:4: bind -a /top /a/one: inconsistent: a directory goes "
         "on a directory, a file in a file's place"),
        ("bind -a /b /c\nunmount /a /c", E.INVALID, "test.ns:5: unmount /a /c: /a is not in the union"),
        ("bind -a /b /c\nbind -c /c /a", E.INVALID, "test.ns:5: bind -c /c /a: which element of the union "
         "would take what is made?"),
        ("bind -a /b /b\n" * 7, E.INVALID, "test.ns:10: bind -a /b /b: a union of 128, at most 64 were "
         "expected"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_done_ends_the_attach(where: Path, line: str, kind: E, why: str) -> None:
    rules = ("allow all /**", "deny all /secrets/**")

    async def look(client: Client) -> None:
        raise AssertionError("attached")

    error = refusal(where, read(line, rules=rules), look)
    assert (kind, why.strip()) == (error.kind, error.detail)


# making and taking away


@DIALECTS
def test_what_is_made_is_made_in_the_first_element_that_takes_it(where: Path, dialect: Dialect) -> None:
    space = read("bind -ac /b /a", "bind -bc /c /a", "bind -b /secrets /a")

    async def look(client: Client) -> str:
        await client.write_file("/a/new", b"new\n", create=True)
        await client.mkdir("/a/dir")
        return (await client.read_file("/a/new")).decode()

    assert "new\n" == seen(where, space, look, dialect)
    assert "new\n" == (where / "c/new").read_text()
    assert (where / "c/dir").is_dir()


@pytest.mark.parametrize("line", ["bind /b /a", "bind -a /b /a", "bind -b /b /a"])
def test_where_no_element_takes_it_nothing_can_be_made(where: Path, line: str) -> None:
    async def make(client: Client) -> None:
        await client.mkdir("/a/new")

    error = refusal(where, read(line), make)
    assert E.DENIED is error.kind
    assert error.detail.startswith("rule=union /")


def test_a_name_that_another_element_has_is_not_made_again(where: Path) -> None:
    async def make(client: Client) -> None:
        await client.mkdir("/a/one")

    assert E.EXISTS is refusal(where, read("bind -ac /b /a"), make).kind


@DIALECTS
def test_what_is_removed_is_what_was_seen(where: Path, dialect: Dialect) -> None:
    async def look(client: Client) -> list[str]:
        await client.remove("/a/both")
        return await _names(client, "/a")

    found = seen(where, read("bind -a /b /a"), look, dialect)
    assert ["both", "deep", "one", "two"] == sorted(found)
    assert not (where / "a/both").exists()
    assert (where / "b/both").exists()


def test_a_rename_in_a_union_goes_from_where_it_is_to_where_things_are_made(where: Path) -> None:
    async def move(client: Client) -> None:
        fid = (await client.walk("/a")).fid
        await client.rpc(Trenameat(fid, "one", fid, "moved"))

    seen(where, read("bind -ac /b /a"), move)
    assert "a/one\n" == (where / "b/moved").read_text()


@pytest.mark.parametrize("name", ["a", "top"])
def test_a_mount_point_is_neither_removed_nor_renamed(where: Path, name: str) -> None:
    space = read("bind /b /a", "bind /c/three /top")

    async def look(client: Client) -> list[object]:
        root = (await client.walk("/")).fid
        with pytest.raises(FsError) as caught:
            await client.remove(f"/{name}")
        asked = (Tunlinkat(root, name, 0), Trenameat(root, name, root, "x"), Trenameat(root, "c", root, name))
        found: list[object] = [caught.value.errno]
        for request in asked:
            with pytest.raises(FsError) as caught:
                await client.rpc(request)
            found.append(caught.value.errno)
        return found

    assert [16] * 4 == seen(where, space, look)
    assert (where / name).exists()


# rights are those of the place, by whatever way


def test_a_bind_opens_nothing(where: Path) -> None:
    rules = ("allow all /**", "deny all /secrets/**", "deny write,create,remove /b/**")
    space = read("bind -ac /b /a", rules=rules)
    changes: tuple[Callable[[Client], Awaitable[object]], ...] = (
        lambda client: client.write_file("/a/two", b"x"),
        lambda client: client.mkdir("/a/new"),
        lambda client: client.remove("/a/two"),
    )
    for change in changes:
        assert E.DENIED is refusal(where, space, change).kind
    assert "b/two" == text(where, space, "/a/two")


def test_what_is_hidden_below_is_hidden_by_every_way(where: Path) -> None:
    rules = ("allow all /**", "deny all /b/deep/**")
    space = read("bind -b /b /a", "bind / /c", rules=rules)
    assert "deep" not in names(where, space, "/a")
    for path in ("/a/deep", "/c/b/deep", "/c/a/deep/x"):
        assert E.MISSING is refusal(where, space, _stat_of(path)).kind


def test_a_union_lists_those_elements_that_may_be_read(where: Path) -> None:
    rules = ("allow all /a/**", "allow write /b", "allow read /b/two")
    assert ["both", "one", "two"] == sorted(names(where, read("bind -a /b /a", rules=rules), "/a"))


def test_the_permissions_of_a_union_tell_whether_something_can_be_made(where: Path) -> None:
    for line, writable in (("bind -a /b /a", 0), ("bind -ac /b /a", 0o200), ("bind /b /a", 0)):
        mode = seen(where, read(line), lambda client: client.stat("/a")).mode
        assert writable == mode & 0o200, line


class Below:
    """A view of what is below some places, and of nothing else."""

    def __init__(self, base: View, places: tuple[tuple[str, ...], ...]) -> None:
        self.base = base
        self.places = places
        self.rights = base.rights if () in places else Right.LIST

    def child(self, name: str) -> View | None:
        base = self.base.child(name)
        if base is None or () in self.places:
            return base
        left = tuple(place[1:] for place in self.places if place[0] == name)
        return Below(base, left) if left else None


def test_a_narrowed_view_has_the_same_binds_and_shows_less_of_them(where: Path) -> None:
    manifest = read("bind -a /b /a", "bind /c /secrets", "bind -bc /b/deep /b")

    class Narrowed(Space):
        async def attach(self, *who: Any) -> Chan:
            whole = self.manifest.view({})
            view = Below(whole, (("b",), ("secrets",), ("a",)))
            return await self.manifest.enter(Chan(self.root, Caller("test", "test"), view), whole)

    async def look() -> tuple[list[str], list[str], list[str], list[E]]:
        async with await Client.over(joined(Narrowed(Export(where).root, manifest))) as client:
            kinds = []
            for path in ("/c", "/secrets", "/secrets/key", "/secrets/three"):
                with pytest.raises(FsError) as caught:
                    await client.stat(path)
                kinds.append(caught.value.kind)
            return await _names(client, "/"), await _names(client, "/a"), await _names(client, "/b"), kinds

    root, a, b, kinds = asyncio.run(look())
    assert (["a", "b"], ["both", "deep", "one", "two"]) == (sorted(root), sorted(a))
    assert (["both", "deep", "two", "x"], [E.MISSING] * 4) == (sorted(b), kinds)


# /ns


@pytest.mark.parametrize(
    "lines",
    [
        (),
        ("cd /b", "cd deep", "allow read x"),
        ("bind -ac /b /a", "bind -b /c /a", "unmount /b /a", "mount -a hive /c"),
        ("cd /b", "bind deep /a", "cd /", "bind -c c b", "cd /a", "unmount /b"),
    ],
)
def test_the_lines_that_ns_tells_make_the_same_namespace(where: Path, lines: tuple[str, ...]) -> None:
    first = read(*lines)
    again = read(*first.ns.splitlines()[1:])
    assert first.ns == again.ns
    for path in ("/", "/a", "/b", "/c"):
        assert names(where, first, path) == names(where, again, path)


def test_ns_tells_no_cd_that_nothing_goes_on_from() -> None:
    assert "mount hive /\nbind /a /b\n" == read("cd /jobs", "bind /a /b", "cd /x").ns


def test_who_has_no_binds_has_plain_chans(where: Path) -> None:
    async def attach() -> bool:
        chan = Chan(Export(where).root, Caller("test", "test"), read().view({}))
        return await read("cd /a").enter(chan) is chan

    assert asyncio.run(attach())
