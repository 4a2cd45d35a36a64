from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import simulated, story
from talks import BEGIN, HEADER, recording

from skep.fs.ninept import read as read_recording
from skep.roles.outside import outside_of
from skep.trace.entry import OK, Line, Outcome, canonical, entry_of
from skep.validator.assertions import rules
from skep.validator.assertions.assertions import Checked, check
from skep.validator.assertions.facts import Fact, LedgerFacts, talk_facts
from skep.validator.assertions.rules import RuleError, read
from skep.validator.conversation.talk import talk

FALLBACK = "a job falls back for a reason, and an alert about one has its end"
DEFAULT = (Path(rules.__file__).parent / "default.rules").read_text()


def facts(bodies: Iterable[bytes]) -> Iterator[Fact]:
    entries = LedgerFacts(outside_of())
    for seq, body in enumerate(bodies, 1):
        yield from entries.of(seq, body)


def entries(*said: tuple[str, str, dict[str, object]]) -> list[bytes]:
    """Entries of (role, path, an event without its type's fields that nobody asks for)."""
    return [
        canonical(
            entry_of(
                Line("unix:work#w1", role, "t/t/t", path, ("x",), seq * 1_000_000_000, f"T{seq}"),
                seq,
                OK,
                (event,) if event else (),
            )
        )
        for seq, (role, path, event) in enumerate(said, 1)
    ]


def leases(*events: str) -> list[bytes]:
    """Entries of events written ``leased j 1``: type, job, fence."""
    said = []
    for each in events:
        kind, job, fence = each.split()
        said.append(
            ("operator", "/jobs/ctl", {"type": f"job.{kind}", "job": job, "fence": int(fence), "node": "w1"})
        )
    return entries(*said)  # type: ignore[arg-type]


def asked(rule: str, bodies: Iterable[bytes]) -> Checked:
    (found,) = check(read(f"it:\n    {rule}\n"), facts(bodies), talk=False)
    return found


def broken_at(rule: str, bodies: Iterable[bytes]) -> list[str]:
    return [witness.where for witness in asked(rule, bodies).witnesses]


def test_never_names_each_fact_that_there_should_not_be() -> None:
    bodies = story()
    assert [] == broken_at("never write where path under /nowhere", bodies)
    denied = asked("never write where denied and actor = unix:eye", bodies)
    assert (46, 1) == (denied.asked, denied.broken)
    assert ["entry 8"] == [witness.where for witness in denied.witnesses]
    assert "write actor=unix:eye path=/jobs/ctl denied=yes" == denied.witnesses[0].text


@pytest.mark.parametrize(
    ("cond", "count"),
    [
        ("role = observer", 1),
        ('role = "observer"', 1),
        ("role in observer, hive and not ok", 3),
        ("code = FENCED or code = BUSY", 5),
        ("code = DENIED and not (actor = unix:eye or actor = unix:bob)", 1),
        ("path like /jobs/*/ctl and lines > 1", 3),
        ("path under /locks", 3),
        ("path under /lock", 0),
        ("seq <= 3 and events >= 1", 3),
    ],
)
def test_conditions_say_what_they_mean(cond: str, count: int) -> None:
    assert count == asked(f"never write where {cond}", story()).broken


def test_what_is_followed_may_be_followed_late_but_not_too_late() -> None:
    rule = "every job.leased is followed by job.ended or job.returned with the same job"
    good = leases("leased a 1", "leased b 1", "ended a 1", "returned b 2")
    assert [] == broken_at(rule, good)
    assert ["entry 2"] == broken_at(rule, good[:3])
    assert ["entry 1", "entry 2"] == broken_at(f"{rule} within 1s", good)
    assert [] == broken_at(f"{rule} within 2s", good)
    # Whether it would have come in time, a ledger that ends does not tell.
    assert [] == broken_at(f"{rule} within 1s", good[:2])
    twice = leases("leased a 1", "leased a 2", "ended a 2")
    assert ["entry 1"] == broken_at(f"{rule} before job.leased", twice)
    assert "job.leased actor=unix:work#w1 path=/jobs/ctl job=a: entry 2 came first" == (
        asked(f"{rule} before job.leased", twice).witnesses[0].text
    )
    assert [] == broken_at(f"{rule} before job.leased", twice[:1])


def test_what_follows_must_have_been_there() -> None:
    rule = "every job.started follows job.leased with the same job, fence"
    assert [] == broken_at(rule, leases("leased a 1", "started a 1"))
    assert ["entry 2"] == broken_at(rule, leases("leased a 1", "started a 2"))
    assert ["entry 1"] == broken_at(rule, leases("started a 1", "leased a 1"))
    assert [] == broken_at(
        "every job.started has job.leased with the same job", leases("started a 1", "leased a 1")
    )


