"""``skep witness``: what it is told wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from skep.cli.witnessing import witness_command
from skep.trace.note import COSIGNER, Signing, Vkey

PUBLIC = Signing.of(Ed25519PrivateKey.from_private_bytes(bytes(32))).public
LOG, WITNESS = str(Vkey("h1/log/trace", PUBLIC)), str(Vkey("w1", PUBLIC, COSIGNER))


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--log", "h1"], "expected <name>+<id>+<base64>"),
        (["--log", WITNESS], "of kind 01"),
        (["--listen", "tls:127.0.0.1:0"], "a witness is served to this machine"),
        (["nowhere"], "nowhere"),
        (["--every", "often"], "often"),
    ],
)
def test_a_mistake_of_usage_is_told(tmp_path: Path, args: list[str], why: str) -> None:
    done = CliRunner().invoke(witness_command, ["--dir", str(tmp_path), *args])
    assert (2, True) == (done.exit_code, why in done.output), done.output


def test_keys_may_be_in_a_file(tmp_path: Path) -> None:
    known = tmp_path / "known"
    known.write_text(f"# the hives of our region\n{LOG} active\n\nh2\n")
    done = CliRunner().invoke(witness_command, ["--dir", str(tmp_path), "--logs", str(known)])
    assert (2, True) == (done.exit_code, "'h2'" in done.output)
