"""``skep serve``, ``skep worker`` and ``skep export``: what runs until it is told to stop."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from skep.cli.connect import ADDRESS, default_address, identity_option
from skep.cli.exits import Failed, told
from skep.cli.joining import labels as parsed_labels
from skep.cli.joining import machine, node_option
from skep.cli.settings import DEFAULT, default_state, origin_of, setting, settings
from skep.fs.address import Address
from skep.fs.ctl import line
from skep.trace.clock import duration, parse_duration

if TYPE_CHECKING:
    from skep.namespaces.boot.starts import Setting


class DurationType(click.ParamType[int]):
    """``30s``, ``10m``, ``24h``: ns."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION: Final = DurationType()
SERVED: Final = ("queen-primary", "queen-regional", "queen-bare-metal", "cuda-annex")  # by skep serve


class Serving(click.Command):
    """What serves by a role: a queen, or another command's business."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        from skep.cli.serving_annex import ANNEX, annex_serve_command

        # Settings of either may be in the file; each command refuses those of the other.
        params = {param.name: param for param in (*annex_serve_command.params, *self.params)}
        either = click.Command(
            "serve",
            params=list(params.values()),
            add_help_option=False,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        )
        if either.make_context(info_name, [*args], resilient_parsing=True).params["role"] == ANNEX:
            return annex_serve_command.make_context(info_name, args, parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command(cls=Serving)
@click.option(
    "--config",
    is_eager=True,
    envvar="SKEP_CONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML: settings, by the names of the options below. Default: SKEP_CONFIG, else serve.toml in --dir.",
)
@setting(
    "--role",
    default="queen-primary",
    show_default=True,
    shell_complete=lambda ctx, param, start: [role for role in SERVED if role.startswith(start)],
    help="The manifest it serves by. cuda-annex is no queen: skep serve --role cuda-annex --help.",
)
@click.option(
    "--dir",
    "directory",
    is_eager=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where it keeps its state. Default: SKEP_STATE, else ~/.local/state/skep/hive.",
)
@setting("--ledger", default="", help="Its URL, sqlite:///path. Default: ledger.db in --dir.")
@setting(
    "--artifacts",
    default="",
    help="An object store's URL, s3://bucket/path, for what is sealed. Default: --dir.",
)
@setting(
    "--listen",
    type=ADDRESS,
    multiple=True,
    help="unix:/path, tls:host:port or tcp:127.0.0.1:port (0: any free); again for more. Default: "
    "hive.sock in --dir, else SKEP_HIVE.",
)
@setting(
    "--listen-workers",
    type=ADDRESS,
    multiple=True,
    help="unix:/path. Default: worker.sock beside the first Unix socket.",
)
@setting(
    "--listen-validators",
    type=ADDRESS,
    multiple=True,
    help="unix:/path. Default: none; they come by TLS.",
)
@setting(
    "--listen-annexes",
    type=ADDRESS,
    multiple=True,
    help="unix:/path. Default: none; they come by TLS.",
)
@setting(
    "--tcp-role",
    type=click.Choice(["observer", "operator"]),
    default="observer",
    show_default=True,
    help="What anybody on this machine is who comes by TCP.",
)
@setting(
    "--pool",
    "pools",
    multiple=True,
    metavar="POOL[=TOPIC,...]",
    help="A pool that a new hive begins with. Default: default=sha256.",
)
@setting(
    "--name",
    help="A new hive's, in every certificate for ever. Default: made up.",
)
@setting(
    "--certificate-ttl",
    type=DURATION,
    default="24h",
    show_default=True,
    help="How long a node's certificate is good, 10s to 168h. It is renewed at half of that.",
)
@setting(
    "--snapshot-every",
    type=click.IntRange(0),
    default=100_000,
    show_default=True,
    help="Entries from one snapshot of the state to the next. 0: none are made.",
)
@setting(
    "--kms",
    default="",
    help="What a new hive's keys are encrypted with, or kept in: file:/path, pkcs11:/path/module.so?token=… "
    "Default: in --dir as they are.",
)
@click.pass_context
def serve_command(
    ctx: click.Context,
    config: Path | None,
    role: str,
    directory: Path | None,
    ledger: str,
    artifacts: str,
    listen: tuple[Address, ...],
    listen_workers: tuple[Address, ...],
    listen_validators: tuple[Address, ...],
    listen_annexes: tuple[Address, ...],
    tcp_role: str,
    pools: tuple[str, ...],
    name: str | None,
    certificate_ttl: int,
    snapshot_every: int,
    kms: str,
) -> None:
    """Run a queen: serve a hive. It ends at SIGTERM, or when `shutdown` is written to its /ctl; at SIGHUP, or
    `reload`, it takes the limits.toml in --dir as it is now.

    Prints a line for each address it serves, then `ready`. The Unix sockets are for you and root alone:
    one for operators, one for workers. A tls: address is for everybody who was invited (skep invite). The
    hive's keys are made at its first start, in --dir.

    Each option but --dir and --config is also a key of the file, and a variable, SKEP_ and its name. The
    environment comes before the file, the file before the option; /boot/config tells what came from where.
    Where SKEP_MANIFEST_ROOT names a key, it must have signed the file (skep manifest sign).

    \b
    Examples:
      skep serve --dir ./var/hive
      skep serve --listen unix:/run/skep/hive.sock --listen tls:0.0.0.0:5640
      skep serve --pool default=sha256,resize --pool slow
    """
    from skep.roles.queen import Plan, QueenError, serve
    from skep.roles.sealed import ManifestError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    if tcp_role == "operator" and any(address.kind == "tcp" for address in listen):
        click.echo(
            "skep: everybody on this machine can command this hive by TCP (--tcp-role operator)", err=True
        )
    state = directory or default_state()
    listen = listen or (default_listen(directory),)
    listen_workers = listen_workers or (beside(listen, state, "worker.sock"),)
    told: dict[str, Sequence[object]] = {
        "dir": [state], "role": [role], "ledger": [ledger], "artifacts": [artifacts], "listen": listen,
        "listen-workers": listen_workers, "listen-validators": listen_validators,
        "listen-annexes": listen_annexes, "tcp-role": [tcp_role],
        "pool": pools, "name": [name or ""], "certificate-ttl": [duration(certificate_ttl)],
        "snapshot-every": [snapshot_every], "kms": [kms],
    }  # fmt: skip
    plan = Plan(
        state,
        role,
        ledger,
        listen,
        listen_workers,
        listen_validators,
        listen_annexes,
        tcp_role,
        pool_lines(pools),
        name or "",
        kms,
        certificate_ttl,
        artifacts,
        snapshot_every,
        _told(ctx, told),
        settings(ctx).began_ns,
    )
    try:
        _run(serve(plan, lambda line: print(line, flush=True)))
    except (QueenError, ManifestError, OSError) as error:
        raise Failed(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _told(ctx: click.Context, effective: Mapping[str, Sequence[object]]) -> tuple[Setting, ...]:
    """Each setting with what it came to, a list's values each, and where that is from."""
    from skep.namespaces.boot.starts import Setting
    from skep.roles.sealed import DIRECTORY, ROOT

    found = [
        Setting(key, str(value), origin_of(ctx, key))
        for key, values in effective.items()
        for value in values or ("",)
    ]
    for key, variable in (("manifests", DIRECTORY), ("manifest-root", ROOT)):
        value = os.environ.get(variable, "")
        found.append(Setting(key, value, variable if value else DEFAULT))
    return tuple(found)


