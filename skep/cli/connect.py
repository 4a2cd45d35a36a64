"""Reaching a hive from a command: which one, who we are there, and one client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import stat
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from skep.cli.exits import Failed, Refused, Unreachable, told
from skep.fs.address import Address, default_hive, parse
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.link import Standing
from skep.fs.messages import Dialect

if TYPE_CHECKING:  # OpenSSL takes a tenth of a second to import
    from skep.fs.identity import Identity

TOKEN_FILE_MAX: Final = 65536  # bytes: a token has fewer, and the hive says so
CONNECT_S: Final = 10.0  # a hive that has not agreed on a version by then is not one


class AddressType(click.ParamType[Address]):
    """``unix:/path``, ``tcp:host:port`` or ``tls:host:port``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


ADDRESS: Final = AddressType()


def default_address() -> Address:
    """The hive that is meant when none is named. Raises UsageError when what names it is no address."""
    try:
        return default_hive()
    except ValueError as error:
        raise click.UsageError(f"SKEP_HIVE: {error}") from error


def _named(ctx: click.Context, param: click.Parameter, directory: str | None) -> None:
    if directory is not None:
        os.environ["SKEP_IDENTITY"] = directory


identity_option: Final = click.option(
    "--identity",
    type=click.Path(file_okay=False),
    metavar="DIR",
    expose_value=False,
    is_eager=True,
    callback=_named,
    help="Who to be for tls: addresses. Default: SKEP_IDENTITY, else what `skep enroll` made.",
)


def _presented(ctx: click.Context, param: click.Parameter, path: str | None) -> None:
    if path is not None:
        os.environ["SKEP_TOKEN_FILE"] = path


token_option: Final = click.option(
    "--token-file",
    type=click.Path(),
    expose_value=False,
    is_eager=True,
    callback=_presented,
    help="A capability token to be narrowed by. Default: SKEP_TOKEN_FILE, else none.",
)


def presented_token() -> bytes:
    """The token that the session is to be narrowed by; b"": none. Raises Failed."""
    path = os.environ.get("SKEP_TOKEN_FILE", "")
    if not path:
        return b""
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            token = file.read(TOKEN_FILE_MAX)
    except OSError as error:
        raise Failed(f"{path}: {error.strerror}") from error
    if stat.S_ISREG(about.st_mode) and about.st_mode & 0o077:
        raise Failed(f"{path}: others can read this token; expected a file of mode 0600")
    if not token.strip():
        raise Failed(f"{path}: there is no token in it")
    return token


def hive_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which hive, who to be there, and how narrowed."""
    named = click.option(
        "-H",
        "--hive",
        type=ADDRESS,
        default=default_address,
        show_default="SKEP_HIVE, else this user's own hive",
        help="The hive's address: unix:/path, tcp:host:port or tls:host:port.",
    )
    return named(identity_option(token_option(command)))


json_option: Final = click.option("--json", "as_json", is_flag=True, help="JSON lines, for programs.")


@contextlib.asynccontextmanager
async def dialled(hive: Address, dialect: Dialect | None = None) -> AsyncIterator[Client]:
    """A client of ``hive``. Unless said otherwise it speaks 9P2000.u, whose errors carry their text where
    9P2000.L's are a number; a server without 9P2000.u is spoken to in 9P2000.L. With TLS we are who our
    papers say; a token that we were told to present narrows us. Raises Failed."""
    standing = standing_for(hive)
    identity = None if standing is None else standing().identity
    token = presented_token()
    with reaching(hive):
        async with asyncio.timeout(CONNECT_S):
            client = await _connect(hive, dialect, identity, token)
    async with client:
        yield client


async def _connect(hive: Address, dialect: Dialect | None, identity: Identity | None, token: bytes) -> Client:
    try:
        return await Client.connect(hive, dialect=dialect or Dialect.U, identity=identity, token=token)
    except FsError as error:
        if error.kind is not E.VERSION or dialect is not None:
            raise
    return await Client.connect(hive, dialect=Dialect.L, identity=identity, token=token)


def standing_for(hive: Address) -> Callable[[], Standing] | None:
    """What sessions are opened with at a tls: address; None: it is of another kind. Raises Failed."""
    if hive.kind != "tls":
        return None
    from skep.roles.enrolling import Shown
    from skep.roles.papers import PapersError, papers_for

    try:
        papers = papers_for(hive)
        Shown(papers)  # now, rather than in the midst of things
    except PapersError as error:
        raise Failed(str(error)) from error
    return lambda: Shown(papers)


@contextlib.contextmanager
def reaching(hive: Address) -> Iterator[None]:
    """What goes wrong on the way to a hive, as commands tell it."""
    try:
        with told(str(hive)):
            yield
    except TimeoutError:
        raise Unreachable(f"{hive}: no answer in {CONNECT_S:.0f} s; is a hive listening there?") from None
    except OSError as error:
        if hive.kind == "tls":
            from skep.fs.tls import TlsError

            if isinstance(error, TlsError):
                raise Refused(f"{hive}: {error}") from error
        why = error.strerror or str(error)
        raise Unreachable(
            f"{hive}: {why}; is the hive up? (`skep up` starts one, -H names another)"
        ) from error


async def reached_at(client: Client) -> list[str]:
    """The addresses by which others reach the hive; HOST stands for a host that it does not know."""
    try:
        told = await client.read_file("/trust/addresses")
    except FsError:
        return []  # it tells us nothing, or is older than the file
    return [_from_elsewhere(parse(word)) for word in told.decode().split()]


def _from_elsewhere(address: Address) -> str:
    return f"tls:HOST:{address.port}" if address.host in ("0.0.0.0", "::") else str(address)


def coroutine(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """What click calls, from a coroutine function."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(command(*args, **kwargs))

    return run
