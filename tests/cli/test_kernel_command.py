"""``skep kernel``: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from skep.__main__ import run
from skep.native.kernels.catalogue import KERNELS

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKEP_KERNEL_ROOT", raising=False)
    monkeypatch.delenv("SKEP_KERNEL_CATALOGUE", raising=False)
    monkeypatch.setenv("SKEP_NO_CUDA", "1")
    np.save("a.npy", np.array([[1, 2], [3, 4]], np.float32))


SUM = ["kernel", "run", "reduce_sum", "--out", "made", "--in"]
MATMUL = ["kernel", "run", "matmul", "--in", "a=a.npy", "--in", "b=a.npy", "--out", "made"]


def keys() -> tuple[str, str]:
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    Path("key.pem").write_bytes(private)
    Path("root.pem").write_bytes(public)
    return "key.pem", "root.pem"


def test_the_list_has_every_kernel(capsys: Capture) -> None:
    assert 0 == run(["kernel", "list", "--json"])
    assert list(KERNELS) == [json.loads(line)["kernel"] for line in capsys.readouterr().out.splitlines()]
    assert 0 == run(["kernel", "show", "topk"])
    assert "where    k <= n\n" in capsys.readouterr().out
    assert 2 == run(["kernel", "show", "topp"])


@pytest.mark.slow
def test_a_run_says_its_device_and_what_it_made(capsys: Capture) -> None:
    assert 0 == run([*MATMUL, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert "cpu: disabled" == told["device"]
    assert [[7, 10], [15, 22]] == np.load(told["out"]["out"]["path"]).tolist()
    assert 0 == run([*MATMUL, "--device", "cpu"])
    assert capsys.readouterr().out.startswith("matmul on cpu: asked, ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "status", "text"),
    [
        ([*MATMUL, "--device", "cuda"], 5, "skep: disabled: matmul: no CUDA device: disabled\n"),
        ([*SUM, "a=a.npy"], 2, "a: given float32[2, 2], expected float32[n]"),
        ([*SUM, "a=b.npy"], 2, "a: b.npy: expected a file"),
        ([*MATMUL, "--set", "k=3"], 2, "k: given a number, expected of its kind only none"),
        ([*MATMUL, "--seconds", "0.001"], 6, "time: matmul: not done after 0.001 s"),
    ],
)
def test_each_way_to_fail_has_its_status(args: list[str], status: int, text: str, capsys: Capture) -> None:
    if "0.001" in args:
        np.save("a.npy", np.ones((1500, 1500), np.float32))
    assert status == run(args)
    assert text in capsys.readouterr().err
    assert not list(Path("made").iterdir())


@pytest.mark.slow
def test_elements_alone_are_told_and_given(capsys: Capture) -> None:
    Path("a.bin").write_bytes(np.arange(3, dtype=np.float32).tobytes())
    raw = [*SUM, "a=a.bin", "--form", "raw", "--raw"]
    assert 0 == run([*raw, "a=float32:3"])
    assert np.float64(3).tobytes() == Path("made/out.raw").read_bytes()
    assert 2 == run([*raw, "a=float32:4"])
    assert 2 == run([*raw, "a=float33:3"])
    assert "a: 'float33:3': expected DTYPE" in capsys.readouterr().err
    assert 2 == run([*SUM, "a=a.npy", "--device", "cuda:x"])


@pytest.mark.slow
def test_a_source_is_launched_on_a_device_or_not_at_all(capsys: Capture) -> None:
    Path("f.cu").write_text('extern "C" __global__ void f(float *y) {}')
    launch = ["kernel", "launch", "f.cu", "--function", "f", "--grid", "1", "--out", "made", "--args"]
    assert 5 == run([*launch, "out:y:float32:3", "--block", "32"])
    assert "disabled: f: no CUDA device: disabled" in capsys.readouterr().err
    assert 2 == run([*launch, "out:y:float32:3", "--block", "2048"])
    assert 2 == run([*launch, "in:y", "--block", "32"])
    assert "f: y: given nothing, expected an array" in capsys.readouterr().err


def test_arguments_are_pairs(capsys: Capture) -> None:
    for wrong in ("a", "a=", "=b"):
        assert 2 == run([*SUM, wrong])
    assert 2 == run([*SUM, "a=a.npy", "--set", "k=many"])
    assert "k=many: expected a number" in capsys.readouterr().err


@pytest.mark.slow
def test_with_a_pinned_key_only_what_it_signed_runs(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    key, root = keys()
    pinned = [*MATMUL, "--root", root]
    assert 4 == run(pinned)
    assert 0 == run(["kernel", "sign", "--key", key, "kernels.json"])
    assert 0 == run(["kernel", "verify", "--root", root, "kernels.json"])
    assert f"{len(KERNELS)} kernels, signed and as they are here" in capsys.readouterr().out
    monkeypatch.setenv("SKEP_KERNEL_CATALOGUE", "kernels.json")
    assert 0 == run(pinned)
    text = Path("kernels.json").read_text()
    Path("kernels.json").write_text(text.replace("3.4e+38", "3.4e+37"))
    assert 4 == run(pinned)
    assert 4 == run(["kernel", "verify", "--root", root, "kernels.json"])
    assert "kernels.json.sig: not a signature of kernels.json" in capsys.readouterr().err


def test_an_old_catalogue_that_was_signed_is_not_of_what_is_here(capsys: Capture) -> None:
    import base64

    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key, root = keys()
    assert 0 == run(["kernel", "sign", "--key", key, "kernels.json"])
    catalogue = json.loads(Path("kernels.json").read_text())
    catalogue["kernels"]["softmax"]["files"]["kernels/softmax.cu"] = "0" * 64
    text = json.dumps(catalogue).encode()
    private = load_pem_private_key(Path(key).read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    Path("kernels.json").write_bytes(text)
    Path("kernels.json.sig").write_bytes(base64.b64encode(private.sign(b"skep kernels\n" + text)))
    assert 4 == run(["kernel", "verify", "--root", root, "kernels.json"])
    assert "softmax: not as it was signed: kernels/softmax.cu" in capsys.readouterr().err
    assert 4 == run([*MATMUL[:2], "softmax", *MATMUL[3:5], "--out", "made", "--root", root,
                     "--catalogue", "kernels.json"])  # fmt: skip
