"""Who guessed wrong, and how long each has to wait before the next guess is looked at. In memory only."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from skep.fs.errors import E, FsError
from skep.trace.clock import HOUR, MINUTE, MS, Clock

FREE: Final = 3  # failures before anybody waits: what has just expired is nobody's attack
FIRST_NS: Final = 250 * MS  # after the next one, then twice as long each time
LONGEST_NS: Final = 5 * MINUTE
FORGET_NS: Final = HOUR  # after the last failure
PEERS_MAX: Final = 4096  # remembered at one time: then whoever has failed least lately is forgotten


class _Failures(NamedTuple):
    times: int
    last_ns: int

    @property
    def wait_ns(self) -> int:
        """How long after the last failure nothing is looked at."""
        over = min(self.times - FREE, 32)
        return min(FIRST_NS << over - 1, LONGEST_NS) if over > 0 else 0


class Lockout:
    """Failures by peer: a name that the transport tells, so that no peer can lock out another.

    ``rule``: what those are told who have to wait."""

    def __init__(self, clock: Clock, rule: str) -> None:
        self._clock = clock
        self._rule = rule
        self._peers: OrderedDict[str, _Failures] = OrderedDict()  # whoever failed last is last

    def check(self, peer: str) -> None:
        """Raises FsError(E.THROTTLED) when the peer has to wait."""
        failures = self._peers.get(peer)
        if failures is None:
            return
        # A clock that was set back makes nobody wait longer than from now on.
        since_ns = max(self._clock.now_ns() - failures.last_ns, 0)
        if since_ns >= FORGET_NS:
            del self._peers[peer]
        elif since_ns < failures.wait_ns:
            left_ms = -(-(failures.wait_ns - since_ns) // MS)
            raise FsError(E.THROTTLED, f"retry-ms={left_ms} rule={self._rule}")

    def failed(self, peer: str) -> None:
        before = self._peers.pop(peer, None)
        self._peers[peer] = _Failures(before.times + 1 if before else 1, self._clock.now_ns())
        if len(self._peers) > PEERS_MAX:
            self._peers.popitem(last=False)

    def passed(self, peer: str) -> None:
        self._peers.pop(peer, None)

    def __len__(self) -> int:
        return len(self._peers)
