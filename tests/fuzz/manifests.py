"""A role's manifest: understood or refused with its line, and what it denies is denied."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib import resources

from skep.fs.chan import ALL_RIGHTS, Chan, Right, View
from skep.fs.errors import FsError
from skep.fs.node import Caller, How
from skep.fs.tree import Dir
from skep.roles.manifest import VARIABLES, Manifest, ManifestError, parse
from tests.fuzz.holding import holds

LENGTH_MAX = 1024
NAMES = ("jobs", "ctl", "secrets", "x", "*", "<node>", "**", "")
DEPTH = 4
READ = How(read=True)
TREE = Dir({"jobs": {"ctl": "c\n", "x": {"x": "1\n"}}, "secrets": {"x": "s\n"}, "x": {"x": {"jobs": "j\n"}}})
_loop = asyncio.new_event_loop()


def one(data: bytes) -> None:
    try:
        manifest = parse("fuzzed", data)
    except ManifestError as error:
        holds(str(error).startswith("fuzzed.ns:"), error)
        return
    assert manifest.rules == parse("fuzzed", data).rules
    view = seen(manifest)
    _loop.run_until_complete(enter(manifest, view))
    for right in look(view):
        assert right & ~(ALL_RIGHTS | Right.LIST) == 0
    # Whatever stands before it, one line takes all away, and one line takes nothing more.
    assert set() == {right for right in look(seen(parse("fuzzed", data + b"\ndeny all /**"))) if right}
    fewer = zip(look(seen(parse("fuzzed", data + b"\ndeny write /**"))), look(view), strict=True)
    # Who may do everything may list, without its being said.
    assert not any(less & Right.WRITE or less & ALL_RIGHTS & ~more for less, more in fewer)


async def enter(manifest: Manifest, view: View) -> None:
    """Its lines are done, or one of them cannot be; then walks end, however names are bound to each other."""
    try:
        root = await manifest.enter(Chan(TREE, Caller("local:fuzz", "fuzzed"), view))
        for names in (("jobs", "ctl"), ("x", "x", "x", "x"), ("jobs", "..", "x", "..", "..", "secrets")):
            _, there = await root.walk(names)
            if there is not None:
                await there.open(READ)
                await there.clunk()
    except FsError as error:
        error.text.encode("utf-8", "surrogateescape")


def seen(manifest: Manifest) -> View:
    return manifest.view(dict.fromkeys(VARIABLES, lambda name: name == "x"))


def look(view: View | None, depth: int = 0) -> Iterator[Right]:
    """The rights at every place that is made of NAMES; none where there is none."""
    yield Right(0) if view is None else view.rights
    if depth < DEPTH:
        for name in NAMES[: 8 >> depth]:
            yield from look(None if view is None else view.child(name), depth + 1)


def seeds() -> Iterator[bytes]:
    for file in resources.files("skep.roles").iterdir():
        if file.name.endswith(".ns"):
            text = file.read_bytes()
            yield b"\n".join(line for line in text.split(b"\n") if not line.startswith(b"#"))[:LENGTH_MAX]
    yield b"mount hive /\nallow read,write /jobs/*\ndeny write /jobs/<node>\ncd /jobs\nallow all x/**\n"
