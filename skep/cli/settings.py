"""Options that a file and the environment may overrule, so that who runs a machine has the last word.

The environment comes before the file, the file before the command line, that before the default: whoever may
set a unit's environment or sign its configuration need not know what starts it with which options.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from skep.cli.exits import Failed
from skep.roles.configuration import FILE, ConfigurationError, Values, read
from skep.trace.clock import SystemClock

DEFAULT: Final = "default"
_SETTINGS: Final = "skep.settings"


@dataclass
class Settings:
    """What is known of one call's settings: when they began to be read, where each comes from, by its key (a
    variable's name, the file's, an option, DEFAULT), and what the file says (None: it was not read yet)."""

    began_ns: int
    origins: dict[str, str] = field(default_factory=dict)
    values: Values | None = None


def settings(ctx: click.Context) -> Settings:
    """Those of this call."""
    found: Settings = ctx.meta.setdefault(_SETTINGS, Settings(SystemClock().now_ns()))
    return found


class Setting(click.Option):
    """An option that is also a key of the configuration's file, and an environment variable."""

    @property
    def key(self) -> str:
        """Its name in the file."""
        return self.opts[0].removeprefix("--")

    def consume_value(self, ctx: click.Context, opts: Mapping[str, Any]) -> tuple[Any, ParameterSource]:
        found, origin = self.value_from_envvar(ctx), str(self.envvar)
        source = ParameterSource.ENVIRONMENT
        if found is None and (values := _file(ctx)) and self.key in values:
            found, origin, source = values[self.key], _path(ctx).name, ParameterSource.DEFAULT_MAP
            if self.multiple != isinstance(found, list):
                expected = "a list of texts" if self.multiple else "one value"
                raise Failed(f"{_path(ctx)}: {self.key}: expected {expected}")
        if found is None:
            found, source = super().consume_value(ctx, opts)
            origin = self.opts[0] if source is ParameterSource.COMMANDLINE else DEFAULT
        settings(ctx).origins[self.key] = origin
        return found, source

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().process_value(ctx, value)
        except click.BadParameter as error:
            origin = settings(ctx).origins.get(self.key, DEFAULT)
            if origin in (self.opts[0], DEFAULT):
                raise
            raise click.BadParameter(error.message, ctx, param_hint=f"{origin}, {self.key}") from error


def setting(*names: str, **more: Any) -> Callable[[Any], Any]:
    """An option of that name, which is a Setting; its variable is SKEP_ and the name."""
    variable = "SKEP_" + names[0].removeprefix("--").replace("-", "_").upper()
    return click.option(*names, cls=Setting, envvar=variable, **more)


def default_state() -> Path:
    """Where a hive of this user is kept when nothing is said."""
    if named := os.environ.get("SKEP_STATE"):
        return Path(named)
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "skep" / "hive"


def origin_of(ctx: click.Context, key: str) -> str:
    """Where the setting comes from; also of the directory, for which the file cannot speak."""
    if key != "dir":
        return settings(ctx).origins[key]
    if ctx.params["directory"] is not None:
        return "--dir"
    return "SKEP_STATE" if "SKEP_STATE" in os.environ else DEFAULT


def _path(ctx: click.Context) -> Path:
    """The configuration's file. The options that say where it is have been read: they are eager."""
    # While others are read, what nobody said is no None yet.
    named, directory = ctx.params["config"], ctx.params["directory"]
    if isinstance(named, Path):
        return named
    return (directory if isinstance(directory, Path) else default_state()) / FILE


def _file(ctx: click.Context) -> Values:
    """What it says; one that nobody named need not be there. Raises Failed."""
    known = settings(ctx)
    if known.values is None:
        path = _path(ctx)
        keys = {param.key for param in ctx.command.params if isinstance(param, Setting)}
        is_there = isinstance(ctx.params["config"], Path) or os.path.lexists(path)
        try:
            known.values = read(path, keys) if is_there else {}
        except (ConfigurationError, OSError) as error:
            raise Failed(str(error)) from error
    return known.values