def default_listen(directory: Path | None) -> Address:
    """Where a hive listens when nothing is said: in its directory when that was named, else where clients
    look first."""
    if directory is None:
        return default_address()
    return Address("unix", path=str(directory / "hive.sock"))


def beside(listen: tuple[Address, ...], state: Path, name: str) -> Address:
    """The socket ``name`` in the folder of the first Unix socket, else in the state directory."""
    folders = [Path(address.path).parent for address in listen if address.kind == "unix"]
    return Address("unix", path=str((folders or [state])[0] / name))


def pool_lines(pools: tuple[str, ...]) -> tuple[str, ...]:
    """Lines for /pools/ctl of a new hive, from POOL[=TOPIC,...]."""
    lines = []
    for text in pools or ("default=sha256",):
        pool, _, topics = text.partition("=")
        lines += [line("create", {"pool": pool})]
        lines += [line("map", {"topic": topic, "pool": pool}) for topic in topics.split(",") if topic]
    return tuple(lines)


def _run(main: Any) -> None:
    import uvloop

    uvloop.run(main)


@click.command()
@click.option(
    "-H",
    "--hive",
    type=ADDRESS,
    help="The hive's address for workers. Default: what SKEP_HIVE names if that is a tls: address, else "
    "worker.sock beside it.",
)
@identity_option
@click.option(
    "--handlers",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML: what is run for each topic.",
)
@click.option("--kernels", is_flag=True, help="Do GPU work on the CPU, for pools that it falls back to.")
@click.option(
    "--kernel-root",
    envvar="SKEP_KERNEL_ROOT",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The Ed25519 public key (PEM) that must have signed the kernels.",
)
@click.option(
    "--kernel-catalogue",
    envvar="SKEP_KERNEL_CATALOGUE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What that key signed (skep kernel sign).",
)
@click.option("--pools", default="default", show_default=True, help="Whose jobs it does, POOL,POOL.")
@node_option
@click.option("--slots", default=1, show_default=True, type=click.IntRange(1, 1024), help="Jobs at a time.")
@click.option("--labels", default="", help="What jobs and pools may require of it: gpu:a100,zone:eu.")
@click.option(
    "--capacity",
    type=click.IntRange(1, 1 << 20),
    help="Leases it may hold at a time. Default: its slots of all pools.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its jobs run. Default: worker-NODE beside the state of a hive.",
)
def worker_command(
    hive: Address | None,
    handlers: Path | None,
    kernels: bool,
    kernel_root: Path | None,
    kernel_catalogue: Path | None,
    pools: str,
    node: str | None,
    slots: int,
    labels: str,
    capacity: int | None,
    directory: Path | None,
) -> None:
    """Run a worker: do the jobs of its pools. At SIGTERM it ends what runs, and takes nothing new.

    Prints `ready NODE` when the hive has taken it in, and finds its way back when the hive goes away. Over
    TLS it is who its identity says (skep enroll), and renews that by itself.

    \b
    A handlers file:
      [sha256]
      argv = ["sha256sum", "{input}"]
      timeout = "10m"
      result = "first-word"

    \b
    Examples:
      skep worker --handlers examples/handlers.toml
      skep worker -H unix:var/hive/worker.sock --handlers h.toml --pools default,slow --node w2
      skep worker -H tls:hive.example.org:5640 --handlers h.toml
      skep worker --kernels --pools gpu-cpu
    """
    from skep.roles.handlers import HandlersError, load
    from skep.roles.running import performing
    from skep.roles.worker import Plan, WorkerError, work

    if handlers is None and not kernels:
        raise click.UsageError("expected --handlers, or --kernels, or both")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    address = hive or nodes_go("worker.sock")
    own = machine("worker", address, node, directory)
    try:
        perform = performing({} if handlers is None else load(handlers))
        plan = Plan(
            address, own.node, own.directory, perform, tuple(pools.split(",")), slots, own.standing,
            labels=parsed_labels(labels), capacity=capacity or 0,
        )  # fmt: skip
        with told(str(address)):
            say = functools.partial(print, flush=True)
            if kernels:
                from skep.cli.kernels import check_installed
                from skep.cli.serving_annex import signed_of
                from skep.roles.annex.serving import work as work_kernels

                check_installed()
                _run(work_kernels(plan, signed_of(kernel_root, kernel_catalogue), say))
            else:
                _run(work(plan, say))
    except (HandlersError, WorkerError) as error:
        raise Failed(str(error)) from error


