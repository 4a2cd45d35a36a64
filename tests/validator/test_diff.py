"""Differences of two traces: what is found, what may be so, and what is no difference."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logs import KEYS, ORIGIN, as_tiles, bodies, checkpoint
from msgspec.structs import replace
from recorded import Recorder, entry_with, forged, ledger, story, tampered
from talks import BEGIN, recording

from skep.__main__ import run
from skep.namespaces.stored import pack_state
from skep.trace.clock import ManualClock
from skep.trace.note import sign_note
from skep.trace.snapshot import Head, state_hash, write_snapshot
from skep.trace.sqlite import SqliteLedger
from skep.validator.diff.diff import diff_traces
from skep.validator.diff.page import PAGE_MAX, page
from skep.validator.diff.report import TEXT_MAX, Change, Report, Tally
from skep.validator.diff.rules import Rules, parse_rules
from skep.validator.diff.traces import NotTold, Shown, opened
from skep.validator.replay.replay import Replay
from tests.namespaces.hives import W1, W2


def work(jobs: Iterable[str], clock: ManualClock | None = None, swap: bool = False) -> list[bytes]:
    """Each job is submitted, then all are done, one after the other."""
    hive = Recorder()
    hive.clock = clock or hive.clock
    made = [hive.submit(f"input={job}") for job in jobs]
    who = (W2, W1) if swap else (W1, W2)
    for n in range(len(made)):
        job = hive.lease(who[n % 2])
        hive.tell(job, "start", "ack result=1", who=who[n % 2])
    return hive.bodies


def found(tmp_path: Path, a: Iterable[bytes], b: Iterable[bytes], rules: str = "") -> Report:
    """The difference of two ledgers."""
    traces = []
    for name, of in (("a.db", a), ("b.db", b)):
        (tmp_path / name).unlink(missing_ok=True)
        trace = opened(str(ledger(tmp_path / name, of)))
        assert trace is not None
        traces.append(trace)
    return diff_traces(traces[0], traces[1], parse_rules(rules) if rules else Rules())


def told(change: Change) -> tuple[str, int, int]:
    return change.kind, change.a.place if change.a else 0, change.b.place if change.b else 0


def without(entries: Iterable[bytes], *places: int) -> list[bytes]:
    """The rest, numbered anew."""
    kept = [body for n, body in enumerate(entries, 1) if n not in places]
    return [renumbered(body, n) for n, body in enumerate(kept, 1)]


def renumbered(body: bytes, n: int) -> bytes:
    value = json.loads(body)
    return json.dumps(value | {"seq": n}, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_two_runs_of_the_same_work_are_the_same(tmp_path: Path) -> None:
    report = found(tmp_path, work("abc"), work("abc", ManualClock(1_800_000_000 * 10**9, seed=5)))
    assert (0, [], report.size_a) == (report.status, report.changes, report.same)


def test_a_job_more_is_what_is_added_and_nothing_else_differs(tmp_path: Path) -> None:
    report = found(tmp_path, work("abcd"), work("abxcd", ManualClock(seed=7)))
    said = [change.shown.said for change in report.changes if change.kind == "added"]
    assert ["submit topic=sum input=x", "lease", "start fence=1\nack result=1 fence=1"] == said
    # From then on the other worker does the next job.
    assert {"added", "changed", "removed"} >= {change.kind for change in report.changes}


def test_a_value_that_was_changed_is_told_with_its_field(tmp_path: Path) -> None:
    report = found(tmp_path, story(), forged())
    n = entry_with('"type":"job.leased"')
    assert [("changed", n, n)] == [told(change) for change in report.changes]
    assert [("events[0].fence", "1", "5")] == [(f.name, f.a, f.b) for f in report.changes[0].fields]
    assert 30 == report.status


def test_an_input_that_is_another_makes_no_other_entry_differ(tmp_path: Path) -> None:
    report = found(tmp_path, work("abc"), work("axc", ManualClock(seed=3)))
    assert ["changed"] == [change.kind for change in report.changes]
    assert {"events[0].body", "events[0].input", "line"} == {f.name for f in report.changes[0].fields}


def test_equal_jobs_in_each_others_place_are_found(tmp_path: Path) -> None:
    entries = work("aa")
    n = next(n for n, body in enumerate(entries) if b'"job.leased"' in body)
    leases = [n, n + 2]
    first, second = (json.loads(entries[k])["events"][0]["job"].encode() for k in leases)
    swapped = list(entries)
    for k, old, new in zip(leases, (first, second), (second, first), strict=True):
        swapped[k] = swapped[k].replace(old, new)
    report = found(tmp_path, entries, swapped)
    assert [("changed", k + 1, k + 1) for k in leases] == [told(change) for change in report.changes]
    assert ["events[0].job"] == [field.name for field in report.changes[0].fields]


def test_an_empty_ledger_is_compared_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty, some = tmp_path / "empty.db", ledger(tmp_path / "some.db", bodies(3))
    SqliteLedger(str(empty)).close()
    assert 0 == run(["diff", str(empty), str(empty)])
    capsys.readouterr()
    assert 30 == run(["diff", str(empty), str(some)])
    assert "0 and 3 entries: 0 the same, 3 added\n" in capsys.readouterr().out


def test_what_was_left_out_is_removed_and_the_other_way_round_added(tmp_path: Path) -> None:
    fewer = without(story(), 20, 30)
    report = found(tmp_path, story(), fewer)
    assert [("removed", 20, 0), ("removed", 30, 0)] == [told(change) for change in report.changes]
    report = found(tmp_path, fewer, story())
    assert [("added", 0, 20), ("added", 0, 30)] == [told(change) for change in report.changes]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(("drop", "double", "move", "edit")), st.integers(1, 40), st.integers(1, 40))
    )
)
def test_every_entry_of_either_trace_is_accounted_for(edits: list[tuple[str, int, int]]) -> None:
    entries = list(story())
    for kind, n, m in edits:
        if kind == "drop":
            del entries[n % len(entries)]
        elif kind == "double":
            entries.insert(m, entries[n % len(entries)])
        elif kind == "move":
            entries.insert(m, entries.pop(n % len(entries)))
        else:
            entries[n % len(entries)] = entries[n % len(entries)].replace(b'"line":"', b'"line":"%d' % m)
    with TemporaryDirectory() as directory:
        report = found(Path(directory), story(), [renumbered(body, n) for n, body in enumerate(entries, 1)])
    both = report.same + report.counts["changed"] + report.counts["moved"]
    assert (report.size_a, report.size_b) == (both + report.counts["removed"], both + report.counts["added"])
    assert len(report.changes) == sum(report.counts.values())
    for places in ([c.a.place for c in report.changes if c.a], [c.b.place for c in report.changes if c.b]):
        assert len(places) == len(set(places))


def test_what_stands_elsewhere_has_moved(tmp_path: Path) -> None:
    entries = list(story())
    entries.insert(40, entries.pop(7))
    moved = [renumbered(body, n) for n, body in enumerate(entries, 1)]
    assert [("moved", 8, 41)] == [told(change) for change in found(tmp_path, story(), moved).changes]


def test_a_ledger_and_its_tiles_are_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger(tmp_path / "ledger.db", bodies(600))
    for name, data in as_tiles(bodies(600)).items():
        (tmp_path / "tiles" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tiles" / name).write_bytes(data)
    assert 0 == run(["diff", str(tmp_path / "ledger.db"), str(tmp_path / "tiles")])
    assert "600 and 600 entries: 600 the same\n" == capsys.readouterr().out


RULES = """
at_least = 3

