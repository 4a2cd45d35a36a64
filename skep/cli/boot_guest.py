"""``skep boot guest``: the project's own images, to try the lab with."""

from __future__ import annotations

from pathlib import Path

import click

from skep.boot.guest.build import ARCHES, BuildError, build
from skep.cli.exits import Failed


@click.command()
@click.option("--arch", type=click.Choice(list(ARCHES)), multiple=True, help="Which. Default: all.")
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def guest_command(arch: tuple[str, ...], directory: Path) -> None:
    """Build small images to try the boot lab with, in DIRECTORY/<arch>.

    They print seL4's lines and break in its ways: the word do= of their command line picks one. The words are
    told in README.md beside the images. boot.toml, a manifest to begin with, is written where there is none.
    It takes gcc, and gcc-aarch64-linux-gnu for aarch64.

    \b
    Example:
      skep boot guest images
      skep boot run images/aarch64/boot.toml
    """
    from importlib import resources

    for each in arch or ARCHES:
        try:
            build(each, directory / each)
        except BuildError as error:
            raise Failed(str(error)) from error
        click.echo(directory / each)
    words = resources.files("skep.boot.guest").joinpath("README.md")
    (directory / "README.md").write_bytes(words.read_bytes())
