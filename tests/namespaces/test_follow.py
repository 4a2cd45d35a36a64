"""Who reads on in the ledger, and sees what of it."""

from __future__ import annotations

import pytest
from door import Door
from hives import BOB, Living, live

from skep.fs.node import Caller
from skep.namespaces.tree import hive_tree


@pytest.mark.parametrize("role", ["operator", "observer", "validator", "simulator-test"])
def test_whose_manifest_has_the_trace_reads_that_of_its_tenant(role: str) -> None:
    async def story(alive: Living) -> None:
        job, theirs = await alive.submit(), await alive.submit(who=BOB)
        reader = Door(hive_tree(alive.hive), Caller(f"spiffe://hive/{role}/r1", role))
        text = await reader.read("/log/trace/live.jsonl")
        assert job in text
        assert theirs not in text

    live(story)
