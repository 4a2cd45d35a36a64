"""The handlers file: what it may say, and what is refused."""

from pathlib import Path

import pytest

from skep.roles.handlers import HandlersError, load


def written(directory: Path, text: str) -> Path:
    path = directory / "h.toml"
    path.write_text(text)
    return path


def test_a_handler_is_a_template_of_words(tmp_path: Path) -> None:
    handlers = load(
        written(
            tmp_path, '[resize]\nargv = ["convert", "{input}", "out/{job}.png", "{{}}"]\ntimeout = "1m"\n'
        )
    )
    values = {"input": "/w/in put", "text": "", "job": "J1", "topic": "resize", "attempt": "1"}
    assert ["convert", "/w/in put", "out/J1.png", "{}"] == handlers["resize"].command(values, {})
    assert 60_000_000_000 == handlers["resize"].timeout_ns


def test_what_a_job_says_is_one_word_and_no_template(tmp_path: Path) -> None:
    handlers = load(written(tmp_path, '[echo]\nargv = ["echo", "{text}"]\n'))
    values = {"input": "", "text": "a b; {job} $(x)", "job": "J", "topic": "echo", "attempt": "1"}
    assert ["echo", "a b; {job} $(x)"] == handlers["echo"].command(values, {})


def test_inputs_are_named_after_a_colon(tmp_path: Path) -> None:
    handler = load(
        written(tmp_path, '[add]\nargv = ["add", "{input:x}", "--to={input:y.npy}", "{input}"]\n')
    )["add"]
    assert {"x", "y.npy"} == handler.named()
    inputs = {"x": "/w/{job}", "y.npy": "/w/y", "z": "/w/z"}
    assert ["add", "/w/{job}", "--to=/w/y", "/w/in"] == handler.command({"input": "/w/in"}, inputs)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no topic in it"),
        ("[a]\n", "[a]: Object missing required field `argv`"),
        ("[a]\nargv = []\n", "[a]: argv is empty"),
        ('[a]\nargv = "ls"\n', "[a]: Expected `array`, got `str` - at `$.argv`"),
        ('[a]\nargv = ["ls", 1]\n', "[a]: Expected `str`, got `int` - at `$.argv[1]`"),
        ('[a]\nargv = ["ls"]\nshell = true\n', "[a]: Object contains unknown field `shell`"),
        ('[a]\nargv = ["ls"]\nresult = "all"\n', "[a]: Invalid enum value 'all' - at `$.result`"),
        ('[a]\nargv = ["ls"]\ntimeout = "soon"\n', "[a]: duration 'soon': expected a number"),
        ('[a]\nargv = ["ls", "{x}"]\n', "[a]: argv[1] '{x}': expected one of {input} {text}"),
        ('[a]\nargv = ["ls", "{input.x}"]\n', "[a]: argv[1] '{input.x}': expected one of"),
        ('[a]\nargv = ["ls", "{input:a/b}"]\n', "[a]: argv[1] '{input:a/b}': expected one of"),
        ('[a]\nargv = ["ls", "{text:a}"]\n', "{labels} {input:<name>}; a brace is written twice"),
        ('[a]\nargv = ["ls", "{input!r}"]\n', "[a]: argv[1] '{input!r}': expected one of"),
        ('[a]\nargv = ["ls", "{"]\n', "a brace is written twice"),
        ('[a]\nargv = ["{input}"]\n', "[a]: argv[0] '{input}': expected a program's name or whole path"),
        ('[a]\nargv = ["out/run"]\n', "[a]: argv[0] 'out/run': expected a program's name or whole path"),
        ('[a]\nargv = ["ls",, ]\n', "line 2"),
        ("a = 1\n", "[a]: Expected `object`, got `int`"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(HandlersError) as caught:
        load(written(tmp_path, text))
    assert why in str(caught.value)
    assert "h.toml" in str(caught.value)
