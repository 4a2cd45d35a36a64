"""``skep boot pack``: an image in one file, for the boot lab of a hive."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from skep.cli.exits import Failed


@click.command()
@click.argument("manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("image", type=click.File("wb"))
def pack_command(manifest: Path, image: BinaryIO) -> None:
    """Write MANIFEST, the files that it names, its signature and its baseline into the archive IMAGE.

    The same files make the same bytes. A hive takes it as an image of its boot lab (/boot); IMAGE `-` is
    stdout.

    \b
    Examples:
      skep boot pack boot.toml worker.boot
      skep boot pack boot.toml - | skep write /artifacts/stage/worker.boot
      skep write /boot/ctl 'put image=worker'
    """
    from skep.boot.archive import ArchiveError, pack
    from skep.boot.manifest import ManifestError

    try:
        pack(manifest, image)
    except ManifestError as error:
        raise click.UsageError(str(error)) from error
    except (ArchiveError, OSError) as error:
        raise Failed(str(error)) from error
