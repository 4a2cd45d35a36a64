"""The file of a queen's settings: serve.toml in her directory, or the one that SKEP_CONFIG names.

    listen = ["unix:/run/skep/hive.sock", "tls:0.0.0.0:5640"]
    certificate-ttl = "12h"             # any option of `skep serve`, by its name

Where SKEP_MANIFEST_ROOT names a key, it must have signed this file too, SERVE.toml.sig, as it signs manifests
(sealed.py). One that is not good is an error, never another configuration.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Final

from skep.roles.sealed import ManifestError, Source, check_configuration

FILE: Final = "serve.toml"
SIZE_MAX: Final = 64 * 1024  # bytes: some dozen settings

Values = dict[str, str | list[str]]


class ConfigurationError(Exception):
    """The file cannot be used; the text names it, the key, and what was expected."""


def read(path: Path, known: Collection[str]) -> Values:
    """What the file says of settings that are ``known``. Raises ConfigurationError, OSError."""
    with path.open("rb") as file:
        text = file.read(SIZE_MAX + 1)
    if len(text) > SIZE_MAX:
        raise ConfigurationError(f"{path}: more than {SIZE_MAX} bytes")
    try:
        root = Source.told().root
        if root is not None:
            check_configuration(path, text, root)
        found = tomllib.loads(text.decode())
    except (ManifestError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    return {key: _value(path, key, value, known) for key, value in found.items()}


def parse(name: str, text: bytes) -> None:
    """Raises ConfigurationError unless ``text`` is TOML: before it is signed."""
    try:
        tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _value(path: Path, key: str, value: object, known: Collection[str]) -> str | list[str]:
    if key not in known:
        raise ConfigurationError(f"{path}: {key}: unknown setting, expected one of {' '.join(sorted(known))}")
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return value
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise ConfigurationError(f"{path}: {key}: expected text, a whole number, or a list of texts")
