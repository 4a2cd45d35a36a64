"""Kernels in a process of their own: what is done, what ends it, and that it ends alone."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.native.kernels.arguments import Told
from skep.native.kernels.process import Process
from skep.native.kernels.request import Request, RunError
from skep.native.kernels.signature import SignatureError, canonical, sign, signed

pytestmark = pytest.mark.slow
LONG = np.ones((4000, 4000), np.float32)  # its square takes some seconds of a processor


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


def test_elements_alone_are_an_array_where_somebody_tells_what_they_are(
    process: Process, tmp_path: Path
) -> None:
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    inputs = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b")}
    Path(inputs["a"]).write_bytes(a.tobytes())
    Path(inputs["b"]).write_bytes(b"")
    raw = {"a": Told("float32", (2, 3)), "b": Told("float32", (3, 0))}
    request = Request("matmul", inputs, {}, str(tmp_path), "cpu", raw=raw, form="raw")
    made = process.run(request).out["out"]
    assert ("float32", [2, 0], b"") == (made.dtype, made.shape, Path(made.path).read_bytes())
    request = request._replace(inputs=inputs | {"b": inputs["a"]}, raw=raw | {"b": Told("float32", (3, 2))})
    made = process.run(request).out["out"]
    assert (str(tmp_path / "out.raw"), [2, 2]) == (made.path, made.shape)
    assert (a @ a.reshape(3, 2)).tobytes() == Path(made.path).read_bytes()
    for wrong, text in (
        ({"b": Told("float32", (3, 3))}, r"b: .*given 24 bytes, expected the 36 of float32\[3, 3\]"),
        ({"c": Told("float32", (1,))}, "matmul: raw c: expected one of a b"),
        ({"b": Told("float64", (3, 1))}, r"b: given float64\[3, 1\], expected float32\[k, n\]"),
    ):
        with pytest.raises(RunError, match=text) as error:
            process.run(request._replace(raw=raw | wrong))
        assert "argument" == error.value.why


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


def test_results_are_all_there_or_none_is(process: Process, tmp_path: Path) -> None:
    inputs, made = saved(tmp_path, a=np.arange(9, dtype=np.float32), b=LONG), tmp_path / "made"
    made.mkdir()
    request = Request("topk", {"a": inputs["a"]}, {"k": 3}, str(made), "cpu")
    with pytest.raises(RunError, match="k: given 10 and 9"):
        process.run(request._replace(numbers={"k": 10}))
    long = {"a": inputs["b"], "b": inputs["b"]}
    with pytest.raises(RunError, match="not done after"):
        process.run(request._replace(kernel="matmul", inputs=long, numbers={}, seconds=0.01))
    assert [] == list(made.iterdir())
    process.run(request)
    assert {"values.npy", "indices.npy"} == {path.name for path in made.iterdir()}
    with pytest.raises(RunError, match="none: expected a directory") as error:
        process.run(request._replace(out=str(tmp_path / "none")))
    assert "argument" == error.value.why


def used(pid: int) -> int:
    """Ticks of processors that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


@contextlib.contextmanager
def computing(pid: int) -> Iterator[Any]:
    """What is readable when a process has ended; it has been in its run for a tenth of one."""
    before = used(pid)
    with os.fdopen(os.pidfd_open(pid), "rb") as ended:
        while used(pid) < before + os.sysconf("SC_CLK_TCK") // 10:
            assert not select.select([ended], [], [], 0.02)[0]
        yield ended


def test_a_run_is_ended_from_another_thread(tmp_path: Path) -> None:
    first, made = sum_of(tmp_path), tmp_path / "other"
    made.mkdir()
    inputs = saved(tmp_path, b=LONG)
    request = Request("matmul", {"a": inputs["b"], "b": inputs["b"]}, {}, str(made), "cpu")
    with ThreadPoolExecutor() as threads, Process() as process:
        process.run(first)
        assert process.pid is not None
        running = threads.submit(process.run, request)
        with computing(process.pid):
            process.kill()
        with pytest.raises(RunError, match="matmul: its process was told to end") as error:
            running.result()
        assert ("killed", None, []) == (error.value.why, process.pid, list(made.iterdir()))
        with pytest.raises(RunError, match="told to end"):
            process.run(first)


def test_a_process_that_cannot_be_started_says_so(tmp_path: Path) -> None:
    request = sum_of(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Process() as process:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
        try:
            with pytest.raises(RunError, match=r"not started: .*Too many open files") as error:
                process.run(request)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert ("kernel_failed", None) == (error.value.why, process.pid)
        assert "reduce_sum" == process.run(request).kernel


PARENT = """
import sys
from skep.native.kernels.process import Process
from skep.native.kernels.request import Request

out, a, small = sys.argv[1:]
with Process() as process:
    process.run(Request("reduce_sum", {"a": small}, {}, out, "cpu"))
    print(process.pid, flush=True)
    process.run(Request("matmul", {"a": a, "b": a}, {}, out, "cpu"))
"""


def test_it_ends_with_its_parent_in_the_middle_of_a_run(tmp_path: Path) -> None:
    files = saved(tmp_path, a=LONG, small=np.ones(3, np.float32))
    command = [sys.executable, "-c", PARENT, str(tmp_path), files["a"], files["small"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        with computing(pid) as child:
            parent.kill()
            assert select.select([child], [], [], 5)[0]


def test_what_its_parent_knows_it_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SKEP_KMS", "SKEP_HIVE", "AWS_SECRET_ACCESS_KEY", "SECRET"):
        monkeypatch.setenv(name, "of the annex")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with (tmp_path / "secret").open("w") as file, Process() as process:
        os.set_inheritable(file.fileno(), True)
        process.run(sum_of(tmp_path))
        place = Path(f"/proc/{process.pid}")
        environment = (place / "environ").read_bytes().split(b"\0")
        assert [b"CUDA_VISIBLE_DEVICES=0"] == [each for each in environment if each.startswith(b"CUDA_V")]
        assert not [each for each in environment if b"of the annex" in each]
        assert str(tmp_path / "secret") not in [os.readlink(fd) for fd in (place / "fd").iterdir()]
        assert 5 == len(list((place / "fd").iterdir()))  # three, its answers, its life


def test_what_lies_about_where_it_is_started_is_no_module_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    with Process() as process:
        assert "reduce_sum" == process.run(sum_of(tmp_path)).kernel


def test_it_can_do_less_than_its_parent(process: Process, tmp_path: Path) -> None:
    process.run(sum_of(tmp_path))
    assert process.pid is not None
    place = Path(f"/proc/{process.pid}")
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    assert "1" == status["NoNewPrivs"]
    assert "1000\n" == (place / "oom_score_adj").read_text()
    assert (0, 0) == resource.prlimit(process.pid, resource.RLIMIT_CORE)
    assert resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[1] < 1 << 33
    assert process.pid == os.getsid(process.pid)


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


def test_how_it_ended_is_told_however_many_files_are_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2048), hard), hard))
    try:
        with contextlib.ExitStack() as open_, Process() as process:
            for _ in range(1100):  # select(2) takes none from 1024 on
                open_.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            request = sum_of(tmp_path)
            process.run(request)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(RunError, match="SIGKILL") as error:
                process.run(request)
            assert "kernel_failed" == error.value.why
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
