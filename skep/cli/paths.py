"""Paths of a hive as arguments, completed by asking the hive."""

from __future__ import annotations

import asyncio
import stat
from typing import Final

import click
from click.shell_completion import CompletionItem

from skep.cli.connect import dialled
from skep.cli.exits import Failed
from skep.fs.address import Address, default_hive
from skep.fs.errors import FsError
from skep.fs.node import Entry

COMPLETE_S: Final = 2.0  # a person waits no longer for a tab


class HivePath(click.ParamType[str]):
    """A path in the hive's tree."""

    name = "path"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        folder, slash, start = incomplete.rpartition("/")
        try:
            hive = ctx.params.get("hive") or default_hive()
            entries = asyncio.run(_entries(hive, folder + slash))
        except (Failed, FsError, OSError, ValueError, TimeoutError):
            return []  # there is nobody to tell: the person sees no completion
        return [
            CompletionItem(f"{folder}{slash}{entry.name}" + ("/" if stat.S_ISDIR(entry.mode) else ""))
            for entry in entries
            if entry.name.startswith(start)
        ]


async def _entries(hive: Address, folder: str) -> list[Entry]:
    async with asyncio.timeout(COMPLETE_S), dialled(hive) as client:
        return await client.listdir(folder or "/")


HIVE_PATH: Final = HivePath()
