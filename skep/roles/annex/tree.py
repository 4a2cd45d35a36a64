"""What an annex tells the people of its machine, live from its devices, on annex.sock in its directory.

    gpu/<annex>/info.json          R its devices and its driver, and why it has no GPU where it has none
    gpu/<annex>/health             R ready, degraded (not all of its devices are of use), or disabled: why
    gpu/<annex>/load               R how busy its devices are, fraction of the time; "-": they do not tell
    gpu/<annex>/telemetry.jsonl    R a record for each of the last seconds, the latest last
    gpu/<annex>/leases/<job>/job   R the job's id
    gpu/<annex>/leases/<job>/device, pid, since   R where it runs, its process (0: none yet), from when on

The hive's /gpu tells what the hive has decided and heard, also of an annex that is dead; this tree what the
machine does now, also without the hive.

    skep ls -H unix:annex-g1/annex.sock /gpu/g1/leases
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from skep.fs.tree import Listing
from skep.roles.annex.room import Room, Use
from skep.roles.annex.telemetry import Telemetry
from skep.trace.clock import rfc3339


def tree(telemetry: Telemetry, room: Room) -> Mapping[str, Any]:
    """The root of annex.sock."""
    leases = Listing(lambda caller: list(room.uses), lambda job, caller: _lease(room.uses.get(job)))
    return {
        "gpu": {
            telemetry.node: {
                "info.json": lambda: _info(telemetry),
                "health": lambda: _health(telemetry),
                "load": lambda: _load(telemetry),
                "telemetry.jsonl": lambda: b"".join(telemetry.records.read(0)[1]),
                "leases": leases,
            }
        }
    }


def _lease(use: Use | None) -> Mapping[str, str] | None:
    if use is None:
        return None
    pid = use.process.pid if use.process else None
    return {
        "job": f"{use.job}\n",
        "device": f"{use.device.id if use.device else 'cpu'}\n",
        "pid": f"{pid or 0}\n",
        "since": f"{rfc3339(use.since_ns)}\n",
    }


def _info(telemetry: Telemetry) -> bytes:
    machine = telemetry.machine
    info = {
        "annex": telemetry.node, "driver": machine.driver, "devices": machine.devices,
        "disabled": telemetry.disabled, "why_no_gpu": machine.why,
    }  # fmt: skip
    return msgspec.json.encode(info) + b"\n"


def _health(telemetry: Telemetry) -> str:
    why = telemetry.disabled
    return f"{telemetry.state}: {why}\n" if why else f"{telemetry.state}\n"


def _load(telemetry: Telemetry) -> str:
    load = telemetry.record()["utilisation"]
    return "-\n" if load is None else f"{load}\n"
