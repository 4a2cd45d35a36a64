"""Where a hive listens: ``unix:/path``, ``tcp:host:port``, ``tls:host:port``; IPv6 hosts stand in brackets.

Every door, client and command names places this way. The default is told by ``SKEP_HIVE``.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Final, Literal

import msgspec

EXPECTED: Final = "expected unix:/path, tcp:host:port or tls:host:port"
SOCKET_PATH_MAX: Final = 107  # sun_path has 108 bytes, the last is NUL
PORT_MAX: Final = 65535


class Address(msgspec.Struct, frozen=True):
    """One place. ``path`` belongs to unix; ``host`` and ``port`` (0: any free one) to tcp and tls."""

    kind: Literal["unix", "tcp", "tls"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}:{host}:{self.port}"


def parse(text: str) -> Address:
    """The address written in ``text``. Raises ValueError that quotes it and says what was expected."""
    kind, _, rest = text.partition(":")
    match kind:
        case "unix":
            return _unix(text, rest)
        case "tcp" | "tls":
            return _internet(kind, text, rest)
    raise ValueError(f"{text!r} is no address: {EXPECTED}")


def _unix(text: str, path: str) -> Address:
    if not path or "\0" in path:
        raise ValueError(f"{text!r} has no path: {EXPECTED}")
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise ValueError(f"{text!r}: the path of a Unix socket has at most {SOCKET_PATH_MAX} bytes")
    return Address("unix", path=path)


def _internet(kind: Literal["tcp", "tls"], text: str, rest: str) -> Address:
    host, _, port = rest.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: an IPv6 host stands in brackets, {kind}:[::1]:564")
    if not host:
        raise ValueError(f"{text!r} has no host: {EXPECTED}")
    if not (port.isascii() and port.isdigit() and int(port) <= PORT_MAX):
        raise ValueError(f"{text!r} has no port from 0 to {PORT_MAX}: {EXPECTED}")
    return Address(kind, host=host, port=int(port))


def default_hive() -> Address:
    """The hive meant when none is named: ``SKEP_HIVE``, else hive.sock in the user's own runtime folder."""
    named = os.environ.get("SKEP_HIVE")
    if named:
        return parse(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = f"{runtime}/skep" if runtime else f"/tmp/skep-{os.getuid()}"
    return Address("unix", path=f"{folder}/hive.sock")


def check_listen(address: Address) -> None:
    """Refuse to listen where others could reach an unencrypted port.

    Raises ValueError unless ``address`` is a Unix socket, TLS, or every address its host resolves to is
    loopback; OSError when it does not resolve."""
    if address.kind != "tcp":
        return
    for *_, place in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        if not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback:
            raise ValueError(
                f"{address} is reached from other machines ({place[0]}), and TCP without TLS listens on "
                f"loopback only: use tcp:127.0.0.1:{address.port}, a Unix socket or TLS"
            )
