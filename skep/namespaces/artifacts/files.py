"""/artifacts: bytes by their hash.

    stage/<name>         created and written like any file, seen by its writer alone, gone after a day
                         unsealed. Modes and times may be set and mean nothing.
    ctl                  W seal hold release remove; R usage
    by-name/<name>       R the hash sealed last under that name
    <sha256>/            removed (rmdir), it ends before its time: as its class allows
    <sha256>/data        R the bytes, at any offset; <sha256> is the hex, or sha256:<hex> as by-name tells it
    <sha256>/meta.json   R size, name, class, type, who sealed it and when, until when, why it is held

Classes, and what ttl= of seal may say: short 24h (1m to 168h), standard 720h (1h to 8760h), audit 61320h (no
less, up to 262800h; ended by its time alone). Sealed again, an artifact has the longer of both. What is held
stays until it is released, and what a job needs until that has ended and is no dead letter any more. Every
read is checked by the hashes in the ledger: bytes that have changed on disk are an error (integrity), never
an answer. limits.toml and /config say how large one may be, and /config how many bytes a tenant may have,
staged and sealed together; bytes are counted once, however often they are sealed.

An artifact exists for its tenant, and for the node that holds a job whose input or output it is. Bytes that
several tenants sealed are kept once, and nothing tells: each has its own meta.json, and sealing what is there
already syncs, hashes and links it as if it were new.

    cp notes.txt artifacts/stage/; echo seal name=notes.txt > artifacts/ctl; cat artifacts/by-name/notes.txt
"""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.ctl import Command
from skep.fs.errors import E, FsError
from skep.fs.messages import LO, QT, Qid
from skep.fs.node import Attr, Caller, Change, Entry, Handle, How, Maybe, Node, new_path
from skep.fs.shapes import Ctl, File, Text
from skep.fs.tree import Listing
from skep.namespaces.artifacts.core import SIZE_LIMIT, VERBS, Artifact
from skep.namespaces.artifacts.kept import Kept
from skep.namespaces.artifacts.store import SIZE_MAX, Staged, Store
from skep.namespaces.live import Hive
from skep.namespaces.order import covers
from skep.namespaces.rows import Rows, fixed
from skep.namespaces.sealing import owner_of, sealed
from skep.trace.clock import rfc3339

HASH: Final = re.compile(r"[0-9a-f]{64}")


def files(hive: Hive) -> Listing:
    """The tree of /artifacts."""
    children = fixed(
        {
            "stage": _Stage(hive),
            "ctl": Ctl(VERBS, lambda caller, commands: command(hive, caller, commands)),
            "by-name": Listing(
                lambda caller: list(hive.state.artifacts.by_name.get(caller.tenant, ())),
                lambda name, caller: _by_name(hive, name, caller),
            ),
        }
    )
    return _Artifacts(
        hive,
        lambda caller: [*children, *(artifact.sha256 for artifact in _visible(hive, caller))],
        lambda name, caller: children.get(name) or _artifact(hive, name, caller),
    )


class _Artifacts(Listing):
    """``sha256:<hex>``, as by-name tells it, leads to the same place as the listed ``<hex>``."""

    def __init__(
        self,
        hive: Hive,
        names: Callable[[Caller], Iterable[str]],
        walk: Callable[[str, Caller], object],
    ) -> None:
        super().__init__(names, walk, 0o755)
        self.hive = hive

    def walk(self, name: str, caller: Caller) -> Maybe[Node]:
        return super().walk(name.removeprefix("sha256:"), caller)

    async def unlink(self, name: str, directory: bool | None, caller: Caller) -> None:
        digest = name.removeprefix("sha256:")
        if HASH.fullmatch(digest) is None:
            raise FsError(E.READONLY)
        _artifact(self.hive, digest, caller)
        if directory is False:
            raise FsError(E.ISDIR)
        await self.hive.command(caller, "/artifacts/ctl", [ctl.line("remove", {"sha256": digest})])


