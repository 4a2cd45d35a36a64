from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs.ctl import (
    LINE_MAX,
    LINES_MAX,
    Arg,
    Command,
    Verb,
    artifacts,
    check,
    is_artifacts,
    is_size,
    labels,
    line,
    parse,
    parse_line,
    quote,
    size,
    usage,
    verbs,
)
from skep.fs.errors import E, FsError

UNCLOSED = "usage: line 1: a quote ' is not closed (inside quotes it is written '')"
TABLE = verbs(
    Verb(
        "submit",
        (
            Arg("topic", required=True, kind="name", help="what kind of work"),
            Arg("priority", kind="number"),
            Arg("timeout", kind="duration"),
            Arg("labels", kind="labels"),
            Arg("class", kind="short|standard"),
            Arg("sha256", kind="sha256"),
        ),
        "submit topic=sha256",
        "queue a job",
    ),
    Verb("drain"),
)


def parsed(data: bytes) -> list[tuple[str, dict[str, str], int]]:
    return [(command.verb, command.args, command.number) for command in parse(data)]


def refusal(data: bytes) -> tuple[E, str]:
    with pytest.raises(FsError) as caught:
        check_all(data)
    return caught.value.kind, caught.value.text


def check_all(data: bytes) -> None:
    for command in parse(data):
        check(command, TABLE)


def test_a_write_is_lines_of_a_verb_and_its_arguments() -> None:
    assert [("submit", {"topic": "a", "input": "b=c"}, 1), ("drain", {}, 2)] == parsed(
        b"submit topic=a input=b=c\ndrain\n"
    )


def test_quotes_are_rc_s() -> None:
    assert [("a", {"x": "it's", "y": "two words", "z": "", "w": "half quoted"}, 1)] == parsed(
        b"a x='it''s' y='two words' z='' w=half' 'quoted"
    )


def test_empty_lines_comments_carriage_returns_and_a_missing_newline_are_harmless() -> None:
    assert [("drain", {}, 3), ("drain", {}, 5)] == parsed(b"\n# drain\n  drain \t\r\n\t# no\ndrain")


def test_a_write_of_nothing_is_no_command() -> None:
    assert [] == parse(b"") == parse(b"\n") == parse(b"# only words\n")


def test_a_json_object_a_line_is_a_command() -> None:
    text = b'{"verb":"submit","topic":"a","input":"1\\n2","priority":3,"labels":{"k":"v"},"key":null}'
    args = {"topic": "a", "input": "1\n2", "priority": "3", "labels": '{"k":"v"}'}
    assert [("submit", args, 1)] == parsed(text)


def test_the_text_of_a_command_is_what_was_written() -> None:
    assert Command("a", {"b": "c d"}, "a  b='c d'", 2) == parse(b"\n a  b='c d' \n")[0]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"stop", "usage: line 1: stop: unknown verb, expected submit drain"),
        (b"drain\n\ndrain now", "usage: line 3: now: expected key=value"),
        (b"drain =now", "usage: line 1: =now: expected key=value"),
        (b"drain 'a'=b", "usage: line 1: 'a'=b: expected key=value"),
        (b"drain now=1", "usage: line 1: drain: now=: unknown argument, expected drain"),
        (b"drain a=1 a=2", "usage: line 1: a= is there twice"),
        (b"submit topic=a priority=high", "usage: line 1: submit: priority=high: expected a whole number"),
        (b"submit topic=a timeout=3", "usage: line 1: submit: timeout=3: expected a duration, like 30s"),
        (b"submit topic=a labels=k", "usage: line 1: submit: labels=k: expected labels, like k:v,k:v"),
        (b"submit topic=a class=x", "usage: line 1: submit: class=x: expected one of short standard"),
        (
            b"submit topic=a input='b",
            UNCLOSED,
        ),
        (b"drain a=\x00", "usage: line 1: control character '\\x00', write a JSON object for it"),
        (b"drain\n\xff", "usage: line 2: byte 0: not UTF-8"),
        (b'{"topic":"a"}', 'usage: line 1: expected a "verb" in the object'),
    ],
)
def test_an_error_names_the_line_the_offence_and_what_was_expected(data: bytes, text: str) -> None:
    assert (E.USAGE, text) == refusal(data)


