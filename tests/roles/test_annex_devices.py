"""What an annex says that it has: its CPU as a CPU, and cards as NVML tells of them.

There is no card here: who speaks as NVML below is a table of what one is said to have told."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from skep.namespaces.gpu.beat import Beat
from skep.native.kernels.arguments import PROCESS
from skep.roles.annex.devices import Cards, Device, DevicesError, Machine, Reading, found, slug, visible
from skep.roles.annex.room import Room, Use
from skep.roles.annex.telemetry import STALE_NS, Telemetry
from skep.trace.clock import SECOND, ManualClock

GIB = 1 << 30


class NvmlError(Exception):
    pass


class Nvml:
    """The part of NVML that is asked, of two cards; ``broken``: those that tell nothing any more."""

    NVMLError = NvmlError
    NVML_TEMPERATURE_GPU = 0

    def __init__(self) -> None:
        self.broken: set[int] = set()

    def nvmlInit(self) -> None:
        pass

    def nvmlSystemGetDriverVersion(self) -> str:
        return "575.1"

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, card: int) -> str:
        return ("GPU-aa11", "GPU-bb22")[card]

    def nvmlDeviceGetName(self, card: int) -> str:
        return "NVIDIA T400"

    def nvmlDeviceGetMemoryInfo(self, card: int) -> Any:
        if card in self.broken:
            raise NvmlError("GPU is lost")
        return SimpleNamespace(total=4 * GIB, free=3 * GIB)

    def nvmlDeviceGetUtilizationRates(self, card: int) -> Any:
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetTemperature(self, card: int, sensor: int) -> int:
        raise NvmlError("Not Supported")


def machine(nvml: Nvml, visible: str | None = None) -> Machine:
    cards = Cards.of(nvml, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    devices = tuple(cards.device(ordinal, 0, 0) for ordinal in range(len(cards.handles)))
    return Machine(devices, cards.driver, "", "", cards.read)


def test_a_cpu_says_that_it_is_one() -> None:
    host = found("cpu", {}, slots=3, memory=GIB)
    (device,) = host.devices
    assert ("cpu:0", "cpu", "", GIB, 3) == (
        device.id, device.kind, device.uuid, device.memory, device.slots
    )  # fmt: skip
    assert ("", "cpu was asked for", False) == (host.disabled, host.why, host.has_gpu)
    assert 0 < (host.read(device).memory_free or 0) <= device.memory_total


def test_gpus_that_are_not_to_be_used_are_told_of_even_where_there_are_none() -> None:
    for said in ("1", "true"):
        assert "SKEP_NO_CUDA=1" == found("auto", {"SKEP_NO_CUDA": said}).disabled
    assert "" == found("auto", {"SKEP_NO_CUDA": "0"}).disabled
    # Whoever asks for the CPU has not asked for what is disabled.
    assert "" == found("cpu", {"SKEP_NO_CUDA": "1"}).disabled


def test_cards_are_told_as_nvml_tells_of_them() -> None:
    cards = machine(Nvml())
    first, second = cards.devices
    assert Device("cuda:0", "cuda", "NVIDIA T400", "GPU-aa11", 4 * GIB, 4 * GIB, 2) == first
    assert ("cuda:1", "GPU-bb22") == (second.id, second.uuid)
    # This card tells no temperature.
    assert Reading(3 * GIB, 0.25, None) == cards.read(first)


@pytest.mark.parametrize(
    ("told", "places"),
    [
        (None, [0, 1]),
        ("1,0", [1, 0]),
        ("GPU-bb", [1]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("0,0", [0]),
        ("GPU-", []),
    ],
)
def test_what_cuda_does_not_see_is_not_lent(told: str | None, places: list[int]) -> None:
    assert places == visible(["GPU-aa11", "GPU-bb22"], told)


def test_devices_are_numbered_among_those_that_cuda_sees() -> None:
    (only,) = machine(Nvml(), "GPU-bb22").devices
    assert ("cuda:0", "GPU-bb22") == (only.id, only.uuid)
    with pytest.raises(DevicesError, match="2 are there, CUDA_VISIBLE_DEVICES leaves none"):
        machine(Nvml(), "")


def test_a_name_is_a_label_in_small_letters() -> None:
    assert "h100-80gb-hbm3" == slug("NVIDIA H100 80GB HBM3")
    assert "tesla-t4" == slug("Tesla T4")


# how they are


def heard(nvml: Nvml) -> Telemetry:
    return Telemetry("g1", machine(nvml), 30 * SECOND, ManualClock(), lambda: 2)


async def told(nvml: Nvml, broken: set[int]) -> tuple[Telemetry, Beat, bool]:
    """The next heartbeat of an annex whose cards break after one, and whether that comes at once."""
    telemetry = heard(nvml)
    telemetry.beat()
    nvml.broken = broken
    telemetry._take(telemetry._read())
    waiting = asyncio.create_task(telemetry.wait_beat())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    at_once = waiting.done()
    waiting.cancel()
    return telemetry, telemetry.beat(), at_once


def test_a_card_that_is_lost_is_told_at_once_and_not_offered() -> None:
    telemetry, beat, at_once = asyncio.run(told(Nvml(), {0}))
    assert at_once
    assert ("degraded", ["cuda:1"], "") == (beat.state, [each.id for each in beat.devices], beat.disabled)
    (record,) = telemetry.records.read(0)[1]
    assert b'"state":"degraded"' in record
    assert b'"memory_total":4294967296' in record


def test_an_annex_without_a_card_left_is_disabled() -> None:
    _, beat, _ = asyncio.run(told(Nvml(), {0, 1}))
    assert ("disabled", "cuda:0: GPU is lost") == (beat.state, beat.disabled)


def test_what_does_not_change_waits_for_its_time() -> None:
    _, beat, at_once = asyncio.run(told(Nvml(), set()))
    assert ("ready", 2, "30s", "575.1", False) == (beat.state, beat.queue, beat.every, beat.driver, at_once)


def test_a_driver_that_does_not_answer_is_no_device() -> None:
    async def silent() -> str:
        telemetry = heard(Nvml())
        assert isinstance(telemetry.clock, ManualClock)
        telemetry.clock.advance(STALE_NS + 1)
        return telemetry.beat().disabled

    assert "cuda:0: its driver does not answer" == asyncio.run(silent())


# what is used of them


def test_room_is_what_is_left_and_the_fullest_device_comes_first() -> None:
    first, second = machine(Nvml()).devices
    room = Room()
    use = Use("a", second, 3 * GIB, 1, False, 0)
    room.take(use)

    def places(memory: int, slots: int = 1, exclusive: bool = False) -> list[str]:
        return [each.id for each in room.open_to([first, second], lambda kind: memory, slots, exclusive)]

    assert ["cuda:1", "cuda:0"] == places(GIB)
    assert ["cuda:0"] == places(2 * GIB)
    assert ["cuda:0"] == places(GIB, slots=2)
    assert ["cuda:0"] == places(GIB, exclusive=True)
    assert [] == places(5 * GIB)
    room.take(Use("b", first, GIB, 1, True, 0))
    assert ["cuda:1"] == places(GIB)
    room.free(use)
    assert ["cuda:1"] == places(4 * GIB)


def test_what_runs_beside_the_devices_has_so_much_memory_together() -> None:
    async def story() -> list[bool]:
        room, found = Room(), []
        first, second, small = (
            Use(id, None, PROCESS + of * GIB, 1, False, 0) for id, of in zip("abc", (3, 2, 1), strict=True)
        )
        await room.wait_beside(first, 4 * GIB)
        waiting = asyncio.create_task(room.wait_beside(second, 4 * GIB))
        await room.wait_beside(small, 4 * GIB)
        found.append(waiting.done())
        room.free(first)
        await waiting
        return [*found, "b" in room.uses]

    assert [False, True] == asyncio.run(story())
