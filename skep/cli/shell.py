"""``skep completion``: the script a shell loads."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from skep.cli.exits import Failed


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell. Commands, options and paths of the hive are completed.

    \b
    Examples:
      eval "$(skep completion bash)"
      skep completion zsh > ~/.zfunc/_skep
      skep completion fish > ~/.config/fish/completions/skep.fish
    """
    found = get_completion_class(shell)
    if found is None:
        raise Failed(f"this click has no completion for {shell}")
    click.echo(found(ctx.find_root().command, {}, "skep", "_SKEP_COMPLETE").source())
