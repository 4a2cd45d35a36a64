"""An annex put together: a worker for the pools of devices, and for the one that their jobs fall back to.

    <directory>/annex.sock   its own tree, for the people of this machine
    <directory>/jobs/        a directory for each run, as a worker's

Its pools say by their names what they are for: the runs of ``pools`` are begun on its devices, each under a
grant of the hive, those of ``spare`` on its CPU."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from skep.fs.address import Address
from skep.fs.link import Standing
from skep.fs.server import listen
from skep.namespaces.gpu.asked import POOL, SPARE, TOPIC
from skep.namespaces.gpu.beat import EVERY_NS
from skep.roles import worker
from skep.roles.annex.devices import AUTO, CPU, Machine, cores, found, slug
from skep.roles.annex.performing import Performing
from skep.roles.annex.processes import Processes
from skep.roles.annex.room import Room
from skep.roles.annex.telemetry import Telemetry
from skep.roles.annex.tree import tree
from skep.roles.leased import Leased
from skep.trace.clock import SystemClock

log = logging.getLogger("skep.annex")
SOCKET: Final = "annex.sock"
QUIET_S: Final = 0.1  # a run that is over by then is not watched: a cancel is heard so much later

Signed = Mapping[str, Mapping[str, Any]]  # what was signed of each kernel


class Plan(msgspec.Struct, frozen=True):
    """What an annex is told. ``slots``, ``memory`` (bytes): of each device; 0: what is good for it."""

    hive: Address
    node: str
    directory: Path
    device: str = AUTO
    slots: int = 0
    memory: int = 0
    every_ns: int = EVERY_NS  # between two heartbeats
    pools: tuple[str, ...] = (POOL, SPARE)
    spare: tuple[str, ...] = (SPARE,)  # those of its pools that are not for devices
    labels: dict[str, str] = {}
    signed: Signed | None = None
    standing: Callable[[], Standing] | None = None


async def serve(plan: Plan, say: Callable[[str], None]) -> None:
    """Serve until told to stop, then end what runs. ``say`` gets ``serving`` with the address of its own
    tree, and ``ready`` when the hive has taken it in. Raises DevicesError, WorkerError, FsError, OSError."""
    machine = found(plan.device, os.environ, plan.slots, plan.memory)
    for device in machine.devices:
        log.info("%s: %s, %d bytes, %d slots", device.id, device.name, device.memory, device.slots)
    if machine.why or machine.disabled:
        log.warning("no GPU is served: %s", machine.disabled or machine.why)
    room = Room()
    telemetry = Telemetry(plan.node, machine, plan.every_ns, SystemClock(), lambda: room.waiting)
    plan.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    address = Address("unix", path=str(plan.directory / SOCKET))
    async with listen(tree(telemetry, room), address) as listener:
        say(f"serving {listener.address}")
        with telemetry.reading(), contextlib.closing(_processes(machine)) as processes:
            processes.prepare()
            performing = Performing(
                telemetry, room, processes, frozenset(plan.spare), SystemClock(), plan.signed
            )
            await worker.work(_worker(plan, machine, telemetry, performing), say)


async def work(plan: worker.Plan, signed: Signed | None, say: Callable[[str], None]) -> None:
    """As worker.work, with the runs of kernels besides, on the CPU. Raises WorkerError, FsError."""
    processes = Processes({CPU: plan.slots_all})
    performing = Performing(None, Room(), processes, frozenset(plan.pools), SystemClock(), signed)

    async def perform(leased: Leased) -> str:
        if leased.lease.topic == TOPIC:
            return await performing.perform(leased)
        await leased.begin()
        return await plan.perform(leased)

    with contextlib.closing(processes):
        both = msgspec.structs.replace(plan, perform=perform, begins=True, quiet_s=QUIET_S)
        await worker.work(both, say)


def _processes(machine: Machine) -> Processes:
    slots = {device.id: device.slots for device in machine.devices if device.kind != CPU}
    on_cpu = sum(device.slots for device in machine.devices if device.kind == CPU)
    return Processes({**slots, CPU: on_cpu + cores()})


def _worker(plan: Plan, machine: Machine, telemetry: Telemetry, performing: Performing) -> worker.Plan:
    on_devices = sum(device.slots for device in machine.devices)
    gpu = {"gpu": slug(machine.devices[0].name)} if machine.has_gpu and not machine.disabled else {}
    slots = {pool: cores() if pool in plan.spare else on_devices for pool in plan.pools}
    return worker.Plan(
        plan.hive,
        plan.node,
        plan.directory,
        performing.perform,
        plan.pools,
        standing=plan.standing,
        labels={"annex": plan.node, **gpu, **plan.labels},
        quiet_s=QUIET_S,
        begins=True,
        slots_of=slots,
        beat=lambda: {"annex": telemetry.beat()},
        wait_beat=telemetry.wait_beat,
    )
