"""Messages as lines: what is shown is read again, and what cannot be read is said."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs import transcript
from skep.fs.messages import (
    DONT_TOUCH,
    NOFID,
    NOTAG,
    Dialect,
    Message,
    Qid,
    Rreaddir,
    Rwalk,
    Tattach,
    Tread,
    Twalk,
    Twrite,
    Twstat,
)
from skep.fs.wire import Dirent, pack_dirent
from tests.fs.strategies import anything, tags


@pytest.mark.slow
@given(anything, tags)
@settings(max_examples=300)
def test_what_is_shown_is_read_again(told: tuple[Dialect, Message], tag: int) -> None:
    dialect, message = told
    line = transcript.show(tag, message, dialect)
    assert line.isprintable()
    assert (tag, message) == transcript.parse(line, dialect)


@given(st.binary(max_size=60) | st.binary(min_size=1, max_size=1).map(lambda byte: byte * 40))
def test_any_bytes_are_one_word(data: bytes) -> None:
    word = transcript.quote(data)
    assert [word] == transcript.tokens(word)
    assert data == transcript.unquote(word)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Tread tag 5 fid 1 offset 0 count 100", Tread(1, 0, 100)),
        (
            "Tattach tag 5 fid 0 afid NOFID uname glenda aname \"\"",
            Tattach(0, NOFID, "glenda", ""),
        ),
        ('Twalk tag 5 fid 0 newfid 1 wname usr "two words" "..."', Twalk(0, 1, ("usr", "two words", "..."))),
        ("Rwalk tag 5 wqid (80 0 17) (0 3 18)", Rwalk((Qid(0x80, 0, 17), Qid(0, 3, 18)))),
        ('Twrite tag 5 fid 1 offset 0 data "a\\n\\xff\\""', Twrite(1, 0, b'a\n\xff"')),
        ('Twrite tag 5 fid 1 offset 0 data "\\x00"*4096', Twrite(1, 0, bytes(4096))),
        ("Twstat tag 5 fid 1 stat ()", Twstat(1, DONT_TOUCH)),
        (
            "Rreaddir tag 5 data (qid (80 0 1) offset 1 type 4 name .)",
            Rreaddir(pack_dirent(Dirent(Qid(0x80, 0, 1), 1, 4, "."))),
        ),
    ],
)  # fmt: skip
def test_a_line_tells_a_message(line: str, message: Message) -> None:
    dialect = Dialect.L if isinstance(message, Rreaddir) else Dialect.PLAIN
    assert line == transcript.show(5, message, dialect)
    assert (5, message) == transcript.parse(line, dialect)


def test_what_is_left_out_is_nought() -> None:
    assert (NOTAG, Tread(1, 0, 0)) == transcript.parse("Tread tag NOTAG fid 1", Dialect.L)
    assert (1, Tattach(0, NOFID, "", "")) == transcript.parse("Tattach tag 1 fid 0", Dialect.PLAIN)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Tfly tag 1", "begins with a message's name and its tag"),
        ("Tread fid 1", "begins with a message's name and its tag"),
        ("Tread tag 1 fid 1 colour red", "Tread has no field 'colour'"),
        ("Tattach tag 1 fid 0 n_uname 5", "Tattach has no field n_uname in 9P2000"),
        ("Tread tag 1 fid one", "invalid literal"),
        ("Tread tag 1 fid", "fid has one value"),
        ("Rwalk tag 1 wqid (80 0)", "is no qid"),
        ("Rwalk tag 1 wqid (80 0 1", "a parenthesis is open"),
        ("Rwalk tag 1 wqid 80 0 1)", "a parenthesis too many"),
        ("Twstat tag 1 fid 1 stat (colour red)", "a stat has no 'colour'"),
        ('Tread tag 1 fid "1', "cannot be read"),
    ],
)
def test_a_line_that_cannot_be_read_says_why(line: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        transcript.parse(line, Dialect.PLAIN)
