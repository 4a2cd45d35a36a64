"""Names in certificates: what is one, and what only looks like it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs.spiffe import ROLES, Spiffe, name_of, parse
from tests.fs.authority import WORKER, Authority

component = st.from_regex(r"[a-z0-9-]{1,64}", fullmatch=True)
CA = Authority()


@given(component, st.sampled_from(sorted(ROLES)), component)
def test_a_name_reads_as_it_is_written(hive: str, role: str, node: str) -> None:
    assert Spiffe(hive, role, node) == parse(f"spiffe://{hive}/{role}/{node}")
    assert f"spiffe://{hive}/{role}/{node}" == str(Spiffe(hive, role, node))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://hive/drone-worker",
        "spiffe://hive/drone-worker/",
        "spiffe://hive/drone-worker/w1/",
        "spiffe://hive/drone-worker/w1/x",
        "spiffe://hive//w1",
        "spiffe:///drone-worker/w1",
        "spiffe://hive/drone-worker/..",
        "spiffe://hive/drone-worker/W1",
        "spiffe://Hive/drone-worker/w1",
        "SPIFFE://hive/drone-worker/w1",
        "https://hive/drone-worker/w1",
        "spiffe://hive/drone-worker/w1?x=1",
        "spiffe://hive/drone-worker/w1#x",
        "spiffe://user@hive/drone-worker/w1",
        "spiffe://hive:564/drone-worker/w1",
        "spiffe://hive/drone-worker/w%31",
        "spiffe://hive/drone-worker/w1\n",
        "spiffe://hive/drone-worker/w1\0",
        " spiffe://hive/drone-worker/w1",
        "spiffe://hive/drone-worker/" + "w" * 65,
        "spiffe://hive/operator-of-all/w1",
        "spiffe://hive/drone-worker/wé",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected spiffe://<hive>/<role>/<node>|no role"):
        parse(text)


def test_a_long_text_is_quoted_short() -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        parse("spiffe://" + "x" * 100_000)
    assert 200 > len(str(raised.value))


@pytest.mark.parametrize("uris", [(), (WORKER, WORKER), (WORKER, "https://x")], ids=["none", "twice", "two"])
def test_a_certificate_has_one_uri(uris: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="subjectAltName"):
        name_of(CA.issue(*uris).certificate)


def test_a_ca_is_nobody() -> None:
    assert parse(WORKER) == name_of(CA.issue(WORKER).certificate)
    with pytest.raises(ValueError, match="is in a CA's certificate"):
        name_of(CA.issue(WORKER, ca=True).certificate)


@pytest.mark.parametrize("uname", ["", "nobody", "w1", WORKER])
def test_a_uname_may_say_what_the_certificate_says(uname: str) -> None:
    assert parse(WORKER).is_called(uname)


@pytest.mark.parametrize("uname", ["w2", "root", "W1", "drone-worker", WORKER + "0"])
def test_a_uname_may_not_say_anything_else(uname: str) -> None:
    assert not parse(WORKER).is_called(uname)
