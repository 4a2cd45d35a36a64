"""Whole stories come first: they take longest, and none of them should be waited for alone at the end."""

from __future__ import annotations

import pytest

FIRST = ("stories", "simulation", "guest")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in FIRST)
