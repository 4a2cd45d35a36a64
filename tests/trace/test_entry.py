from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registers import Event, Set, line

from skep.trace.entry import OK, Outcome, canonical, entry_decoder, entry_of, events_decoder, leaf_hash

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)
events = st.lists(st.dictionaries(st.text(), json_values), max_size=3).map(tuple)


def test_an_entry_is_one_known_string_of_bytes() -> None:
    written = line("set a 1", "set b 2", trace="01ARYZ6S410000000000000000")
    body = canonical(entry_of(written, 7, OK, (Set("a", 1.0),)))
    assert body == (
        b'{"actor":"ann","events":[{"name":"a","type":"register.set","value":1.0}],'
        b'"line":"set a 1\\nset b 2","outcome":{"code":"ok","k":0,"text":""},"path":"/registers/ctl",'
        b'"role":"observer","seq":7,"tenant":"o/p/e","time":' + str(written.time_ns).encode() + b","
        b'"trace":"01ARYZ6S410000000000000000","v":1}'
    )


def test_the_line_of_an_entry_is_the_line_that_was_written() -> None:
    written = line("set a 1", "", "set b 2")
    assert entry_of(written, 1, Outcome("CONFLICT", "no", 2), ()).written() == written


def test_ids_of_a_line_come_from_its_trace() -> None:
    written = line("set a 1", trace="T")
    assert [written.id(k) for k in range(3)] == ["T", "T-1", "T-2"]


def test_a_line_with_a_newline_in_it_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        line("set a 1\nset b 2")


@pytest.mark.slow
@given(events)
def test_canonical_bytes_survive_reading(decided: tuple[dict[str, Any], ...]) -> None:
    decoded = events_decoder(dict).decode(canonical(decided))
    body = canonical(entry_of(line("x"), 1, OK, decoded))
    entry = entry_decoder(dict).decode(body)
    assert entry.events == decoded
    assert canonical(entry) == body


@pytest.mark.slow
@given(events)
def test_canonical_bytes_are_sorted_json_without_spaces(decided: tuple[dict[str, Any], ...]) -> None:
    parsed = json.loads(canonical(decided))
    assert parsed == json.loads(json.dumps(parsed, sort_keys=True))
    assert json.loads(canonical(parsed)) == parsed
    assert canonical(dict(reversed(list({"b": parsed, "a": 1}.items())))) == canonical({"a": 1, "b": parsed})


def test_typed_events_are_read_as_their_types() -> None:
    body = canonical(entry_of(line("set a 1"), 1, OK, (Set("a", 1.5),)))
    assert entry_decoder(Event).decode(body).events == (Set("a", 1.5),)
    assert entry_decoder(dict).decode(body).events == ({"type": "register.set", "name": "a", "value": 1.5},)


def test_the_leaf_hash_is_that_of_rfc_6962() -> None:
    assert leaf_hash(b"") == sha256(b"\x00").digest()
    assert leaf_hash(b"L123456").hex() == "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
