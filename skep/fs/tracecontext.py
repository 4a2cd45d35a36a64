"""W3C trace context: whether ``traceparent`` and ``tracestate`` are what they must be. Pure.

Version 00 alone is taken: what a later one means is not known here. They are passed on as they were written.
Source: W3C Recommendation "Trace Context", sections 3.2 and 3.3.
"""

from __future__ import annotations

import re
from typing import Final

STATE_MAX: Final = 512  # characters of a tracestate, which is what everybody must pass on
MEMBERS_MAX: Final = 32  # of a tracestate

_PARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_KEY: Final = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
# Printable ASCII but comma and equals sign; no blank at its end.
_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER: Final = re.compile(rf"[ \t]*({_KEY})={_VALUE}[ \t]*")


def is_traceparent(value: str) -> bool:
    """``00-<trace id>-<parent id>-<flags>``, lower hex, neither id all zeros."""
    return _PARENT.fullmatch(value) is not None


def is_tracestate(value: str) -> bool:
    """``vendor=value,…``: MEMBERS_MAX at most, each key once."""
    if not value or len(value) > STATE_MAX:
        return False
    found = [_MEMBER.fullmatch(member) for member in value.split(",") if member.strip(" \t")]
    keys = {member[1] for member in found if member is not None}
    return 0 < len(found) <= MEMBERS_MAX and len(keys) == len(found)
