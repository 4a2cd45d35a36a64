"""Who is attached now. Sessions are not in the ledger: they end with the process that serves them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from skep.fs.chan import EVERYTHING, View
from skep.fs.conversation import Conversation
from skep.fs.node import Caller


@dataclass(frozen=True)
class Session:
    """One attached session, as its server tells of it."""

    id: str
    caller: Caller
    peer: str  # the address of the other end, like "unix:pid=12" or "tcp:127.0.0.1:4711"
    since_ns: int
    fids: Callable[[], int]  # how many are open now
    ns: str  # its namespace, as mount and bind lines
    kick: Callable[[], None]  # end it
    view: View = EVERYTHING  # its namespace from the root, as far as rights go
    binding: Callable[[], bytes] = bytes  # of its TLS channel; empty where there is none
    until_ns: int = 0  # when the token ends that it lives under; 0: under none
    network: str = ""  # what its peer has in common with others of the same origin
    aname: str = ""  # the tenant, as it was asked for
    conversation: Conversation | None = None  # the connection that it is of; None: there is none


class Sessions:
    """The sessions attached now, by id."""

    def __init__(self) -> None:
        self.by_id: dict[str, Session] = {}
        self.of_principal: Counter[str] = Counter()
        self.of_network: Counter[str] = Counter()
        self.on_begin: list[Callable[[Session], None]] = []  # called when one has attached
        self.on_end: list[Callable[[Session], None]] = []  # called when one has ended

    def add(self, session: Session) -> None:
        assert session.id not in self.by_id, session.id
        self.by_id[session.id] = session
        self.of_principal[session.caller.principal] += 1
        self.of_network[session.network] += 1
        for listener in self.on_begin:
            listener(session)

    def remove(self, id: str) -> None:
        session = self.by_id.pop(id)
        for counter, name in (
            (self.of_principal, session.caller.principal), (self.of_network, session.network),
        ):  # fmt: skip
            counter[name] -= 1
            if not counter[name]:
                del counter[name]
        for listener in self.on_end:
            listener(session)

    def of(self, caller: Caller) -> Session | None:
        """The caller's own session; None: it has none, it calls in process."""
        return self.by_id.get(caller.session)
