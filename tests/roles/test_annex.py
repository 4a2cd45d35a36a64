"""An annex and a queen as processes, on a machine whose only device is its CPU: runs done, fallen back,
refused, killed, stopped, cut off."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import os
import signal
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from skep.fs.ctl import quote
from skep.fs.dial import Client
from skep.fs.messages import Dialect
from skep.native.kernels.signature import canonical, sign
from tests.daemons import Daemon, Hive, daemon, queen, wait_for

pytestmark = pytest.mark.slow  # processes begin and end
T = TypeVar("T")
CHILD = b"skep.native.kernels.child"
# Its jobs go to whatever an annex has: here that is a CPU, lent and granted as a GPU is.
DRILL = "create pool=drill requires=annex fallback=gpu-cpu lease=2s"
A = np.arange(12, dtype=np.float32)


class Talk:
    """One session with a hive, from this process."""

    def __init__(self, address: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.client = self.do(Client.connect(address, dialect=Dialect.U))

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    def close(self) -> None:
        self.do(self.client.close())
        self.loop.close()

    def read(self, path: str) -> str:
        return self.do(self.client.read_file(path)).decode().rstrip("\n")

    def say(self, path: str, line: str) -> str:
        """The first word of the reply."""

        async def said() -> bytes:
            async with await self.client.open(path, "rw") as fid:
                await fid.write_all(f"{line}\n".encode())
                return await fid.read(0, 4096)

        return self.do(said()).decode().split()[0]

    def seal(self, name: str, array: Any) -> None:
        file = io.BytesIO()
        np.save(file, array)
        self.do(self.client.write_file(f"/artifacts/stage/{name}", file.getvalue(), create=True))
        self.say("/artifacts/ctl", f"seal name={name}")

    def run(self, what: str) -> str:
        """The job of a run that is asked for."""
        return self.say("/gpu/ctl", f"run {what}")

    def ended(self, job: str) -> tuple[str, str, list[str]]:
        """State and device of a job once it has ended, and why it fell back."""
        state = self.read(f"/jobs/{job}/wait")
        events = [json.loads(line) for line in self.read(f"/jobs/{job}/events.jsonl").splitlines()]
        reasons = [event["reason"] for event in events if event["type"] == "job.fellback"]
        return state, self.read(f"/jobs/{job}/device"), reasons

    def result(self, job: str) -> Any:
        return json.loads(self.read(f"/jobs/{job}/result"))

    def array(self, job: str, name: str = "out") -> Any:
        made = self.result(job)["out"][name]
        return np.load(io.BytesIO(self.do(self.client.read_file(f"/artifacts/{made['sha256']}/data"))))


@contextlib.contextmanager
def hive_in(directory: Path, drill: str = "") -> Iterator[tuple[Hive, Talk]]:
    """``drill``: more about the pool drill, that runs go to; "": there is none yet."""
    with queen(directory, "--listen-annexes", annexes(directory)) as hive:
        talk = Talk(hive.address)
        try:
            talk.seal("a.npy", A)
            if drill:
                talk.say("/pools/ctl", "create pool=gpu-cpu")
                talk.say("/pools/ctl", f"create pool=drill requires=annex fallback=gpu-cpu {drill}")
                talk.say("/pools/ctl", "map topic=gpu.run pool=drill")
            yield hive, talk
        finally:
            talk.close()


def annexes(directory: Path) -> str:
    return f"unix:{directory}/annexes.sock"


@contextlib.contextmanager
def annex(directory: Path, *more: str, node: str = "g1", **env: str) -> Iterator[Daemon]:
    place = ("--node", node, "--dir", str(directory / node), "--heartbeat", "1s", "--slots", "2")
    role = ("serve", "--role", "cuda-annex", "-H", annexes(directory))
    with daemon(f"ready {node}", *role, *place, *more, env=env) as began:
        yield began


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annex")


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[tuple[Talk, Daemon]]:
    """A hive with one annex, for jobs that leave no trace in others."""
    with hive_in(place) as (_, talk), annex(place, "--pools", "gpu,gpu-cpu,drill") as serving:
        wait_for(lambda: "gpu.run" in talk.read("/pools/gpu/topics"), "the pools of devices")
        talk.say("/pools/ctl", DRILL)
        yield talk, serving


@pytest.fixture
def talk(served: tuple[Talk, Daemon]) -> Talk:
    """Runs go to the pool for GPUs."""
    served[0].say("/pools/ctl", "map topic=gpu.run pool=gpu")
    return served[0]


@pytest.fixture
def drill(served: tuple[Talk, Daemon]) -> Talk:
    """Runs go to whatever device an annex has."""
    served[0].say("/pools/ctl", "map topic=gpu.run pool=drill")
    return served[0]


def kernels(of: Daemon, spare: bool = False) -> list[int]:
    """The processes of kernels that an annex has, with that which nothing has run in yet, or without."""
    found = []
    for place in Path(f"/proc/{of.process.pid}/task").glob("*/children"):
        for pid in place.read_text().split():
            with contextlib.suppress(FileNotFoundError):
                ours = CHILD in Path(f"/proc/{pid}/cmdline").read_bytes()
                if ours and (spare or Path(f"/proc/{pid}/comm").read_text() == "kernel\n"):
                    found.append(int(pid))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def hanging(talk: Talk, serving: Daemon, more: str = "") -> Iterator[str]:
    """A run whose kernel never ends: its process, kept warm by a run before, is stopped."""
    assert "succeeded" == talk.ended(talk.run("kernel=vector_add in=a:a.npy,b:a.npy"))[0]
    (pid,) = kernels(serving)
    os.kill(pid, signal.SIGSTOP)
    try:
        job = talk.run(f"kernel=vector_add in=a:a.npy,b:a.npy {more}")
        wait_for(lambda: "running" == talk.read(f"/jobs/{job}/state"), "a run")
        yield job
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# one run


def test_without_a_gpu_a_run_falls_back_to_the_cpu_and_says_so(talk: Talk) -> None:
    job = talk.run("kernel=saxpy in=x:a.npy,y:a.npy set=alpha:2")
    assert ("succeeded", "cpu: no_device", ["no_device"]) == talk.ended(job)
    assert "cpu" == talk.result(job)["device"]
    np.testing.assert_array_equal(3 * A, talk.array(job))


def test_without_a_gpu_a_run_that_refuses_a_cpu_ends_with_an_error(talk: Talk) -> None:
    job = talk.run("kernel=saxpy in=x:a.npy,y:a.npy set=alpha:2 fallback=refuse patience=100ms")
    assert ("failed", "", []) == talk.ended(job)
    assert talk.read(f"/jobs/{job}/error").startswith("no_device: ")


def test_a_device_is_granted_and_given_back(drill: Talk, served: tuple[Talk, Daemon]) -> None:
    with hanging(drill, served[1]) as job:
        (lease,) = drill.do(drill.client.listdir("/gpu/g1/leases"))
        at = f"/gpu/g1/leases/{lease.name}"
        assert [job, "cpu:0", "1"] == [drill.read(f"{at}/{file}") for file in ("job", "device", "slots")]
        drill.say(f"/jobs/{job}/ctl", "cancel")
        wait_for(lambda: not drill.do(drill.client.listdir("/gpu/g1/leases")), "an end")
    assert "cancelled" == drill.ended(job)[0]
    wait_for(lambda: not kernels(served[1]), "the end of its process")


def test_every_result_is_an_artifact(drill: Talk) -> None:
    job = drill.run("kernel=topk in=a:a.npy set=k:2 out=npy")
    assert ("succeeded", []) == drill.ended(job)[::2]
    assert [[11, 10], [11, 10]] == [drill.array(job, name).tolist() for name in ("values", "indices")]
    assert "cpu:0" == drill.result(job)["device"]


def test_raw_bytes_go_in_and_out(drill: Talk) -> None:
    drill.do(drill.client.write_file("/artifacts/stage/a.raw", A.tobytes(), create=True))
    drill.say("/artifacts/ctl", "seal name=a.raw")
    job = drill.run("kernel=vector_add in=a:a.raw,b:a.npy raw=a:float32:12 out=raw")
    assert "succeeded" == drill.ended(job)[0]
    made = drill.result(job)["out"]["out"]
    assert ("out.raw", "float32", [12]) == (made["artifact"], made["dtype"], made["shape"])
    assert (2 * A).tobytes() == drill.do(drill.client.read_file(f"/artifacts/{made['sha256']}/data"))


def test_what_is_wrong_with_the_job_itself_is_its_end(drill: Talk) -> None:
    drill.seal("b.npy", A[:3])
    job = drill.run("kernel=vector_add in=a:a.npy,b:b.npy retries=2")
    assert ("failed", "", []) == drill.ended(job)
    assert "vector_add: b: given float32[3]" in drill.read(f"/jobs/{job}/error")
    (attempt,) = drill.read(f"/jobs/{job}/attempts").splitlines()
    assert "started=" not in attempt


BY_HAND: dict[str, dict[str, Any]] = {
    "raw: z: expected one of a b": {"kernel": "vector_add", "raw": {"z": "float32:1"}},
    "input: Invalid enum value": {"kernel": "vector_add", "out": "../../x"},
    "kernel '../x': expected one of": {"kernel": "../x"},
    "source '../ctl': expected a SHA-256": {"source": "../ctl"},
    "lease '../x': expected a lease's id": {"kernel": "vector_add", "lease": "../x"},
}


def test_what_somebody_asks_for_by_hand_is_the_end_of_that_job_alone(
    drill: Talk, served: tuple[Talk, Daemon]
) -> None:
    for error, asked in BY_HAND.items():
        said = f"submit topic=gpu.run inputs=a:a.npy,b:a.npy input={quote(json.dumps(asked))}"
        job = drill.say("/jobs/ctl", said)
        assert ("failed", "", []) == drill.ended(job)
        assert error in drill.read(f"/jobs/{job}/error")
    # It claims more than there is, which is found out when it is mapped.
    header = str({"descr": "<f4", "fortran_order": False, "shape": (12,)}).encode()
    short = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header
    drill.do(drill.client.write_file("/artifacts/stage/short.npy", short, create=True))
    drill.say("/artifacts/ctl", "seal name=short.npy")
    job = drill.run("kernel=vector_add in=a:short.npy,b:a.npy")
    assert "failed" == drill.ended(job)[0]
    assert drill.read(f"/jobs/{job}/error").startswith("a: inputs/a: expected an array in .npy")
    assert served[1].process.poll() is None


# what a device cannot do


def test_too_little_memory_is_a_reason_for_the_cpu(drill: Talk) -> None:
    drill.seal("many.npy", np.zeros(1 << 22, np.float32))
    job = drill.run("kernel=vector_add in=a:many.npy,b:many.npy memory=1MiB")
    assert ("succeeded", "cpu: oom", ["oom"]) == drill.ended(job)
    larger = drill.run("kernel=vector_add in=a:a.npy,b:a.npy memory=1000GiB")
    assert ("succeeded", "cpu: oom", ["oom"]) == drill.ended(larger)
    refused, beside = drill.read(f"/jobs/{larger}/attempts").splitlines()
    assert ("started=" not in refused, "started=" in beside) == (True, True)
    np.testing.assert_array_equal(2 * A, drill.array(larger))


def test_what_no_memory_of_the_host_is_enough_for_is_not_begun(drill: Talk) -> None:
    drill.seal("images.npy", np.zeros((1, 64, 256, 256), np.float32))
    drill.seal("weights.npy", np.zeros((1, 64, 128, 128), np.float32))  # 70 GB, as columns
    job = drill.run("kernel=conv2d in=images:images.npy,weights:weights.npy memory=1")
    assert ("failed", ["oom"]) == drill.ended(job)[::2]
    assert "bytes are wanted, of" in drill.read(f"/jobs/{job}/error")


def test_inputs_that_no_run_takes_are_not_fetched(drill: Talk) -> None:
    asked = quote(json.dumps({"kernel": "reduce_sum"}))
    job = drill.say("/jobs/ctl", f"submit topic=gpu.run inputs=a:a.npy,b:a.npy input={asked}")
    assert ("failed", "", []) == drill.ended(job)
    assert "reduce_sum: b: given an array" in drill.read(f"/jobs/{job}/error")


def test_a_kernel_that_dies_ends_its_process_alone(drill: Talk, served: tuple[Talk, Daemon]) -> None:
    with hanging(drill, served[1]) as job:
        (pid,) = kernels(served[1])
        os.kill(pid, signal.SIGKILL)
        assert ("succeeded", "cpu: kernel_failed", ["kernel_failed"]) == drill.ended(job)
    assert served[1].process.poll() is None


def test_a_disabled_annex_gets_nothing_until_it_is_enabled(drill: Talk) -> None:
    drill.say("/gpu/g1/ctl", "disable reason=drill")
    job = drill.run("kernel=vector_add in=a:a.npy,b:a.npy")
    assert ("succeeded", "cpu: disabled", ["disabled"]) == drill.ended(job)
    drill.say("/gpu/g1/ctl", "enable")
    job = drill.run("kernel=vector_add in=a:a.npy,b:a.npy")
    assert ("succeeded", []) == drill.ended(job)[::2]


def test_a_device_that_another_has_is_waited_for_and_then_done_without(drill: Talk) -> None:
    lease = drill.say("/gpu/g1/ctl", "lease memory=1MiB ttl=60s exclusive=true")
    job = drill.run("kernel=vector_add in=a:a.npy,b:a.npy patience=1s")
    assert ("succeeded", "cpu: full", ["full"]) == drill.ended(job)
    inside = drill.run(f"kernel=vector_add in=a:a.npy,b:a.npy memory=1MiB lease={lease}")
    state, _, reasons = drill.ended(inside)
    fence = drill.read(f"/gpu/g1/leases/{lease}/fence")
    drill.say("/gpu/g1/ctl", f"release lease={lease} fence={fence}")
    assert ("succeeded", []) == (state, reasons)
    asked = f'{{"kernel":"vector_add","lease":"{lease}"}}'
    gone = drill.say("/jobs/ctl", f"submit topic=gpu.run inputs=a:a.npy,b:a.npy input='{asked}'")
    assert ("succeeded", "cpu: lease_expired", ["lease_expired"]) == drill.ended(gone)


def test_a_run_ends_with_the_lease_that_it_is_inside_of(drill: Talk, served: tuple[Talk, Daemon]) -> None:
    lease = drill.say("/gpu/g1/ctl", "lease memory=1GiB ttl=60s")
    fence = drill.read(f"/gpu/g1/leases/{lease}/fence")
    with hanging(drill, served[1], f"lease={lease}") as job:
        (pid,) = kernels(served[1])
        drill.say("/gpu/g1/ctl", f"release lease={lease} fence={fence}")
        assert ("succeeded", "cpu: lease_expired", ["lease_expired"]) == drill.ended(job)
        wait_for(lambda: not is_alive(pid), "the end of its process")


def test_source_that_is_brought_runs_on_no_cpu(drill: Talk) -> None:
    text = b'extern "C" __global__ void twice(float *a) { a[threadIdx.x] *= 2; }'
    drill.do(drill.client.write_file("/artifacts/stage/twice.cu", text, create=True))
    sha256 = hashlib.sha256(text).hexdigest()
    drill.say("/artifacts/ctl", "seal name=twice.cu")
    drill.say("/gpu/sources/ctl", f"allow source={sha256} reason=test")
    job = drill.run("source=twice.cu in=a:a.npy function=twice grid=1 block=12 args=in:a")
    state, _, reasons = drill.ended(job)
    assert ("failed", []) == (state, reasons)
    asked = f'{{"source":"{sha256}","launch":{{"function":"twice","grid":"1","block":"12","args":"in:a"}}}}'
    inputs = f"inputs=a:a.npy,source:{sha256}"
    by_hand = drill.say("/jobs/ctl", f"submit topic=gpu.run {inputs} input='{asked}'")
    assert ("failed", ["no_device"]) == drill.ended(by_hand)[::2]
    for each in (job, by_hand):
        assert "CUDA device" in drill.read(f"/jobs/{each}/error")
        assert f'"about":"job","id":"{each}","reason":"no_device"' in drill.read("/events")
    drill.say("/gpu/sources/ctl", f"forbid source={sha256}")
    late = drill.say("/jobs/ctl", f"submit topic=gpu.run {inputs} input='{asked}'")
    assert "failed" == drill.ended(late)[0]
    assert f"source {sha256} is not allowed" == drill.read(f"/jobs/{late}/error")


# ends that nobody wants


def test_a_killed_annex_leaves_no_process_and_gives_its_run_back(tmp_path: Path) -> None:
    with hive_in(tmp_path, "lease=60s") as (_, talk), contextlib.ExitStack() as stack:
        first = stack.enter_context(annex(tmp_path, "--pools", "gpu-cpu,drill"))
        with hanging(talk, first) as job:
            children = kernels(first, spare=True)
            assert -signal.SIGKILL == first.end(signal.SIGKILL)
            wait_for(lambda: not any(map(is_alive, children)), "the end of its processes")
            # Its lease is a minute's: only who comes after it can say that nobody does the run.
            with annex(tmp_path, "--pools", "gpu-cpu,drill"):
                assert ("succeeded", []) == talk.ended(job)[::2]
        attempts = talk.read(f"/jobs/{job}/attempts").splitlines()
        assert ["end=released", "end=acked"] == [line.split()[-1] for line in attempts]


def test_an_annex_that_dies_is_missed_also_when_it_had_nothing_to_do(tmp_path: Path) -> None:
    with hive_in(tmp_path) as (_, talk):

        def health() -> str:
            return talk.read("/gpu/g1/health")

        with annex(tmp_path) as serving:
            serving.end()
            wait_for(lambda: health() == "left", "it has said that it goes")
        with annex(tmp_path) as serving:
            serving.end(signal.SIGKILL)
            wait_for(lambda: health() == "suspect", "its connection has ended")
            wait_for(lambda: health() == "lost", "two heartbeats are missing")
        alerts = [line for line in talk.read("/events").splitlines() if '"alert.raised"' in line]
        assert [("annex", "g1", "annex_lost")] == [
            (alert["about"], alert["id"], alert["reason"]) for alert in map(json.loads, alerts)
        ]


def test_a_stopped_annex_is_done_without_and_finds_its_way_back(
    drill: Talk, served: tuple[Talk, Daemon]
) -> None:
    with hanging(drill, served[1]) as job:
        (pid,) = kernels(served[1])
        os.kill(served[1].process.pid, signal.SIGSTOP)
        try:
            wait_for(lambda: "job.fellback" in drill.read(f"/jobs/{job}/events.jsonl"), "its falling back")
            assert drill.read("/gpu/g1/health") in ("suspect", "lost")
        finally:
            os.kill(served[1].process.pid, signal.SIGCONT)
        # The CPU that does it is the same annex's, when it is back.
        state, device, reasons = drill.ended(job)
        assert ("succeeded", "cpu: annex_lost", ["annex_lost"]) == (state, device, reasons)
        wait_for(lambda: not is_alive(pid), "the end of what it did no more")
    wait_for(lambda: drill.read("/gpu/g1/health") == "online", "its way back")


def test_who_is_cut_off_stops_when_the_lease_is_over_by_its_own_clock(tmp_path: Path) -> None:
    with (
        hive_in(tmp_path, "lease=1s") as (_, talk),
        annex(tmp_path, "--pools", "drill") as serving,
        hanging(talk, serving),
    ):
        (pid,) = kernels(serving)
        queen_pid = int((tmp_path / "queen.lock").read_text())
        os.kill(queen_pid, signal.SIGSTOP)
        try:
            wait_for(lambda: not is_alive(pid), "the end of its process")
        finally:
            os.kill(queen_pid, signal.SIGCONT)


def test_what_was_stopped_by_that_clock_is_given_back_once_the_hive_is_heard(tmp_path: Path) -> None:
    with contextlib.ExitStack() as first:
        _, talk = first.enter_context(hive_in(tmp_path, "lease=1s"))
        with annex(tmp_path, "--pools", "drill") as serving:
            with hanging(talk, serving) as job:
                (pid,) = kernels(serving)
                first.close()
                wait_for(lambda: not is_alive(pid), "the end of its process")
            # A queen ends no lease in her first ten seconds: it would have nothing to do so long.
            with hive_in(tmp_path) as (_, talk):
                assert "succeeded" == talk.ended(job)[0]
                attempts = talk.read(f"/jobs/{job}/attempts").splitlines()
                assert ["end=released", "end=acked"] == [line.split()[-1] for line in attempts]


def test_a_gpu_that_is_not_to_be_used_is_a_reason_of_its_own(tmp_path: Path) -> None:
    # Only what is signed runs in its place, too.
    more = ("--kernel-root", str(tmp_path / "root.pem"), "--catalogue", str(signed(tmp_path)))
    with hive_in(tmp_path) as (_, talk), annex(tmp_path, *more, SKEP_NO_CUDA="1"):
        job = talk.run("kernel=vector_add in=a:a.npy,b:a.npy")
        assert ("succeeded", "cpu: disabled", ["disabled"]) == talk.ended(job)
        assert "disabled: SKEP_NO_CUDA=1" == talk.read("/gpu/g1/health")
        other = talk.run("kernel=topk in=a:a.npy set=k:1")
        assert "failed" == talk.ended(other)[0]
        assert "topk: not as it was signed" in talk.read(f"/jobs/{other}/error")
        launch = {"function": "f", "grid": "1", "block": "1", "args": "in:a"}
        asked = quote(json.dumps({"source": "0" * 64, "launch": launch}))
        brought = talk.say("/jobs/ctl", f"submit topic=gpu.run inputs=a:a.npy input={asked}")
        assert "failed" == talk.ended(brought)[0]
        assert "not in the signed catalogue" in talk.read(f"/jobs/{brought}/error")


def signed(place: Path) -> Path:
    """A catalogue in which one kernel is another than here, signed; its key is in root.pem."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (place / "root.pem").write_bytes(public)
    catalogue = json.loads(canonical())
    catalogue["kernels"]["topk"]["about"] = "the k smallest"
    text = json.dumps(catalogue).encode()
    (place / "kernels.json").write_bytes(text)
    (place / "kernels.json.sig").write_bytes(sign(text, key))
    return place / "kernels.json"


def test_a_worker_with_the_twins_does_what_no_annex_is_there_for(tmp_path: Path) -> None:
    with hive_in(tmp_path) as (hive, talk):
        job = talk.run("kernel=vector_add in=a:a.npy,b:a.npy")
        place = ("--node", "w1", "--dir", str(tmp_path / "w1"), "--pools", "gpu-cpu")
        with daemon("ready w1", "worker", "-H", hive.workers, "--kernels", *place):
            assert ("succeeded", "cpu: no_device", ["no_device"]) == talk.ended(job)
            np.testing.assert_array_equal(2 * A, talk.array(job))


# its own tree


def test_the_machine_tells_its_people_without_the_hive(served: tuple[Talk, Daemon], place: Path) -> None:
    own = Talk(f"unix:{place}/g1/annex.sock")
    try:
        info = json.loads(own.read("/gpu/g1/info.json"))
        assert (["cpu:0"], "") == ([device["id"] for device in info["devices"]], info["driver"])
        assert info["why_no_gpu"]
        assert "ready" == own.read("/gpu/g1/health")
        wait_for(lambda: bool(own.read("/gpu/g1/telemetry.jsonl")), "a record")
        record = json.loads(own.read("/gpu/g1/telemetry.jsonl").splitlines()[-1])
        assert ("g1", "cpu:0") == (record["annex"], record["devices"][0]["id"])
        with hanging(served[0], served[1]) as job:
            at = f"/gpu/g1/leases/{job}"
            found = [own.read(f"{at}/{file}") for file in ("job", "device", "pid")]
            assert [job, "cpu:0", str(kernels(served[1])[0])] == found
    finally:
        own.close()
