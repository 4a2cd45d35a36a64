"""What the rights cost: ``python -m tests.bench.rights``, microseconds of processor time of one walk of three
names and of its clunk, in process and by Python alone, over the same tree under several views.

A walk that the session's inner loop answers asks nothing; these are the others. The first row is the walk
itself; what others take more is the check of the rights, and in the last two what binds take. A hidden name
and one that is not there are walks of that name alone."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from skep.fs.chan import EVERYTHING, Chan
from skep.fs.errors import FsError
from skep.fs.node import Caller
from skep.fs.tree import Dir
from skep.roles.manifest import Manifest, load, parse
from skep.roles.view import Names

ROUNDS, WALKS = 15, 2000
PATH: Final = ("jobs", "j1", "ctl")
NAMES: Final[Names] = {
    "node": "w1".__eq__, "leased": "j1".__eq__, "input": "f0".__eq__, "own": "j1".__eq__, "annex": "g".__eq__,
}  # fmt: skip
FULL: Final = "mount hive /\nallow all /**\ndeny all /secrets/**\n"


class Row(NamedTuple):
    name: str
    us: float  # of one walk, the best round's
    check_us: float  # of that, what is not the walk itself


async def rows() -> list[Row]:
    tree = Dir({"jobs": {name: {"ctl": "x", "state": "x"} for name in ("j1", "j2")}, "secrets": {}, "x": {}})
    bound = f"{FULL}bind -b /x /jobs\n"
    cases: Sequence[tuple[str, Manifest | None, tuple[str, ...]]] = (
        ("all of the tree", None, PATH),
        ("operator", load("operator"), PATH),
        ("all but one place", parse("operator", FULL.encode()), PATH),
        ("observer", load("observer"), PATH),
        ("drone-worker", load("drone-worker"), PATH),
        ("observer, a hidden name", load("observer"), ("secrets",)),
        ("observer, no such name", load("observer"), ("nothing",)),
        ("a bind elsewhere", parse("operator", f"{FULL}bind /jobs /x\n".encode()), PATH),
        ("a union on the way", parse("operator", bound.encode()), PATH),
    )
    roots = [(name, await _root(tree, manifest), path) for name, manifest, path in cases]
    best = dict.fromkeys((name for name, *_ in roots), float("inf"))
    for _ in range(ROUNDS):
        for name, root, path in roots:
            best[name] = min(best[name], await _walks(root, path))
    first = best[cases[0][0]]
    return [Row(name, best[name], best[name] - first if path is PATH else 0.0) for name, _, path in roots]


async def _root(tree: Dir, manifest: Manifest | None) -> Chan:
    caller = Caller("test", "test")
    if manifest is None:
        return Chan(tree, caller, EVERYTHING)
    return await manifest.enter(Chan(tree, caller, manifest.view(NAMES)))


async def _walks(root: Chan, path: tuple[str, ...]) -> float:
    start = time.thread_time_ns()
    for _ in range(WALKS):
        try:
            _, chan = await root.walk(path)
        except FsError:
            continue
        assert chan is not None
        await chan.clunk()
    return (time.thread_time_ns() - start) / WALKS / 1000


def main() -> None:
    print(f"{'walk of three names':28}{'us':>8}{'check us':>10}")
    for row in asyncio.run(rows()):
        print(f"{row.name:28}{row.us:8.2f}{row.check_us:10.2f}")


if __name__ == "__main__":
    main()
