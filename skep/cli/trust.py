"""``skep invite``, ``enroll``, ``renew``, ``revoke``, ``identity``: who is of a hive, and who one is."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import click
import msgspec

from skep.cli.connect import (
    ADDRESS,
    CONNECT_S,
    coroutine,
    dialled,
    hive_option,
    identity_option,
    json_option,
    reached_at,
    reaching,
)
from skep.cli.exits import Failed, told
from skep.fs.address import Address
from skep.fs.ctl import line
from skep.fs.dial import Client

CTL = "/trust/ctl"


@click.command()
@hive_option
@click.option("--role", required=True, help="What its certificate will make of it, e.g. drone-worker.")
@click.option("--node", required=True, help="What its certificate will call it.")
@click.option("--ttl", default="10m", show_default=True, help="How long the invite may be used, once.")
@click.option("--tenant", help="Whose it will be, org/project/env. Default: yours.")
@click.option("--address", type=ADDRESS, help="Where it will find the hive, in the line to type there.")
@coroutine
async def invite_command(
    hive: Address, role: str, node: str, ttl: str, tenant: str | None, address: Address | None
) -> None:
    """Invite a node into the hive. Prints the invite, which is a secret: whoever has it first is that node.

    \b
    Examples:
      skep invite --role drone-worker --node w7
      skep invite --role operator --node ann --ttl 1h --tenant acme/web/prod
    """
    said = {"role": role, "node": node, "ttl": ttl} | ({"tenant": tenant} if tenant else {})
    async with dialled(hive) as client:
        invite = (await _say(client, line("invite", said))).partition(" ")[0]
        told = address or hive
        places = [str(told)] if told.kind == "tls" else await reached_at(client)
    place = places[0] if len(places) == 1 else "tls:HOST:PORT"
    click.echo(invite)
    # Without the invite, which is a secret, and standard error may be a log.
    click.echo(f"on {node}, within {ttl}, and paste it:\n  skep enroll {place} --invite -", err=True)


@click.command()
@identity_option
@click.option("--invite", required=True, help="What `skep invite` printed; - reads it from stdin.")
@click.argument("address", type=ADDRESS)
@coroutine
async def enroll_command(invite: str, address: Address) -> None:
    """Enroll this machine in a hive. Its key is made here and stays here; the hive signs its certificate.

    Run again with the same invite it finishes what was cut off. The identity is kept in --identity, else in
    SKEP_IDENTITY, else under ~/.config/skep/identities by the hive's name.

    \b
    Examples:
      skep enroll tls:hive.example.org:5640 --invite skep1.eyJ…
      skep enroll tls:10.0.0.1:5640 --invite - --identity /etc/skep/w7 < invite
    """
    from skep.roles.enrolling import InviteError, enroll, parse_invite
    from skep.roles.papers import Papers, PapersError, home, named

    if address.kind != "tls":
        raise click.UsageError(f"{address}: one enrolls over TLS: expected tls:host:port")
    try:
        found = parse_invite(sys.stdin.read() if invite == "-" else invite)
    except InviteError as error:
        raise click.UsageError(str(error)) from error
    papers = named() or Papers(home() / found.hive)
    try:
        with reaching(address):
            async with asyncio.timeout(CONNECT_S):
                await enroll(papers, address, found)
    except PapersError as error:
        raise Failed(str(error)) from error
    click.echo(f"enrolled as {found.name} in {papers.directory}")


@click.command()
@identity_option
@click.argument("address", type=ADDRESS, required=False)
@coroutine
async def renew_command(address: Address | None) -> None:
    """Renew the identity now. Workers and mounts do that by themselves, at half of a certificate's life.

    Before that half is over, the hive gives the same certificate again unless its CA was rotated. ADDRESS is
    where the hive is, when that is not where it was enrolled.

    \b
    Examples:
      skep renew
      skep renew tls:10.0.0.2:5640 --identity /etc/skep/w7
    """
    from skep.roles.enrolling import Shown, renew
    from skep.roles.papers import papers_for

    try:
        papers = papers_for(address)
        place = address or papers.address()
        if place is None:
            raise click.UsageError(f"{papers.directory} does not say where its hive is: name the address")
        with reaching(place):
            async with asyncio.timeout(CONNECT_S):
                client = await Client.connect(place, identity=Shown(papers).identity)
                async with client:
                    with told(str(place)):
                        await renew(papers, client)
    except ValueError as error:
        raise Failed(str(error)) from error
    click.echo(_text(_told(papers.directory)), nl=False)


@click.command()
@hive_option
@click.option("--node", help="All certificates and invites of a node. It has to be invited again.")
@click.option("--serial", help="One certificate.")
@click.option("--token", help="A capability token, by its revocation id.")
@click.option("--reason", help="Why, for the record.")
@coroutine
async def revoke_command(
    hive: Address, node: str | None, serial: str | None, token: str | None, reason: str | None
) -> None:
    """Revoke a node, a certificate or a token. Its sessions end at once.

    \b
    Examples:
      skep revoke --node w7 --reason stolen
      skep revoke --serial 3f9a…
    """
    named = {"node": node, "serial": serial, "token": token}
    given = {name: value for name, value in named.items() if value is not None}
    if len(given) != 1:
        raise click.UsageError("expected one of --node, --serial, --token")
    said = given | ({"reason": reason} if reason is not None else {})
    async with dialled(hive) as client:
        click.echo(await _say(client, line("revoke", said)), nl=False)


@click.command()
@identity_option
@json_option
def identity_command(as_json: bool) -> None:
    """Show who this machine is, and until when. The identities that `skep enroll` made.

    \b
    Examples:
      skep identity
      skep identity --json --identity /etc/skep/w7
    """
    from skep.roles.papers import home, kept, named

    given = named()
    directories = [given.directory] if given else [papers.directory for papers in kept()]
    if not directories:
        raise Failed(f"no identity in {home()}: run skep enroll")
    for number, directory in enumerate(directories):
        found = _told(directory)
        if as_json:
            click.echo(msgspec.json.encode(found))
        else:
            click.echo(("\n" if number else "") + _text(found), nl=False)


def _told(directory: Path) -> dict[str, str]:
    """What an identity is, without its key."""
    from skep.roles.papers import Papers, PapersError
    from skep.trace.clock import rfc3339

    papers = Papers(directory)
    try:
        address = papers.address()
        found = {
            "name": str(papers.name()),
            "serial": papers.serial(),
            "until": rfc3339(papers.end_ns()),
            "renews": rfc3339(papers.due_ns()),
            "directory": os.fspath(directory),
        }
    except PapersError as error:
        raise Failed(str(error)) from error
    except ValueError as error:
        raise Failed(f"{directory}: {error}") from error
    return found | ({"address": str(address)} if address else {})


def _text(found: dict[str, str]) -> str:
    return "".join(f"{name} {value}\n" for name, value in found.items())


async def _say(client: Client, said: str) -> str:
    """Write a line to /trust/ctl; its answer."""
    with told(CTL):
        async with await client.open(CTL, "rw") as fid:
            await fid.write_all(f"{said}\n".encode())
            return b"".join([piece async for piece in fid.pieces()]).decode()
