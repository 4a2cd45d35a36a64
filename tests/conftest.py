"""Whole stories come first: they take longest, and none of them should be waited for alone at the end. No
example has a deadline of its own, as the machine may be busy, and processes find their modules compiled."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

FIRST = ("stories", "simulation", "guest")

settings.register_profile("skep", deadline=None)
settings.load_profile("skep")
# Compiling them takes a process that serves three times as long as all the rest of its start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in FIRST)
