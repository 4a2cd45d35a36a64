"""``skep verify --witness``: a checkpoint that too few have cosigned is not believed."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from logs import as_tiles, bodies, checkpoint, head_of, write_ledger

from skep.cli.verifying import verify_command
from skep.trace.cosignature import cosign
from skep.trace.note import COSIGNER, Signing, Vkey
from skep.validator.verify.found import Kind

KEYS = [Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n + 9]) * 32)) for n in range(3)]
VKEYS = [Vkey(f"w{n}", key.public, COSIGNER) for n, key in enumerate(KEYS)]


def agreed(entries: list[bytes], *ns: int) -> bytes:
    """Their checkpoint, cosigned by these."""
    text = head_of(entries).text()
    lines = (cosign(text, f"w{n}", KEYS[n], 1_700_000_000).line() for n in ns)
    return checkpoint(entries) + "".join(lines).encode()


def copied(directory: Path, entries: list[bytes], note: bytes = b"") -> Path:
    for name, data in (as_tiles(entries) | ({"agreed": note} if note else {})).items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(data)
    return directory


def verified(*args: str | Path) -> tuple[int, str]:
    """The exit status, and what was printed or is told."""
    done = CliRunner().invoke(verify_command, list(map(str, args)))
    status = getattr(done.exception, "status", done.exit_code)
    return status, str(done.exception) if status not in (0, 2) else done.output


def named(*ns: int) -> list[str]:
    return [word for n in ns for word in ("--witness", str(VKEYS[n]))]


def test_what_is_agreed_is_believed_and_must_be_continued(tmp_path: Path) -> None:
    log = copied(tmp_path, bodies(12), agreed(bodies(9), 0, 2))
    status, said = verified(*named(0, 1, 2), log)
    assert 0 == status
    assert "continues the checkpoint of 9 entries\n" in said
    assert f"cosigned by {VKEYS[2]} at 2023-11-14T22:13:20Z\n" in said
    assert 0 == verified(*named(0, 2), "--quorum", "2", log)[0]
    status, said = verified(*named(0, 1, 2), "--quorum", "3", log)
    assert Kind.UNWITNESSED.value == status
    assert "2 of 3 witnesses have cosigned it, expected 3: not w1" in said
    assert Kind.UNWITNESSED.value == verified(*named(1), log)[0]
    # One key twice is one witness.
    assert Kind.UNWITNESSED.value == verified(*named(0, 1), *named(0, 1), "--quorum", "2", log)[0]


def test_another_log_than_the_agreed_one_is_found(tmp_path: Path) -> None:
    forged = bodies(12)
    forged[4] = forged[4].replace(b"submit", b"cancel")
    log = copied(tmp_path / "forged", forged, agreed(bodies(9), 0, 1))
    assert Kind.FORKED.value == verified(*named(0, 1), log)[0]
    log = copied(tmp_path / "cut", bodies(5), agreed(bodies(9), 0, 1))
    assert Kind.REWOUND.value == verified(*named(0, 1), log)[0]
    # What was cosigned is what is signed, not what stands there.
    note = agreed(bodies(9), 0, 1).replace(b"\n9\n", b"\n8\n")
    assert Kind.UNWITNESSED.value == verified(*named(0, 1), copied(tmp_path / "re", bodies(12), note))[0]


def test_a_ledger_has_it_beside_it_and_a_kept_one_will_do(tmp_path: Path) -> None:
    ledger = write_ledger(tmp_path / "ledger.db", bodies(12))
    status, said = verified(*named(0), ledger)
    assert (1, True) == (status, "nothing is agreed there" in said)
    (tmp_path / "log" / "trace").mkdir(parents=True)
    (tmp_path / "log" / "trace" / "agreed").write_bytes(agreed(bodies(9), 0))
    assert 0 == verified(*named(0), ledger)[0]
    (tmp_path / "kept").write_bytes(agreed(bodies(7), 1))
    assert 0 == verified(*named(1), "--checkpoint", tmp_path / "kept", ledger)[0]
    assert Kind.UNWITNESSED.value == verified(*named(0), "--checkpoint", tmp_path / "kept", ledger)[0]


@pytest.mark.parametrize("args", [["--quorum", "2", *named(0)], ["--quorum", "1"], ["--witness", "w+00+AA"]])
def test_what_cannot_be_asked_is_a_mistake_of_usage(tmp_path: Path, args: list[str]) -> None:
    assert 2 == verified(*args, copied(tmp_path, bodies(3)))[0]
