"""The CPU twins of the kernels: numba beside NumPy, by size, and each kernel against the machine's copy.

    OPENBLAS_NUM_THREADS=1 python -m tests.bench.kernels [--rounds N] [--json FILE]

With one thread BLAS is what it is in the process of a lease.

A loop is compiled before it is measured; what that costs a process the first time stands below. Cells are
medians of interleaved rounds. "of copy": the bytes that a kernel must move, as its row says, by the time it
takes, beside those of a copy of as many in the same rounds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from skep.native.kernels.catalogue import KERNELS
from skep.native.kernels.check import checked
from skep.native.kernels.device import chosen
from skep.native.kernels.elementwise import compiled_saxpy, saxpy_numpy
from skep.native.kernels.formula import value
from skep.native.kernels.histogram import compiled_histogram, histogram_numpy
from skep.native.kernels.reduce_sum import compiled_sum, sum_numpy
from skep.native.kernels.run import run

SIZES: Final = (1 << 8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24)
ROUND_NS: Final = 20_000_000  # of one call again and again, once at least
CPU: Final = chosen("cpu", {})


class Pair(NamedTuple):
    """Two ways of the same; ``args``: what they take after the arrays, of which there are ``arrays``."""

    name: str
    numpy: Callable[..., Any]
    numba: Callable[..., Any]
    arrays: int
    args: tuple[Any, ...] = ()


PAIRS: Final = (
    Pair("saxpy", saxpy_numpy, compiled_saxpy, 2, (1.5,)),
    Pair("reduce_sum", sum_numpy, compiled_sum, 1),
    Pair("histogram", histogram_numpy, compiled_histogram, 1, (256, -3.0, 3.0)),
)


class Row(NamedTuple):
    """Seconds of each round, of either."""

    name: str
    size: int
    numpy: list[float]
    numba: list[float]


def floats(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def whole() -> dict[str, tuple[dict[str, Any], dict[str, float]]]:
    """What each kernel is given where all of them are measured."""
    data = np.zeros(1 << 24, np.uint8)
    return {
        "vector_add": ({"a": floats(1 << 24), "b": floats(1 << 24)}, {}),
        "saxpy": ({"x": floats(1 << 24), "y": floats(1 << 24)}, {"alpha": 1.5}),
        "matmul": ({"a": floats(1024, 1024), "b": floats(1024, 1024)}, {}),
        "reduce_sum": ({"a": floats(1 << 24)}, {}),
        "histogram": ({"a": floats(1 << 24)}, {"bins": 256, "low": -3.0, "high": 3.0}),
        "sha256_leaves": ({"data": data, "ends": np.arange(256, data.size + 1, 256, dtype=np.uint64)}, {}),
        "topk": ({"a": floats(1 << 24)}, {"k": 100}),
        "conv2d": ({"images": floats(4, 32, 64, 64), "weights": floats(32, 32, 3, 3)}, {}),
        "softmax": ({"a": floats(1 << 12, 1 << 10)}, {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.kernels", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each cell; the median is shown")
    parser.add_argument("--json", type=Path, help="write all rounds here too")
    args = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = [measured(pair, size, args.rounds) for pair in PAIRS for size in SIZES]
    console.print(drawn(rows))
    kernels = {name: against_copy(name, *given, args.rounds) for name, given in whole().items()}
    console.print(against(kernels))
    cold = [loading() for _ in range(args.rounds)]
    console.print(f"a process loads numba in {median(cold):.2f} s")
    if args.json:
        about = {"machine": platform.machine(), "processors": os.cpu_count(), "numpy": np.__version__}
        found = {"pairs": [row._asdict() for row in rows], "kernels": kernels, "loading": cold}
        args.json.write_text(json.dumps({**about, **found}, indent=1) + "\n")


def measured(pair: Pair, size: int, rounds: int) -> Row:
    given = [floats(size) for _ in range(pair.arrays)] + list(pair.args)
    row = Row(pair.name, size, [], [])
    pair.numba(*given)
    for _ in range(rounds):
        for call, found in ((pair.numpy, row.numpy), (pair.numba, row.numba)):
            found.append(seconds(call, *given))
    return row


def seconds(call: Callable[..., Any], *given: Any) -> float:
    """Of one call."""
    begun, count = time.perf_counter_ns(), 0
    while not count or time.perf_counter_ns() - begun < ROUND_NS:
        call(*given)
        count += 1
    return (time.perf_counter_ns() - begun) / 1e9 / count


def against_copy(name: str, arrays: dict[str, Any], numbers: dict[str, float], rounds: int) -> dict[str, Any]:
    """Seconds of the kernel and of a copy of the bytes that it moves, half of them read, of each round."""
    kernel = KERNELS[name]
    sizes = checked(kernel, arrays, numbers).sizes
    moved, operations = value(kernel.cost.moved, sizes), value(kernel.cost.operations, sizes)
    of, to = np.ones(moved // 2, np.uint8), np.empty(moved // 2, np.uint8)
    took, copies = [], []
    run(kernel, CPU, arrays, numbers)
    for _ in range(rounds):
        took.append(run(kernel, CPU, arrays, numbers).nanoseconds / 1e9)
        copies.append(seconds(np.copyto, to, of))
    return {"moved": moved, "operations": operations, "seconds": took, "copy": copies}


def loading() -> float:
    begun = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", "import numba"], check=True)
    both = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return (2 * both - begun - time.perf_counter_ns()) / 1e9


def drawn(rows: list[Row]) -> Table:
    table = Table(title="twins by size, microseconds", title_justify="left")
    for column in ("kernel", "elements", "NumPy", "numba", "NumPy/numba"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for row in rows:
        a, b = median(row.numpy), median(row.numba)
        table.add_row(row.name, f"{row.size:,}", f"{a * 1e6:,.1f}", f"{b * 1e6:,.1f}", f"{a / b:.2f}")
    return table


def against(kernels: dict[str, dict[str, Any]]) -> Table:
    table = Table(title="all kernels on this CPU", title_justify="left")
    for column in ("kernel", "ms", "GB/s", "of copy", "10⁹ operations/s"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for name, found in kernels.items():
        took = median(found["seconds"])
        of_copy = median(copy / own for copy, own in zip(found["copy"], found["seconds"], strict=True))
        table.add_row(
            name, f"{took * 1e3:,.2f}", f"{found['moved'] / took / 1e9:.2f}", f"{of_copy:.0%}",
            f"{found['operations'] / took / 1e9:.2f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    main()
