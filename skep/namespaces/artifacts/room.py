"""How many bytes each tenant has in files that are being staged, and whether it may have more.

Staging is not in the ledger, so this is counted: on disk when a tenant first stages something, then along
with what is written here. What other processes of the hive stage meanwhile is theirs to count; sealing is
the ledger's to refuse.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from skep.fs.errors import E, FsError

# tenant -> bytes that it has sealed, and how many it may have together with those it stages; None: no limit.
Limit = Callable[[str], tuple[int, int | None]]


class Room:
    """``stage`` holds a directory for each who stages: <tenant>-<owner>, hashes both."""

    def __init__(self, stage: Path, limit: Limit) -> None:
        self.stage = stage
        self.limit = limit
        self._files: dict[str, int] = {}  # tenant -> bytes in its directories
        self._apart: Counter[str] = (
            Counter()
        )  # tenant -> bytes that stand elsewhere, or are on their way to it

    def directory(self, owner: str) -> Path:
        return self.stage / f"{_prefix(tenant_of(owner))}{sha256(owner.encode()).hexdigest()[:32]}"

    def used(self, tenant: str) -> int:
        """Bytes that the tenant stages."""
        if tenant not in self._files:
            self._files[tenant] = self._count(tenant)
        return self._files[tenant] + self._apart[tenant]

    def check(self, tenant: str, more: int) -> None:
        """Raises FsError(E.QUOTA) when the tenant may not have ``more`` bytes."""
        sealed, most = self.limit(tenant)
        have = sealed + self.used(tenant)
        if more > 0 and most is not None and have + more > most:
            raise FsError(E.QUOTA, f"artifact-bytes have={have} max={most}")

    def grown(self, tenant: str, by: int, apart: bool = False) -> None:
        """A file of the tenant has so many bytes more; ``apart``: it is in no directory any more. ``used``
        has been asked before."""
        if apart:
            self._apart[tenant] += by
        else:
            self._files[tenant] += by

    @contextmanager
    def reserved(self, tenant: str, size: int) -> Iterator[None]:
        """Have room for a file that becomes the tenant's. Raises FsError(E.QUOTA)."""
        self.check(tenant, size)
        self._apart[tenant] += size
        try:
            yield
        finally:
            self._apart[tenant] -= size

    def recount(self) -> None:
        """Files have gone."""
        for tenant in self._files:
            self._files[tenant] = self._count(tenant)

    def _count(self, tenant: str) -> int:
        size = 0
        for directory in self.stage.glob(f"{_prefix(tenant)}*"):
            for entry in os.scandir(directory):
                with suppress(FileNotFoundError):  # a sweep takes it at this moment
                    size += entry.stat().st_size
        return size


def tenant_of(owner: str) -> str:
    """An owner is a tenant and an actor of it, parted by a NUL."""
    return owner.partition("\0")[0]


def _prefix(tenant: str) -> str:
    return f"{sha256(tenant.encode()).hexdigest()[:16]}-"
