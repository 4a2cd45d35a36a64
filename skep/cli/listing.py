"""``skep ls`` and ``skep stat``: what is there, and what the hive tells about it."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Iterable
from typing import Any

import click
import msgspec

from skep.cli.connect import coroutine, dialled, hive_option, json_option
from skep.cli.exits import told
from skep.cli.paths import HIVE_PATH
from skep.fs.address import Address
from skep.fs.dial import Client
from skep.fs.messages import QT, Dialect
from skep.fs.node import Attr
from skep.trace.clock import rfc3339

_KINDS = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}


@click.command()
@hive_option
@json_option
@click.option("-l", "--long", is_flag=True, help="Mode, size and time of each.")
@click.option("-R", "--recursive", is_flag=True, help="Directories in directories too.")
@click.argument("paths", nargs=-1, type=HIVE_PATH)
@coroutine
async def ls_command(
    hive: Address, as_json: bool, long: bool, recursive: bool, paths: tuple[str, ...]
) -> None:
    """List directories of a hive.

    \b
    Examples:
      skep ls
      skep ls -l /jobs /pools
      skep ls -R --json /nodes
    """
    async with dialled(hive) as client:
        for path in paths or ("/",):
            with told(path):
                if not (as_json or long or recursive or len(paths) > 1):
                    await _names(client, path)
                    continue
                async for folder, entries in _listing(client, path, recursive):
                    if as_json:
                        _print_json(_json(f"{folder.rstrip('/')}/{name}", attr) for name, attr in entries)
                        continue
                    if recursive or len(paths) > 1:
                        click.echo(f"{folder}:")
                    for name, attr in entries:
                        click.echo(_line(name, attr) if long else _shown(name, attr.mode))


async def _names(client: Client, path: str) -> None:
    """Print the names alone, as they come: nothing is asked of each, however many there are."""
    if not stat.S_ISDIR((await client.stat(path)).mode):
        click.echo(path.rpartition("/")[2])
        return
    async with await client.open(path) as fid:
        async for page in fid.pages():
            for entry in page:
                click.echo(_shown(entry.name, entry.mode))


async def _listing(
    client: Client, path: str, recursive: bool
) -> AsyncIterator[tuple[str, list[tuple[str, Attr]]]]:
    """Each directory with its entries, from the top; a file is the only entry of its directory."""
    attr = await client.stat(path)
    if not stat.S_ISDIR(attr.mode):
        folder, _, name = path.rpartition("/")
        yield folder or "/", [(name, attr)]
        return
    entries = await client.scan(path)
    yield path, entries
    if recursive:
        for name, attr in entries:
            if stat.S_ISDIR(attr.mode):
                async for below in _listing(client, f"{path.rstrip('/')}/{name}", True):
                    yield below


def _line(name: str, attr: Attr) -> str:
    mode, when = stat.filemode(attr.mode), rfc3339(attr.mtime_ns)[:19]
    return f"{mode} {attr.user:8} {attr.size:>10} {when}Z {_shown(name, attr.mode)}"


def _shown(name: str, mode: int) -> str:
    return click.style(name, fg="blue", bold=True) if stat.S_ISDIR(mode) else name


@click.command()
@hive_option
@json_option
@click.argument("paths", nargs=-1, required=True, type=HIVE_PATH)
@coroutine
async def stat_command(hive: Address, as_json: bool, paths: tuple[str, ...]) -> None:
    """Show what a hive tells about its files.

    \b
    Examples:
      skep stat /jobs/ctl
      skep stat --json /artifacts/*
    """
    async with dialled(hive, Dialect.L) as client:
        for path in paths:
            with told(path):
                found = _json(path, await client.stat(path))
            if as_json:
                _print_json([found])
                continue
            for key, value in found.items():
                click.echo(f"{key:7} {value}")


def _json(path: str, attr: Attr) -> dict[str, Any]:
    qid = f"{attr.qid.path:x}.{attr.qid.vers}.{QT(attr.qid.type).name or 'FILE'}"
    return {
        "path": path,
        "type": _KINDS.get(stat.S_IFMT(attr.mode), "special"),
        "mode": stat.filemode(attr.mode),
        "size": attr.size,
        "mtime": rfc3339(attr.mtime_ns),
        "owner": attr.user,
        "qid": qid,
    }


def _print_json(records: Iterable[dict[str, Any]]) -> None:
    for record in records:
        click.echo(msgspec.json.encode(record))
