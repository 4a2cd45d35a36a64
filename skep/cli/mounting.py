"""``skep mount`` and ``skep umount``."""

from __future__ import annotations

import click

from skep.cli.connect import (
    ADDRESS,
    coroutine,
    identity_option,
    presented_token,
    reaching,
    standing_for,
    token_option,
)
from skep.cli.exits import told
from skep.fs.address import Address
from skep.fs.mount import Options, mount, unmount


@click.command()
@identity_option
@token_option
@click.option("--way", type=click.Choice(["kernel", "fuse"]), help="Not the one it would pick by itself.")
@click.option("--aname", default="", help="The tenant, org/project/env, or the server's own name of a tree.")
@click.option("--uname", help="Who attaches; else your login name.")
@click.option("--cache", is_flag=True, help="Believe attributes for a second, cache what has a length.")
@click.option("--allow-other", is_flag=True, help="Let other users of this machine in, with your rights.")
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.argument("address", type=ADDRESS)
@click.argument("directory", type=click.Path(file_okay=False))
@coroutine
async def mount_command(
    way: str | None,
    aname: str,
    uname: str | None,
    cache: bool,
    allow_other: bool,
    read_only: bool,
    address: Address,
    directory: str,
) -> None:
    """Mount a hive, or any 9P server, on a directory. The mount ends with this command.

    By the kernel's own 9p client where there is one, else by FUSE; it says which, and prints `mounted` when
    the directory can be used. Over TLS, or with a token, it is FUSE. The identity is renewed by itself.

    \b
    Examples:
      skep mount unix:var/hive/hive.sock n/hive
      skep mount --read-only tcp:127.0.0.1:5640 /mnt/hive &
      skep mount tls:hive.example.org:5640 /n/hive
    """
    options = Options(
        way=way,  # type: ignore[arg-type]  # click.Choice has checked it
        aname=aname,
        uname=uname,
        cache=cache,
        allow_other=allow_other,
        read_only=read_only,
        token=presented_token(),
    )
    standing = standing_for(address)
    try:
        with told(f"mount {address}"):
            await mount(address, directory, options=options, standing=standing, ready=_ready)
    except ConnectionError:
        with reaching(address):
            raise


def _ready() -> None:
    print("mounted", flush=True)


@click.command()
@click.option("--lazy", is_flag=True, help="Even while somebody is in there, who keeps what is open.")
@click.argument("directory", type=click.Path())
def umount_command(lazy: bool, directory: str) -> None:
    """Unmount what `skep mount` mounted.

    \b
    Example:
      skep umount n/hive
    """
    with told(directory):
        unmount(directory, lazy=lazy)
