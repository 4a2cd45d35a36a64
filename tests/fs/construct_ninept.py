"""The format of recorded conversations a second time, in construct's words: what ninept.py is compared with.

Nothing here is taken from ninept.py. Source: docs/CONVERSATIONS.md.
"""

from __future__ import annotations

from construct import (  # type: ignore[import-untyped]
    Array,
    Bytes,
    Computed,
    Const,
    GreedyBytes,
    GreedyRange,
    Int16ub,
    Int32ub,
    Int64ub,
    NullTerminated,
    Prefixed,
    RawCopy,
    Struct,
    Terminated,
    this,
)

redaction = Struct("offset" / Int32ub, "length" / Int32ub)
message = Struct("n" / Int16ub, "redactions" / Array(this.n, redaction), "frame" / GreedyBytes)

# size[4] kind[1] time[8] seq[8] body[..] link[32]; size counts what comes after it.
record = RawCopy(
    Prefixed(
        Int32ub,
        Struct(
            "kind" / Bytes(1),
            "time" / Int64ub,
            "seq" / Int64ub,
            "rest" / GreedyBytes,
            "body" / Computed(lambda here: here.rest[:-32]),
            "link" / Computed(lambda here: here.rest[-32:]),
        ),
    )
)
lines = Const(b"skep-9pt/1\n") >> NullTerminated(GreedyBytes, term=b"\n")
recording = Struct("lines" / RawCopy(lines), "records" / GreedyRange(record), Terminated)
