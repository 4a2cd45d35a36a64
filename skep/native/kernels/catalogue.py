"""The kernels, as data: what each takes and gives, how exact it is and what it costs.

Sizes are letters: in shapes, rules and costs the same letter is the same size, and the name of a number is
that number. ``item`` is the bytes of an element of the first argument. What is checked before a kernel runs
is in check.py; the functions that a row names are in the module of its ``module``."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

HERE: Final = Path(__file__).parent
BYTES_MAX: Final = 1 << 32  # of an argument or a result: half a small card; topk's places are of 32 bits
SAME: Final = "same"  # the dtype of the first argument
ABOUT: Final = ("__init__", "page")  # modules here that decide nothing of what runs


class Array(NamedTuple):
    """An argument: of one of these dtypes, which all arguments with several have in common."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[str, ...]
    values: str = ""  # a rule of check.VALUES for what is in it; "": anything


class Number(NamedTuple):
    """An argument that is one number, within bounds; kind: int or float."""

    name: str
    kind: str
    least: float
    most: float

    @property
    def bounds(self) -> str:
        """Its kind and its bounds, for people."""
        form = "d" if self.kind == "int" else "g"
        return f"{self.kind} from {self.least:{form}} to {self.most:{form}}"


class Out(NamedTuple):
    name: str
    dtype: str
    shape: tuple[str, ...]


class Rule(NamedTuple):
    """``less`` <= ``more``, two formulas; ``argument`` is to blame where they are not."""

    less: str
    more: str
    argument: str


class Tolerance(NamedTuple):
    """How far a result may be from that in float64: so many units in the last place of ``dtype``, of the
    same sum with all its terms positive, and one of the result. ``steps`` "0": no unit, the result is exact
    by its definition."""

    steps: str
    dtype: str


class Cost(NamedTuple):
    """What a device can do no better than: bytes read and written once, and operations on elements."""

    moved: str
    operations: str


class Room(NamedTuple):
    """Bytes that are held at once at most, arguments and results among them."""

    cuda: str
    cpu: str


class Kernel(NamedTuple):
    name: str
    module: str
    device: str  # what runs on a device: a file of CUDA C++, or a function of cupy
    files: tuple[str, ...]  # all that is compiled for a device, below native/
    about: str
    special: str  # NaN, infinities, denormals and nothing
    arrays: tuple[Array, ...]
    numbers: tuple[Number, ...]
    outs: tuple[Out, ...]
    rules: tuple[Rule, ...]
    tolerance: Tolerance
    cost: Cost
    room: Room
    beside: tuple[str, ...] = ()  # what its twin stands on, below native/


F32: Final = ("float32",)
REALS: Final = ("float32", "float64")
EXACT: Final = Tolerance("0", "float64")
PASSED_ON: Final = "NaN and infinities as IEEE 754 has them, denormals kept"
NOTHING: Final = "; of nothing: nothing"
PRELUDE: Final = "kernels/prelude.h"

