"""One run: a job of the topic gpu.run, begun on a device when the hive has granted it room there, and told
with what came of it.

    asked for     the job's input, gpu/asked.py; its arrays are the job's inputs
    granted       ``start device=cuda:0 memory=… slots=1``: nothing is launched before that is answered
    made          an artifact of each result, <name>.npy or <name>.raw, and one line of JSON:
                  {"device":"cuda:0","nanoseconds":…,"out":{"out":{"artifact":…,"sha256":…,"dtype":…,"shape":[…]}}}

What a device cannot do another may: the job falls back, if the hive lets it. What no device could do right, a
wrong argument, a kernel that is not the signed one, is the job's end. In a pool that is not for devices the
twins run on the CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from skep.fs.errors import E, FsError
from skep.namespaces.gpu.asked import LAUNCH, SOURCE, TOPIC, Asked, parse
from skep.native.kernels.arguments import PROCESS, ArgumentError, Told, named, needed, told
from skep.native.kernels.catalogue import BYTES_MAX, KERNELS
from skep.native.kernels.header import SIZE_MAX, header
from skep.native.kernels.process import Process
from skep.native.kernels.request import Done, Request, RunError
from skep.native.kernels.source import TEXT_MAX, Brought, brought
from skep.roles.annex.devices import CPU_SHARE, CUDA, Device, host_memory
from skep.roles.annex.processes import Processes
from skep.roles.annex.room import Room, Use
from skep.roles.annex.telemetry import Telemetry
from skep.roles.leased import Fallback, JobFailed, Leased
from skep.trace.clock import SECOND, Clock, parse_duration

TIMEOUT: Final = "10m"  # of a run whose job says nothing: one that hangs must not keep its device for ever
PATIENCE: Final = "30s"  # for room on a device, where the job's pool has said nothing
LOOK_S: Final = (0.2, 0.5, 1.0, 2.0)  # between two askings for room, each of them an entry; then the last one
CPU: Final = "cpu"  # no device of the annex: nothing is granted of it
FINAL: Final = ("argument", "unsigned")  # what is wrong with the job itself
ELSEWHERE: Final = ("oom", "kernel_failed", "no_device", "disabled")  # what another device may do


class Run(NamedTuple):
    """What is to be run, checked as far as sizes go."""

    asked: Asked
    inputs: dict[str, Path]
    arrays: dict[str, Told]
    source: Brought | None

    def room(self, kind: str) -> int:
        """Bytes that it is to have of a device."""
        return self.asked.memory or self.needed(kind)

    def needed(self, kind: str) -> int:
        """Bytes that it takes, by its sizes, where the device is of that kind."""
        if self.source is not None:
            return self.source.needed(self.arrays)
        return needed(KERNELS[self.asked.kernel], self.arrays, self.asked.numbers, kind)


class Performing:
    """What does the runs of one node. ``spare``: the pools that are not for devices; ``telemetry`` None: all
    are. ``signed``: what was signed of each kernel; None: nothing need be."""

    def __init__(
        self,
        telemetry: Telemetry | None,
        room: Room,
        processes: Processes,
        spare: frozenset[str],
        clock: Clock,
        signed: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.telemetry = telemetry
        self.room = room
        self.processes = processes
        self.spare = spare
        self.clock = clock
        self.signed = signed
        self._frees: set[asyncio.Task[None]] = set()

    async def perform(self, leased: Leased) -> str:
        """The result. Raises JobFailed, FsError, LeaseLost."""
        lease = leased.lease
        if lease.topic != TOPIC:
            raise JobFailed(f"{lease.topic}: an annex does {TOPIC} alone", "no-handler", final=True)
        try:
            asked = parse(lease.input or "")
            signed = self._signed(asked)
            if asked.source:
                await _allowed(leased, asked.source)
            _check_inputs(asked, {name: of.size for name, of in lease.inputs.items()})
            run = _run(asked, await leased.input_files())
            on_device = lease.pool not in self.spare
            use = await (self._granted if on_device else self._beside)(leased, run)
        except ArgumentError as error:
            raise JobFailed(_here(leased, error), "argument", final=True) from error
        self._free_at_end(leased, use)
        done = await self._done(leased, run, use, signed)
        return await _kept(leased, use, done)

    def _signed(self, asked: Asked) -> Mapping[str, Any] | None:
        """What was signed of the kernel; None: nothing need be. Raises JobFailed."""
        if self.signed is None:
            return None
        if asked.source:
            raise JobFailed("source that was brought is not in the signed catalogue", "unsigned", final=True)
        if asked.kernel not in self.signed:
            raise JobFailed(f"{asked.kernel}: not in the signed catalogue", "unsigned", final=True)
        return self.signed[asked.kernel]

    # where

    async def _beside(self, leased: Leased, run: Run) -> Use:
        """On the CPU, of which nothing is granted."""
        if run.source is not None:
            raise Fallback("source that was brought runs on a CUDA device alone", "no_device")
        memory, most = run.needed(CPU), host_memory() // CPU_SHARE
        if memory - PROCESS > most:
            raise JobFailed(f"{memory - PROCESS} bytes are wanted, of {most}", "oom", final=True)
        use = Use(leased.lease.job, None, memory, 1, False, self.clock.now_ns())
        await self.room.wait_beside(use, most)
        try:
            await leased.begin_on({"device": CPU})
        except BaseException:
            self.room.free(use)
            raise
        return use

    async def _granted(self, leased: Leased, run: Run) -> Use:
        """On a device, when there is room within the job's patience. Raises Fallback."""
        patience = leased.lease.patience or PATIENCE
        until_s = asyncio.get_running_loop().time() + parse_duration(patience) / SECOND
        tries = 0
        with self.room.queued():
            while True:
                devices = self._devices()
                if not any(_fits(run, device) for device in devices):
                    sizes = " ".join(f"{device.id}={device.memory}" for device in devices)
                    raise Fallback(f"{run.room(devices[0].kind)} bytes are wanted, of {sizes}", "oom")
                found = await self._tried(leased, run, devices)
                if isinstance(found, Use):
                    return found
                left_s = until_s - asyncio.get_running_loop().time()
                if left_s <= 0:
                    raise Fallback(f"no room within {patience}", found)
                await self.room.wait_freed(min(left_s, LOOK_S[min(tries, len(LOOK_S) - 1)]))
                tries += 1

    def _devices(self) -> tuple[Device, ...]:
        """Those that are of use now. Raises Fallback when none is."""
        assert self.telemetry is not None, "the job is of a pool for devices"
        if why := self.telemetry.disabled:
            raise Fallback(why, "disabled" if self.telemetry.machine.disabled else "no_device")
        return tuple(d for d in self.telemetry.machine.devices if not self.telemetry.lost(d))

    async def _tried(self, leased: Leased, run: Run, devices: tuple[Device, ...]) -> Use | str:
        """What it got, of a device that has room now; else why no device has."""
        asked, why = run.asked, "full"
        # What runs inside a lease has its room there already.
        open_ = devices if asked.lease else self.room.open_to(devices, run.room, asked.slots, asked.exclusive)
        for device in open_:
            memory, now_ns = run.room(device.kind), self.clock.now_ns()
            use = Use(leased.lease.job, device, memory, asked.slots, asked.exclusive, now_ns)
            self.room.take(use)
            try:
                await leased.begin_on(_told(use, asked.lease))
                return use
            except FsError as error:
                self.room.take_back(use)
                why = _refused(error)
            except BaseException:
                self.room.free(use)
                raise
        return why

    def _free_at_end(self, leased: Leased, use: Use) -> None:
        """Its room is free when its end is said: what is said next comes next."""
        self.room.take(use)

        async def free() -> None:
            await leased.ending.wait()
            self.room.free(use)

        freeing = asyncio.create_task(free())
        self._frees.add(freeing)
        freeing.add_done_callback(self._frees.discard)

    # what

    async def _done(self, leased: Leased, run: Run, use: Use, signed: Mapping[str, Any] | None) -> Done:
        asked, kind = run.asked, use.device.kind if use.device else CPU
        request = Request(
            kernel=asked.kernel or (run.source.function if run.source else ""),
            inputs={name: str(path) for name, path in run.inputs.items()},
            numbers=asked.numbers,
            out=str(leased.made()),
            device=use.device.id if use.device and kind == CUDA else CPU,
            seconds=parse_duration(leased.lease.timeout or TIMEOUT) / SECOND,
            size_max=use.memory,
            signed=signed,
            raw={name: run.arrays[name] for name in asked.raw},
            form=asked.out,
            source=run.source,
        )

        left = self.room.left(use.device) if use.device is not None and kind == CUDA else None

        def at(process: Process) -> None:
            use.process = process

        try:
            return await self.processes.run(leased.lease.tenant, request, at, left)
        except RunError as error:
            text = _here(leased, error)
            if error.why in FINAL:
                raise JobFailed(text, error.why, final=True) from error
            if error.why in ELSEWHERE and use.device is not None:
                raise Fallback(text, error.why) from error
            raise JobFailed(text, "timeout" if error.why == "time" else error.why) from error


def _here(leased: Leased, error: Exception) -> str:
    """Its text, with files as the job knows them: where this machine has them is nobody's business."""
    return str(error).replace(f"{leased.made()}/", "")


async def _allowed(leased: Leased, sha256: str) -> None:
    """Return when the hive allows the source still. Raises JobFailed."""
    try:
        await leased.uplink.do(lambda client: client.stat(f"/gpu/sources/{sha256}"))
    except FsError as error:
        if error.kind is not E.MISSING:
            raise
        raise JobFailed(f"source {sha256} is not allowed", "forbidden", final=True) from error


def _check_inputs(asked: Asked, sizes: Mapping[str, int]) -> None:
    """Raise ArgumentError where no run could take the inputs, of so many bytes, before they are fetched."""
    if not asked.source and asked.kernel in KERNELS:
        named(KERNELS[asked.kernel], sizes, asked.numbers)
    for name, size in sizes.items():
        most = TEXT_MAX if asked.source and name == SOURCE else BYTES_MAX + SIZE_MAX
        if size > most:
            raise ArgumentError(f"{name}: given {size} bytes, expected {most} at most")


def _run(asked: Asked, inputs: dict[str, Path]) -> Run:
    """Raises ArgumentError where the sizes are not right for the kernel."""
    source = None
    if asked.source:
        if SOURCE not in inputs:
            raise ArgumentError(f"{SOURCE}: expected the text among the inputs")
        launch = {name: asked.launch.get(name, "0" if name == "shared" else "") for name in LAUNCH}
        source = brought(str(inputs.pop(SOURCE)), asked.source, **launch)
    elif asked.kernel not in KERNELS:
        raise ArgumentError(f"kernel {asked.kernel!r}: expected one of {' '.join(KERNELS)}")
    if odd := sorted(asked.raw.keys() - inputs.keys()):
        raise ArgumentError(f"raw: {odd[0]}: expected one of {' '.join(inputs) or 'no inputs'}")
    arrays = {
        name: told(name, asked.raw[name]) if name in asked.raw else header(name, path)
        for name, path in inputs.items()
    }
    if source is None:
        needed(KERNELS[asked.kernel], arrays, asked.numbers, CPU)
    return Run(asked, inputs, arrays, source)


