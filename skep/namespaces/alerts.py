"""Alerts: what somebody should look at, as an event beside what it is about. Nothing is folded from them."""

from __future__ import annotations

import msgspec


class Alerted(msgspec.Struct, frozen=True, tag_field="type", tag="alert.raised"):
    """``id``: of the job or the annex that it is ``about``; ``reason``: a word, ``text`` the same for people.
    It is for those of ``tenant``."""

    about: str  # job, annex
    id: str
    tenant: str
    reason: str
    text: str
