"""``skep cat``, ``skep tail`` and ``skep whoami``: reading, and reading on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from stat import S_ISDIR
from typing import Final

import click
import msgspec

from skep.cli.connect import coroutine, dialled, hive_option, json_option
from skep.cli.exits import told
from skep.cli.paths import HIVE_PATH
from skep.cli.terminal import copying
from skep.fs.address import Address
from skep.fs.dial import Client
from skep.fs.errors import E, FsError

LOOK_S: Final = 0.25  # between two looks at a file that grows without telling
TAIL_MAX: Final = 16 << 20  # bytes of a file's end that tail looks through


@click.command()
@hive_option
@click.option("-f", "--follow", is_flag=True, help="Go on when more comes, until interrupted.")
@click.argument("paths", nargs=-1, required=True, type=HIVE_PATH)
@coroutine
async def cat_command(hive: Address, follow: bool, paths: tuple[str, ...]) -> None:
    """Print files of a hive. A file that waits, such as /jobs/<id>/wait, is waited for.

    \b
    Examples:
      skep cat /version /state
      skep cat /jobs/by-key/first
      skep cat -f /jobs/01JD0000000000000000000000/log
    """
    if follow and len(paths) > 1:
        raise click.UsageError("--follow takes one path")
    async with dialled(hive) as client:
        for path in paths:
            with told(path):
                seen = _Seen()
                found = await client.stat(path)
                if S_ISDIR(found.mode):
                    raise FsError(E.ISDIR, f"skep ls {path}")
                with copying(path, 0 if sys.stdout.isatty() else found.size) as progress:
                    async for piece in _whole(client, path):
                        _put(piece)
                        seen.add(piece)
                        progress(len(piece))
                if follow:
                    await _follow(client, path, seen)


@click.command()
@hive_option
@click.option("-f", "--follow", is_flag=True, help="Go on when more comes, until interrupted.")
@click.option("-n", "--lines", default=10, show_default=True, type=click.IntRange(min=0), help="How many.")
@click.argument("path", type=HIVE_PATH)
@coroutine
async def tail_command(hive: Address, follow: bool, lines: int, path: str) -> None:
    """Print the end of a file, and follow it.

    PATH may say where a stream begins: events@42 is what came after entry 42 of the ledger, and waits for
    more.

    \b
    Examples:
      skep tail -n 3 /log/trace/live.jsonl
      skep tail -f /events
      skep tail /events@42
    """
    async with dialled(hive) as client:
        with told(path):
            if "@" in path.rpartition("/")[2]:
                async for piece in client.follow(path):
                    _put(piece)
                return
            seen = _Seen()
            async for piece in _whole(client, path):
                seen.add(piece)
            _put(b"".join(seen.end.splitlines(keepends=True)[-lines:] if lines else []))
            if follow:
                await _follow(client, path, seen)


class _Seen:
    """What was read of a file: how much, and its end."""

    def __init__(self) -> None:
        self.size = 0
        self.end = b""

    def add(self, piece: bytes) -> None:
        self.size += len(piece)
        self.end = (self.end + piece)[-TAIL_MAX:]

    @property
    def seq(self) -> int:
        """The ledger number that the last whole line tells; 0: none does."""
        for line in reversed(self.end.splitlines()):
            try:
                return int(msgspec.json.decode(line, type=dict[str, object])["seq"])  # type: ignore[call-overload, no-any-return]
            except (msgspec.DecodeError, KeyError, TypeError, ValueError):
                return 0
        return 0


async def _whole(client: Client, path: str) -> AsyncIterator[bytes]:
    """The file from one open, each piece as it comes."""
    async with await client.open(path) as fid:
        async for piece in fid.pieces():
            yield piece


async def _follow(client: Client, path: str, seen: _Seen) -> None:
    """What comes after what was seen: by the file's own stream, else by looking again, without end.

    A stream of a file that shows its length begins at a byte, others after an entry of the ledger."""
    after = seen.size if (await client.stat(path)).size else seen.seq
    try:
        fid = await client.open(f"{path}@{after}")
    except FsError as error:
        if error.kind not in (E.MISSING, E.NOTDIR):
            raise
        await _look(client, path, seen)
        return
    async with fid:
        async for piece in fid.pieces(ahead=1):
            _put(b"".join(line for line in piece.splitlines(keepends=True) if not _bookmark(line)))


def _bookmark(line: bytes) -> bool:
    """Whether the line only says where an idle stream is: {"seq":N}."""
    return line.startswith(b'{"seq":') and line.rstrip()[7:-1].isdigit()


async def _look(client: Client, path: str, seen: _Seen) -> None:
    """Read on whenever the file has grown; from its beginning when it was cut. Of one that shows no length
    the lines that were not there before: what keeps the latest records loses its oldest."""
    offset, lines = seen.size, seen.end.splitlines(keepends=True)
    while True:
        async with await client.open(path) as fid:
            while size := (await fid.attr()).size:
                offset = offset if offset <= size else 0
                while piece := await fid.read(offset, fid.unit):
                    _put(piece)
                    offset += len(piece)
                await asyncio.sleep(LOOK_S)
            # Taken whole when opened: what it holds now is another open's.
            found = b"".join([piece async for piece in fid.pieces()]).splitlines(keepends=True)
            known = frozenset(lines)
            _put(b"".join(line for line in found if line not in known))
            lines, offset = found, sum(map(len, found))
        await asyncio.sleep(LOOK_S)


@click.command()
@hive_option
@json_option
@coroutine
async def whoami_command(hive: Address, as_json: bool) -> None:
    """Show who this hive takes you for. Principal, role, tenant.

    \b
    Examples:
      skep whoami
      skep whoami --json
    """
    async with dialled(hive) as client:
        with told("/whoami"):
            text = await client.read_file("/whoami")
    if not as_json:
        _put(text)
        return
    pairs = (line.partition(" ") for line in text.decode().splitlines())
    click.echo(msgspec.json.encode({key: value for key, _, value in pairs}))


def _put(data: bytes) -> None:
    """Print at once: a reader waits for each line."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
