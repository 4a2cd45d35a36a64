"""A client of a tree in the same process: the whole protocol between them, and no sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from skep.fs.connection import Connection, Join
from skep.fs.conversation import Conversation, Gate, Peer
from skep.fs.dial import Client
from skep.fs.messages import Dialect
from skep.fs.node import Node
from skep.fs.server import OpenGate
from skep.fs.tree import as_node
from skep.fs.wire import WireError


async def local(
    tree: Node | Mapping[str, Any] | Any,
    *,
    aname: str = "",
    uname: str | None = None,
    dialect: Dialect = Dialect.L,
) -> Client:
    """A client of ``tree`` (what as_node takes, or a Gate), attached."""
    gate: Any = tree if hasattr(tree, "attach") else OpenGate(as_node(tree))
    return await Client.over(joined(gate), aname=aname, uname=uname, dialect=dialect)


def joined(gate: Gate) -> Join:
    """How ``Connection.over`` joins a conversation with ``gate``."""

    def join(connection: Connection) -> tuple[Callable[[list[bytes]], None], Callable[[], None]]:
        conversation = Conversation(
            gate, Peer("local"), lambda frames: connection.data_received(b"".join(frames))
        )

        def send(buffers: list[bytes]) -> None:
            try:
                conversation.receive(b"".join(buffers))
            except WireError as error:
                connection.connection_lost(error)

        return send, conversation.lost

    return join
