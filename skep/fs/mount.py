"""``skep mount``: a hive at a directory, by the kernel's own 9p client or by FUSE, for as long as we live.

The mount ends with its process, by whatever signal: FUSE's own helper (auto_unmount) or a watchdog takes it
down after a kill. A dead one that is found at the directory is taken down first.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, Literal

import msgspec

from skep.fs import v9fs
from skep.fs.address import Address
from skep.fs.client import MSIZE_DEFAULT
from skep.fs.dial import login_name
from skep.fs.errors import E, FsError
from skep.fs.link import Link, Standing

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Options(msgspec.Struct, frozen=True):
    """How to mount. ``way`` None: the kernel's 9p where there is one and we are root, else FUSE."""

    way: Literal["kernel", "fuse"] | None = None
    aname: str = ""
    uname: str | None = None  # None: the login name
    msize: int = MSIZE_DEFAULT
    cache: bool = False  # believe attributes for a second, and keep what has a length in the page cache
    allow_other: bool = False  # other users of this machine may use it too, with the mounter's rights
    read_only: bool = False
    token: bytes = b""  # a capability token shown at attach; b"": none


DEFAULTS: Final = Options()


def say(line: str) -> None:
    """Tell the person who mounts."""
    sys.stderr.write(f"skep: {line}\n")  # in one piece, unlike print


async def mount(
    address: Address,
    directory: str,
    *,
    options: Options = DEFAULTS,
    standing: Callable[[], Standing] | None = None,
    say: Callable[[str], None] = say,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Mount, call ``ready``, and serve until somebody unmounts, a signal of SIGNALS comes, or the task is
    cancelled; nothing is mounted afterwards. The first connection must succeed; one that is lost later is
    tried again, and file operations get EIO meanwhile (the kernel's 9p cannot: there the mount ends).
    ``standing`` gives what a session is opened with now: for TLS, which the kernel's 9p does not speak.

    Raises OSError when nobody listens at ``address`` or ``directory`` is none, FsError when the server or
    the kernel refuses or what mounting needs is not installed."""
    take_down_dead(directory, say)
    directory = os.path.realpath(directory)
    if not os.path.isdir(directory):
        raise NotADirectoryError(errno.ENOTDIR, "not a directory", directory)
    tls = address.kind == "tls"
    if tls and options.way == "kernel":
        raise FsError(E.NOTSUP, "the kernel's 9p does not speak TLS: mount by FUSE")
    if options.token and options.way == "kernel":
        raise FsError(E.NOTSUP, "the kernel's 9p shows no token: mount by FUSE")
    plain = not tls and not options.token
    by_kernel = (v9fs.present() and plain) if options.way is None else options.way == "kernel"
    with _signals() as told:
        if by_kernel:
            await _by_kernel(address, directory, options, say, ready, told)
        else:
            await _by_fuse(address, directory, options, standing, say, ready, told)


async def _by_fuse(
    address: Address,
    directory: str,
    options: Options,
    standing: Callable[[], Standing] | None,
    say: Callable[[str], None],
    ready: Callable[[], None],
    told: asyncio.Event,
) -> None:
    try:
        # Only who mounts by FUSE needs libfuse.
        from skep.fs import fuse
    except ImportError as error:
        raise FsError(
            E.NOTSUP,
            f"mounting by FUSE needs skep.native._fuse ({error}): install libfuse3-dev, pkg-config and a C "
            "compiler, then run: python setup.py build_ext --inplace",
        ) from error
    if shutil.which("fusermount3") is None or not os.path.exists("/dev/fuse"):
        raise FsError(E.NOTSUP, "mounting by FUSE needs fusermount3 (install fuse3) and /dev/fuse")
    link = Link(address, say, options.aname, options.uname, options.msize, standing, options.token)
    await link.dial()
    keeper = asyncio.create_task(link.keep())
    try:
        host = fuse.Host(link, _fuse_options(address, options), options.cache)
        host.start(directory)
        try:
            say(f"{address} is mounted at {directory} by FUSE")
            ready()
            await _first(told, host.ended, keeper)
        finally:
            await host.stop()
    finally:
        keeper.cancel()
        await asyncio.wait([keeper])
    say(f"{directory} is unmounted")


def _fuse_options(address: Address, options: Options) -> list[str]:
    source = str(address).replace("\\", "\\\\").replace(",", "\\,")
    wished = {"allow_other": options.allow_other, "ro": options.read_only}
    fixed = [f"fsname={source}", "subtype=skep", "auto_unmount", "nosuid", "nodev"]
    return fixed + [name for name, wanted in wished.items() if wanted]


async def _by_kernel(
    address: Address,
    directory: str,
    options: Options,
    say: Callable[[str], None],
    ready: Callable[[], None],
    told: asyncio.Event,
) -> None:
    uname = login_name() if options.uname is None else options.uname
    flags = ["nosuid", "nodev", *(["ro"] if options.read_only else [])]
    async with v9fs.mounted(address, directory, options.aname, uname, options.msize, flags) as ended:
        try:
            say(f"{address} is mounted at {directory} by the kernel's 9p")
            ready()
            await _first(told, ended)
            if ended.done():
                say(f"the connection to {address} has ended")
        finally:
            with contextlib.suppress(FsError):  # somebody has unmounted it: that is why we are here
                unmount(directory, lazy=True)
    say(f"{directory} is unmounted")


async def _first(told: asyncio.Event, *others: asyncio.Future[None]) -> None:
    """Return when ``told`` is set or one of ``others`` has ended; raise what that one raised."""
    signalled = asyncio.ensure_future(told.wait())
    waited: list[asyncio.Future[Any]] = [signalled, *others]
    try:
        done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        for one in done:
            one.result()
    finally:
        signalled.cancel()


@contextlib.contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """An event that SIGNALS set, in place of what they do otherwise."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, told.set)
    try:
        yield told
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def unmount(directory: str, *, lazy: bool = False) -> None:
    """Unmount what is mounted at ``directory``; ``lazy``: even while somebody is in there, who keeps what
    is open. Raises FsError with what the system said."""
    tool = ["umount", *(["-l"] if lazy else [])] if os.geteuid() == 0 else ["fusermount3", "-u"]
    if lazy and os.geteuid() != 0:
        tool.append("-z")
    done = subprocess.run([*tool, "--", directory], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise FsError(E.IO, done.stderr.strip())


def take_down_dead(directory: str, say: Callable[[str], None] = say) -> None:
    """Unmount what a dead process has left at ``directory``, and say so; a live mount or a plain directory
    is left alone. Raises OSError when there is no directory."""
    try:
        os.stat(directory)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        say(f"a dead mount at {directory} is taken down first")
        unmount(directory, lazy=True)
