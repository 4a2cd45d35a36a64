"""``skep write`` and ``skep rm``: commanding and removing."""

from __future__ import annotations

import os
import stat
import sys
from typing import BinaryIO

import click

from skep.cli.connect import coroutine, dialled, hive_option
from skep.cli.exits import told
from skep.cli.paths import HIVE_PATH
from skep.cli.terminal import copying
from skep.fs.address import Address
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.fid import Fid


@click.command()
@hive_option
@click.option("-a", "--append", is_flag=True, help="Add to the file's end.")
@click.argument("path", type=HIVE_PATH)
@click.argument("text", required=False)
@coroutine
async def write_command(hive: Address, append: bool, path: str, text: str | None) -> None:
    """Write a line, or stdin, to a file of a hive. TEXT gets a newline; without it, or with "-", stdin is
    copied.

    What fits one message is one write, so that the lines sent to a ctl file are one transaction. The
    answer of a ctl file, such as the new job's id, is printed. A file that is not there is created, where
    the directory takes new files.

    \b
    Examples:
      skep write /jobs/ctl 'submit topic=sha256 input=hello'
      skep write /artifacts/stage/photo.jpg < photo.jpg
      printf 'cancel job=A\\ncancel job=B\\n' | skep write /jobs/ctl
    """
    source = None if text not in (None, "-") else sys.stdin.buffer
    async with dialled(hive) as client:
        with told(path):
            fid = await _opened(client, path, append)
            async with fid:
                offset = (await fid.attr()).size if append else 0
                if source is None:
                    await fid.write_all(f"{text}\n".encode(), offset)
                else:
                    await _copy(source, fid, offset, path)
                click.echo(await _reply(fid), nl=False)


async def _opened(client: Client, path: str, append: bool) -> Fid:
    """The file open for writing, and for reading its answer where that is allowed; a new one if need be."""
    for mode in ("rw", "w"):
        try:
            return await client.open(path, mode, trunc=not append)
        except FsError as error:
            if error.kind is E.MISSING:
                break
            if mode == "w" or error.kind not in (E.DENIED, E.READONLY):
                raise
    try:
        return await client.create(path, "rw")
    except FsError as error:
        if error.kind in (E.READONLY, E.DENIED, E.NOTSUP, E.EXISTS):
            # Nothing can be made there: what was wrong is the name.
            raise FsError(E.MISSING) from error
        raise


async def _copy(source: BinaryIO, fid: Fid, offset: int, path: str) -> None:
    """Write all of ``source``, as few writes as there can be."""
    about = os.fstat(source.fileno())
    with copying(path, about.st_size if stat.S_ISREG(about.st_mode) else 0) as progress:
        piece = source.read(fid.unit)
        while True:
            await fid.write_all(piece, offset, progress)
            offset += len(piece)
            piece = source.read(fid.unit)
            if not piece:
                return


async def _reply(fid: Fid) -> bytes:
    """What a ctl or transaction file answers to what was written; b"" of a file that keeps what it is given.

    A file of questions has no length, and begins its answer at the first offset read."""
    try:
        if (await fid.attr()).size:
            return b""
        answer = b""
        while piece := await fid.read(len(answer), fid.unit):
            answer += piece
        return answer
    except FsError as error:
        if error.kind in (E.BADF, E.READONLY, E.DENIED):  # opened for writing alone
            return b""
        raise


@click.command()
@hive_option
@click.argument("paths", nargs=-1, required=True, type=HIVE_PATH)
@coroutine
async def rm_command(hive: Address, paths: tuple[str, ...]) -> None:
    """Remove files and empty directories of a hive.

    \b
    Example:
      skep rm /artifacts/stage/photo.jpg
    """
    async with dialled(hive) as client:
        for path in paths:
            with told(path):
                await client.remove(path)