[[may]]
why = "fences go on"
path = "/pools/*"
field = "events[*].fence"
within = {within}
"""


def test_a_rule_excuses_what_may_differ(tmp_path: Path) -> None:
    report = found(tmp_path, story(), forged(), RULES.format(within=4))
    assert (0, 1, ["fences go on"]) == (report.status, report.excused, [c.excused for c in report.changes])
    report = found(tmp_path, story(), forged(), RULES.format(within=3))
    assert (30, 0) == (report.status, report.excused)


def test_a_rule_excuses_kinds_and_so_often_as_it_says(tmp_path: Path) -> None:
    rules = 'may = [{why = "not today", kind = ["removed"], role = "hive", at_most = 1}]'
    hives = [n for n, body in enumerate(story(), 1) if b'"role":"hive"' in body and b"expire" in body]
    assert 0 == found(tmp_path, story(), without(story(), hives[0]), rules).status
    report = found(tmp_path, story(), without(story(), *hives[:2]), rules)
    assert (30, 1, 1) == (report.status, report.excused, report.counts["removed"])


def test_too_few_entries_are_no_comparison(tmp_path: Path) -> None:
    report = found(tmp_path, story(), forged(), "at_least = 47")
    assert 31 == report.status


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("at_least = -1", 1, "at_least = -1: expected a number of entries, 0 or more"),
        ("\nat_least = 1\nat_most = 3\n", 3, "at_most: expected one of at_least, traces, may"),
        ("[[may]]\nwhy='x'\n[[may]]\nwhy='y'\nkind='moved'\n", 5, "kind = 'moved': expected a list of added"),
        ("[[may]]\nwhy='x'\n\n[[may]]\nfield='line'\n", 4, "[[may]] has no why, expected a text"),
        ("[[may]]\nwhy='x'\nwithin=3\n", 1, "within and no field"),
        ("[traces]\nwhere = ['log']\n", 2, "where = ['log']: expected a list of folders"),
        ("[[may]]\nwhy = \n", 2, "expected TOML"),
        ("[may]\nwhy = 'x'\n", 1, "expected tables, [[may]]"),
    ],
)
def test_a_mistake_in_the_rules_is_told_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int, expected: str
) -> None:
    (tmp_path / "rules.toml").write_text(text)
    path = str(ledger(tmp_path / "a.db", bodies(3)))
    assert 32 == run(["diff", "--rules", str(tmp_path / "rules.toml"), path, path])
    said = capsys.readouterr().err
    assert f"rules.toml: line {line}: " in said
    assert expected in said


def test_checkpoints_are_the_same_older_or_forked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forked = [*bodies(39), bodies(41)[-1]]
    for name, of in (("old", bodies(30)), ("new", bodies(40)), ("fork", forked)):
        (tmp_path / name).write_bytes(checkpoint(of))
    old, new, fork = (str(tmp_path / name) for name in ("old", "new", "fork"))
    assert 0 == run(["diff", new, new])
    assert 30 == run(["diff", old, new])
    assert "the first is older" in capsys.readouterr().out
    assert 30 == run(["diff", new, fork])
    assert "forked: two roots of 40 entries" in capsys.readouterr().out


SAID = (
    *BEGIN,
    "Tlopen tag 1 fid 1 flags 2",
    "Rlopen tag 1 qid (0 7 3) iounit 0",
    'Twrite tag 2 fid 1 offset 0 data "acquire name=door"',
    "Rwrite tag 2 count 17",
    "Tgetattr tag 3 fid 1 request_mask 0x7ff",
    "Rgetattr tag 3 valid 0x7ff qid (0 7 3) mode 0o600 nlink 1 mtime_sec 5 mtime_nsec 6",
)


def heard(tmp_path: Path, name: str, *lines: str, **how: Any) -> str:
    (tmp_path / name).write_bytes(recording(*lines, **how))
    return str(tmp_path / name)


def test_conversations_differ_by_what_was_said_and_not_by_tags_versions_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = heard(tmp_path, "a.9pt", *SAID)
    again = [
        line.replace("tag 3", "tag 9").replace("(0 7 3)", "(0 8 3)").replace("_sec 5", "_sec 7")
        for line in SAID
    ]
    assert 0 == run(["diff", a, heard(tmp_path, "b.9pt", *again)])
    other = [line.replace("name=door", "name=gate") for line in SAID if "getattr" not in line]
    capsys.readouterr()
    assert 30 == run(["diff", a, heard(tmp_path, "c.9pt", *other, end=None)])
    said = capsys.readouterr().out.splitlines()
    assert "~ 7 -> 7: unix:work /locks/ctl Twrite tag 2 fid 1 offset 0 data " in said[0]
    assert ["-", "-"] == [line[0] for line in said[2:4]]
    assert "the second was cut short" == said[4]


def test_rows_of_snapshots_are_compared_by_their_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in (30, 46):
        write_snapshot(tmp_path, *snapshot(n))
    old, new = (str(tmp_path / "snapshots" / f"{n}.snapshot") for n in (30, 46))
    assert 0 == run(["diff", old, old])
    capsys.readouterr()
    assert 30 == run(["diff", old, new, "--json"])
    report = json.loads(capsys.readouterr().out)
    changes = {(each["b"] or each["a"])["path"]: each for each in report["changes"]}
    assert [{"name": "", "a": '"online"', "b": '"draining"'}] == changes["/mode"]["fields"]
    assert "added" == changes["/locks/by_tenant/default/default/default"]["kind"]
    assert "of 30 entries" in report["note"]
    assert 2 == run(["diff", old, str(ledger(tmp_path / "a.db", story()))])


def snapshot(n: int) -> tuple[bytes, bytes]:
    """What the first entries of the story come to, as a signed note and the state's bytes."""
    replay = Replay()
    for seq, each in enumerate(story()[:n], 1):
        replay.fold(replay.decode(seq, each))
    packed = pack_state(replay.state)
    head = Head(ORIGIN, n, bytes(32), state_hash(packed), replay.digest(), "0" * 64)
    return sign_note(head.text(), ORIGIN, KEYS[:1]), packed


