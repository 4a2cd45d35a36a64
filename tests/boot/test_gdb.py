"""Packets of GDB's remote protocol: the same for any cut of the bytes, or an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.boot.gdb import GdbError, Packets, insert, packet, remove

BODIES = st.text(st.sampled_from("OKT05thread:1;0123abcZ,"), max_size=30)


def test_a_packet_has_the_checksum_of_the_manual() -> None:
    assert packet("OK") == b"$OK#9a"
    assert packet(insert(0xFFFFFFFF80200410)) == b"$Z1,ffffffff80200410,1#" + b"%02x" % (
        sum(b"Z1,ffffffff80200410,1") & 0xFF
    )
    assert remove(0x400000) == "z1,400000,1"


@given(st.lists(BODIES, max_size=4), st.data())
def test_packets_come_whole_whatever_the_pieces(bodies: list[str], data: st.DataObject) -> None:
    stream = b"".join(b"+" + packet(body) for body in bodies)
    packets, found = Packets(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += packets.feed(stream[:size])
        stream = stream[size:]
    assert found == bodies


def test_runs_are_written_out() -> None:
    body = b'0* x5*"'
    stream = b"$" + body + b"#%02x" % (sum(body) & 0xFF)
    assert Packets().feed(stream) == ["0000x555555"[:4] + "x" + "5" * 6]


@pytest.mark.parametrize(
    "data", [b"OK", b"$OK#00", b"-$OK#9a", b"$0*\x1d#" + b"%02x" % (sum(b"0*\x1d") & 0xFF)]
)
def test_what_is_no_packet_is_an_error(data: bytes) -> None:
    with pytest.raises(GdbError):
        Packets().feed(data)


@given(st.binary(max_size=60))
def test_any_bytes_are_packets_or_an_error(data: bytes) -> None:
    try:
        Packets().feed(data)
    except GdbError:
        return
