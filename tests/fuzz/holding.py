"""What must hold of an error that was raised."""

from __future__ import annotations


def holds(condition: bool, error: Exception) -> None:
    """Raises AssertionError from ``error`` when the condition is not met."""
    if not condition:
        raise AssertionError(repr(error)) from error
