"""The kernel's own 9p client, its other end held here: bytes pumped between a socketpair and the server.

So the way to the server stays ours, whatever it is, and the kernel sees only a descriptor. What it cannot
do is come back: a connection that is lost ends the mount. Needs root and the kernel's 9p modules.

Source: Linux Documentation/filesystems/9p.rst.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from skep.fs.address import Address
from skep.fs.errors import E, FsError

CHUNK: Final = 1 << 18  # bytes pumped at a time
KERNEL_MSIZE_MAX: Final = 1 << 20  # trans=fd takes no more


def present() -> bool:
    """Whether this kernel has 9p and we may mount it."""
    names = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()}
    return os.geteuid() == 0 and "9p" in names


@contextlib.asynccontextmanager
async def mounted(
    address: Address, directory: str, aname: str, uname: str, msize: int, flags: list[str]
) -> AsyncIterator[asyncio.Task[None]]:
    """Mount at ``directory``; within, the task is done when the mount or its connection has ended.

    Raises OSError when nobody listens, FsError when the kernel refuses, ValueError for TLS."""
    if address.kind == "tls":
        raise ValueError(f"{address}: the kernel's client speaks no TLS")
    if address.kind == "unix":
        reader, writer = await asyncio.open_unix_connection(address.path)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port)
    kernel, ours = socket.socketpair()
    ours.setblocking(False)
    pumps = [asyncio.create_task(_up(ours, writer)), asyncio.create_task(_down(reader, ours))]
    ended = asyncio.create_task(_any(pumps))
    try:
        with kernel:
            await _mount(kernel.fileno(), directory, aname, uname, msize, flags)
        async with _watchdog(directory):
            yield ended
    finally:
        for task in (*pumps, ended):
            task.cancel()
        await asyncio.gather(*pumps, ended, return_exceptions=True)
        ours.close()
        writer.close()


async def _mount(fd: int, directory: str, aname: str, uname: str, msize: int, flags: list[str]) -> None:
    """The mount command: the system call inside talks 9P on ``fd`` before it returns."""
    for text in (aname, uname):
        if "," in text:
            raise FsError(E.USAGE, f"{text!r}: the kernel takes no comma in a mount's options")
    named = {"aname": aname, "uname": uname, "msize": str(min(msize, KERNEL_MSIZE_MAX))}
    options = [
        "trans=fd", f"rfdno={fd}", f"wfdno={fd}", "version=9p2000.L", "cache=none", "access=any",
        *(f"{key}={value}" for key, value in named.items() if value), *flags,
    ]  # fmt: skip
    command = ("mount", "-i", "-t", "9p", "-o", ",".join(options), "skep", directory)
    process = await asyncio.create_subprocess_exec(*command, pass_fds=(fd,), stderr=asyncio.subprocess.PIPE)
    _, said = await process.communicate()
    if process.returncode != 0:
        raise FsError(E.IO, said.decode(errors="replace").strip())


@contextlib.asynccontextmanager
async def _watchdog(directory: str) -> AsyncIterator[None]:
    """A process that outlives ours, if ours is killed, by the moment it takes to unmount."""
    script = 'read -r _; umount -l "$0" 2>/dev/null'
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", script, directory, stdin=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def _up(ours: socket.socket, writer: asyncio.StreamWriter) -> None:
    """What the kernel says, until it has unmounted."""
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(ours, CHUNK):
        writer.write(data)
        await writer.drain()


async def _down(reader: asyncio.StreamReader, ours: socket.socket) -> None:
    """What the server says, until the connection is lost; then nobody in the kernel waits any longer."""
    loop = asyncio.get_running_loop()
    try:
        while data := await reader.read(CHUNK):
            await loop.sock_sendall(ours, data)
    finally:
        ours.shutdown(socket.SHUT_RDWR)


async def _any(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
