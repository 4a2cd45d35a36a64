import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs.address import Address, check_listen, default_hive, parse

hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9.-]*", fullmatch=True),
)
paths = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=107)


internet = st.sampled_from(["tcp", "tls"])


@given(st.one_of(paths.map(lambda p: Address("unix", path=p)),
                 st.builds(Address, internet, hosts, st.integers(0, 65535))))  # fmt: skip
def test_an_address_reads_as_it_is_written(address: Address) -> None:
    assert address == parse(str(address))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected unix:/path, tcp:host:port or tls:host:port"),
        ("/run/hive.sock", "expected unix:/path, tcp:host:port or tls:host:port"),
        ("http:localhost:80", "expected unix:/path, tcp:host:port or tls:host:port"),
        ("unix:", "has no path"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
        ("tcp:localhost", "has no host"),
        ("tcp::564", "has no host"),
        ("tcp:localhost:", "no port from 0 to 65535"),
        ("tcp:localhost:65536", "no port from 0 to 65535"),
        ("tcp:localhost:-1", "no port from 0 to 65535"),
        ("tcp:localhost:٣", "no port from 0 to 65535"),
        ("tcp:::1:564", r"in brackets, tcp:\[::1\]:564"),
        ("tls:::1:564", r"in brackets, tls:\[::1\]:564"),
        ("tls:hive.example", "has no host"),
        ("tls:hive.example:x", "no port from 0 to 65535"),
        ("TLS:hive.example:564", "expected unix:/path, tcp:host:port or tls:host:port"),
    ],
)
def test_what_is_no_address_is_quoted_with_what_was_expected(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as raised:
        parse(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    "text", ["unix:/run/x", "tcp:127.0.0.1:0", "tcp:127.9.9.9:1", "tcp:[::1]:1", "tcp:localhost:1"]
)
def test_loopback_and_unix_sockets_may_be_listened_on(text: str) -> None:
    check_listen(parse(text))


@pytest.mark.parametrize("text", ["tls:0.0.0.0:564", "tls:[::]:564", "tls:192.0.2.1:564"])
def test_with_tls_any_host_may_be_listened_on(text: str) -> None:
    check_listen(parse(text))


@pytest.mark.parametrize("text", ["tcp:0.0.0.0:564", "tcp:[::]:564", "tcp:192.0.2.1:564"])
def test_what_others_can_reach_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(ValueError, match=r"loopback only: use tcp:127\.0\.0\.1:564, a Unix socket or TLS"):
        check_listen(parse(text))


def test_the_default_hive_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKEP_HIVE", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert Address("unix", path=f"/tmp/skep-{os.getuid()}/hive.sock") == default_hive()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert Address("unix", path="/run/user/7/skep/hive.sock") == default_hive()
    monkeypatch.setenv("SKEP_HIVE", "tcp:localhost:564")
    assert Address("tcp", "localhost", 564) == default_hive()
