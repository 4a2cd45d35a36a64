"""Reaching a hive from a command: the ``-H`` option and one client."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

import click

from skep.cli.exits import Unreachable, told
from skep.fs.address import Address, default_hive, parse
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.messages import Dialect

CONNECT_S: Final = 10.0  # a hive that has not agreed on a version by then is not one


class AddressType(click.ParamType[Address]):
    """``unix:/path`` or ``tcp:host:port``."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        if isinstance(value, Address):
            return value
        try:
            return _without_tls(parse(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


ADDRESS: Final = AddressType()


def _without_tls(address: Address) -> Address:
    """Commands have no certificates: only trees that a program serves and dials are served over TLS."""
    if address.kind == "tls":
        raise ValueError(f"{address}: commands show no certificates; expected unix:/path or tcp:host:port")
    return address


def _default() -> Address:
    try:
        return _without_tls(default_hive())
    except ValueError as error:
        raise click.UsageError(f"SKEP_HIVE: {error}") from error


hive_option: Final = click.option(
    "-H",
    "--hive",
    type=ADDRESS,
    default=_default,
    show_default="SKEP_HIVE, else this user's own hive",
    help="The hive's address: unix:/path or tcp:host:port.",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="JSON lines, for programs.")


@contextlib.asynccontextmanager
async def dialled(hive: Address, dialect: Dialect | None = None) -> AsyncIterator[Client]:
    """A client of ``hive``. Unless said otherwise it speaks 9P2000.u, whose errors carry their text where
    9P2000.L's are a number; a server without 9P2000.u is spoken to in 9P2000.L. Raises Failed."""
    try:
        async with asyncio.timeout(CONNECT_S):
            with told(str(hive)):
                client = await _connect(hive, dialect)
    except TimeoutError:
        raise Unreachable(f"{hive}: no answer in {CONNECT_S:.0f} s; is a hive listening there?") from None
    except OSError as error:
        why = error.strerror or str(error)
        raise Unreachable(
            f"{hive}: {why}; is the hive up? (`skep up` starts one, -H names another)"
        ) from error
    async with client:
        yield client


async def _connect(hive: Address, dialect: Dialect | None) -> Client:
    try:
        return await Client.connect(hive, dialect=dialect or Dialect.U)
    except FsError as error:
        if error.kind is not E.VERSION or dialect is not None:
            raise
    return await Client.connect(hive, dialect=Dialect.L)


def coroutine(command: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """What click calls, from a coroutine function."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(command(*args, **kwargs))

    return run
