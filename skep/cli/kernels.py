"""``skep kernel``: the kernels of the annex, run in a process of their own, and their signed catalogue."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click

from skep.cli.exits import FAILED, REFUSED, USAGE, Failed

ROOT: Final = "SKEP_KERNEL_ROOT"
CATALOGUE: Final = "SKEP_KERNEL_CATALOGUE"
STATUSES: Final = {
    "argument": USAGE,
    "unsigned": REFUSED,
    "no_device": 5,
    "disabled": 5,
    "time": 6,
    "oom": 6,
    "kernel_failed": FAILED,
}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    from skep.native.kernels.catalogue import KERNELS

    return [name for name in KERNELS if name.startswith(incomplete)]


_OPTIONS: Final = (
    click.option("--in", "inputs", multiple=True, metavar="ARG=FILE", help="An array: a .npy file."),
    click.option("--raw", multiple=True, metavar="ARG=DTYPE:SIZES", help="It has no header: float32:10x10."),
    click.option(
        "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="For results."
    ),
    click.option(
        "--form", type=click.Choice(["npy", "raw"]), default="npy", show_default=True, help="Theirs."
    ),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option("--seconds", type=click.FloatRange(0.001), default=60.0, show_default=True, help="At most."),
    click.option("--memory", type=click.IntRange(1), default=4096, show_default=True, help="MiB, at most."),
    click.option("--json", "as_json", is_flag=True, help="A line of JSON."),
)


class NotRun(Failed):
    """The kernel did not run to its end; the status is that of STATUSES."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__(f"{why}: {text}")
        self.status = STATUSES[why]


