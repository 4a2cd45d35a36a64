"""Who may come in at one TLS listener, and how many: handshakes and connections counted and bounded.

Each is bounded in all and for one peer, which is an IPv4 address or an IPv6 network. Those without a
certificate, who come to enrol, are bounded by themselves, so that they leave room for all others.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from skep.fs.identity import Identity
from skep.fs.tls import HANDSHAKE_S, Above, Layer
from skep.fs.trust import Doubt, Reason, Refusal

IPV6_PREFIX: Final = 64  # one peer, however many of its addresses it uses


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one listener. A handshake holds some 100 KiB and costs a signature, a connection some 50 KiB."""

    handshake_s: float = HANDSHAKE_S  # from the connection to the last byte of the handshake
    half_open_max: int = 512  # handshakes under way at one time
    half_open_peer_max: int = 32  # of these from one peer
    open_max: int = 8192  # connections whose handshake has ended well
    open_peer_max: int = 2048  # of these from one peer: a site's workers may stand behind one address
    enrolling_max: int = 64  # of the connections, those without a certificate
    enrolling_peer_max: int = 8  # of these from one peer
    enrolling_s: float = 60.0  # how long one lives: a request, an answer, and time to ask again


LIMITS: Final = Limits()


class Crowd:
    """The connections of one kind, in all and by the network they come from."""

    def __init__(self, what: str, most: int, peer_most: int) -> None:
        self.what = what
        self.members: set[ServerLayer] = set()
        self.networks: Counter[str] = Counter()
        self._most = most
        self._peer_most = peer_most

    def full(self, network: str) -> Doubt | None:
        """Why nobody may enter from ``network``. None: one may."""
        if len(self.members) >= self._most:
            return Doubt(Reason.TOO_MANY, f"{self.what}: {len(self.members)} in all")
        if self.networks[network] >= self._peer_most:
            return Doubt(Reason.TOO_MANY, f"{self.what}: {self.networks[network]} from {network}")
        return None

    def enter(self, layer: ServerLayer) -> None:
        self.members.add(layer)
        self.networks[layer.network] += 1

    def leave(self, layer: ServerLayer) -> None:
        """Nothing happens to one that is not here."""
        if layer not in self.members:
            return
        self.members.remove(layer)
        self.networks[layer.network] -= 1
        if not self.networks[layer.network]:
            del self.networks[layer.network]


class Doorway:
    """One listener's connections, and those that were refused, counted and told."""

    def __init__(
        self,
        identity: Identity,
        refused: Callable[[Refusal], None],
        limits: Limits = LIMITS,
        enrol: bool = False,
    ) -> None:
        """``enrol``: whether it lets in who has no certificate yet, and says so."""
        self.identity = identity
        self.enrol = enrol
        self.limits = limits
        self.refusals: Counter[Reason] = Counter()
        self.half_open = Crowd("half open", limits.half_open_max, limits.half_open_peer_max)
        self.open = Crowd("open", limits.open_max, limits.open_peer_max)
        self.enrolling = Crowd("enrolling", limits.enrolling_max, limits.enrolling_peer_max)
        self._refused = refused

    def layer(self, above: Above) -> ServerLayer:
        """What stands between an accepted socket and ``above``."""
        return ServerLayer(self, above)

    def admit(self, layer: ServerLayer) -> Doubt | None:
        """Why ``layer`` may not begin its handshake. None: it may, and is half open."""
        doubt = self.half_open.full(layer.network) or self.open.full(layer.network)
        if doubt is None:
            self.half_open.enter(layer)
        return doubt

    def opened(self, layer: ServerLayer, enrolling: bool) -> Doubt | None:
        """Why ``layer`` may not live on after its handshake. None: it may, and is open."""
        crowds = (self.open, self.enrolling) if enrolling else (self.open,)
        doubt = next(filter(None, (crowd.full(layer.network) for crowd in crowds)), None)
        if doubt is None:
            self.half_open.leave(layer)
            for crowd in crowds:
                crowd.enter(layer)
        return doubt

    def closed(self, layer: ServerLayer) -> None:
        for crowd in (self.half_open, self.open, self.enrolling):
            crowd.leave(layer)

    def told(self, refusal: Refusal) -> None:
        self.refusals[refusal.reason] += 1
        self._refused(refusal)

    def close(self) -> None:
        """Give the handshakes up that are under way."""
        for layer in list(self.half_open.members):
            layer.give_up()


class ServerLayer(Layer):
    """An accepted connection."""

    def __init__(self, doorway: Doorway, above: Above) -> None:
        identity = doorway.identity
        super().__init__(identity, identity.judge(True, doorway.enrol), above, doorway.limits.handshake_s)
        self.network = ""
        self._doorway = doorway

    def give_up(self) -> None:
        """The listener closes."""
        self._refuse(Doubt(Reason.GONE, "the listener closes"))
        self.abort()

    def _admit(self) -> Doubt | None:
        self.network = network_of(self.address)
        return self._doorway.admit(self)

    def _opened(self) -> Doubt | None:
        if self._judge.enrolling:
            loop = asyncio.get_running_loop()
            late = Doubt(Reason.SLOW, "to enrol")
            self._deadline = loop.call_later(self._doorway.limits.enrolling_s, self._end, late)
        return self._doorway.opened(self, self._judge.enrolling)

    def _closed(self) -> None:
        self._doorway.closed(self)

    def _told(self, refusal: Refusal) -> None:
        self._doorway.told(refusal)


def network_of(address: str) -> str:
    """The peer that connections from ``address``, host:port, are counted for."""
    place = ipaddress.ip_address(address.rpartition(":")[0].strip("[]").partition("%")[0])
    if place.version == 4:
        return str(place)
    if place.ipv4_mapped is not None:
        return str(place.ipv4_mapped)
    return str(ipaddress.ip_network((place, IPV6_PREFIX), strict=False))
