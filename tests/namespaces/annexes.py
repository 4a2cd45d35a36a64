"""Annexes for the tests: nodes that say they have devices, which nobody looks for."""

from __future__ import annotations

import json
from typing import Any

from hives import Folded

from skep.fs.ctl import line
from skep.fs.node import Caller
from skep.namespaces.gpu.record import Annex

GIB = 1 << 30
G1 = Caller("unix:work", "cuda-annex", node="g1")
CARD: dict[str, Any] = {"id": "cuda:0", "memory": 8 * GIB, "slots": 4}
CTL = "/gpu/g1/ctl"


class Annexed(Folded):
    """The rules with the annex g1: one device of 8 GiB and four slots, the pool gpu for it, which falls back
    to spare, and the topic run."""

    def __init__(self, *cards: dict[str, Any]) -> None:
        super().__init__()
        for create in ("create pool=spare", "create pool=gpu requires=gpu fallback=spare"):
            self.write("/pools/ctl", create)
        self.write("/pools/ctl", "map topic=run pool=gpu")
        self.hive("/nodes/g1", "join principal=unix:work role=cuda-annex")
        self.hive("/nodes/g1", "offer labels=annex:g1,gpu:h100 capacity=16")
        self.offer(*(cards or (CARD,)))

    def offer(self, *cards: dict[str, Any], disabled: str = "") -> None:
        args = {"devices": json.dumps(cards), "every": "30s"} | ({"disabled": disabled} if disabled else {})
        self.hive("/gpu/g1", line("offer", args))

    @property
    def annex(self) -> Annex:
        return self.state.gpu.by_id["g1"]

    def expire(self) -> None:
        self.hive("/gpu/g1", "expire")

    def held(self, more: str = "") -> str:
        """A job that g1 holds."""
        job = self.write("/jobs/ctl", f"submit topic=run {more}")
        while self.state.jobs.by_id[job].state == "queued":
            self.write("/pools/gpu/next", "lease", G1)
        return job

    def start(self, job: str, more: str = "memory=1073741824", device: str = "cuda:0") -> str:
        fence = self.state.jobs.by_id[job].fence
        return self.write(f"/jobs/{job}/ctl", f"start fence={fence} device={device} {more}", G1)

    def tell(self, job: str, verb: str) -> None:
        """Say ``verb`` as the holder."""
        fence = self.state.jobs.by_id[job].fence
        self.write(f"/jobs/{job}/ctl", f"{verb} fence={fence}", G1)
