"""``skep boot syscalls``: numbers of seL4's system calls, and a header compared with them."""

from __future__ import annotations

from typing import TextIO

import click
import msgspec

from skep.cli.connect import json_option
from skep.cli.exits import Failed


@click.command()
@click.option(
    "--kind", type=click.Choice(["master", "mcs"]), help="Of kernel. Default: that of the header, master."
)
@click.option(
    "--against", type=click.File("r", errors="replace"), help="A generated header: name what differs."
)
@json_option
def syscalls_command(kind: str | None, against: TextIO | None, as_json: bool) -> None:
    """The numbers of seL4's system calls; or, with a header of yours, what it numbers otherwise.

    A call that the header does not have is configured out, and no difference.

    \b
    Exit status: 0 no difference, 1 it differs, 2 usage.

    \b
    Examples:
      skep boot syscalls --kind mcs
      skep boot syscalls --against build/libsel4/include/sel4/syscall.h
    """
    from skep.boot.syscalls import HEADER_MAX, differences, kind_of, numbers, read_header

    if against is None:
        known = numbers(kind or "master")
        click.echo(
            msgspec.json.encode(known) if as_json else "\n".join(f"{n:4} {name}" for name, n in known.items())
        )
        return
    found = read_header(against.read(HEADER_MAX))
    if not found:
        raise Failed(f"{against.name}: it numbers no system call; expected lines such as seL4_SysCall = -1,")
    kind = kind or kind_of(found)
    other = differences(found, kind)
    if as_json:
        click.echo(msgspec.json.encode({"kind": kind, "calls": len(found), "differences": other}))
    else:
        click.echo(f"{len(found)} calls, compared with {kind}: {len(other) or 'no'} differences")
    if other:
        raise Failed("\n".join(each.text for each in other))