def test_numbers_that_rise_and_such_that_never_fall() -> None:
    again = leases("leased a 1", "leased b 1", "leased a 1")
    assert ["entry 3"] == broken_at("fence of job.leased rises for the same job", again)
    assert [] == broken_at("fence of job.leased never falls for the same job", again)
    back = leases("leased a 2", "leased a 1")
    found = asked("fence of job.leased never falls for the same job", back)
    assert "job.leased actor=unix:work#w1 path=/jobs/ctl job=a fence=1: it was 2 in entry 1" == (
        found.witnesses[0].text
    )


def test_what_is_beyond_the_first_few_is_counted() -> None:
    found = asked("never job.leased", leases(*(f"leased j{n} 1" for n in range(9))))
    assert (9, 5) == (found.broken, len(found.witnesses))


@pytest.mark.parametrize(
    ("bodies", "title"),
    [
        (entries(("drone-worker", "/policy/ctl", {})), "no session wrote outside its namespace"),
        (entries(("drone-worker", "/jobs/01J/ctl", {})), "no session wrote outside its namespace"),
        (entries(("observer", "/pools/p/next", {})), "no session wrote outside its namespace"),
        (entries(("nobody", "/jobs/ctl", {})), "no session wrote outside its namespace"),
        (leases("leased a 1", "leased a 2"), "every lease ends before the job is leased again"),
        (leases("leased a 2", "returned a 3", "leased a 2"), "no fence goes back"),
        (leases("started a 1"), "nobody begins a job who was not given it"),
        (leases("ended a 1"), "every job that ended was submitted"),
        (leases("fellback a 1"), FALLBACK),
        (entries(("hive", "/jobs/J", {"type": "alert.raised", "about": "job", "id": "J"})), FALLBACK),
        (
            entries(
                ("hive", "/gpu/g1", {"type": "gpu.leased", "annex": "g1", "lease": "L1", "fence": 2}),
                ("hive", "/gpu/g1", {"type": "gpu.leased", "annex": "g1", "lease": "L2", "fence": 2}),
            ),
            "no fence goes back",
        ),
        (
            entries(("hive", "/gpu/g1", {"type": "gpu.ended", "annex": "g1", "lease": "L1"})),
            "what ends of a device was given",
        ),
    ],
)
def test_the_rules_for_every_hive_find_what_should_not_be(bodies: list[bytes], title: str) -> None:
    found = check(read(DEFAULT), facts(bodies), talk=False)
    assert [title] == [each.title for each in found if each.broken]


def test_a_refusal_has_no_effect() -> None:
    line = Line("unix:ann", "operator", "t/t/t", "/jobs/ctl", ("x",), 1, "T1")
    body = canonical(entry_of(line, 1, Outcome("DENIED", "no"), ({"type": "hive.drained"},)))
    found = check(read(DEFAULT), facts([body]), talk=False)
    assert ["what was refused had no effect"] == [each.title for each in found if each.broken]


@pytest.mark.parametrize("bodies", [story, lambda: simulated("7", 60), lambda: simulated("assert", 150)])
@pytest.mark.slow
def test_the_rules_for_every_hive_hold_of_what_others_record(bodies: object) -> None:
    found = check(read(DEFAULT), facts(bodies()), talk=False)  # type: ignore[operator]
    assert [] == [each for each in found if each.broken]
    assert 5 <= sum(not each.skipped for each in found)


# conversations


def told(*lines: str, ledger: Iterable[bytes] = (), beside: bool = True) -> dict[str, list[str]]:
    """The titles of broken rules and where."""
    header, records = read_recording(recording(*BEGIN, *lines))
    every = [*facts(ledger), *talk_facts(header, talk(header, records), outside_of())]
    found = check(read(DEFAULT), every, ledger=beside)
    return {each.title: [witness.where for witness in each.witnesses] for each in found if each.broken}


def test_a_write_that_was_let_through_outside_the_namespace_is_found() -> None:
    walk = ("Twalk tag 1 fid 0 newfid 2 wname policy ctl", "Rwalk tag 1 wqid (80 0 4) (0 0 5)")
    write = "Twrite tag 2 fid 2 offset 0 data hello"
    assert {"no session wrote outside its namespace": ["record 7"]} == told(
        *walk, write, "Rwrite tag 2 count 5"
    )
    # Refused, it was not written; but then there is a record of it.
    refused = (*walk, write, "Rlerror tag 2 ecode 13")
    assert {"every refusal has a denial record": ["record 8"]} == told(*refused)
    assert {} == told(*refused, beside=False)