def _visible(hive: Hive, caller: Caller) -> Iterable[Artifact]:
    table = hive.state.artifacts.by_hash
    if caller.node:
        return [table[tenant][sha256] for tenant, sha256 in _held(hive, caller)]
    return table.get(caller.tenant, {}).values()


def _held(hive: Hive, caller: Caller) -> list[tuple[str, str]]:
    """Tenant and hash of what the caller's node may read and has written."""
    held = hive.state.artifacts_held(caller.node)
    return [(tenant, sha256) for tenant, sha256 in held if covers(caller.tenant, tenant)]


def _by_name(hive: Hive, name: str, caller: Caller) -> str | None:
    sha256 = hive.state.artifact_named(caller.tenant, name)
    return None if sha256 is None or caller.node else f"sha256:{sha256}\n"


def _artifact(hive: Hive, sha256: str, caller: Caller) -> Rows[Hive] | None:
    if caller.node:
        tenants = [tenant for tenant, held in _held(hive, caller) if held == sha256]
    else:
        tenants = [caller.tenant]
    by_hash = hive.state.artifacts.by_hash
    found = [table[sha256] for table in map(by_hash.get, tenants) if table and sha256 in table]
    if not found:
        # Whether another tenant has these bytes or nobody, the record is the same: it has a number in the
        # ledger, by which one could tell.
        raise FsError(E.MISSING, sha256, hidden=HASH.fullmatch(sha256) is not None)
    artifact = found[0]
    rows = {
        "data": lambda hive, _: _Data(hive, artifact),
        "meta.json": lambda hive, _: Text(lambda caller: _meta(hive, artifact, caller)),
    }
    return Rows(rows, hive, sha256, artifact.rev)


def _meta(hive: Hive, artifact: Artifact, caller: Caller) -> str:
    _artifact(hive, artifact.sha256, caller)
    shown = {
        "sha256": f"sha256:{artifact.sha256}", "size": artifact.size, "name": artifact.name,
        "class": artifact.kind, "type": artifact.media, "tenant": artifact.tenant,
        "sealed_by": artifact.actor, "sealed": rfc3339(artifact.sealed_ns),
        "until": rfc3339(artifact.until_ns) if artifact.until_ns else None, "hold": artifact.hold or None,
    }  # fmt: skip
    return msgspec.json.encode(shown).decode() + "\n"


class _Data(Kept):
    """The bytes of an artifact. Who asks is asked again at open: a node may have lost its lease by then."""

    def __init__(self, hive: Hive, artifact: Artifact) -> None:
        super().__init__(hive.store, artifact)
        self.hive = hive

    def opened(self, how: How, caller: Caller) -> Handle:
        _artifact(self.hive, self.artifact.sha256, caller)
        return super().opened(how, caller)


# sealing


async def command(hive: Hive, caller: Caller, commands: list[Command]) -> list[str]:
    """Put the staged files away, then write the lines down, those of seal with each one's hash and size."""
    async with sealed(hive, caller, commands) as lines:
        written = [lines.get(each.number, each.text) for each in commands]
        return await hive.command(caller, "/artifacts/ctl", written)


# staging