def test_a_trace_where_none_may_lie_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hive = tmp_path / "hive"
    (hive / "log" / "trace").mkdir(parents=True)
    ledger(hive / "ledger.db", bodies(5))
    ledger(hive / "log" / "trace" / "kept.db", bodies(5))
    assert 0 == run(["diff", str(hive), str(hive / "ledger.db")])
    ledger(hive / "old.db", bodies(3))
    (hive / "a.9pt").write_bytes(b"skep-9pt/1\n{}\n")
    for name, data in as_tiles(bodies(5)).items():
        (hive / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (hive / "export" / name).write_bytes(data)
    capsys.readouterr()
    assert 30 == run(["diff", str(hive), str(hive / "ledger.db")])
    said = capsys.readouterr()
    strays = [line.split(": ")[0].removeprefix(f"! {hive}") for line in said.out.splitlines()[:-1]]
    assert ["/a.9pt", "/export/tile", "/old.db"] == strays
    assert "a trace lies where none may" in said.err
    (tmp_path / "rules.toml").write_text('[traces]\nwhere = ["/log/trace/", "/export/"]')
    assert 30 == run(["diff", str(hive), str(hive / "ledger.db"), "--rules", str(tmp_path / "rules.toml")])
    assert "export" not in capsys.readouterr().out


def test_what_is_no_trace_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_text("hello")
    assert 2 == run(["diff", str(tmp_path / "a"), str(tmp_path / "a")])
    assert "neither traces nor two checkpoints or snapshots" in capsys.readouterr().err
    assert 2 == run(["diff", str(tmp_path / "b"), str(tmp_path / "a")])
    assert "there is no such file" in capsys.readouterr().err
    path = str(ledger(tmp_path / "c.db", [b"{}"]))
    assert 2 == run(["diff", path, path])
    assert "entry 1: " in capsys.readouterr().err
    strange = bodies(2)[1].replace(b'"outcome":{', b'"outcome":{"code":3},"outcome":{"code":3,')
    with pytest.raises(NotTold, match=r"entry 2: .*outcome"):
        found(tmp_path, bodies(2), [bodies(1)[0], strange])
    with pytest.raises(NotTold, match="says it is entry 2"):
        found(tmp_path, [renumbered(bodies(1)[0], 2)], bodies(1))


EVIL = "<script>alert(1)</script>&\\u202e\\u001b[2J<img src=//evil.example onerror=x>"


def test_the_page_and_the_terminal_show_what_strangers_wrote_and_do_not_obey_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n = entry_with("submit topic=sum input=a key=k")
    path = ledger(tmp_path / "evil.db", tampered(n, "input=a key=k", f"input={EVIL}"))
    ledger(tmp_path / "a.db", story())
    html = tmp_path / "diff.html"
    assert 30 == run(["diff", str(tmp_path / "a.db"), str(path), "--html", str(html)])
    text = html.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;\\u202e\\x1b[2J&lt;img" in text
    assert not any(tag in text for tag in ("<script", "<img", "<link", 'src="', "@import", "\x1b", "\u202e"))
    assert "default-src 'none'" in text.replace("&#x27;", "'")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown


def test_the_report_for_programs_holds_whole_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = ledger(tmp_path / "a.db", story()), ledger(tmp_path / "b.db", forged())
    assert 30 == run(["diff", str(a), str(b), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (45, 1, 30) == (report["same"], report["counts"]["changed"], report["status"])
    assert [{"name": "events[0].fence", "a": "1", "b": "5"}] == report["changes"][0]["fields"]


@pytest.mark.slow
def test_ten_thousand_differences_are_shown_and_the_rest_is_counted(tmp_path: Path) -> None:
    report = found(tmp_path, bodies(2), bodies(10_052))
    assert (10_000, 50, 10_050) == (len(report.changes), report.beyond, report.counts["added"])
    assert "50 more differences are counted" in page(report, "a", "b")


@pytest.mark.slow
def test_a_report_of_large_entries_is_bounded_too() -> None:
    report = Report("entries", 0, 1500)
    tally = Tally(report, Rules())
    for n in range(1500):
        tally.add(Change("added", None, Shown(n + 1, "", "", "", "<" * 60_000, "")))
    assert TEXT_MAX // 60_000 + 1 == len(report.changes)
    assert 1500 - len(report.changes) == report.beyond
    assert len(page(replace(report, changes=report.changes * 8), "a", "b")) < PAGE_MAX + 100_000