def _given(command: Callable[..., None]) -> Callable[..., None]:
    """What every run is given, beside what runs: ``_run`` takes it."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.group()
def kernel_command() -> None:
    """List, run and sign the kernels of an annex.

    \b
    Examples:
      skep kernel list
      skep kernel run vector_add --in a=a.npy --in b=b.npy --out ./made
    """


@kernel_command.command("list")
@click.option("--json", "as_json", is_flag=True, help="A line of JSON for each.")
def list_command(as_json: bool) -> None:
    """List the kernels of this installation.

    \b
    Example:
      skep kernel list
    """
    from skep.native.kernels.catalogue import KERNELS

    for kernel in KERNELS.values():
        row = {"kernel": kernel.name, "about": kernel.about, "device": kernel.device}
        click.echo(json.dumps(row) if as_json else f"{kernel.name:14} {kernel.about}")


@kernel_command.command("show")
@click.option("--json", "as_json", is_flag=True, help="As what is signed of it.")
@click.argument("name", shell_complete=_names)
def show_command(name: str, as_json: bool) -> None:
    """Show what a kernel takes and gives, how exact it is and what it costs.

    \b
    Example:
      skep kernel show matmul
    """
    from skep.native.kernels.catalogue import described
    from skep.native.kernels.page import lines

    kernel = _kernel(name)
    click.echo(json.dumps(described(kernel), sort_keys=True) if as_json else "\n".join(lines(kernel)))


@kernel_command.command("run")
@click.argument("name", shell_complete=_names)
@_given
@click.option("--set", "numbers", multiple=True, metavar="ARG=NUMBER", help="A number.")
@click.option("--root", envvar=ROOT, type=_FILE, help=f"The Ed25519 public key (PEM) to trust; {ROOT}.")
@click.option("--catalogue", envvar=CATALOGUE, type=_FILE, help=f"What that key signed; {CATALOGUE}.")
def run_command(
    name: str, numbers: tuple[str, ...], root: Path | None, catalogue: Path | None, **given: Any
) -> None:
    """Run a kernel in a process of its own, and say which device it ran on, and why.

    With --device cuda it runs on one or not at all. With a --root it runs only as that key signed it.

    \b
    Exit status: 0 ok, 1 it failed, 2 an argument is wrong, 4 it is not the signed one,
    5 no CUDA device, 6 out of time or memory.

    \b
    Examples:
      skep kernel run saxpy --in x=x.npy --in y=y.npy --set alpha=2 --out ./made
      skep kernel run topk --in a=a.npy --set k=10 --out ./made --device cpu --json
      skep kernel run reduce_sum --in a=a.bin --raw a=float32:1000 --out ./made
    """
    signed = _signed_of(_kernel(name).name, root, catalogue)
    values = {key: _number(key, text) for key, text in _pairs(numbers).items()}
    _run(name, values, given, signed=signed)


@kernel_command.command("launch")
@click.argument("file", type=_FILE)
@_given
@click.option("--function", required=True, help='The kernel in it, extern "C".')
@click.option("--grid", required=True, metavar="X[xY[xZ]]", help="Blocks.")
@click.option("--block", required=True, metavar="X[xY[xZ]]", help="Threads of a block.")
@click.option("--args", required=True, metavar="ARG,…", help="in:NAME, out:NAME:DTYPE:SIZES or DTYPE:NUMBER.")
@click.option("--shared", default="0", show_default=True, metavar="BYTES", help="Of a block, beside its own.")
def launch_command(
    file: Path, function: str, grid: str, block: str, args: str, shared: str, **given: Any
) -> None:
    """Run CUDA C source of your own, on a CUDA device or not at all, as an annex runs what is allowed there.

    \b
    Exit status: that of skep kernel run.

    \b
    Example:
      skep kernel launch ./scale.cu --function scale --grid 4 --block 256 --in x=x.npy --out ./made \\
        --args in:x,out:y:float32:1000,uint64:1000,float32:2.5
    """
    from skep.native.kernels.arguments import ArgumentError
    from skep.native.kernels.source import brought

    digest = sha256(file.read_bytes()).hexdigest()
    try:
        source = brought(str(file), digest, function, grid, block, args, shared)
    except ArgumentError as error:
        raise NotRun("argument", str(error)) from error
    _run(function, {}, given, source=source)


@kernel_command.command("sign")
@click.option("--key", required=True, type=_FILE, help="The Ed25519 private key (PEM).")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def sign_command(key: Path, file: Path) -> None:
    """Write the catalogue of this installation to FILE, and its signature to FILE.sig.

    \b
    Example:
      skep kernel sign --key ./key.pem ./kernels.json
    """
    from skep.native.kernels.signature import canonical, sign
    from skep.trace.pem import PemError, private_key

    text = canonical()
    try:
        signature = sign(text, private_key(key))
    except PemError as error:
        raise Failed(str(error)) from error
    file.write_bytes(text)
    beside = file.with_name(f"{file.name}.sig")
    beside.write_bytes(signature)
    click.echo(beside)


@kernel_command.command("verify")
@click.option("--root", envvar=ROOT, required=True, type=_FILE, help=f"The Ed25519 public key (PEM); {ROOT}.")
@click.argument("file", type=_FILE)
def verify_command(root: Path, file: Path) -> None:
    """Verify that FILE is signed by a key, and that the kernels here are those it names.

    \b
    Example:
      skep kernel verify --root ./root.pem ./kernels.json
    """
    from skep.native.kernels.catalogue import KERNELS
    from skep.native.kernels.signature import SourceError, check_source

    found = _signed(root, file)
    if found.keys() != KERNELS.keys():
        differ = " ".join(sorted(found.keys() ^ KERNELS.keys()))
        raise NotRun("unsigned", f"{file}: not of the same kernels as are here: {differ}")
    for name, row in found.items():
        try:
            check_source(KERNELS[name], row)
        except SourceError as error:
            raise NotRun("unsigned", str(error)) from error
    click.echo(f"{file}: {len(found)} kernels, signed and as they are here")


def check_installed() -> None:
    """Raises Failed where what all kernels need is not here."""
    if find_spec("numpy") is None:
        raise Failed("numpy is not installed, which kernels need: pip install 'skep[annex]'")


def _run(name: str, numbers: Mapping[str, float], given: Mapping[str, Any], **more: Any) -> None:
    """Run what is called ``name`` with what ``_OPTIONS`` brought, and tell what came of it. Raises NotRun."""
    from skep.native.kernels.arguments import ArgumentError, told
    from skep.native.kernels.device import ASKED
    from skep.native.kernels.process import Process
    from skep.native.kernels.request import Request, RunError

    check_installed()
    if not ASKED.fullmatch(given["device"]):
        raise click.UsageError(f"--device {given['device']!r}: expected auto, cpu, cuda or cuda:N")
    try:
        raw = {key: told(key, text) for key, text in _pairs(given["raw"]).items()}
    except ArgumentError as error:
        raise NotRun("argument", str(error)) from error
    inputs, out, form = _pairs(given["inputs"]), given["out"], given["form"]
    out.mkdir(parents=True, exist_ok=True)
    request = Request(
        name, inputs, numbers, str(out), given["device"], given["seconds"], given["memory"] << 20,
        raw=raw, form=form, **more,
    )  # fmt: skip
    with Process() as process:
        try:
            done = process.run(request)
        except RunError as error:
            if given["as_json"]:
                click.echo(json.dumps({"kernel": name, "why": error.why, "error": str(error)}))
            raise NotRun(error.why, str(error)) from error
    if given["as_json"]:
        outs = {key: made._asdict() for key, made in done.out.items()}
        click.echo(json.dumps({**done._asdict(), "out": outs}))
        return
    click.echo(f"{name} on {done.device}, {done.nanoseconds / 1e6:.3f} ms")
    for made in done.out.values():
        click.echo(f"{made.path}  {made.dtype}{made.shape}  sha256={made.sha256}")


def _kernel(name: str) -> Any:
    from skep.native.kernels.catalogue import KERNELS

    if name not in KERNELS:
        raise click.UsageError(f"kernel {name!r}: expected one of {' '.join(KERNELS)}")
    return KERNELS[name]


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not value or name in pairs:
            raise click.UsageError(f"{text!r}: expected ARG=VALUE, each ARG once")
        pairs[name] = value
    return pairs


def _number(name: str, text: str) -> float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise click.UsageError(f"{name}={text}: expected a number")


def _signed_of(name: str, root: Path | None, catalogue: Path | None) -> Mapping[str, Any] | None:
    """What the pinned key signed of a kernel; None: no key is pinned."""
    if root is None:
        return None
    if catalogue is None:
        raise NotRun("unsigned", f"{name}: --root asks for a signed --catalogue")
    row: Mapping[str, Any] | None = _signed(root, catalogue).get(name)
    if row is None:
        raise NotRun("unsigned", f"{name}: not in {catalogue}")
    return row


def _signed(root: Path, file: Path) -> dict[str, Any]:
    from skep.native.kernels.signature import SignatureError, signed
    from skep.trace.pem import PemError, public_key

    try:
        return signed(file, public_key(root))
    except PemError as error:
        raise Failed(str(error)) from error
    except SignatureError as error:
        raise NotRun("unsigned", str(error)) from error
