"""``skep boot``: images timed, checked and diagnosed. A table of commands, each loaded when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

COMMANDS: Final = {
    "run": "Boot an image: count to its milestones, and say what became of it.",
    "check": "Check the layout of kernels, root tasks and images by the rules of their kinds.",
    "diagnose": "Read a serial log: what went wrong, with what shows it.",
    "sign": "Answer for a manifest and every file that it names.",
    "verify": "Check that a manifest and its files are those that were signed.",
    "efi": "Sign UEFI images, and enrol whose images firmware starts.",
    "bootinfo": "Read a BootInfo page, and check what must hold of it.",
    "syscalls": "The numbers of seL4's system calls; check a header of yours.",
    "pack": "Write a manifest and its files into one archive, an image of a hive's boot lab.",
    "job": "Boot such an archive as a worker's handler does.",
    "guest": "Build small images to try the boot lab with.",
}


class Boot(click.Group):
    """The table as click wants it: command NAME is ``NAME_command`` of cli/boot_NAME.py."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"skep.cli.boot_{name}"), f"{name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Boot)
def boot_command() -> None:
    """Time, check and diagnose boot images in QEMU.

    \b
    Examples:
      skep boot guest images
      skep boot run images/aarch64/boot.toml --max-ms 200
    """
