"""Kernels in a process of their own: what is done, what ends it, and that it ends alone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.native.kernels.process import Process
from skep.native.kernels.request import Request, RunError
from skep.native.kernels.signature import SignatureError, canonical, sign, signed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    with Process() as found:
        yield found


def saved(directory: Path, **arrays: Any) -> dict[str, str]:
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array)
    return {name: str(directory / f"{name}.npy") for name in arrays}


def sum_of(directory: Path, size: int = 3, **more: Any) -> Request:
    made = directory / "made"
    made.mkdir(exist_ok=True)
    inputs = saved(directory, a=np.ones(size, np.float32))
    return Request("reduce_sum", inputs, {}, str(made), **{"device": "cpu", **more})


def test_results_are_files_and_say_the_device(process: Process, tmp_path: Path) -> None:
    done = process.run(sum_of(tmp_path))
    assert ("reduce_sum", "cpu: asked") == (done.kernel, done.device)
    assert ("float64", []) == (done.out["out"].dtype, done.out["out"].shape)
    assert 3.0 == np.load(done.out["out"].path)
    first = process.pid
    process.run(sum_of(tmp_path, 0))
    assert first == process.pid


def test_what_is_no_array_is_refused_and_the_process_goes_on(process: Process, tmp_path: Path) -> None:
    request, first = sum_of(tmp_path), process.pid
    for content in (b"", b"not an array", np.array([{}]).dumps()):
        Path(request.inputs["a"]).write_bytes(content)
        with pytest.raises(RunError, match="expected an array") as error:
            process.run(request)
        assert "argument" == error.value.why
    with open(request.inputs["a"], "wb") as file:
        np.savez(file, a=np.ones(3, np.float32))
    with pytest.raises(RunError, match="expected an array"):
        process.run(request)
    np.save(request.inputs["a"], np.array([{}], object), allow_pickle=True)
    with pytest.raises(RunError, match="a: "):
        process.run(request)
    with pytest.raises(RunError, match="expected one of vector_add"):
        process.run(request._replace(kernel="nothing"))
    assert first in (None, process.pid)


def test_a_fault_ends_the_process_alone(process: Process, tmp_path: Path) -> None:
    request = sum_of(tmp_path)
    process.run(request)
    first = process.pid
    assert first is not None
    os.kill(first, signal.SIGSEGV)
    with pytest.raises(RunError, match="reduce_sum: its process ended: SIGSEGV") as error:
        process.run(request)
    assert "kernel_failed" == error.value.why
    process.run(request)
    assert process.pid not in (None, first)


def test_a_warm_process_counts_what_a_cold_one_counts(process: Process, tmp_path: Path) -> None:
    inputs = saved(tmp_path, a=np.linspace(-1, 2, 1000, dtype=np.float32))
    numbers = {"bins": 7, "low": 0.0, "high": 1.0}
    request = Request("histogram", inputs, numbers, str(tmp_path), "cpu")
    cold = np.load(process.run(request).out["out"].path).tolist()
    with Process(warm=True) as warm:
        assert cold == np.load(warm.run(request).out["out"].path).tolist()


def test_over_its_time_it_is_killed(process: Process, tmp_path: Path) -> None:
    square = np.ones((1500, 1500), np.float32)
    request = Request("matmul", saved(tmp_path, a=square, b=square), {}, str(tmp_path), "cpu", 0.001)
    with pytest.raises(RunError, match=r"matmul: not done after 0\.001 s") as error:
        process.run(request)
    assert "time" == error.value.why
    assert process.pid is None


def test_over_its_memory_it_says_so(process: Process, tmp_path: Path) -> None:
    column = np.ones((8000, 1), np.float32)
    inputs = saved(tmp_path, a=column, b=column.T)
    request = Request("matmul", inputs, {}, str(tmp_path), "cpu", size_max=64 << 20)
    with pytest.raises(RunError) as error:
        process.run(request)
    assert "oom" == error.value.why
    assert 8000 == np.load(process.run(request._replace(size_max=1 << 30)).out["out"].path).shape[0]


def test_a_signed_catalogue_says_what_may_run(process: Process, tmp_path: Path) -> None:
    key, text = Ed25519PrivateKey.generate(), canonical()
    file = tmp_path / "kernels.json"
    file.write_bytes(text)
    (tmp_path / "kernels.json.sig").write_bytes(sign(text, key))
    rows = signed(file, key.public_key())
    process.run(sum_of(tmp_path, signed=rows["reduce_sum"]))
    with pytest.raises(RunError, match="reduce_sum: not as it was signed") as error:
        process.run(sum_of(tmp_path, signed=rows["vector_add"]))
    assert "unsigned" == error.value.why
    with pytest.raises(SignatureError, match="not a signature of"):
        signed(file, Ed25519PrivateKey.generate().public_key())
    file.write_bytes(text.replace(b"vector_add", b"vector_mul"))
    with pytest.raises(SignatureError, match="not a signature of"):
        signed(file, key.public_key())
