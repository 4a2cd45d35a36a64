"""What the hive itself has to say about locks: what time has ended, and what sessions leave behind.

Lines to say, each a path, a line and a tenant; whoever lives says them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

from skep.fs.node import Caller
from skep.namespaces.locks.core import Locks

Said = tuple[str, str, str]


class Ends:
    """``locks`` gives what is durable now, ``attached`` has the ids of the sessions there are."""

    def __init__(self, locks: Callable[[], Locks], attached: Container[str]) -> None:
        self._locks = locks
        self._attached = attached
        self._locking: dict[str, str] = {}  # session -> tenant: it may have locks that end with it

    def note(self, caller: Caller) -> None:
        """The caller's session asks for locks."""
        if caller.session:
            self._locking[caller.session] = caller.tenant

    def of_session(self, session: str) -> list[Said]:
        """What follows from the session's end."""
        tenant = self._locking.get(session, "")
        names = self._locks().by_tenant.get(tenant, {})
        line = f"end session={session}"
        return [(f"/locks/{name}", line, tenant) for name, lock in names.items() if lock.is_of(session)]

    def of_start(self) -> list[Said]:
        """What follows from the hive's start: the sessions of before are gone, all of them."""
        return [(f"/locks/{name}", "restart", tenant) for tenant, name in self._locks().busy]

    def due(self, now_ns: int) -> Iterator[Said]:
        """What time has ended, and what could not be said when its session ended."""
        for (tenant, name), due_ns in self._locks().busy.items():
            if due_ns <= now_ns:
                yield f"/locks/{name}", "expire", tenant
        for session in [each for each in self._locking if each not in self._attached]:
            left = self.of_session(session)
            yield from left
            if not left:
                del self._locking[session]
