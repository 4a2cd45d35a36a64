"""Images as artifacts: an archive under a name, whose files are read where they stand in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from skep.boot.archive import BLOCK, ArchiveError, Index, Member
from skep.boot.manifest import ManifestError, files_of, load
from skep.fs.chan import settle
from skep.fs.ctl import Command, line, parse_line
from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.tree import Listing
from skep.namespaces.artifacts import files as artifacts
from skep.namespaces.artifacts.core import Artifact
from skep.namespaces.artifacts.kept import Kept, reading
from skep.namespaces.boot.runs import NAME, SUFFIX
from skep.namespaces.live import Hive
from skep.namespaces.sealing import owner_of

KNOWN_MAX: Final = 256  # images whose index is remembered

ReadAt = Callable[[int, int], Awaitable[bytes]]


class Images:
    """The images of a hive's tenants."""

    def __init__(self, hive: Hive) -> None:
        self.hive = hive
        self._known: OrderedDict[str, Sequence[Member]] = OrderedDict()  # by SHA-256

    def files(self) -> Listing:
        """The tree of /boot/images."""
        return Listing(self._names, self._walk)

    def find(self, image: str, caller: Caller) -> Artifact | None:
        """The image, as it was put last; None: there is none for the caller."""
        if caller.node or NAME.fullmatch(image) is None:
            return None
        found = self.hive.state.artifact_named(caller.tenant, image + SUFFIX)
        return None if found is None else self.hive.state.artifacts.by_hash[caller.tenant][found]

    async def put(self, caller: Caller, command: Command) -> str:
        """Seal the staged archive of an image, when it is one. Raises FsError."""
        image, store, owner = command.args["image"], self.hive.store, owner_of(caller)
        name = image + SUFFIX
        if NAME.fullmatch(image) is None:
            said = f"line {command.number}: put: image={image}: expected lower-case letters, digits and . _ -"
            raise FsError(E.USAGE, said)
        if not store.has(owner, name):
            raise FsError(E.USAGE, f"line {command.number}: put: nothing is staged as {name}")
        file = store.open(owner, name)
        try:
            size = store.stat(owner, name).st_size
            await _checked(_from(lambda offset, count: file.read(offset, count)), size, name)
        finally:
            store.close(file)
        args = {"name": name, "type": "application/x-tar"}
        args |= {key: command.args[key] for key in ("sha256", "class") if key in command.args}
        sealed = parse_line(line("seal", args), command.number)
        return (await artifacts.command(self.hive, caller, [sealed]))[0]

    def _names(self, caller: Caller) -> list[str]:
        named = () if caller.node else self.hive.state.artifacts.by_name.get(caller.tenant, ())
        images = (name.removesuffix(SUFFIX) for name in named if name.endswith(SUFFIX))
        return [image for image in images if NAME.fullmatch(image)]

    async def _walk(self, image: str, caller: Caller) -> dict[str, Any] | None:
        artifact = self.find(image, caller)
        if artifact is None:
            return None
        tree: dict[str, Any] = {}
        for name, offset, size in await self._members(artifact):
            *folders, last = name.split("/")
            place = tree
            for folder in folders:
                place = place.setdefault(folder, {})
            place[last] = Kept(self.hive.store, artifact, offset, size)
        return tree

    async def _members(self, artifact: Artifact) -> Sequence[Member]:
        if artifact.sha256 not in self._known:
            source = reading(self.hive.store, artifact)
            try:
                found = await _index(_from(source.read), artifact.size, artifact.name)
            finally:
                source.close()
            self._known[artifact.sha256] = found
            if len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return self._known[artifact.sha256]


def _from(read: Callable[[int, int], Any]) -> ReadAt:
    async def read_at(offset: int, count: int) -> bytes:
        return await settle(read(offset, count))

    return read_at


async def _index(read: ReadAt, size: int, name: str) -> Sequence[Member]:
    """Raises FsError(E.SCHEMA) for what is no image."""
    try:
        index = Index(size)
        while index.at is not None:
            index.feed(await read(index.at, BLOCK))
    except ArchiveError as error:
        raise FsError(E.SCHEMA, f"{name}: {error}") from error
    return index.members


async def _checked(read: ReadAt, size: int, name: str) -> None:
    """Raise FsError(E.SCHEMA) unless the archive has a manifest that can be used, and all its files."""
    members = await _index(read, size, name)
    first = members[0]
    try:
        manifest = load(await read(first.offset, first.size), first.name)
    except ManifestError as error:
        raise FsError(E.SCHEMA, f"{name}: {error}") from error
    there = {member.name for member in members}
    if missing := [file for file in files_of(manifest) if file not in there]:
        raise FsError(E.SCHEMA, f"{name}: {first.name} names {missing[0]}, which is not in it")
