"""The kernels on a CUDA device: each beside the least time the chip could take, plain cupy and torch.

    python -m tests.bench.device [--rounds N] [--json FILE] [--small]

It needs a device and cupy; where there is none it says so, measures nothing and exits 3. torch is measured
where it is installed. Cells are medians of interleaved rounds, by the device's own clock, of arrays that are
there already. The floor of a kernel is the longer of two times: the bytes that it must move, as its row says,
at the rate of a copy measured in the same rounds; and its operations at the rate of multiply-adds between
registers, measured before (where each is an instruction of integers: half of that). matmul in float16 has
units of its own, for which nothing is measured but the product itself: it has no floor of operations.

"asked of a process" is what is paid beside a kernel: a run of one element, warm, in a lease's process."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.table import Table

from skep.native.kernels.arguments import fitted
from skep.native.kernels.catalogue import KERNELS
from skep.native.kernels.check import told_of
from skep.native.kernels.device import Cuda, chosen
from skep.native.kernels.formula import value
from skep.native.kernels.process import Process
from skep.native.kernels.request import Request
from skep.native.kernels.run import loaded

NO_DEVICE: Final = 3  # exit status
INTEGERS: Final = ("sha256_leaves",)  # whose operations are of integers
HALVES: Final = "matmul f16"
CHAINS, STEPS, BLOCKS, THREADS = 8, 4096, 4096, 256  # of the kernel that multiplies and adds
FMA: Final = f"""
extern "C" __global__ void
fma_rate(float a, float b, float *out)
{{
	float x[{CHAINS}], sum = 0;
	int i, j;

	for (i = 0; i < {CHAINS}; i++)
		x[i] = threadIdx.x + i;
	for (j = 0; j < {STEPS}; j++)
		_Pragma("unroll")
		for (i = 0; i < {CHAINS}; i++)
			x[i] = fmaf(x[i], a, b);
	for (i = 0; i < {CHAINS}; i++)
		sum += x[i];
	/* Never, but no compiler knows that. */
	if (sum == 12345.678f)
		*out = sum;
}}
"""
Way = Callable[..., Any]


def cases(cupy: Any, small: bool) -> dict[str, tuple[str, dict[str, Any], dict[str, float]]]:
    """What each is given: the kernel, arrays on the device, numbers. Arrays are larger than any cache."""
    n, side = (1 << 16, 256) if small else (1 << 27, 8192)
    random = cupy.random.default_rng(1)

    def floats(*shape: int) -> Any:
        return random.standard_normal(shape, dtype=cupy.float32)

    ends = cupy.arange(256, 4 * n + 1, 256, dtype=cupy.uint64)
    halves = {"a": floats(side, side).astype("f2"), "b": floats(side, side).astype("f2")}
    images = {"images": floats(8, 64, 112, 112), "weights": floats(64, 64, 3, 3)}
    return {
        "vector_add": ("vector_add", {"a": floats(n), "b": floats(n)}, {}),
        "saxpy": ("saxpy", {"x": floats(n), "y": floats(n)}, {"alpha": 1.5}),
        "matmul f32": ("matmul", {"a": floats(side, side), "b": floats(side, side)}, {}),
        HALVES: ("matmul", halves, {}),
        "reduce_sum": ("reduce_sum", {"a": floats(n)}, {}),
        "histogram 256": ("histogram", {"a": floats(n)}, {"bins": 256, "low": -3.0, "high": 3.0}),
        "histogram 1M": ("histogram", {"a": floats(n)}, {"bins": 1 << 20, "low": -3.0, "high": 3.0}),
        "sha256_leaves": ("sha256_leaves", {"data": cupy.zeros(4 * n, cupy.uint8), "ends": ends}, {}),
        "topk 100": ("topk", {"a": floats(n)}, {"k": 100}),
        "topk half": ("topk", {"a": floats(n)}, {"k": n // 2}),
        "conv2d": ("conv2d", images, {}),
        "softmax 1024": ("softmax", {"a": floats(n // 1024, 1024)}, {}),
        "softmax 32768": ("softmax", {"a": floats(n // 32768, 32768)}, {}),
    }


def by_cupy(cupy: Any) -> dict[str, Way]:
    """The same by cupy, by kernel; conv2d and sha256_leaves it has not."""
    from cupyx.scipy.special import softmax

    return {
        "vector_add": lambda a, b: a + b,
        "saxpy": lambda x, y, alpha: cupy.float32(alpha) * x + y,
        "matmul": cupy.matmul,
        "reduce_sum": lambda a: cupy.sum(a, dtype=cupy.float64),
        "histogram": lambda a, bins, low, high: cupy.histogram(a, bins, (low, high)),
        "topk": lambda a, k: cupy.argsort(a)[a.size - k :][::-1],
        "softmax": lambda a: softmax(a, axis=1),
    }


def by_torch() -> dict[str, Way]:
    """The same by torch, by kernel; none where it is not installed or has no device."""
    if find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    # As the other two do: in float32 unless somebody says less.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return {
        "vector_add": lambda a, b: a + b,
        "saxpy": lambda x, y, alpha: torch.add(y, x, alpha=alpha),
        "matmul": torch.matmul,
        "reduce_sum": lambda a: torch.sum(a, dtype=torch.float64),
        "histogram": lambda a, bins, low, high: torch.histc(a, bins, low, high),
        "topk": lambda a, k: torch.topk(a, k),
        "conv2d": lambda images, weights: torch.nn.functional.conv2d(images, weights),
        "softmax": lambda a: torch.softmax(a, 1),
    }


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.device", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="of each cell; the median is shown")
    parser.add_argument("--json", type=Path, help="write all rounds here too")
    parser.add_argument("--small", action="store_true", help="sizes that say nothing, to try the program")
    told = parser.parse_args(args)
    device = chosen("auto", os.environ)
    if device.cupy is None:
        print(f"no CUDA device: {device.said}; nothing was measured", file=sys.stderr)
        return NO_DEVICE
    found = measured(device.cupy, told.rounds, told.small)
    Console(width=None if sys.stdout.isatty() else 120).print(drawn(found))
    print(
        f"a copy moves {found['copy_rate'] / 1e9:.0f} GB/s, multiply-adds {found['rate'] / 1e12:.1f} TFLOP/s"
    )
    print(f"asked of a process: {median(found['asked']) * 1e3:.2f} ms")
    if told.json:
        told.json.write_text(json.dumps({**about(device.cupy), **found}, indent=1) + "\n")
    return 0


def about(cupy: Any) -> dict[str, Any]:
    """The machine, what is installed there, and the command."""
    runtime, git = cupy.cuda.runtime, ["git", "rev-parse", "HEAD"]
    versions = {"python": platform.python_version(), "numpy": np.__version__, "cupy": cupy.__version__}
    if "torch" in sys.modules:
        versions["torch"] = sys.modules["torch"].__version__
    return {
        "machine": platform.platform(),
        "processors": os.cpu_count(),
        "device": runtime.getDeviceProperties(0)["name"].decode(),
        "driver": Path("/proc/driver/nvidia/version").read_text().splitlines()[0],
        "cuda": {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()},
        "versions": versions,
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "command": [Path(sys.executable).name, *sys.argv],
    }


def measured(cupy: Any, rounds: int, small: bool) -> dict[str, Any]:
    """Seconds of all rounds, and what follows."""
    kernels, others = {}, {"cupy": by_cupy(cupy), "torch": by_torch()}
    rate = fma_rate(cupy, rounds)
    for case, (name, arrays, numbers) in cases(cupy, small).items():
        kernel = KERNELS[name]
        module, cuda = loaded(kernel), Cuda(kernel, cupy)
        ways = {"skep": bound(module.CUDA[name], cuda, **arrays, **numbers), "copy": copying(cupy, small)}
        if name in others["cupy"]:
            ways["cupy"] = bound(others["cupy"][name], *arrays.values(), *numbers.values())
        if name in others["torch"]:
            there = [sys.modules["torch"].from_dlpack(array) for array in arrays.values()]
            ways["torch"] = bound(others["torch"][name], *there, *numbers.values())
        sizes = fitted(kernel, {key: told_of(array) for key, array in arrays.items()}, numbers).sizes
        cost = {"moved": value(kernel.cost.moved, sizes), "operations": value(kernel.cost.operations, sizes)}
        kernels[case] = {"kernel": name, "sizes": sizes, **cost, "seconds": timed(cupy, ways, rounds)}
    copies = [took for of in kernels.values() for took in of["seconds"]["copy"]]
    copy_rate = 2 * copied(small) / median(copies)
    return {"kernels": kernels, "rate": rate, "copy_rate": copy_rate, "asked": asked(rounds)}


def bound(way: Way, *args: Any, **named: Any) -> Way:
    return lambda: way(*args, **named)


def copied(small: bool) -> int:
    """Bytes of the copy, each of them read and written."""
    return 1 << 20 if small else 1 << 29


def copying(cupy: Any, small: bool) -> Way:
    of, to = (cupy.empty(copied(small), cupy.uint8) for _ in range(2))
    return bound(cupy.copyto, to, of)


def timed(cupy: Any, ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each, in rounds of all of them, after one that is not counted."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            begin, end = cupy.cuda.Event(), cupy.cuda.Event()
            begin.record()
            way()
            end.record()
            end.synchronize()
            if count:
                found[name].append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
    return found


def fma_rate(cupy: Any, rounds: int) -> float:
    """Operations a second, two for each multiply-add."""
    kernel, out = cupy.RawKernel(FMA, "fma_rate"), cupy.zeros(1, cupy.float32)
    args = np.float32(0.999), np.float32(0.001), out
    took = timed(cupy, {"fma": bound(kernel, (BLOCKS,), (THREADS,), args)}, rounds)["fma"]
    return 2 * CHAINS * STEPS * BLOCKS * THREADS / median(took)


def asked(rounds: int) -> list[float]:
    """Seconds of a run of one element, from the request to the result's file."""
    took = []
    with TemporaryDirectory() as directory, Process() as process:
        np.save(f"{directory}/a.npy", np.ones(1, np.float32))
        request = Request("reduce_sum", {"a": f"{directory}/a.npy"}, {}, directory, "cuda")
        for count in range(rounds + 1):
            begun = time.perf_counter_ns()
            process.run(request)
            if count:
                took.append((time.perf_counter_ns() - begun) / 1e9)
    return took


def floor(case: str, of: dict[str, Any], found: dict[str, Any]) -> tuple[float, str]:
    """Seconds that the chip takes at least, and for what."""
    moving, doing = of["moved"] / found["copy_rate"], of["operations"] / found["rate"]
    if of["kernel"] in INTEGERS:
        doing *= 2
    if case == HALVES:
        doing = 0.0
    return (moving, "bytes") if moving >= doing else (doing, "operations")


def drawn(found: dict[str, Any]) -> Table:
    table = Table(title="the kernels on this device, milliseconds", title_justify="left")
    for column in ("kernel", "skep", "floor", "bound by", "of floor", "cupy", "torch"):
        table.add_column(column, justify="left" if column in ("kernel", "bound by") else "right")
    for case, of in found["kernels"].items():
        took = {way: median(seconds) for way, seconds in of["seconds"].items()}
        least, by = floor(case, of, found)
        others = [f"{took[way] * 1e3:,.3f}" if way in took else "" for way in ("cupy", "torch")]
        own = f"{took['skep'] * 1e3:,.3f}", f"{least * 1e3:,.3f}", by, f"{least / took['skep']:.0%}"
        table.add_row(case, *own, *others)
    return table


if __name__ == "__main__":
    sys.exit(main())