class _Stage(File):
    """The directory of the caller's staged files."""

    kind = stat.S_IFDIR

    def __init__(self, hive: Hive) -> None:
        super().__init__(0o777)
        self.hive = hive
        self.store = hive.store
        self.numbers: dict[tuple[str, str], int] = {}  # owner, name -> qid path, while it is there

    def walk(self, name: str, caller: Caller) -> Node:
        owner = owner_of(caller)
        if not self.store.has(owner, name):
            self.numbers.pop((owner, name), None)
            raise FsError(E.MISSING, name)
        return self._file(owner, name, self._size_max(caller))

    def _size_max(self, caller: Caller) -> int:
        said = self.hive.limit(caller.tenant, SIZE_LIMIT)
        return min(SIZE_MAX, self.hive.limits.artifact_max(caller), SIZE_MAX if said is None else said)

    def _file(self, owner: str, name: str, size_max: int = SIZE_MAX) -> _Staged:
        number = self.numbers.setdefault((owner, name), 0) or new_path()
        self.numbers[owner, name] = number
        return _Staged(self.store, owner, name, number, size_max)

    def opened(self, how: How, caller: Caller) -> Handle:
        return _StageNames(self, caller)

    def create(self, name: str, mode: int, how: How, gid: int, caller: Caller) -> tuple[Node, Handle]:
        if not ctl.is_name(name):
            raise FsError(E.NAMETOOLONG, f"max={ctl.NAME_MAX}")
        owner = owner_of(caller)
        if self.store.has(owner, name) and how.flags & LO.CREAT and not how.flags & LO.EXCL:
            node = self._file(owner, name, self._size_max(caller))
            return node, node.open(how, caller)
        file = self.store.create(owner, name)
        self.numbers.pop((owner, name), None)
        size_max = self._size_max(caller)
        return self._file(owner, name, size_max), _Writing(self.store, file, how, size_max)

    def unlink(self, name: str, directory: bool | None, caller: Caller) -> None:
        owner = owner_of(caller)
        if not self.store.has(owner, name):
            raise FsError(E.MISSING, name)
        if directory:
            raise FsError(E.NOTDIR)
        self.store.remove(owner, name)
        self.numbers.pop((owner, name), None)


class _StageNames(Handle):
    def __init__(self, stage: _Stage, caller: Caller) -> None:
        self.stage = stage
        self.caller = caller

    def entries(self) -> Sequence[Entry]:
        owner = owner_of(self.caller)
        files = [self.stage._file(owner, name) for name in self.stage.store.staged(owner)]
        return [Entry(file.name, file.attr(self.caller).qid, stat.S_IFREG) for file in files]


class _Staged(Node):
    """One staged file, as its writer has it."""

    def __init__(self, store: Store, owner: str, name: str, number: int, size_max: int) -> None:
        self.store = store
        self.owner = owner
        self.name = name
        self.number = number
        self.size_max = size_max

    def attr(self, caller: Caller) -> Attr:
        is_there = self.store.stat(self.owner, self.name)
        at = is_there.st_mtime_ns
        return Attr(
            Qid(int(QT.FILE), at & 0xFFFFFFFF, self.number), stat.S_IFREG | 0o644, is_there.st_size,
            caller.uid, caller.gid, caller.user, caller.user, caller.user,
            blocks=is_there.st_blocks, atime_ns=at, mtime_ns=at, ctime_ns=is_there.st_ctime_ns, btime_ns=at,
        )  # fmt: skip

    def open(self, how: How, caller: Caller) -> Handle:
        handle = _Writing(self.store, self.store.open(self.owner, self.name), how, self.size_max)
        if how.trunc:
            handle.truncate()
        return handle

    def setattr(self, change: Change, caller: Caller) -> None:
        if change.uid is not None or change.gid is not None or change.group is not None:
            raise FsError(E.READONLY, "a staged file is its writer's")
        if change.size is not None:
            file = self.store.open(self.owner, self.name)
            try:
                file.truncate(change.size, self.size_max)
            finally:
                self.store.close(file)


class _Writing(Handle):
    def __init__(self, store: Store, file: Staged, how: How, size_max: int) -> None:
        self.store = store
        self.file = file
        self.how = how
        self.size_max = size_max

    def truncate(self) -> None:
        try:
            self.file.truncate(0)
        except FsError:
            self.close()
            raise

    def read(self, offset: int, count: int) -> bytes:
        return self.file.read(offset, count)

    def write(self, offset: int, data: memoryview) -> int:
        if self.how.append:
            return self.file.append(data, self.size_max)
        return self.file.write(offset, data, self.size_max)

    async def fsync(self, datasync: bool) -> None:
        await asyncio.to_thread(self.file.sync)

    def close(self) -> None:
        self.store.close(self.file)
