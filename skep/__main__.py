"""The command line: ``skep COMMAND``. A table of commands, each loaded when it is called."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import Final, NamedTuple

import click

from skep.cli.exits import FAILED, OK, Failed


class Row(NamedTuple):
    """Where a command is, and its line in the help."""

    module: str
    help: str


COMMANDS: Final = {
    "up": Row("local", "Start a hive and a worker here, and mount it."),
    "down": Row("local", "Drain, unmount and stop what `skep up` started."),
    "serve": Row("serving", "Run a queen: serve a hive."),
    "worker": Row("serving", "Run a worker: do the jobs of its pools."),
    "validator": Row("validating", "Run a validator: do what was asked of /validator."),
    "export": Row("serving", "Serve a directory of this machine over 9P."),
    "invite": Row("trust", "Invite a node into the hive."),
    "enroll": Row("trust", "Enroll this machine in a hive."),
    "renew": Row("trust", "Renew the identity now."),
    "revoke": Row("trust", "Revoke a node, a certificate or a token."),
    "identity": Row("trust", "Show who this machine is, and until when."),
    "token": Row("tokens", "Make, narrow, look at and revoke capability tokens."),
    "mount": Row("mounting", "Mount a hive, or any 9P server, on a directory."),
    "umount": Row("mounting", "Unmount what `skep mount` mounted."),
    "ls": Row("listing", "List directories of a hive."),
    "cat": Row("reading", "Print files of a hive."),
    "tail": Row("reading", "Print the end of a file, and follow it."),
    "write": Row("writing", "Write a line, or stdin, to a file of a hive."),
    "stat": Row("listing", "Show what a hive tells about its files."),
    "rm": Row("writing", "Remove files and empty directories of a hive."),
    "whoami": Row("reading", "Show who this hive takes you for."),
    "csv": Row("sheets", "Export and import nodes, configuration and jobs as CSV."),
    "policy": Row("policy", "Check, sign and publish policies, and ask what they decide."),
    "annex": Row("annexing", "Show the devices of this machine, and prove what became of GPU work."),
    "kernel": Row("kernels", "List, run and sign the kernels of an annex."),
    "manifest": Row("manifest", "Check and sign manifests of roles."),
    "sim": Row("simulating", "Play a whole hive under one seed, and all that can go wrong in it."),
    "snapshot": Row("snapshotting", "Write down the state that a ledger means, for the next start."),
    "replay": Row("replaying", "Decide every line of a ledger again, and tell what was decided otherwise."),
    "diff": Row("diffing", "Tell what was added, removed, changed and moved from trace A to trace B."),
    "verify": Row("verifying", "Verify that a log was not changed, cut, forked or rewound."),
    "trace": Row("tracing", "Show and check ledgers and recorded conversations."),
    "witness": Row("witnessing", "Be a witness: follow hives, and cosign what continues what was seen."),
    "boot": Row("booting", "Time, check and diagnose boot images in QEMU."),
    "bench": Row("measuring", "Measure a live 9P server; nothing is written to it."),
    "conformance": Row("conformance", "Try a program against what this hive's protocol asks of it."),
    "completion": Row("shell", "Print the completion script of a shell."),
}


class Commands(click.Group):
    """The table as click wants it. Listing the commands loads none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        row = COMMANDS.get(name)
        if row is None:
            return None
        command: click.Command = getattr(import_module(f"skep.cli.{row.module}"), f"{name}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.help) for name, row in COMMANDS.items()])


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="skep")
@click.option(
    "-H",
    "--hive",
    metavar="ADDRESS",
    help="The hive, for every command: unix:/path, tcp:host:port or tls:host:port.",
)
@click.option("--identity", metavar="DIR", help="Who to be for tls: addresses, for every command.")
def skep(hive: str | None, identity: str | None) -> None:
    """A control plane you mount: a hive of machines, served as one tree of files over 9P.

    \b
    Examples:
      skep up                                  a hive here, mounted at ./n/hive
      skep ls -l /jobs                         look
      skep write /jobs/ctl 'submit topic=sha256 input=hello'
      skep tail -f /events                     follow

    \b
    Exit status: 0 ok, 1 failed, 2 usage, 3 cannot reach the hive, 4 refused.
    SKEP_HIVE names the hive when -H does not, SKEP_IDENTITY who to be there when --identity does not.
    """
    if hive is not None:
        os.environ["SKEP_HIVE"] = hive
    if identity is not None:
        os.environ["SKEP_IDENTITY"] = identity


def run(args: list[str]) -> int:
    """The exit status of ``skep args``. Nothing but a mistake of ours shows a traceback."""
    try:
        skep.main(args, prog_name="skep", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Who read our output has seen enough. What is still buffered has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Failed as error:
        print(f"skep: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        print(f"skep: {error}", file=sys.stderr)
        return FAILED
    return OK


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
