"""Strategies: messages of each dialect, their values, and frames that are almost right."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from hypothesis import strategies as st

from skep.fs import transcript
from skep.fs.messages import MESSAGES, WALK_MAX, Dialect, Message, Qid, Stat

WIDTHS = {"B": 1, "H": 2, "I": 4, "Q": 8}
qids = st.builds(Qid, st.integers(0, 0xFF), st.integers(0, 0xFFFFFFFF), st.integers(0, (1 << 64) - 1))
text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)
raw_text = st.binary(max_size=30).map(lambda raw: raw.replace(b"\0", b"").decode("utf-8", "surrogateescape"))


def numbers(hint: Any) -> st.SearchStrategy[int]:
    """Integers of a declared width, the ends of the range often among them."""
    top = (1 << 8 * WIDTHS[get_args(hint)[1]]) - 1
    return st.integers(0, top) | st.sampled_from([0, 1, top])


def values(record: type[Message] | type[Stat], dialect: Dialect) -> st.SearchStrategy[Any]:
    """Records of a declared class."""
    hints = get_type_hints(record, include_extras=True)
    strings = raw_text if dialect is Dialect.L else text
    made: dict[str, st.SearchStrategy[Any]] = {}
    for field in transcript.fields(record, dialect):
        hint = hints[field.name]
        kinds: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
            "number": functools.partial(numbers, hint),
            "string": lambda: strings,
            "data": lambda: st.binary(max_size=60),
            "qid": lambda: qids,
            "names": lambda: st.lists(strings, max_size=WALK_MAX).map(tuple),
            "qids": lambda: st.lists(qids, max_size=WALK_MAX).map(tuple),
            "stat": lambda: values(Stat, dialect),
        }
        made[field.name] = kinds[field.kind]()
    return st.builds(record, **made)


def of(dialect: Dialect) -> st.SearchStrategy[Message]:
    """Any message of a dialect."""
    return st.sampled_from(sorted(MESSAGES[dialect].values(), key=lambda kind: kind.__name__)).flatmap(
        lambda kind: values(kind, dialect)
    )


dialects = st.sampled_from(list(Dialect))
tags = st.integers(0, 0xFFFF)
anything = dialects.flatmap(lambda dialect: st.tuples(st.just(dialect), of(dialect)))
