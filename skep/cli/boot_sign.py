"""``skep boot sign``: answer for a manifest and every file that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from skep.cli.exits import Failed

DAY_NS: Final = 24 * 3600 * 1_000_000_000
NEVER: Final = "never"
COUNTER_MAX: Final = 2**53 - 1  # as boot/signing.py takes it


@click.command()
@click.option(
    "--key",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The Ed25519 private key (PEM); `openssl genpkey -algorithm ed25519` makes one.",
)
@click.option("--expires", default="90d", show_default=True, help="After how long: 30d, 12h, never.")
@click.option(
    "--counter",
    type=click.IntRange(1, COUNTER_MAX),
    help="The release. Default: one more than the last signature's.",
)
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def sign_command(key: Path, expires: str, counter: int | None, manifest: Path) -> None:
    """Sign MANIFEST, and by hash and size every file that it names: a signed note in MANIFEST.sig.

    \b
    Examples:
      skep boot sign boot.toml --key release.pem
      skep boot sign boot.toml --key release.pem --expires 30d --counter 8
    """
    from skep.boot.manifest import ManifestError
    from skep.boot.signing import SUFFIX, SignatureError, Statement, sign
    from skep.boot.staging import described
    from skep.trace.clock import SystemClock
    from skep.trace.pem import PemError, private_key
    from skep.trace.whole import write_whole

    beside = manifest.with_name(manifest.name + SUFFIX)
    span = _span(expires)
    try:
        said, items = described(manifest)
        now = SystemClock().now_ns()
        ends = None if span is None else now + span
        statement = Statement(said.name, counter or _last(beside) + 1, ends, items)
        write_whole(beside, sign(statement, private_key(key)))
        beside.chmod(0o644)
    except (ManifestError, PemError) as error:
        raise click.UsageError(str(error)) from error
    except (SignatureError, OSError) as error:
        raise Failed(str(error)) from error
    click.echo(f"{beside}: {said.name}, counter {statement.counter}, {len(items)} files")


def _span(text: str) -> int | None:
    """Nanoseconds; None: for ever."""
    from skep.trace.clock import parse_duration

    if text == NEVER:
        return None
    try:
        span = int(text[:-1]) * DAY_NS if text.endswith("d") else parse_duration(text)
    except ValueError as error:
        raise click.UsageError(f"--expires {text}: expected a time like 30d or 12h, or never") from error
    if not 0 < span < 100_000 * DAY_NS:
        raise click.UsageError(f"--expires {text}: expected less than 100000 days, and more than none")
    return span


def _last(beside: Path) -> int:
    """The counter of the signature that is there, 0 without one."""
    from skep.boot.signing import SignatureError, parse
    from skep.trace.note import NoteError, parse_note

    try:
        return parse(parse_note(beside.read_bytes()).text).counter
    except FileNotFoundError:
        return 0
    except (NoteError, SignatureError) as error:
        raise Failed(f"{beside}: {error}: --counter says which release this is") from error
