"""The remote serial protocol of GDB, as much of it as breakpoints take. No I/O here: bytes in, packets out.

Source: GDB's manual, "Remote Serial Protocol"."""

from __future__ import annotations

from typing import Final

PACKET_MAX: Final = 1 << 20


class GdbError(Exception):
    """What was received is none of its packets."""


def packet(body: str) -> bytes:
    """``$body#checksum``."""
    data = body.encode("ascii")
    return b"$" + data + b"#%02x" % (sum(data) & 0xFF)


class Packets:
    """Takes bytes as they come and gives whole packets; acknowledgements are passed over."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[str]:
        """The packets that are whole now. Raises GdbError."""
        self._data += data
        found: list[str] = []
        while True:
            self._data = self._data.lstrip(b"+")
            if not self._data:
                return found
            if self._data[:1] != b"$":
                raise GdbError(f"byte {self._data[:1]!r}: expected a packet")
            end = self._data.find(b"#")
            if end < 0 or len(self._data) < end + 3:
                if len(self._data) > PACKET_MAX:
                    raise GdbError(f"a packet of more than {PACKET_MAX} bytes")
                return found
            body, said = self._data[1:end], self._data[end + 1 : end + 3]
            self._data = self._data[end + 3 :]
            if said.lower() != b"%02x" % (sum(body) & 0xFF):
                raise GdbError(f"checksum {said!r} of {body[:32]!r}")
            found.append(_expanded(body))


def _expanded(body: bytes) -> str:
    """Runs written out: ``0*"`` is 0 and as many more as the last byte says, less 29."""
    if b"*" not in body:
        return body.decode("latin-1")
    made = bytearray()
    at = 0
    while at < len(body):
        if body[at : at + 1] == b"*" and made and at + 1 < len(body):
            count = body[at + 1] - 29
            if count < 1:
                raise GdbError(f"a run of {count}")
            made += made[-1:] * count
            at += 2
        else:
            made.append(body[at])
            at += 1
    return made.decode("latin-1")


def insert(address: int) -> str:
    """A hardware breakpoint: on virtual addresses, also before they are mapped."""
    return f"Z1,{address:x},1"


def remove(address: int) -> str:
    return f"z1,{address:x},1"
