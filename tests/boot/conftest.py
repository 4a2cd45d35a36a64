"""The guests, built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from skep.boot.guest.build import ARCHES, build


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files of each architecture."""
    into = tmp_path_factory.mktemp("guests")
    for arch in ARCHES:
        build(arch, into / arch)
    return into
