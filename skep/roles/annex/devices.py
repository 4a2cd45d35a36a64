"""What a machine has that kernels can run on: its GPUs, as NVML tells of them, or its CPU, which says that it
is one.

NVML numbers cards by their place on the bus; so does CUDA in the processes of kernels, among those that
CUDA_VISIBLE_DEVICES leaves. They reach a card through cupy: here no card is computed on.
Source: NVML API reference, 4.13 device queries; CUDA C++ programming guide, environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec

from skep.namespaces.gpu.beat import DEVICES_MAX
from skep.namespaces.gpu.record import GRANTS_MAX
from skep.native.kernels.device import OFF, is_off

VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
CUDA, CPU, AUTO = "cuda", "cpu", "auto"
CHOICES: Final = (AUTO, CPU, CUDA)
NEEDED: Final = {"pynvml": "nvidia-ml-py", "cupy": "cupy"}  # module -> what is installed
CUDA_SLOTS: Final = 2  # of a card: one copies while the other computes
CPU_SHARE: Final = (
    2  # a CPU device is to use one part in so many of its host's memory: the rest is the host's
)


class DevicesError(Exception):
    """There is no device of the kind that was asked for; the text says why."""


class Device(msgspec.Struct, frozen=True):
    """One device. ``id``: ``cuda:<n>`` as CUDA counts here, or ``cpu:0``. ``memory``: bytes that leases may
    have of it, of ``memory_total``; ``slots``: leases at a time."""

    id: str
    kind: str
    name: str
    uuid: str  # "": a CPU has none
    memory_total: int
    memory: int
    slots: int


class Reading(msgspec.Struct, frozen=True):
    """What a device tells now. None: it does not tell. ``lost``: why it is of no use now, "": it is not."""

    memory_free: int | None = None  # bytes
    utilisation: float | None = None  # fraction of the time
    temperature: int | None = None  # °C
    lost: str = ""


class Machine(msgspec.Struct, frozen=True):
    """``driver``: its version, "" without one. ``disabled``: why its GPUs are not to be used, "": they are.
    ``why``: why it has no GPU to use, "": it has. ``read`` may block as long as a driver does."""

    devices: tuple[Device, ...]
    driver: str
    disabled: str
    why: str
    read: Callable[[Device], Reading]

    @property
    def has_gpu(self) -> bool:
        return self.devices[0].kind == CUDA


def found(choice: str, environment: Mapping[str, str], slots: int = 0, memory: int = 0) -> Machine:
    """The machine, with its GPUs or else its CPU; ``choice``, one of CHOICES, may leave no choice. ``slots``,
    ``memory`` (bytes): of each device; 0: as many as are good for it. Raises DevicesError."""
    if choice == CPU:
        return _host("cpu was asked for", "", slots, memory)
    disabled = f"{OFF}=1" if is_off(environment) else ""
    try:
        cards = Cards.begun(environment)
    except DevicesError as error:
        if choice == CUDA:
            raise
        return _host(str(error), disabled, slots, memory)
    devices = tuple(cards.device(ordinal, slots, memory) for ordinal in range(len(cards.handles)))
    return Machine(devices, cards.driver, disabled, "", cards.read)


def slug(name: str) -> str:
    """A card's name as a label's value: ``NVIDIA H100 80GB HBM3`` is ``h100-80gb-hbm3``."""
    return re.sub("[^a-z0-9]+", "-", name.lower()).strip("-").removeprefix("nvidia-")


# GPUs


class Cards:
    """The cards that CUDA may use, in its order. ``nvml``: the module pynvml, begun."""

    def __init__(self, nvml: Any, handles: list[Any]) -> None:
        self.nvml = nvml
        self.handles = handles
        self.driver: str = nvml.nvmlSystemGetDriverVersion()

    @classmethod
    def begun(cls, environment: Mapping[str, str]) -> Cards:
        """Raises DevicesError where there is nothing to run a kernel on."""
        missing = " and ".join(name for module, name in NEEDED.items() if find_spec(module) is None)
        if missing:
            raise DevicesError(f"no CUDA device: for want of {missing}: pip install 'skep[cuda]'")
        import pynvml

        return cls.of(pynvml, environment)

    @classmethod
    def of(cls, nvml: ModuleType | Any, environment: Mapping[str, str]) -> Cards:
        """As ``begun``, of this NVML."""
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
            uuids = [nvml.nvmlDeviceGetUUID(handle) for handle in handles]
            seen = [handles[i] for i in visible(uuids, environment.get(VISIBLE))][:DEVICES_MAX]
            if not seen:
                raise DevicesError(f"no CUDA device: {len(handles)} are there, {VISIBLE} leaves none")
            return cls(nvml, seen)
        except nvml.NVMLError as error:
            raise DevicesError(f"no CUDA device: NVML: {error}") from error

    def device(self, ordinal: int, slots: int, memory: int) -> Device:
        nvml, handle = self.nvml, self.handles[ordinal]
        total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
        # What a process takes of it for itself is part of what a run needs: kernels/arguments.py, CONTEXT.
        usable = min(memory or total, total)
        name, uuid = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetUUID(handle)
        return Device(f"cuda:{ordinal}", CUDA, name, uuid, total, usable, slots or CUDA_SLOTS)

    def read(self, device: Device) -> Reading:
        nvml, handle = self.nvml, self.handles[int(device.id.partition(":")[2])]
        try:
            free = int(nvml.nvmlDeviceGetMemoryInfo(handle).free)
        except nvml.NVMLError as error:
            return Reading(lost=str(error))
        rates = self._told(nvml.nvmlDeviceGetUtilizationRates, handle)
        temperature = self._told(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)
        return Reading(free, None if rates is None else rates.gpu / 100, temperature)

    def _told(self, query: Callable[..., Any], *args: Any) -> Any:
        """What it tells; None: this card does not tell it, as some under a hypervisor do not."""
        try:
            return query(*args)
        except self.nvml.NVMLError:
            return None


def visible(uuids: list[str], told: str | None) -> list[int]:
    """The places of the cards that CUDA_VISIBLE_DEVICES leaves, in its order; None: all. What names none ends
    the list."""
    if told is None:
        return list(range(len(uuids)))
    places: list[int] = []
    for word in (part.strip() for part in told.split(",")):
        matches = [i for i, uuid in enumerate(uuids) if word and uuid.startswith(word)]
        if word.isdecimal() and int(word) < len(uuids):
            matches = [int(word)]
        if len(matches) != 1 or matches[0] in places:
            break
        places += matches
    return places


# the CPU


def _host(why: str, disabled: str, slots: int, memory: int) -> Machine:
    total = host_memory()
    usable = min(memory or total // CPU_SHARE, total)
    device = Device("cpu:0", CPU, _cpu_name(), "", total, usable, slots or min(cores(), GRANTS_MAX))
    return Machine((device,), "", disabled, why, Host().read)


def host_memory() -> int:
    """Bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


class Host:
    """The CPU, read: how busy it was since it was read last."""

    def __init__(self) -> None:
        self._last = _ticks()

    def read(self, device: Device) -> Reading:
        last, self._last = self._last, _ticks()
        idle, total = (now - then for now, then in zip(self._last, last, strict=True))
        return Reading(_available(), round(1 - idle / total, 3) if total else None)


def _ticks() -> tuple[int, int]:
    """Idle and all ticks of all processors. Source: proc_stat(5)."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def _available() -> int:
    """Bytes that may be taken without swapping. Source: proc_meminfo(5)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine
