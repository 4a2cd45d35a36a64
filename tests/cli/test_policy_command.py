"""``skep policy`` from a directory to a live bundle and back."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.namespaces.policy import keys
from tests.daemons import ROOT, Hive, queen, run

DEFAULT = ROOT / "skep" / "namespaces" / "policy" / "default"
DENY_DRAIN = '@id("no-drain")\nforbid (principal, action == Skep::Action::"hive.drain", resource);\n'


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with queen(tmp_path_factory.mktemp("policy")) as found:
        yield found


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A bundle of its own, with the schema of this release."""
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(DEFAULT / "skep.cedarschema", folder)
    (folder / "mine.cedar").write_text(DENY_DRAIN)
    test = (
        '"name": "nobody drains", "request": {"action": "hive.drain"}, "decision": "DENY", "rule": "no-drain"'
    )
    (folder / "tests.json").write_text(f"[{{{test}}}]")
    return folder


@pytest.mark.slow
def test_a_bundle_is_checked_tested_signed_published_and_rolled_back(
    hive: Hive, mine: Path, tmp_path: Path
) -> None:
    key = tmp_path / "ann.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    checked = hive.skep("policy", "check", str(mine))
    assert 0 == checked.returncode
    assert checked.stderr.startswith("1 policies, 1 tests passed, sha256:")
    assert "ok     DENY     operator/no-drain  nobody drains" == hive.ask("policy", "test", str(mine))

    unsigned = hive.skep("policy", "publish", "--key", str(key), str(mine))
    assert 4 == unsigned.returncode
    assert "signature: no trusted key made it: expected one of hive" in unsigned.stderr
    assert hive.ask("policy", "trust", "--key", str(key), "ann").startswith("ann rev=")
    assert hive.skep("policy", "publish", "--key", str(key), str(mine)).stdout.startswith("mine@1 rev=")
    refused = hive.skep("write", "/ctl", "drain")
    assert 4 == refused.returncode
    assert "permission denied: rule=mine/no-drain role operator may not hive.drain" in refused.stderr

    told = hive.ask("policy", "explain", '{"action": "hive.drain"}').splitlines()
    assert "mine/no-drain  DENY  mine.cedar:1  matches" in told
    assert "default/workers-work  ALLOW  workers.cedar:2  does not match: action" in told

    (mine / "mine.cedar").write_text("")
    (mine / "tests.json").unlink()
    assert hive.skep("policy", "publish", "--key", str(key), str(mine)).stdout.startswith("mine@2 rev=")
    request = '{"action": "hive.drain"}'
    assert "ALLOW" == json.loads(hive.ask("policy", "simulate", request))["decision"]
    assert hive.ask("policy", "rollback", "mine", "1").startswith("mine@1 rev=")
    assert "DENY" == json.loads(hive.ask("policy", "simulate", request))["decision"]


@pytest.mark.slow
def test_a_bad_bundle_is_told_with_file_and_line(mine: Path) -> None:
    (mine / "mine.cedar").write_text(DENY_DRAIN + "permit (principal, action, resource) when { 1 + };")
    done = run("policy", "check", str(mine))
    assert (1, f"skep: {mine}/mine.cedar:3: unexpected token `}}`\n") == (done.returncode, done.stderr)


@pytest.mark.slow
def test_a_failing_test_is_shown_among_the_others(mine: Path) -> None:
    (mine / "tests.json").write_text('[{"name": "a", "request": {"action": "x.y"}, "decision": "ALLOW"}]')
    done = run("policy", "test", str(mine))
    assert (1, "FAILED DENY     default-deny  a\n") == (done.returncode, done.stdout)


@pytest.mark.slow
def test_the_line_that_sign_prints_publishes_the_draft(mine: Path, tmp_path: Path) -> None:
    signer = keys.create(tmp_path / "ann.pem")
    done = run("policy", "sign", "--key", str(tmp_path / "ann.pem"), str(mine))
    verb, bundle, sha256, sig = done.stdout.split()
    assert ("publish", "bundle=mine") == (verb, bundle)
    said = f"skep policy bundle\nmine\n{sha256.removeprefix('sha256=')}\n".encode()
    assert keys.verify(signer.public, sig.removeprefix("sig="), said)


def test_the_schema_of_this_release_is_printed() -> None:
    assert (DEFAULT / "skep.cedarschema").read_text() == run("policy", "schema").stdout