def _told(use: Use, lease: str) -> dict[str, str]:
    """What ``start`` says of it."""
    assert use.device is not None
    said = {"device": use.device.id, "memory": str(use.memory), "slots": str(use.slots)}
    return said | ({"exclusive": "true"} if use.exclusive else {}) | ({"lease": lease} if lease else {})


def _fits(run: Run, device: Device) -> bool:
    """Whether the device is large enough, with nothing else on it."""
    return run.room(device.kind) <= device.memory and run.asked.slots <= device.slots


def _refused(error: FsError) -> str:
    """Why there is no room on a device now, where there may be later. Raises what the refusal means else."""
    match error.kind:
        case E.BUSY:
            return "full"
        case E.USAGE:  # the hive has not heard of it yet, or the lease is of another
            return "no_device"
        case E.QUOTA:
            raise Fallback(error.detail, "oom") from error
        case E.EXPIRED:
            raise Fallback(error.detail, "lease_expired") from error
        case E.CONFLICT:
            why = "disabled" if "is disabled" in error.detail else "no_device"
            raise Fallback(error.detail, why) from error
    raise JobFailed(str(error), "denied", final=True) from error


async def _kept(leased: Leased, use: Use, done: Done) -> str:
    """Make artifacts of the results; the line that tells them."""
    out = {}
    for name, made in done.out.items():
        path = Path(made.path)
        with path.open("rb") as file:
            sha256 = await leased.give(path.name, file)
        if sha256 != made.sha256:
            raise JobFailed(f"integrity: {path.name} has sha256:{sha256}, not sha256:{made.sha256}")
        out[name] = {"artifact": path.name, "sha256": sha256, "dtype": made.dtype, "shape": made.shape}
    device = use.device.id if use.device else CPU
    return msgspec.json.encode({"device": device, "nanoseconds": done.nanoseconds, "out": out}).decode()
