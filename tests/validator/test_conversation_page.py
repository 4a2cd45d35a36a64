"""The session about conversations in docs/REPLAY.md, typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conversing import OPERATOR, Recording
from recorded import ledger

from skep.fs import messages as m
from skep.fs.messages import NUMBERS, Dialect
from skep.fs.ninept import Writer
from skep.fs.wire import pack
from skep.validator.conversation.volatile import FIELDS, PLACES
from tests.pages import DOCS, check_page


def forged(recording: Recording) -> bytes:
    """The recording with another refusal, linked as if it had been recorded so."""
    writer = Writer()
    data = writer.header(recording.header)
    refused = [n for n, each in enumerate(recording.records()) if each.body[4] == NUMBERS[m.Rlerror]]
    for n, each in enumerate(recording.records()):
        tag = int.from_bytes(each.body[5:7], "little")
        body = pack(tag, m.Rlerror(13), Dialect.L) if n == refused[-1] else each.body
        data += writer.record(each.kind, each.time_ns, each.seq, body)
    return data


@pytest.mark.slow
def test_the_session_prints_what_the_page_says(tmp_path: Path) -> None:
    sessions = tmp_path / "hive" / "log" / "trace" / "sessions"
    sessions.mkdir(parents=True)
    ledger(tmp_path / "hive" / "ledger.db", OPERATOR().bodies)
    (sessions / "ann.9pt").write_bytes(OPERATOR().data)
    (tmp_path / "forged.9pt").write_bytes(forged(OPERATOR()))
    check_page("REPLAY.md", "tests/validator/test_conversation_page.py", tmp_path)


def test_everything_volatile_has_a_reason() -> None:
    assert all(row.why for row in (*PLACES, *FIELDS))
    assert "skep/validator/conversation/volatile.py" in (DOCS / "REPLAY.md").read_text()
