"""``skep serve --role cuda-annex`` and ``skep annex devices``: what is told before a hive is reached."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from skep.__main__ import run
from tests.daemons import daemon, queen

Capture = pytest.CaptureFixture[str]
NO_CARD = {"CUDA_VISIBLE_DEVICES": ""}  # also where there is one


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in NO_CARD.items():
        monkeypatch.setenv(name, value)
    for name in ("SKEP_ROLE", "SKEP_CONFIG", "SKEP_NO_CUDA", "SKEP_KERNEL_ROOT"):
        monkeypatch.delenv(name, raising=False)


def root() -> str:
    public = Ed25519PrivateKey.generate().public_key()
    Path("root.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return "root.pem"


@pytest.mark.parametrize("how", ["option", "variable", "file"])
def test_who_serves_is_said_by_the_role(how: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["--role", "cuda-annex"] if how == "option" else []
    if how == "variable":
        monkeypatch.setenv("SKEP_ROLE", "cuda-annex")
    if how == "file":
        Path("serve.toml").write_text('role = "cuda-annex"\nslots = 2\n')
        args = ["--dir", "."]
    assert 0 == run(["serve", *args, "--help"])
    assert "--heartbeat" in capsys.readouterr().out


def test_a_queen_has_no_settings_of_an_annex(capsys: Capture) -> None:
    Path("serve.toml").write_text("slots = 2\n")
    assert 1 == run(["serve", "--dir", "."])
    assert "slots: unknown setting" in capsys.readouterr().err
    assert 2 == run(["serve", "--slots", "2"])


@pytest.mark.parametrize(
    ("more", "status", "why"),
    [
        (["--device", "cuda"], 1, "no CUDA device"),
        (["--device", "tpu"], 2, "'tpu' is not one of"),
        (["--memory", "lots"], 2, "'lots': expected bytes, like 4GiB or 65536"),
        (["--labels", "zone"], 2, "expected k:v,k:v"),
        (["--kernel-root", "ROOT"], 4, "asks for a signed --catalogue"),
        (["--kernel-root", "ROOT", "--catalogue", "ROOT"], 4, "ROOT.sig: No such file"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_served(
    more: list[str], status: int, why: str, capsys: Capture
) -> None:
    Path("ROOT").write_bytes(Path(root()).read_bytes())
    hive = ["-H", "unix:nowhere.sock", "--dir", "annex"]
    assert status == run(["serve", "--role", "cuda-annex", *hive, *more])
    assert why in capsys.readouterr().err


@pytest.mark.parametrize("args", [["serve", "--role", "cuda-annex"], ["worker", "--kernels"]])
def test_who_has_no_numpy_takes_no_runs_that_it_would_fail(
    args: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert 1 == run([*args, "-H", "unix:nowhere.sock", "--dir", "annex"])
    assert "skep: numpy is not installed, which kernels need: pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_an_annex_waits_for_its_hive_and_says_what_for(tmp_path: Path) -> None:
    door = f"unix:{tmp_path}/annexes.sock"
    args = ("serve", "--role", "cuda-annex", "--device", "cpu", "--node", "g1", "--dir", str(tmp_path / "g1"))
    with daemon("serving", *args, env={"SKEP_HIVE": f"unix:{tmp_path}/hive.sock"}) as waiting:
        assert f"{door}: not there yet: a queen has it by `skep up`, or --listen-annexes" in waiting.lines
        with queen(tmp_path / "hive", "--listen", f"unix:{tmp_path}/hive.sock", "--listen-annexes", door):
            waiting.wait_ready("ready g1")


def test_the_devices_of_this_machine_are_shown(capsys: Capture) -> None:
    assert 0 == run(["annex", "devices", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert ["cpu:0"] == [device["id"] for device in told["devices"]]
    assert told["why_no_gpu"].startswith("no CUDA device: ")
    assert 1 == run(["annex", "devices", "--device", "cuda"])