def nodes_go(socket: str) -> Address:
    """Where nodes of the default hive come in: by TLS, else at the ``socket`` beside its operators'."""
    address = default_address()
    return address if address.kind == "tls" else beside((address,), default_state(), socket)


@click.command()
@click.option(
    "--listen", type=ADDRESS, required=True, help="unix:/path, or tcp:127.0.0.1:port (0: any free)."
)
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
def export_command(listen: Address, read_only: bool, directory: str) -> None:
    """Serve a directory of this machine over 9P. With your rights, until interrupted.

    Prints `serving ADDRESS` when it does.

    \b
    Examples:
      skep export --listen tcp:127.0.0.1:0 --read-only /usr/share/doc
      skep export --listen unix:/tmp/src.sock ~/src &
      skep ls -H unix:/tmp/src.sock
    """
    _run(_export(directory, listen, read_only))


async def _export(directory: str, address: Address, read_only: bool) -> None:
    if address.kind == "tls":
        raise click.UsageError(
            f"{address}: a directory is served to this machine: unix:/path or tcp:127.0.0.1:port"
        )
    from skep.fs.export import Export
    from skep.fs.server import listen
    from skep.roles.signals import told_signals

    try:
        with told_signals() as stop:
            async with listen(Export(directory, read_only).root, address) as listener:
                print(f"serving {listener.address}", flush=True)
                await stop.wait()
    except ValueError as error:
        raise click.UsageError(str(error)) from error
