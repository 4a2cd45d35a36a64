"""What the gates cost: the rights of a walk, and the policy's decisions; a table beside the servers'."""

import asyncio

from rich.table import Table

from tests.bench import policy, rights

NOTE = """rights: processor time of a walk of three names in process; of it: what asking for rights costs.
"""

Row = tuple[str, str, float]  # name, unit, figure


def measured(wanted: str = "") -> list[Row]:
    """The rows whose name has ``wanted`` in it."""
    rows: list[Row] = []
    for row in asyncio.run(rights.rows()):
        rows += [(f"rights: {row.name}", "us", row.us), (f"rights: {row.name}, of it", "us", row.check_us)]
    return [row for row in [*rows, *policy.rows()] if wanted in row[0]]


def drawn(rows: list[Row]) -> Table:
    table = Table("", "unit", title="The gates, any core", title_justify="left")
    table.add_column("", justify="right")
    for name, unit, figure in rows:
        table.add_row(name, unit, f"{figure:,.1f}")
    return table


def record(rows: list[Row]) -> list[dict[str, object]]:
    return [{"row": name, "unit": unit, "figure": figure} for name, unit, figure in rows]
