"""/log: what happened.

    trace/live.jsonl    R the ledger up to now, a JSON line for each entry; live.jsonl@N those after ledger
                        number N, for ever, with {"seq":N} when nothing comes

A line has seq, time, trace, actor, role, tenant, path, line, outcome, events. Entries of other tenants are
left out; so the numbers have gaps.

    tail -n 1 log/trace/live.jsonl
"""

from __future__ import annotations

from skep.fs.node import Caller
from skep.fs.shapes import Stream
from skep.fs.tree import Dir
from skep.namespaces.follow import Feed, trace
from skep.namespaces.live import Hive
from skep.namespaces.rows import Followed


def files(hive: Hive) -> Dir:
    """The tree of /log."""

    def past(caller: Caller) -> Feed:
        return Feed(hive, 0, hive.turn.seq, trace(caller))

    def at(seq: int) -> Stream:
        return Stream(lambda caller: Feed(hive, seq, None, trace(caller)))

    return Dir({"trace": Followed({"live.jsonl": Stream(past)}, {"live.jsonl": at})})