def test_a_missing_argument_is_named_with_the_whole_synopsis() -> None:
    kind, text = refusal(b"submit priority=1")
    assert E.USAGE == kind
    assert text.startswith(
        "usage: line 1: submit: topic= is missing, expected submit topic=<name> [priority="
    )


def test_broken_json_is_a_usage_error() -> None:
    assert E.USAGE == refusal(b'{"verb":')[0] == refusal(b'{"verb":3}')[0] == refusal(b"{}")[0]


def test_what_is_wrong_with_an_object_is_told_with_a_pointer() -> None:
    for text, expected in (
        (
            b'{"verb":"submit","topic":"t","a/b~c":1}',
            "submit: /a~1b~0c: unknown field, expected submit topic=",
        ),
        (b'{"verb":"submit","topic":"a/b"}', "submit: /topic: a/b: expected a name of at most"),
        (b'{"verb":"submit"}', "submit: /topic is missing, expected submit topic="),
    ):
        assert expected in refusal(text)[1]


def test_a_revision_may_be_asked_for_by_any_verb() -> None:
    assert TABLE["drain"] == check(parse_line("drain if-rev=7"), TABLE)


def test_a_name_is_one_path_element() -> None:
    for name in ("a/b", ".", "..", "", "x" * 129):
        assert E.USAGE == refusal(line("submit", {"topic": name}).encode())[0]


def test_long_lines_and_long_writes_are_refused_whole() -> None:
    assert (E.TOOBIG, f"too large: max={LINE_MAX} bytes, line 2 has {LINE_MAX + 1}") == refusal(
        b"drain\n" + b"x" * (LINE_MAX + 1)
    )
    assert LINES_MAX == len(parse(b"drain\n" * LINES_MAX))
    assert E.TOOBIG == refusal(b"drain\n" * (LINES_MAX + 1))[0]


def test_labels_are_pairs_or_an_object() -> None:
    assert {"a": "b", "c": ""} == labels("a:b,c:") == labels('{"a":"b","c":""}')


def test_artifacts_are_called_something_and_named_or_hashed() -> None:
    digest = "ab" * 32
    said = {"x": "a:b.npy", "y.1": digest}
    assert said == artifacts(f"x:a:b.npy,y.1:sha256:{digest}")
    assert said == artifacts(f'{{"x":"a:b.npy","y.1":"{digest}"}}')
    assert {"x": "a,b"} == artifacts('{"x":"a,b"}')
    wrong = ("", "{}", "x", "x:", ":a", "x:a,", "x:a,x:b", "x/y:a", ".x:a", f"{'x' * 65}:a", '{"x":""}', "{")
    assert not any(map(is_artifacts, wrong))


def test_a_size_is_bytes_or_a_number_of_larger_units() -> None:
    assert [0, 65536, 3 << 10, 512 << 20, 4 << 30] == [
        size(said) for said in ("0", "65536", "3KiB", "512MiB", "4GiB")
    ]
    for said in ("", "4 GiB", "4GB", "-1", "1.5GiB", "4gib", f"{1 << 24}GiB", "9" * 20):
        assert not is_size(said)


def test_usage_shows_each_verb_its_arguments_and_an_example() -> None:
    assert (
        "submit topic=<name> [priority=<number>] [timeout=<duration>] [labels=<labels>]"
        " [class=short|standard] [sha256=<sha256>]\n"
        "\tqueue a job\n\ttopic: what kind of work\n\texample: submit topic=sha256\ndrain\n"
    ) == usage(TABLE)


words = st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable())


@given(words, st.dictionaries(words.filter(lambda name: name != "verb"), st.text(max_size=50), max_size=4))
def test_what_is_written_is_what_is_parsed(verb: str, args: dict[str, str]) -> None:
    (command,) = parse(line(verb, args).encode() + b"\n")
    assert (verb, args) == (command.verb, command.args)


@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"])))
def test_a_quoted_value_is_one_word(value: str) -> None:
    assert {"a": value, "b": "c"} == parse_line(f"v a={quote(value)} b=c").args


@given(st.binary(max_size=200))
def test_any_bytes_are_commands_or_a_clear_refusal(data: bytes) -> None:
    try:
        commands = parse(data)
    except FsError as error:
        commands = []
        kind = error.kind
    else:
        kind = E.USAGE
    assert kind is E.USAGE
    assert all("\n" not in command.text for command in commands)