_ROWS: Final = (
    Kernel(
        "vector_add", "elementwise", "elementwise.cu", (PRELUDE, "kernels/elementwise.cu"),
        "out = a + b", PASSED_ON + NOTHING,
        (Array("a", REALS, ("n",)), Array("b", REALS, ("n",))), (), (Out("out", SAME, ("n",)),), (),
        Tolerance("1", SAME), Cost("3 * item * n", "n"), Room("3 * item * n", "3 * item * n"),
    ),
    Kernel(
        "saxpy", "elementwise", "elementwise.cu", (PRELUDE, "kernels/elementwise.cu"),
        "out = alpha * x + y; alpha is rounded to float32", PASSED_ON + "; a device rounds once" + NOTHING,
        (Array("x", F32, ("n",)), Array("y", F32, ("n",))), (Number("alpha", "float", -3.4e38, 3.4e38),),
        (Out("out", SAME, ("n",)),), (), Tolerance("2", "float32"), Cost("12 * n", "2 * n"),
        Room("12 * n", "12 * n"),
    ),
    Kernel(
        "matmul", "matmul", "cupy.matmul", (),
        "out = a @ b; terms of float16 are added up in float32", PASSED_ON + "; where k is 0: zeros",
        (Array("a", ("float32", "float16"), ("m", "k")), Array("b", ("float32", "float16"), ("k", "n"))), (),
        (Out("out", SAME, ("m", "n")),), (), Tolerance("k + 2", "float32"),
        Cost("item * (m * k + k * n + m * n)", "2 * m * n * k"),
        # On a CPU each half is beside a float of it.
        Room("item * (m * k + k * n + m * n)", "(8 - item) * (m * k + k * n + m * n)"),
    ),
    Kernel(
        "reduce_sum", "reduce_sum", "reduce_sum.cu", (PRELUDE, "kernels/reduce_sum.cu"),
        "out = the sum of a, added up in float64, always in the same order on the same device",
        PASSED_ON + "; of nothing: 0",
        (Array("a", REALS, ("n",)),), (), (Out("out", "float64", ()),), (), Tolerance("n", "float64"),
        Cost("item * n + 8", "n"), Room("item * n + 8200", "item * n + 8"),
    ),
    Kernel(
        "histogram", "histogram", "histogram.cu", (PRELUDE, "kernels/histogram.cu"),
        "out[i] = how many of a are in bin i of as many from low to high, both of them included: bin "
        "(a - low) * (bins / (high - low)), in float64, rounded down, the last one at most",
        "NaN and what is outside is not counted; denormals kept; of nothing: zeros",
        (Array("a", F32, ("n",)),),
        (Number("bins", "int", 1, 1 << 20), Number("low", "float", -1e300, 1e300),
         Number("high", "float", -1e300, 1e300)),
        (Out("out", "int64", ("bins",)),), (Rule("1e-290", "high - low", "high"),), EXACT,
        Cost("4 * n + 8 * bins", "4 * n"), Room("4 * n + 8 * bins", "40 * n + 16 * bins"),
    ),
    Kernel(
        "sha256_leaves", "sha256_leaves", "trace.cu", ("sha256.h", "trace.cu"),
        "out[i] = the leaf hash (RFC 6962, 2.1) of entry i of data, which ends where ends[i] says",
        "an entry may be empty" + NOTHING,
        (Array("data", ("uint8",), ("n",)), Array("ends", ("uint64",), ("m",), "ends of data")), (),
        (Out("out", "uint8", ("m", "32")),), (), EXACT, Cost("n + 40 * m", "50 * (n + 73 * m)"),
        Room("n + 40 * m", "2 * n + 96 * m"), ("trace.py", "trace_twin.py", "trace.c", "sha256.h"),
    ),
    Kernel(
        "topk", "topk", "topk.cu", (PRELUDE, "kernels/topk.cu"),
        "values = the k largest of a, descending, and their indices; of equal ones the first comes first",
        "NaN is above all, 0 and -0 are equal, denormals kept" + NOTHING,
        (Array("a", F32, ("n",)),), (Number("k", "int", 0, 1 << 30),),
        (Out("values", SAME, ("k",)), Out("indices", "int64", ("k",))), (Rule("k", "n", "k"),), EXACT,
        Cost("4 * n + 12 * k", "n"), Room("4 * n + 64 * k + 16384", "24 * n + 60 * k"),
    ),
    Kernel(
        "conv2d", "conv2d", "conv2d.cu", (PRELUDE, "kernels/conv2d.cu"),
        "out = the cross-correlation of images with weights, without padding, at every place",
        PASSED_ON + "; without images, channels or weights: as the sum of no terms",
        (Array("images", F32, ("b", "c", "h", "w")), Array("weights", F32, ("o", "c", "r", "s"))), (),
        (Out("out", SAME, ("b", "o", "h - r + 1", "w - s + 1")),),
        (Rule("1", "r", "weights"), Rule("1", "s", "weights"),
         Rule("r", "h", "weights"), Rule("s", "w", "weights")),
        Tolerance("c * r * s + 2", "float32"),
        Cost("4 * (b * c * h * w + o * c * r * s + b * o * (h - r + 1) * (w - s + 1))",
             "2 * b * o * c * r * s * (h - r + 1) * (w - s + 1)"),
        Room("4 * (b * c * h * w + o * c * r * s + b * o * (h - r + 1) * (w - s + 1))",
             "4 * (b * c * h * w + o * c * r * s + b * o * (h - r + 1) * (w - s + 1) "
             "+ (c * r * s + o) * (h - r + 1) * (w - s + 1))"),
    ),
    Kernel(
        "softmax", "softmax", "softmax.cu", (PRELUDE, "kernels/softmax.cu"),
        "out = exp(a - the row's largest), divided by the row's sum of it",
        "a row with NaN or +inf, or of -inf alone, is NaN; denormals kept" + NOTHING,
        (Array("a", F32, ("rows", "columns")),), (), (Out("out", SAME, ("rows", "columns")),), (),
        # The difference is rounded: up to 104 (where exp is 0) times a unit, which exp makes relative.
        Tolerance("columns + 128", "float32"), Cost("8 * rows * columns", "5 * rows * columns"),
        Room("8 * rows * columns", "8 * rows * columns + 8 * rows"),
    ),
)  # fmt: skip
KERNELS: Final = {kernel.name: kernel for kernel in _ROWS}


def code(kernel: Kernel) -> str:
    """The text that is compiled for a device; "" where cupy has it."""
    return "\n".join((HERE.parent / file).read_text() for file in kernel.files)


def module_path(kernel: Kernel) -> Path:
    return HERE / f"{kernel.module}.py"


def described(kernel: Kernel) -> dict[str, Any]:
    """What is signed of a kernel: its row, and the SHA-256 of all that decides what runs when it does."""
    row: dict[str, Any] = json.loads(json.dumps(_plain(kernel)))
    paths = {f"kernels/{path.name}": path for path in [module_path(kernel), *runner()]}
    paths |= {file: HERE.parent / file for file in (*kernel.files, *kernel.beside)}
    row["files"] = {name: sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    return row


def runner() -> list[Path]:
    """What runs every kernel: the modules here, but for the kernels' own and the pages about them."""
    own = {module_path(kernel) for kernel in KERNELS.values()}
    return [path for path in sorted(HERE.glob("*.py")) if path not in own and path.stem not in ABOUT]


def _plain(of: Any) -> Any:
    """Records as objects, at every depth."""
    if hasattr(of, "_asdict"):
        return {name: _plain(field) for name, field in of._asdict().items()}
    return [_plain(item) for item in of] if isinstance(of, tuple) else of