def test_a_refusal_is_told_by_the_ledger_in_one_of_two_ways() -> None:
    refused = ("Twrite tag 2 fid 1 offset 0 data hello", "Rlerror tag 2 ecode 13")
    line = Line("unix:work#w1", "drone-worker", "t/t/t", "/locks/ctl", ("x",), 1, "T1")
    denied: dict[str, object] = {
        "type": "log.denied",
        "code": "DENIED",
        "principal": "unix:work",
        "node": "w1",
    }
    many = denied | {"code": "*", "principal": "*", "node": ""}
    entry = canonical(entry_of(line, 1, Outcome("DENIED", "no"), ()))
    assert {} == told(*refused, ledger=[entry])
    assert {} == told(*refused, ledger=entries(("hive", "/log/x", denied)))
    # A catch-all's record stands for many.
    assert {} == told(*refused, ledger=entries(("hive", "/log/x", many)))
    other = entries(("hive", "/log/x", denied | {"node": "w2"}))
    assert {"every refusal has a denial record": ["record 6"]} == told(*refused, ledger=other)


def test_a_message_knows_its_file_its_session_and_its_answer() -> None:
    header, records = read_recording(recording(*BEGIN, "Tlopen tag 1 fid 1 flags 1", "Rlerror tag 1 ecode 2"))
    last = list(talk_facts(header, talk(header, records), outside_of()))[-2:]
    assert ["Tlopen", "Rlerror"] == [fact.kind for fact in last]
    assert [("/locks/ctl", "Rlerror", 2, ""), ("/locks/ctl", "", 2, "Tlopen")] == [
        (fact.fields["path"], fact.fields["answer"], fact.fields["errno"], fact.fields["to"]) for fact in last
    ]
    assert {(HEADER.session, "unix:work#w1")} == {(f.fields["session"], f.fields["actor"]) for f in last}


# what cannot be read


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: there is no rule"),
        ("    never write\n", "line 1: a rule without a title"),
        ("title:\nother:\n    never write\n", "line 1: 'title' has no rule"),
        ("title:\n", "line 1: 'title' has no rule"),
        ("never write\n", "line 1: 'never write': expected a title"),
        ("# why\n\nt:\n    never wrte\n", "line 4: 'wrte' is no kind of fact"),
        ("t:\n    never job.lease\n", "line 2: 'job.lease' is no kind of fact: expected job.submitted"),
        ("t:\n    never job.leased where fense = 1\n", "line 2: 'fense' is no field of job.leased"),
        ("t:\n    never write where\n", "line 2: the rule ends too soon: expected a field"),
        ("t:\n    never write where (ok\n", "line 2: the rule ends too soon: expected )"),
        ("t:\n    never write where path under\n", "line 2: the rule ends too soon: expected a value"),
        ("t:\n    never write ok\n", "line 2: 'ok' after the rule: expected its end"),
        ("t:\n    every write\n", "line 2: the rule ends too soon: expected has, follows, or is followed by"),
        ("t:\n    every write has write\n", "line 2: the rule ends too soon: expected with"),
        ("t:\n    every write has write with the same nose\n", "line 2: 'nose' is no field of write"),
        (
            "t:\n    every write is followed by write with the same path within soon\n",
            "line 2: 'soon': expected a duration, 30s",
        ),
        ("t:\n    fence in job.leased rises\n", "line 2: 'in': expected never, every, or a field"),
        ("t:\n    fence of job.leased grows\n", "line 2: 'grows': expected rises, or never falls"),
        ('t:\n    never write where path = "x\n', "line 2: '\"x' cannot be read"),
    ],
)
def test_rules_that_cannot_be_read_are_told_by_their_line(text: str, said: str) -> None:
    with pytest.raises(RuleError) as error:
        read(text)
    assert str(error.value).startswith(said), str(error.value)


def test_a_rule_goes_on_where_it_is_indented_further() -> None:
    (first, second) = read("t:\n  every write\n     has write\n     with the same path\n  never write\n")
    assert "every write has write with the same path" == first.text
    assert ("never write", 5) == (second.text, second.number)


WORDS = [
    "never", "every", "has", "follows", "is", "followed", "by", "with", "the", "same", "within", "before",
    "for", "rises", "falls", "where", "and", "or", "not", "in", "under", "like", "of", "as", "(", ")", ",",
    "=", "!=", "<", "job", "write", "job.leased", "job.*", "Twrite", "fence", "path", "ok", "30s", "7",
    "/jobs", '"a b"', "outside", "its", "namespace",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=14))
def test_whatever_stands_there_is_a_rule_or_told(words: list[str]) -> None:
    with contextlib.suppress(RuleError):
        rules = read(f"t:\n    {' '.join(['never', *words])}\nu:\n    {' '.join(['every', *words])}\n")
        assert 2 == len(check(rules, facts(leases("leased a 1", "started a 1"))))
