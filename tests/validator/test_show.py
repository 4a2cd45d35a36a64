from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from recorded import ledger, story
from talks import BEGIN, HEADER, SECRET, recording

from skep.__main__ import run
from skep.cli.tracing import trace_command
from skep.validator.show import cut, decoded, entry_line


def trace(*args: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(trace_command, args, input=stdin)


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hive's directory, with a ledger and a recording."""
    directory = tmp_path_factory.mktemp("hive")
    ledger(directory / "ledger.db", story())
    sessions = directory / "log" / "trace" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / f"{HEADER.session}.9pt").write_bytes(recording(*BEGIN, SECRET))
    return directory


def test_an_entry_is_a_line_with_what_followed() -> None:
    body = story()[12]
    assert (
        "2023-11-14T22:13:20.000000013Z 13 unix:work#w1 (drone-worker) /pools/default/next lease: ok; "
        "job.leased job=01HF7YAT00PJ3FQ5YM6P45C5RJ node=w1 fence=1"
    ) == entry_line(decoded(13, body))


def test_on_a_terminal_it_has_colours() -> None:
    line = entry_line(decoded(8, story()[7]), lambda text, colour: f"<{colour}>{text}")
    assert "<yellow>8 <cyan>unix:eye (observer) /jobs/ctl submit topic=sum input=a: <red>DENIED" in line


def test_what_is_recorded_does_not_speak_to_the_terminal() -> None:
    assert "\\x1b[2Jgone | away" == cut("\x1b[2Jgone\naway")
    assert 161 == len(cut("x" * 500))


def test_a_ledger_is_filtered(hive: Path) -> None:
    everything = trace("show", str(hive)).output.splitlines()
    assert 46 == len(everything)
    assert everything[12:14] == trace("show", str(hive), "--from", "13", "--to", "14").output.splitlines()
    workers = trace("show", str(hive / "ledger.db"), "--actor", "unix:work#*", "--path", "/pools")
    assert 4 == len(workers.output.splitlines())
    late = trace("show", str(hive), "--from", "2023-11-16T00:00:00Z")
    assert late.output.splitlines() == everything[-len(late.output.splitlines()) :]
    assert 0 < len(late.output.splitlines()) < 46
    assert list(story()) == trace("show", str(hive), "--json").output.encode().splitlines()


def test_a_conversation_is_shown_as_a_transcript(hive: Path) -> None:
    expected = (
        f"2023-11-14T22:13:20.000000000Z session {HEADER.session}: unix:work (drone-worker) node w1, tenant "
        "default/default/default, 9P2000.L, skep 0.1.0, after entry 0\n"
        "2023-11-14T22:13:20.001000000Z 1 -> Tattach tag 0 fid 0 afid NOFID uname w1 "
        'aname "" n_uname NONUNAME  # /\n'
        "2023-11-14T22:13:20.002000000Z 2 <- Rattach tag 0 qid (80 0 1)  # /\n"
        "2023-11-14T22:13:20.003000000Z 3 -> Twalk tag 1 fid 0 newfid 1 wname locks ctl  # /locks/ctl\n"
        "2023-11-14T22:13:20.004000000Z 4 <- Rwalk tag 1 wqid (80 0 2) (0 0 3)  # /locks/ctl\n"
        '2023-11-14T22:13:20.005000000Z 5 -> Twrite tag 3 fid 9 offset 0 data "***********"'
        "  # 11 bytes are hidden\n"
        "end: closed\n"
    )
    assert expected == trace("show", str(hive), "--session", HEADER.session).output
    data = recording(*BEGIN, SECRET)
    assert expected == trace("show", "-", stdin=data).output
    few = trace("show", "-", "--path", "/locks", "--to", "3", stdin=data).output.splitlines()
    assert ["3"] == [line.split()[1] for line in few[1:-1]]
    assert "" == trace("show", "-", "--session", "another", stdin=data).output


def test_a_conversation_is_told_to_programs(hive: Path) -> None:
    lines = trace("show", "-", "--json", stdin=recording(*BEGIN, SECRET)).output.splitlines()
    header, *said, end = [msgspec.json.decode(line) for line in lines]
    assert HEADER.session == header["session"]
    assert ["Tattach", "Rattach", "Twalk", "Rwalk", "Twrite"] == [each["message"] for each in said]
    assert (3, "/locks/ctl") == (said[3]["answers"], said[3]["path"])
    assert (11, "***********") == (said[4]["hidden"], said[4]["fields"]["data"])
    assert {"end": {"why": "closed", "lost": 0}, "cut": False} == end


def test_what_was_cut_short_or_changed_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = recording(*BEGIN, end=None)
    assert (
        "cut short: the recording has no end" == trace("show", "-", stdin=data[:-3]).output.splitlines()[-1]
    )
    path = tmp_path / "x.9pt"
    path.write_bytes(data[:-60] + b"\0" + data[-59:])
    assert 1 == run(["trace", "show", str(path)])
    out, err = capsys.readouterr()
    assert 4 == len(out.splitlines()), "what came before it is shown"
    assert f"skep: {path}: record 4: its link is not that of what comes before it\n" == err


def test_the_statuses_of_assert(hive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = tmp_path / "house.rules"
    assert 0 == run(["trace", "assert", str(hive)])
    rules.write_text("no leases:\n    never job.leased\n")
    assert 1 == run(["trace", "assert", str(hive), str(rules)])
    out, err = capsys.readouterr()
    assert "broken: no leases: 4 of 4: never job.leased\n" in out
    assert err.endswith(": 1 of 1 rules is broken\n")
    rules.write_text("no leases:\n    never jobs.leased\n")
    assert 32 == run(["trace", "assert", str(hive), str(rules)])
    assert "line 2: 'jobs.leased' is no kind of fact" in capsys.readouterr().err
    assert 2 == run(["trace", "assert", str(tmp_path)])
    found = msgspec.json.decode(trace("assert", str(hive), "--json").output)
    assert (0, 13) == (found["broken"], len(found["rules"]))


def test_a_conversation_is_asserted_with_the_ledger_beside_it(hive: Path) -> None:
    talk = hive / "log" / "trace" / "sessions" / f"{HEADER.session}.9pt"
    beside = trace("assert", str(talk)).output
    assert "not asked" not in beside
    talk_alone = trace("assert", "-", stdin=talk.read_bytes()).output
    assert "not asked: every refusal has a denial record: there is no ledger" in talk_alone
    assert beside == trace("assert", "-", "--ledger", str(hive), stdin=talk.read_bytes()).output
