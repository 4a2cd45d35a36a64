"""Enrolling, renewing and revoking as a person types it, on a real network of one machine."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.roles.papers import Papers
from skep.trace.clock import SystemClock
from tests.daemons import WAIT_S, Daemon, run, seconds, wait_for
from tests.networked import NAME, Enrolled, Networked, networked

pytestmark = pytest.mark.slow  # processes begin and end


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networked]:
    with networked(tmp_path_factory.mktemp("trust")) as found:
        yield found


def stranger(hive: Networked, directory: Path) -> Enrolled:
    """Who has no identity yet, and is to have it there."""
    return Enrolled(hive, directory)


def test_an_invite_is_printed_for_a_program_and_the_line_to_type_for_a_person(hive: Networked) -> None:
    done = hive.skep("invite", "--role", "observer", "--node", "eve", "--ttl", "5m", "--address", hive.tls)
    invite = done.stdout.strip()
    assert invite.startswith("skep1.")
    assert f"on eve, within 5m, and paste it:\n  skep enroll {hive.tls} --invite -\n" == done.stderr


def test_the_line_to_type_names_where_the_hive_serves_if_that_is_one_place(
    hive: Networked, tmp_path: Path
) -> None:
    asked = ("invite", "--role", "observer", "--node", "eve")
    assert hive.tls == hive.ask("cat", "/trust/addresses")
    assert f"  skep enroll {hive.tls} --invite -" == hive.skep(*asked).stderr.splitlines()[-1]
    with networked(tmp_path, "--listen", "tls:127.0.0.1:0") as two:
        assert 2 == len(two.ask("cat", "/trust/addresses").splitlines())
        assert "  skep enroll tls:HOST:PORT --invite -" == two.skep(*asked).stderr.splitlines()[-1]
    with networked(tmp_path, tls="tls:0.0.0.0:0") as every:
        port = every.tls.rpartition(":")[2]
        assert f"  skep enroll tls:HOST:{port} --invite -" == every.skep(*asked).stderr.splitlines()[-1]


def test_who_was_invited_enrolls_and_is_who_the_certificate_says(hive: Networked) -> None:
    ann = hive.enroll("operator", "ann")
    assert 0o600 == stat.S_IMODE((ann.directory / "key.pem").stat().st_mode)
    assert 0o700 == stat.S_IMODE(ann.directory.stat().st_mode)
    said = dict(line.split(" ", 1) for line in ann.ask("whoami").splitlines())
    assert (f"spiffe://{NAME}/operator/ann", "operator") == (said["principal"], said["role"])
    assert "online" == ann.ask("cat", "/state")
    told = ann.told()
    assert (f"spiffe://{NAME}/operator/ann", hive.tls) == (told["name"], told["address"])
    recorded = map(json.loads, hive.ask("cat", "/trust/certificates.jsonl").splitlines())
    assert told["serial"] in [row["serial"] for row in recorded if row["node"] == "ann"]


def test_the_key_never_leaves_and_no_secret_stays_in_the_ledger(hive: Networked) -> None:
    invite = hive.invite("observer", "shy")
    shy = stranger(hive, hive.directory.parent / "identity-shy")
    shy.ask("enroll", hive.tls, "--invite", invite)
    secret = json.loads(base64.urlsafe_b64decode(invite.removeprefix("skep1.") + "==="))["secret"]
    key = (shy.directory / "key.pem").read_text().splitlines()[1]
    for file in hive.directory.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert secret.encode() not in data, file
            assert key.encode() not in data, file


def test_what_was_cut_off_is_finished_by_the_same_invite_and_key(hive: Networked, tmp_path: Path) -> None:
    invite = hive.invite("observer", "cut")
    cut = stranger(hive, tmp_path / "cut")
    cut.ask("enroll", hive.tls, "--invite", invite)
    key, serial = (cut.directory / "key.pem").read_bytes(), cut.told()["serial"]
    # As if the power had gone before the answer was written down.
    (cut.directory / "cert.pem").unlink()
    (cut.directory / ".cert.pem.new").write_text("half")
    assert "no identity" in cut.skep("whoami").stderr
    cut.ask("enroll", hive.tls, "--invite", invite)
    assert (key, serial) == ((cut.directory / "key.pem").read_bytes(), cut.told()["serial"])
    assert "role observer" in cut.ask("whoami").splitlines()


def test_an_invite_is_good_once(hive: Networked, tmp_path: Path) -> None:
    invite = hive.invite("observer", "once")
    stranger(hive, tmp_path / "first").ask("enroll", hive.tls, "--invite", invite)
    thief = stranger(hive, tmp_path / "thief")
    done = thief.skep("enroll", hive.tls, "--invite", invite)
    assert (4, "") == (done.returncode, done.stdout)
    assert "rule=invite-once" in done.stderr
    assert not (thief.directory / "cert.pem").exists()


def test_the_hive_proves_itself_before_it_is_told_the_secret(tmp_path: Path, hive: Networked) -> None:
    with networked(tmp_path / "other") as other:
        invite = other.invite("observer", "lured")
    lured = stranger(hive, tmp_path / "lured")
    done = lured.skep("enroll", hive.tls, "--invite", invite)
    assert (4, "") == (done.returncode, done.stdout)
    assert "pin" in done.stderr
    assert not (lured.directory / "cert.pem").exists()


def test_a_directory_holds_one_identity(hive: Networked, tmp_path: Path) -> None:
    first = stranger(hive, tmp_path / "one")
    first.ask("enroll", hive.tls, "--invite", hive.invite("observer", "one"))
    done = first.skep("enroll", hive.tls, "--invite", hive.invite("observer", "two"))
    assert 1 == done.returncode
    assert f"holds the identity of spiffe://{NAME}/observer/one" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("enroll", "tcp:127.0.0.1:1", "--invite", "skep1.x"), 2, "one enrolls over TLS"),
        (("enroll", "tls:127.0.0.1:1", "--invite", "s3cret"), 2, "no invite: expected one word that begins"),
        (("enroll", "tls:127.0.0.1:1", "--invite", "skep1.s3cret"), 2, "no invite, or not all of one"),
        (("revoke",), 2, "expected one of --node, --serial, --token"),
        (("invite", "--role", "queen-primary", "--node", "q"), 1, "usage"),
        (("-H", "tls:127.0.0.1:1", "ls"), 1, "no identity for tls:127.0.0.1:1 in "),
        (("mount", "tls:127.0.0.1:1", "/tmp"), 1, "no identity for tls:127.0.0.1:1 in "),
        (
            ("worker", "-H", "tls:127.0.0.1:1", "--handlers", "/dev/null"),
            1,
            "no identity for tls:127.0.0.1:1",
        ),
        (("identity",), 1, "no identity in "),
        (("renew",), 1, "no identity in "),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    hive: Networked, tmp_path: Path, args: tuple[str, ...], status: int, said: str
) -> None:
    done = run(*args, env={"SKEP_HIVE": hive.address, "XDG_CONFIG_HOME": str(tmp_path)})
    assert (status, "") == (done.returncode, done.stdout), done
    assert said in done.stderr
    assert "s3cret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_identity_is_found_by_the_hive_it_was_got_from(hive: Networked, tmp_path: Path) -> None:
    env = {"SKEP_HIVE": hive.tls, "XDG_CONFIG_HOME": str(tmp_path)}
    home = tmp_path / "skep" / "identities"
    done = run("enroll", hive.tls, "--invite", hive.invite("observer", "home"), env=env)
    assert f"enrolled as spiffe://{NAME}/observer/home in {home / NAME}\n" == done.stdout
    assert "online\n" == run("cat", "/state", env=env).stdout
    shutil.copytree(home / NAME, home / "another")
    assert f"several identities for {hive.tls} (another, {NAME})" in run("cat", "/state", env=env).stderr
    (home / "another" / "address").write_text("tls:192.0.2.1:564\n")
    assert "online\n" == run("cat", "/state", env=env).stdout
    assert 2 == len(run("identity", "--json", env=env).stdout.splitlines())


def test_a_key_that_others_can_read_is_not_used(hive: Networked, tmp_path: Path) -> None:
    careless = stranger(hive, tmp_path / "careless")
    careless.ask("enroll", hive.tls, "--invite", hive.invite("observer", "careless"))
    (careless.directory / "key.pem").chmod(0o640)
    done = careless.skep("cat", "/state")
    assert 1 == done.returncode
    assert "key.pem can be read by others: chmod 600 it" in done.stderr


def test_a_young_certificate_is_renewed_by_itself(hive: Networked) -> None:
    rene = hive.enroll("observer", "rene")
    before = rene.told()["serial"]
    assert f"serial {before}" in rene.ask("renew").splitlines()


def test_renewing_keeps_the_name_and_changes_the_certificate(tmp_path: Path) -> None:
    with networked(tmp_path, "--certificate-ttl", "10s") as brief:
        rene = brief.enroll("observer", "rene")
        before = rene.told()
        rene.ask("renew")
        after = rene.told()
        assert before["name"] == after["name"]
        assert before["serial"] != after["serial"]
        assert "online" == rene.ask("cat", "/state")
        # Nobody renews it further: then only an invite helps, and the same key will do.
        until_ns = Papers(rene.directory).end_ns()
        wait_for(lambda: SystemClock().now_ns() > until_ns, "its end")
        late = rene.skep("renew")
        assert 4 == late.returncode
        assert "certificate expired" in late.stderr
        rene.ask("enroll", brief.tls, "--invite", "-", stdin=brief.invite("observer", "rene"))
        assert "online" == rene.ask("cat", "/state")


def test_a_revoked_nodes_session_ends_at_once_and_it_comes_in_no_more(hive: Networked) -> None:
    mallory = hive.enroll("observer", "mallory")
    reading = Daemon("tail", "-f", "/events", env=mallory.env)
    try:
        wait_for(lambda: "mallory" in sessions(hive), "mallory's session")
        hive.ask("revoke", "--node", "mallory", "--reason", "stolen")
        began = time.monotonic()
        status = reading.process.wait(WAIT_S)
        assert time.monotonic() - began < seconds(1)
        assert 3 == status
    finally:
        reading.end(signal.SIGKILL)
    assert "mallory" not in sessions(hive)
    assert 4 == mallory.skep("cat", "/state").returncode
    assert 4 == mallory.skep("renew").returncode


def sessions(hive: Networked) -> str:
    """Whose sessions there are."""
    return "".join(
        hive.skep("cat", f"/sessions/{id}/principal").stdout for id in hive.ask("ls", "/sessions").split()
    )
