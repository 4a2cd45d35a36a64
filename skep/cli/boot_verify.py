"""``skep boot verify``: whether what is there is what was signed; and whom ``skep boot run`` trusts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from skep.boot.classes import Class
from skep.cli.connect import json_option
from skep.cli.exits import Failed

if TYPE_CHECKING:
    from skep.boot.signing import Statement

SEEN: Final = "boot-seen.json"


class NotSigned(Failed):
    """What is there is not what was signed."""

    status = Class.SIGNATURE_INVALID.row.status


def trust_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--trust`` and ``--seen``."""
    seen = click.option(
        "--seen",
        type=click.Path(dir_okay=False, path_type=Path),
        help="Where the highest counter of each name is kept. Default: boot-seen.json of this user's state.",
    )
    trust = click.option(
        "--trust",
        multiple=True,
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Whose signature it must have: an Ed25519 public key (PEM); repeatable. "
        "Default: the one that the manifest names.",
    )
    return trust(seen(command))


def seen_file(named: Path | None) -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return named or Path(home) / "skep" / SEEN


@click.command()
@trust_options
@json_option
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def verify_command(trust: tuple[Path, ...], seen: Path | None, as_json: bool, manifest: Path) -> None:
    """Check MANIFEST.sig: that MANIFEST and the files it names are those that were signed, and for how long.

    \b
    Exit status: 0 it is so, 2 usage, 52 it is not.

    \b
    Example:
      skep boot verify boot.toml --trust release.pub
    """
    from skep.boot.manifest import ManifestError
    from skep.boot.signing import Seen, SignatureError
    from skep.boot.staging import staged
    from skep.trace.clock import SystemClock
    from skep.trace.pem import PemError

    try:
        with staged(manifest, trust, Seen(seen_file(seen)), SystemClock().now_ns()) as found:
            statement = found.statement
    except SignatureError as error:
        raise NotSigned(f"{Class.SIGNATURE_INVALID.value}: {error}") from error
    except (ManifestError, PemError) as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        raise Failed(str(error)) from error
    if statement is None:
        raise click.UsageError("whose signature is expected? --trust KEY, or [signature] in the manifest")
    _tell(statement, as_json)


def _tell(statement: Statement, as_json: bool) -> None:
    from skep.trace.clock import rfc3339

    expires = None if statement.expires_ns is None else rfc3339(statement.expires_ns)
    if as_json:
        files = [item._asdict() for item in statement.items]
        said = {"name": statement.name, "counter": statement.counter, "expires": expires, "files": files}
        click.echo(msgspec.json.encode(said))
        return
    for item in statement.items:
        click.echo(str(item))
    until = f"until {expires}" if expires else "for ever"
    click.echo(f"{statement.name}: signed, counter {statement.counter}, {until}")
