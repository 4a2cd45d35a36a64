"""Workers over TLS: papers renewed and CAs rotated under load, nodes revoked, and no job lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skep.fs.dial import Client
from skep.fs.messages import Dialect
from tests.daemons import Daemon, seconds, wait_for
from tests.namespaces.imaging import MANIFEST, archive
from tests.networked import NAME, Networked, networked

pytestmark = pytest.mark.slow  # processes begin and end


@pytest.fixture
def brief(tmp_path: Path) -> Iterator[Networked]:
    """A hive whose certificates are good for ten seconds."""
    with networked(tmp_path, "--certificate-ttl", "10s") as found:
        yield found


@pytest.fixture
def hive(tmp_path: Path) -> Iterator[Networked]:
    with networked(tmp_path) as found:
        yield found


async def load(client: Client, seconds: float, also: str = "") -> list[str]:
    """Jobs submitted one after another for so long, each waited for: how each ended, and after how many
    attempts. Beside them one that sleeps throughout. ``also``: a line for /trust/ctl in the midst of it."""

    async def submit(what: str) -> str:
        async with await client.open("/jobs/ctl", "rw") as fid:
            await fid.write_all(f"submit {what}\n".encode())
            return (await fid.read(0, fid.unit)).decode().split()[0]

    async def end(job: str) -> str:
        state = (await client.read_file(f"/jobs/{job}/wait")).decode().strip()
        attempts = (await client.read_file(f"/jobs/{job}/attempts")).decode().splitlines()
        return f"{state} {len(attempts)}"

    long = await submit(f"topic=sleep input={seconds}")
    ends, until = [], time.monotonic() + seconds
    middle = until - seconds / 2
    while time.monotonic() < until:
        # Somebody is at work all the time, and the processor is not.
        ends.append(await end(await submit("topic=sleep input=0.1")))
        if also and time.monotonic() > middle:
            await client.write_file("/trust/ctl", f"{also}\n".encode())
            also = ""
    return [*ends, await end(long)]


def loaded(hive: Networked, seconds: float, also: str = "") -> list[str]:
    async def run() -> list[str]:
        async with await Client.connect(hive.address, dialect=Dialect.U) as client:
            return await load(client, seconds, also)

    return asyncio.run(run())


def said(worker: Daemon) -> str:
    """All that an ended worker has printed."""
    assert worker.process.stdout is not None
    return worker.process.stdout.read()


def test_a_worker_renews_itself_and_no_job_notices(brief: Networked) -> None:
    w7 = brief.enroll("drone-worker", "w7")
    first = w7.told()["serial"]
    with w7.working(slots=2) as worker:
        ends = loaded(brief, 15)
        worker.process.terminate()
        log = said(worker)
    assert {"succeeded 1"} == set(ends)
    assert len(ends) > 10
    assert log.count("anew, with the papers of now") >= 2, log
    assert "trying again" not in log
    assert first != w7.told()["serial"]


def test_a_gpu_server_is_a_worker_by_its_own_certificate(hive: Networked) -> None:
    """It joins, takes leases, seals what came of them and is commanded as any other node."""
    annex = hive.enroll("cuda-annex", "gpu1")
    # It does what needs a device, and what falls back from that.
    hive.ask("write", "/pools/ctl", "create pool=gpu-cpu")
    hive.ask("write", "/pools/ctl", "create pool=gpu requires=gpu fallback=gpu-cpu")
    hive.ask("write", "/pools/ctl", "map topic=copy pool=gpu-cpu")
    with annex.working(pools="gpu-cpu"):
        assert ["cuda-annex", "green"] == [
            hive.ask("cat", f"/nodes/gpu1/{name}") for name in ("role", "trust")
        ]
        job = hive.ask("write", "/jobs/ctl", "submit topic=copy input=overlay").split()[0]
        assert "succeeded" == hive.ask("cat", f"/jobs/{job}/wait")
        name, sha256 = hive.ask("cat", f"/jobs/{job}/artifacts").split()
        assert ("copy", "overlay") == (name, hive.ask("cat", f"/artifacts/{sha256}/data"))
        hive.ask("write", "/nodes/ctl", "cordon node=gpu1")
        hive.ask("write", "/nodes/ctl", "trust node=gpu1 level=red")
        assert ["cordoned", "red"] == [hive.ask("cat", f"/nodes/gpu1/{name}") for name in ("state", "trust")]


def test_a_machine_of_the_boot_lab_does_runs_and_sees_nothing_else(hive: Networked) -> None:
    lab = hive.enroll("boot-lab", "lab1")
    image = archive({"boot.toml": MANIFEST, "kernel": b"kernel"}).decode()
    hive.ask("write", "/artifacts/stage/worker.boot", stdin=image)
    hive.ask("write", "/boot/ctl", "put image=worker")
    run = hive.ask("write", "/boot/ctl", "run image=worker").split()[0]
    with lab.working(pools="boot-lab"):
        assert "succeeded" == hive.ask("cat", f"/boot/runs/{run}/wait")
        assert image == hive.ask("cat", f"/boot/runs/{run}/timing.json")
        assert "boot-lab" == hive.ask("cat", "/nodes/lab1/role")
    for path in ("/boot", f"/jobs/{run}/state", "/pools/default", "/artifacts/by-name"):
        assert 1 == lab.skep("ls", path).returncode


def test_a_ca_is_rotated_under_load_and_no_job_is_lost(hive: Networked) -> None:
    workers = [hive.enroll("drone-worker", name) for name in ("w1", "w2")]
    with workers[0].working(slots=2) as first, workers[1].working() as second:
        ends = loaded(hive, 18, "rotate what=ca overlap=7s")
        assert 1 == hive.ask("cat", "/trust/ca.pem").count("BEGIN CERTIFICATE")
        assert {"succeeded 1"} == set(loaded(hive, 1))
        for worker in (first, second):
            worker.process.terminate()
            log = said(worker)
            assert 1 == log.count("anew, with the papers of now"), log
            assert "trying again" not in log
    assert {"succeeded 1"} == set(ends)
    for enrolled in workers:
        assert hive.ask("cat", "/trust/ca.pem") == (enrolled.directory / "ca.pem").read_text().strip()


def test_a_worker_that_comes_back_after_a_rotation_knows_the_new_ca(hive: Networked) -> None:
    """It was away while the CA changed, and knows the old one alone; both are trusted still."""
    w1 = hive.enroll("drone-worker", "w1")
    hive.ask("write", "/trust/ctl", "rotate what=ca overlap=1h")
    with w1.working():
        wait_for(lambda: 2 == (w1.directory / "ca.pem").read_text().count("BEGIN"), "both CAs")
        assert {"succeeded 1"} == set(loaded(hive, 1))


def test_a_revoked_workers_session_ends_within_a_second_and_another_does_its_job(hive: Networked) -> None:
    lost, other = (hive.enroll("drone-worker", name) for name in ("w1", "w2"))
    with lost.working() as worker:
        job = hive.submit("topic=sleep input=30")
        wait_for(lambda: "running" == hive.ask("cat", f"/jobs/{job}/state"), "the job running")

        async def revoke() -> tuple[float, bytes]:
            async with (
                await Client.connect(hive.address, dialect=Dialect.U) as client,
                await lost.connect() as session,
            ):
                began = time.monotonic()
                await client.write_file("/trust/ctl", b"revoke node=w1 reason=stolen\n")
                async with asyncio.timeout(30):
                    await asyncio.shield(session.connection.closed)
                return time.monotonic() - began, await client.read_file("/nodes/w1/sessions")

        took_s, left = asyncio.run(revoke())
        assert took_s < seconds(1)
        assert b"" == left
        assert 4 == worker.process.wait(30)
        assert "w1's certificate: run skep enroll again" in said(worker)
        with other.working():
            done = hive.submit("topic=sha256 input=x")
            assert "succeeded" == hive.ask("cat", f"/jobs/{done}/wait")
            assert "node=w2" in hive.ask("cat", f"/jobs/{done}/attempts")


def test_a_node_is_the_certificates_whatever_it_calls_itself(hive: Networked) -> None:
    w1 = hive.enroll("drone-worker", "w1")
    done = w1.skep("worker", "--handlers", "/dev/null", "--node", "w2")
    assert 2 == done.returncode
    assert "--node w2: the identity is that of w1" in done.stderr
    with w1.working():
        assert f"spiffe://{NAME}/drone-worker/w1" == hive.ask("cat", "/nodes/w1/principal")


def test_a_queen_that_comes_back_is_believed_and_its_workers_find_their_way(tmp_path: Path) -> None:
    with contextlib.ExitStack() as first:
        hive = first.enter_context(networked(tmp_path))
        with hive.enroll("drone-worker", "w1").working() as worker:
            first.close()
            with networked(tmp_path, tls=hive.tls) as again:
                assert {"succeeded 1"} == set(loaded(again, 1))
            worker.process.terminate()
            assert "trying again" in said(worker)
