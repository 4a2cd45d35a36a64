"""``skep serve --role cuda-annex``, which lends a machine's devices to a hive, and ``skep annex devices``."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from skep.cli.connect import ADDRESS, identity_option
from skep.cli.exits import REFUSED, Failed, told
from skep.cli.joining import labels as parsed_labels
from skep.cli.joining import machine
from skep.cli.kernels import check_installed
from skep.cli.serving import DURATION, nodes_go
from skep.cli.settings import setting
from skep.fs import ctl
from skep.fs.address import Address

ANNEX: Final = "cuda-annex"
CHOICES: Final = click.Choice(["auto", "cpu", "cuda"])
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


class SizeType(click.ParamType[int]):
    """``4GiB``, ``512MiB``, ``65536``: bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if not ctl.is_size(value):
            self.fail(f"{value!r}: expected bytes, like 4GiB or 65536", param, ctx)
        return ctl.size(value)


class Unsigned(Failed):
    """The catalogue is not the one that the key signed."""

    status = REFUSED


@click.command("serve")
@click.option(
    "--config",
    is_eager=True,
    envvar="SKEP_CONFIG",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="TOML: settings, by the names of the options below. Default: SKEP_CONFIG, else serve.toml in --dir.",
)
@setting("--role", default=ANNEX, type=click.Choice([ANNEX]), help="This help is that of an annex.")
@click.option(
    "-H",
    "--hive",
    type=ADDRESS,
    help="The hive's address for annexes: tls:host:port, or what the queen was told --listen-annexes. "
    "Default: what SKEP_HIVE names if that is a tls: address, else annexes.sock beside it.",
)
@identity_option
@click.option(
    "--dir",
    "directory",
    is_eager=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its runs have theirs, and annex.sock is. Default: annex-NODE beside the state of a hive.",
)
@setting("--node", help="Its name in the hive. Default: its identity's, else the host's.")
@setting(
    "--device",
    type=CHOICES,
    default="auto",
    show_default=True,
    help="cuda: its GPUs, or none; cpu: its CPU, which says that it is one; auto: the CPU where there is no "
    "GPU. With SKEP_NO_CUDA=1 no GPU is used, and the hive hears that it is disabled.",
)
@setting(
    "--slots",
    type=click.IntRange(0, 1024),
    default=0,
    help="Runs at a time on each device. Default: 2 of a GPU, its processors of a CPU.",
)
@setting(
    "--memory",
    type=SizeType(),
    default=0,
    help="What runs may have of each device: 40GiB. Default: all of a GPU, half of the host's for a CPU.",
)
@setting("--heartbeat", type=DURATION, default="30s", show_default=True, help="Between two of them.")
@setting("--pools", default="gpu,gpu-cpu", show_default=True, help="Whose jobs it does, POOL,POOL.")
@setting(
    "--cpu-pools",
    default="gpu-cpu",
    show_default=True,
    help="Those of its pools whose jobs run on its CPU, with nothing granted of a device.",
)
@setting("--labels", default="", help="What jobs and pools may require of it, beside annex and gpu: zone:eu.")
@setting("--kernel-root", type=_FILE, help="The Ed25519 public key (PEM) that must have signed the kernels.")
@setting("--kernel-catalogue", "--catalogue", type=_FILE, help="What that key signed (skep kernel sign).")
def annex_serve_command(
    config: Path | None,
    role: str,
    hive: Address | None,
    directory: Path | None,
    node: str | None,
    device: str,
    slots: int,
    memory: int,
    heartbeat: int,
    pools: str,
    cpu_pools: str,
    labels: str,
    kernel_root: Path | None,
    kernel_catalogue: Path | None,
) -> None:
    """Run an annex: do the GPU work of a hive on the devices of this machine. At SIGTERM it ends what runs,
    and takes nothing new.

    Prints `serving` with the address of its own tree, which is for you and root alone, then `ready NODE` when
    the hive has taken it in. Runs are processes of their own (skep kernel); nothing is launched before the
    hive has granted it room on the device.

    Each option but --dir, --config, -H and --identity is also a key of the file, and a variable, SKEP_ and
    its name. The environment comes before the file, the file before the option.

    \b
    Examples:
      skep serve --role cuda-annex -H tls:hive.example.org:5640
      skep serve --role cuda-annex -H unix:var/hive/annexes.sock --device cpu --slots 2
      skep serve --role cuda-annex --kernel-root ./root.pem --catalogue ./kernels.json
    """
    import uvloop

    from skep.roles.annex.devices import DevicesError
    from skep.roles.annex.serving import Plan, serve
    from skep.roles.worker import WorkerError

    check_installed()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    address = hive or nodes_go("annexes.sock")
    own = machine("annex", address, node, directory)
    if address.kind == "unix" and not os.path.exists(address.path):
        click.echo(f"{address}: not there yet: a queen has it by `skep up`, or --listen-annexes", err=True)
    plan = Plan(
        address, own.node, own.directory, device, slots, memory, heartbeat, tuple(pools.split(",")),
        tuple(cpu_pools.split(",")), parsed_labels(labels), signed_of(kernel_root, kernel_catalogue),
        own.standing,
    )  # fmt: skip
    try:
        with told(str(address)):
            uvloop.run(serve(plan, lambda line: print(line, flush=True)))
    except (DevicesError, WorkerError, OSError) as error:
        raise Failed(str(error)) from error


def signed_of(root: Path | None, catalogue: Path | None) -> Mapping[str, Mapping[str, Any]] | None:
    """What the key signed of each kernel; None: no key is pinned. Raises Failed."""
    from skep.native.kernels.signature import SignatureError, signed
    from skep.trace.pem import PemError, public_key

    if root is None:
        return None
    if catalogue is None:
        raise Unsigned("--kernel-root asks for a signed --catalogue")
    try:
        return signed(catalogue, public_key(root))
    except PemError as error:
        raise Failed(str(error)) from error
    except SignatureError as error:
        raise Unsigned(str(error)) from error


@click.command("devices")
@click.option("--device", type=CHOICES, default="auto", show_default=True, help="As of an annex.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def devices_command(device: str, as_json: bool) -> None:
    """Show what an annex of this machine would lend: its GPUs, as NVML tells of them, or its CPU.

    \b
    Exit status: 0 ok, 1 there is no such device.
    Examples:
      skep annex devices
      skep annex devices --device cuda --json
    """
    import msgspec

    from skep.roles.annex.devices import DevicesError, found

    try:
        machine = found(device, os.environ)
    except DevicesError as error:
        raise Failed(str(error)) from error
    if as_json:
        devices = [
            {**msgspec.to_builtins(each), "now": msgspec.to_builtins(machine.read(each))}
            for each in machine.devices
        ]
        about = {"driver": machine.driver, "disabled": machine.disabled, "why_no_gpu": machine.why}
        click.echo(json.dumps({"devices": devices, **about}))
        return
    for each in machine.devices:
        click.echo(f"{each.id}  {each.name}  {each.memory >> 20} MiB  {each.slots} slots")
    if why := machine.disabled or machine.why:
        click.echo(f"no GPU is used: {why}", err=True)
