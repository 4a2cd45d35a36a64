"""``skep token``: capability tokens made, narrowed, looked at, revoked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from skep.cli.connect import coroutine, dialled, hive_option
from skep.cli.exits import Failed, Refused, told
from skep.fs.address import Address
from skep.fs.ctl import line

if TYPE_CHECKING:
    from biscuit_auth import Biscuit

    from skep.namespaces.tokens.biscuit import Terms

CLONE: Final = "/trust/tokens/clone"
KEY: Final = "/trust/tokens/key"
CTL: Final = "/trust/ctl"

Command = Callable[..., Any]


def out_option(command: Command) -> Command:
    option = click.option(
        "-o", "--out", type=click.Path(), help="A new file for it, which only you can read; else stdout."
    )
    return option(command)


def key_option(command: Command) -> Command:
    option = click.option(
        "--key",
        envvar="SKEP_TOKEN_KEY",
        required=True,
        help="The hive's public key, as `skep token key` prints it. Default: SKEP_TOKEN_KEY.",
    )
    return option(command)


@click.group()
def token_command() -> None:
    """Make, narrow, look at and revoke capability tokens.

    A token narrows what whoever presents it may do (--token-file, SKEP_TOKEN_FILE). Who holds it can narrow
    it further without the hive, and never widen it.

    \b
    Examples:
      skep token mint --ops read --path /jobs --ttl 1h -o jobs.token
      SKEP_TOKEN_FILE=jobs.token skep ls /jobs
      skep token attenuate --path /jobs/by-key < jobs.token > narrower.token
    """


@token_command.command()
@hive_option
@click.option("--ops", required=True, help="Some of read,write,create,remove, or all.")
@click.option(
    "--path", "paths", required=True, multiple=True, help="A place, and all below it; again for more."
)
@click.option("--ttl", required=True, help="How long it is good, like 1h.")
@click.option("--uses", type=click.IntRange(min=1), help="How many commands may be written under it.")
@click.option("--subject", help="The principal that alone may present it.")
@click.option("--binding", help="The TLS channel it is good on, as /trust/tokens/channel tells it there.")
@out_option
@coroutine
async def mint(
    hive: Address,
    ops: str,
    paths: tuple[str, ...],
    ttl: str,
    uses: int | None,
    subject: str | None,
    binding: str | None,
    out: str | None,
) -> None:
    """Make a token. It is told once, and kept by nobody but you.

    \b
    Example:
      skep token mint --ops read,write --path /jobs --ttl 30m --uses 10 -o jobs.token
    """
    said = {"ops": ops, "paths": ",".join(map(_place, paths)), "ttl": ttl}
    more = {"uses": None if uses is None else str(uses), "subject": subject, "binding": binding}
    said |= {name: value for name, value in more.items() if value is not None}
    async with dialled(hive) as client:
        with told(CLONE):
            async with await client.open(CLONE, "rw") as fid:
                await fid.write_all(f"{line('mint', said)}\n".encode())
                token = b"".join([piece async for piece in fid.pieces()]).decode().strip()
    _put(token, out)


@token_command.command()
@key_option
@click.option("--ops", help="Some of read,write,create,remove.")
@click.option("--path", "paths", multiple=True, help="A place, and all below it; again for more.")
@click.option("--ttl", help="How long from now it is good, like 10m.")
@click.option("--uses", type=click.IntRange(min=1), help="How many commands may be written under it.")
@click.option("--subject", help="The principal that alone may present it.")
@click.option("--binding", help="The TLS channel it is good on, as /trust/tokens/channel tells it there.")
@out_option
def attenuate(
    key: str,
    ops: str | None,
    paths: tuple[str, ...],
    ttl: str | None,
    uses: int | None,
    subject: str | None,
    binding: str | None,
    out: str | None,
) -> None:
    """Narrow the token on stdin, without the hive.

    \b
    Example:
      skep token attenuate --path /jobs/by-key --ttl 10m < jobs.token > narrower.token
    """
    from skep.namespaces.tokens import biscuit
    from skep.trace.clock import SECOND, SystemClock, parse_duration

    token = _verified(key)
    try:
        terms = biscuit.Terms(
            ops=None if ops is None else biscuit.parse_ops(ops),
            places=frozenset(map(biscuit.place_of, paths)) or None,
            until_ns=None
            if ttl is None
            else (SystemClock().now_ns() + parse_duration(ttl)) // SECOND * SECOND,
            subject=subject,
            channel=binding,
            uses=uses,
        )
        narrower = biscuit.attenuate(token, terms)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    _put(narrower.to_base64(), out)


@token_command.command()
@key_option
def inspect(key: str) -> None:
    """Show what the token on stdin says, without the hive, as JSON. Whether it is revoked, the hive knows.

    \b
    Example:
      skep token inspect < jobs.token
    """
    from skep.namespaces.tokens.biscuit import TokenError, ids_of, read
    from skep.namespaces.tokens.grant import granted

    token = _verified(key)
    try:
        blocks = read(token)
    except TokenError as error:
        raise Refused(f"signature: {error}") from error
    ids = ids_of(token)
    grant = granted(ids, blocks)
    about = {
        "token": ids[0],
        "tenant": grant.tenant,
        "ops": sorted(grant.ops),
        "paths": _texts(grant.places),
        "until": _time(grant.until_ns),
        "subjects": sorted(grant.subjects),
        "channels": sorted(grant.channels),
        "blocks": [{"id": id} | _told(terms) for id, terms in zip(ids, blocks, strict=True)],
    }
    click.echo(msgspec.json.encode(about))


@token_command.command()
@hive_option
@coroutine
async def key(hive: Address) -> None:
    """Print the public key that the hive's tokens are verified by.

    \b
    Example:
      export SKEP_TOKEN_KEY=$(skep token key)
    """
    async with dialled(hive) as client:
        with told(KEY):
            click.echo(await client.read_file(KEY), nl=False)


@token_command.command()
@hive_option
@click.option("--reason", help="Why, for the record.")
@click.argument("id")
@coroutine
async def revoke(hive: Address, reason: str | None, id: str) -> None:
    """Revoke a token, or one block of it, by its id. Sessions that live under it end at once.

    \b
    Example:
      skep token revoke 3ac5a5533b9f7363d14a3777bc147934
    """
    said = {"token": id} | ({"reason": reason} if reason is not None else {})
    async with dialled(hive) as client:
        with told(CTL):
            async with await client.open(CTL, "rw") as fid:
                await fid.write_all(f"{line('revoke', said)}\n".encode())
                click.echo(b"".join([piece async for piece in fid.pieces()]), nl=False)


def _place(path: str) -> str:
    from skep.namespaces.tokens.biscuit import TokenError, place_of, place_text

    try:
        return place_text(place_of(path))
    except TokenError as error:
        raise click.UsageError(str(error)) from error


def _verified(key: str) -> Biscuit:
    """The token on stdin. Raises Refused, UsageError."""
    from skep.namespaces.tokens.biscuit import TOKEN_MAX, TokenError, decode, key_id, public_key, verify

    try:
        raw = bytes.fromhex(key.strip().removeprefix("ed25519/"))
        keys = {key_id(raw): public_key(raw)}
    except ValueError as error:
        raise click.UsageError("--key: expected ed25519/ and 64 hex digits") from error
    try:
        return verify(decode(sys.stdin.buffer.read(2 * TOKEN_MAX)), keys)
    except TokenError as error:
        raise Refused(f"signature: {error}") from error


def _told(terms: Terms) -> dict[str, object]:
    """What one block says."""
    said = {
        "ops": None if terms.ops is None else sorted(terms.ops),
        "paths": None if terms.places is None else _texts(terms.places),
        "until": None if terms.until_ns is None else _time(terms.until_ns),
        "subject": terms.subject,
        "channel": terms.channel,
        "uses": terms.uses,
    }
    return {name: value for name, value in said.items() if value is not None}


def _texts(places: frozenset[tuple[str, ...]]) -> list[str]:
    from skep.namespaces.tokens.biscuit import place_text

    return sorted(map(place_text, places))


def _time(time_ns: int) -> str:
    from skep.trace.clock import rfc3339

    return rfc3339(time_ns)


def _put(token: str, out: str | None) -> None:
    if out is None:
        click.echo(token)
        return
    try:
        fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise Failed(f"{out}: {error.strerror}") from error
    with open(fd, "w") as file:
        file.write(f"{token}\n")
