"""The other end of a connection, as records and limits name it."""

from __future__ import annotations

from ipaddress import IPv6Network, ip_address

from skep.fs.conversation import Peer


def peer_text(peer: Peer) -> str:
    """The very peer: a process, or a host's port."""
    return f"unix:pid={peer.pid}" if peer.kind == "unix" else f"{peer.kind}:{peer.address}"


def network(peer: Peer) -> str:
    """What the peers of one origin have in common: a user has many processes, a host many ports."""
    return f"unix:uid={peer.uid}" if peer.kind == "unix" else f"{peer.kind}:{host_of(peer.address)}"


def host_of(address: str) -> str:
    """The host of ``host:port``; of an IPv6 address its /64, which is one customer's."""
    host = address.rpartition(":")[0].strip("[]") or address
    try:
        number = ip_address(host)
    except ValueError:
        return host
    return host if number.version == 4 else str(IPv6Network((int(number), 64), strict=False))
