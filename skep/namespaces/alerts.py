"""Alerts: what somebody should look at, as an event beside what it is about. Nothing is folded from them."""

from __future__ import annotations

from typing import Final

import msgspec

NO_WORKER: Final = "no_worker"  # nobody takes the jobs of a pool


class Alerted(msgspec.Struct, frozen=True, tag_field="type", tag="alert.raised"):
    """``id``: of the job, the annex or the pool that it is ``about``; ``reason``: a word, ``text`` the same
    for people. It is for those of ``tenant``."""

    about: str  # job, annex, pool
    id: str
    tenant: str
    reason: str
    text: str
