"""Who may do what with the files of the trace and of the validator: all of it in one table, by the roles' own
manifests and the default policy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from skep.fs.chan import Chan
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.tree import hive_tree
from skep.roles.gate import names
from skep.roles.manifest import load
from tests.namespaces.door import BOTH, READ, Door, rest, say
from tests.namespaces.hives import Living, living

TENANT: Final = "other/project/env"
VAL: Final = "spiffe://hive/validator"
WHO: Final = (
    Caller("unix:ann", "operator"),
    Caller("unix:bob", "operator", tenant=TENANT),
    Caller(f"{VAL}/v1", "validator", node="v1"),
    Caller(f"{VAL}/v2", "validator", node="v2", tenant=TENANT),
    Caller("unix:eye", "observer"),
    Caller("unix:ear", "observer", tenant=TENANT),
    Caller("spiffe://hive/simulator-test/s1", "simulator-test", node="s1"),
    Caller("unix:work", "drone-worker", node="w1"),
    Caller("spiffe://hive/gateway/g1", "gateway", node="g1"),
)
# A letter for each of WHO. y: yes; n: refused; o: only what is its own tenant's; .: it is not there.
# What is to be written is written, as a role that may write the file would, or one that may read it.
TABLE: Final = """
    OoVvEeSwg
    yoyoyoy.. /log/trace/live.jsonl
    ynynyny.. /log/trace/checkpoint
    ynynyny.. /log/trace/keys
    ynynyny.. /log/trace/handovers
    ynynyny.. /log/trace/snapshot
    yoyonnn.. /log/trace/recordings
    ynynyny.. /log/trace/witness/status
    ynynyny.. /log/trace/witness/key
    yyyynnn.. /log/trace/ctl record principal=unix:eve on
    ynnnnnn.. /log/trace/witness/ctl quorum need=0
    ynynnnn.. /log/trace/witness/ctl disagree key=nobodys why=no
    ynynnnn.. /log/trace/witness/add-cosignature nothing
    ynnnnnn.. /log/trace/witness/add-checkpoint nothing
    ynynnnn.. /log/trace/proof/inclusion entry=1
    ynynnnn.. /log/trace/proof/consistency old=1
    ynynnn... /validator/ctl verify
"""


async def tried(door: Door, path: str, said: str) -> str:
    """The letter for writing that, or for reading where it is ""."""
    try:
        chan = await door.open(path, BOTH if said else READ)
        if said:
            await say(chan, said)
        await rest(chan)
    except FsError as error:
        if error.kind is E.DENIED:
            return "n"
        # What is not there is not found; a question about nothing is answered so, too.
        return "y" if await door.exists(path) else "."
    return "y"


async def row(alive: Living, path: str, said: str) -> str:
    found = ""
    for who in WHO:
        door = Door(hive_tree(alive.hive), who)
        view = load(who.role).view(names(alive.hive, who.node, who.principal))
        door.root = Chan(hive_tree(alive.hive), who, view)
        letter = await tried(door, path, said)
        own = letter == "y" and not said and who.tenant == TENANT
        found += "o" if own else letter
    return " ".join(filter(None, (found, path, said)))


def test_each_file_of_the_trace_is_for_whom_the_table_says(tmp_path: Path) -> None:
    async def story() -> list[str]:
        async with living(tmp_path) as alive:
            return [await row(alive, *line[10:].partition(" ")[::2]) for line in expected]

    expected = [line.strip() for line in TABLE.strip().splitlines()[1:]]
    assert expected == asyncio.run(story())


def test_a_tenant_finds_nothing_of_another_in_what_it_may_read(tmp_path: Path) -> None:
    async def story() -> None:
        async with living(tmp_path) as alive:
            await alive.submit("input=secret-of-ann")
            await alive.write("/log/trace/ctl", "record principal=unix:anns-own on")
            for who in (each for each in WHO if each.tenant == TENANT):
                door = Door(hive_tree(alive.hive), who)
                assert "secret-of-ann" not in await door.read("/log/trace/live.jsonl")
                for path in ("sessions", "snapshots"):
                    assert [] == await door.names(f"/log/trace/{path}")
                if who.role != "observer":
                    assert "" == await door.read("/log/trace/recordings")

    asyncio.run(story())
