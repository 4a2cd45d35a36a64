"""``skep policy``: bundles checked, tested, signed and published; decisions asked for and explained."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skep.cli.connect import coroutine, dialled, hive_option
from skep.cli.exits import Failed, told
from skep.fs.address import Address
from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import E, FsError

if TYPE_CHECKING:  # Cedar takes a while to import
    from skep.namespaces.policy.bundle import Bundle
    from skep.namespaces.policy.keys import Signer

CTL = "/policy/ctl"
BUNDLES = "/policy/bundles"

_DIRECTORY = click.argument(
    "directory", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
_KEY = click.option(
    "--key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The Ed25519 private key (PEM); `openssl genpkey -algorithm ed25519` makes one.",
)
_NAME = click.option("--bundle", "name", help="Its name in the hive. Default: the directory's.")


@click.group()
def policy_command() -> None:
    """Check, sign and publish policies, and ask what they decide.

    \b
    Examples:
      skep policy check ./operator
      skep policy trust --key ann.pem ann
      skep policy publish --key ann.pem ./operator
      skep policy explain '{"action": "hive.drain"}'
    """


@policy_command.command("check")
@_DIRECTORY
def check_command(directory: Path) -> None:
    """Check a bundle as a hive does when it is published: syntax, schema, tests. Prints its hash.

    \b
    Example:
      skep policy check ./operator
    """
    with _bad_told(directory):
        _check(directory)


@policy_command.command("test")
@_DIRECTORY
def test_command(directory: Path) -> None:
    """Run the tests of a bundle and print each one's decision, those that fail too.

    \b
    Example:
      skep policy test ./operator
    """
    from skep.namespaces.policy.bundle import read
    from skep.namespaces.policy.core import tried

    failed = 0
    with _bad_told(directory):
        for test, ruling, ok in tried(read(directory)):
            failed += not ok
            click.echo(f"{'ok' if ok else 'FAILED':6} {ruling.decision:8} {ruling.rule}  {test.name}")
    if failed:
        raise Failed(f"{directory}: {failed} tests failed")


@policy_command.command("sign")
@_DIRECTORY
@_KEY
@_NAME
def sign_command(directory: Path, key: Path, name: str | None) -> None:
    """Sign a bundle, once it is found to be good. Prints the line that publishes its draft.

    \b
    Example:
      skep policy sign --key ann.pem ./operator
    """
    with _bad_told(directory):
        click.echo(_line(_check(directory), _signer(key), name or directory.resolve().name))


@policy_command.command("publish")
@hive_option
@_DIRECTORY
@_KEY
@_NAME
@coroutine
async def publish_command(hive: Address, directory: Path, key: Path, name: str | None) -> None:
    """Check and sign a bundle, put it into its draft, and make it live.

    \b
    Examples:
      skep policy publish --key ann.pem ./operator
      skep policy publish --key ann.pem --bundle operator .
    """
    name = name or directory.resolve().name
    with _bad_told(directory):
        bundle = _check(directory)
        said = _line(bundle, _signer(key), name)
    async with dialled(hive) as client:
        with told(f"{BUNDLES}/{name}"):
            await _draft(client, name, bundle)
        with told(CTL):
            click.echo(await _asked(client, CTL, said), nl=False)


@policy_command.command("rollback")
@hive_option
@click.argument("bundle")
@click.argument("version", type=int)
@coroutine
async def rollback_command(hive: Address, bundle: str, version: int) -> None:
    """Make an earlier version of a bundle live again.

    \b
    Example:
      skep policy rollback operator 3
    """
    async with dialled(hive) as client:
        with told(CTL):
            said = line("rollback", {"bundle": bundle, "v": str(version)})
            click.echo(await _asked(client, CTL, said), nl=False)


@policy_command.command("trust")
@hive_option
@_KEY
@click.option(
    "--by",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The private key (PEM) of one who is trusted. The first key that is not the hive's needs none.",
)
@click.option("--bundle", default="", help="The only bundle it may sign. Default: any.")
@click.argument("name")
@coroutine
async def trust_command(hive: Address, key: Path, by: Path | None, bundle: str, name: str) -> None:
    """Have a hive trust the signatures of a key, called NAME there.

    \b
    Examples:
      skep policy trust --key ann.pem ann
      skep policy trust --key bob.pem --by ann.pem --bundle tools bob
    """
    from skep.namespaces.policy.core import key_said

    with _bad_told(key):
        public = _signer(key).public
        sig = {} if by is None else {"sig": _signer(by).sign(key_said(name, public, bundle))}
    said = {"name": name, "key": public} | ({"bundle": bundle} if bundle else {}) | sig
    async with dialled(hive) as client:
        with told(CTL):
            click.echo(await _asked(client, CTL, line("trust-key", said)), nl=False)


@policy_command.command("explain")
@hive_option
@click.argument("request")
@coroutine
async def explain_command(hive: Address, request: str) -> None:
    """Ask for a decision, and how each policy took part in it. REQUEST is JSON; - reads it from stdin.

    \b
    Examples:
      skep policy explain '{"action": "hive.drain"}'
      skep policy explain '{"action": "jobs.submit", "context": {"args": {"topic": "sha256"}}}'
    """
    answer = await _answer(hive, "explain", request)
    for each in answer.pop("policies"):
        why = "matches" if each["matched"] else f"does not match: {each['why']}"
        click.echo(f"{each['policy']}  {each['decision']}  {each['file']}:{each['line']}  {why}")
    _print(answer)


@policy_command.command("simulate")
@hive_option
@click.option("--bundle", help="As if this bundle's draft were live.")
@click.argument("request")
@coroutine
async def simulate_command(hive: Address, bundle: str | None, request: str) -> None:
    """Ask for a decision without a trace. REQUEST is JSON; - reads it from stdin.

    \b
    Example:
      skep policy simulate --bundle operator '{"action": "hive.drain"}'
    """
    _print(await _answer(hive, "simulate", request, {"bundle": bundle} if bundle else {}))


@policy_command.command("schema")
def schema_command() -> None:
    """Print the schema of this release: what policies may ask about.

    \b
    Example:
      skep policy schema > ./operator/skep.cedarschema
    """
    from skep.namespaces.hive import HIDDEN, TABLES
    from skep.namespaces.policy.schema import schema

    click.echo(schema(TABLES, HIDDEN), nl=False)


@contextlib.contextmanager
def _bad_told(path: Path) -> Iterator[None]:
    """A bad bundle or key ends the command."""
    from skep.namespaces.policy.bundle import BundleError
    from skep.namespaces.policy.keys import BadKey

    try:
        yield
    except BundleError as error:
        raise Failed(f"{path}/{error}") from error
    except BadKey as error:
        raise Failed(str(error)) from error


def _check(directory: Path) -> Bundle:
    """The bundle, when it is good; says so on stderr. Raises BundleError."""
    from skep.namespaces.policy.bundle import read, rules_of
    from skep.namespaces.policy.core import check_all

    bundle = read(directory)
    tests = check_all(bundle)
    bundle.pack()
    click.echo(f"{len(rules_of(bundle))} policies, {tests} tests passed, sha256:{bundle.sha256}", err=True)
    return bundle


def _signer(key: Path) -> Signer:
    from skep.namespaces.policy.keys import load

    return load(key)


def _line(bundle: Bundle, signer: Signer, name: str) -> str:
    from skep.namespaces.policy.bundle import signed

    sig = signer.sign(signed(name, bundle.sha256))
    return line("publish", {"bundle": name, "sha256": bundle.sha256, "sig": sig})


async def _draft(client: Client, name: str, bundle: Bundle) -> None:
    """Put the bundle's files, and no others, into its draft."""
    try:
        await client.mkdir(f"{BUNDLES}/{name}")
    except FsError as error:
        if error.kind is not E.EXISTS:
            raise
    draft = f"{BUNDLES}/{name}/draft"
    for entry in await client.listdir(draft):
        await client.remove(f"{draft}/{entry.name}")
    for file, text in bundle.files.items():
        await client.write_file(f"{draft}/{file}", text.encode(), create=True)


async def _asked(client: Client, path: str, said: str) -> str:
    """What a file of questions answers."""
    async with await client.open(path, "rw") as fid:
        await fid.write_all(f"{said}\n".encode())
        return b"".join([piece async for piece in fid.pieces()]).decode()


async def _answer(hive: Address, file: str, request: str, more: dict[str, str] | None = None) -> Any:
    import msgspec

    said = sys.stdin.read() if request == "-" else request
    try:
        asked = msgspec.json.decode(said, type=dict[str, Any]) | (more or {})
    except msgspec.DecodeError as error:
        raise Failed(f"request: {error}") from error
    path = f"/policy/{file}"
    async with dialled(hive) as client:
        with told(path):
            return msgspec.json.decode(await _asked(client, path, msgspec.json.encode(asked).decode()))


def _print(answer: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
