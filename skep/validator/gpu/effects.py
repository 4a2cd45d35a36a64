"""Whether what was accepted was done: a line that the hive took must show in what became of its job or lease.

An entry whose events are not all there, as where something was left out before it was written, contradicts
its own line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from skep.fs import ctl
from skep.fs.errors import FsError
from skep.validator.gpu.claims import Claims
from skep.validator.gpu.devices import Annex, Devices, lives
from skep.validator.gpu.jobs import Jobs
from skep.validator.gpu.told import Device, Entry

_JOB: Final = re.compile(r"/jobs/([^/]+)(/ctl)?")
_NEXT: Final = re.compile(r"/pools/([^/]+)/next")
_GPU: Final = re.compile(r"/gpu/([^/]+)(?:/ctl)?")

# By verb: where a job is after a line that was accepted.
_AFTER: Final[Mapping[str, frozenset[str]]] = {
    "start": frozenset({"running"}),
    "ack": frozenset({"succeeded"}),
    "nack": frozenset({"delayed", "failed"}),
    "cancel": frozenset({"cancelled"}),
    "release": frozenset({"queued", "failed"}),
    "fallback": frozenset({"queued", "failed"}),
    "expire": frozenset({"queued", "failed"}),
    "preempt": frozenset({"queued"}),
    "timeout": frozenset({"delayed", "failed"}),
    "spent": frozenset({"failed"}),
    "overdue": frozenset({"failed"}),
    "wake": frozenset({"queued"}),
}
_SWITCHES: Final = frozenset({"disable", "enable"})


def check(claims: Claims, entry: Entry, jobs: Jobs, devices: Devices) -> None:
    """Hold the entry's line against what there is after its events, of which none is settled yet."""
    lines = entry.line.split("\n")
    if found := _JOB.fullmatch(entry.path):
        # Each line of a write goes to this job; the last says where it is.
        _job(claims, jobs, found[1], lines[-1])
    elif found := _NEXT.fullmatch(entry.path):
        pool = jobs.pools.get(found[1])
        if pool is not None and pool.asks:
            claims.check("effect", "" if jobs.leased else f"a job of {found[1]} is leased, and none is")
    elif found := _GPU.fullmatch(entry.path):
        switches = [k for k, line in enumerate(lines) if line.split(" ")[0] in _SWITCHES]
        for k, line in enumerate(lines):
            if k in switches[:-1]:
                continue  # one that comes later decides
            id = entry.trace if k == 0 else f"{entry.trace}-{k}"
            wrong = _undone(devices, found[1], line, id, entry.time_ns)
            if wrong is not None:
                claims.check("effect", wrong, annex=found[1])


def _job(claims: Claims, jobs: Jobs, name: str, line: str) -> None:
    verb, args = _parsed(line)
    job = jobs.by_id.get(args.get("job", name) if name == "ctl" else name)
    after = _AFTER.get(verb)
    if job is not None and after is not None:
        wrong = "" if job.state in after else f"{verb} was accepted, and it is {job.state}"
        claims.check("effect", wrong, job.request.job)


def _undone(devices: Devices, name: str, line: str, id: str, time_ns: int) -> str | None:
    """What the line did not do to the annex; "": all is done; None: it does nothing that shows. ``id``: of
    what it makes."""
    verb, args = _parsed(line)
    annex = devices.by_name.get(name) or Annex()
    match verb:
        case "offer":
            said = {device.id: device for device in _devices(args.get("devices", ""))}
            known = said == annex.devices and args.get("disabled", "") == annex.closed
            return "" if known else "offer was accepted, and it has something else"
        case "lease":
            made = id in devices.asked or any(each.lease == id for each in devices.given)
            return "" if made else f"lease was accepted, and {id} is neither given nor waited for"
        case "release":
            lease = args.get("lease", "")
            return f"release was accepted, and {lease} goes on" if lease in annex.leases else ""
        case "expire":
            over = [lease.lease for lease in annex.leases.values() if not lives(lease, time_ns)]
            return f"expire was accepted, and {' '.join(over)} goes on" if over else ""
        case "disable" | "enable":
            done = annex.disabled is (verb == "disable")
            return "" if done else f"{verb} was accepted, and not done"
    return None


def _devices(text: str) -> tuple[Device, ...]:
    try:
        return msgspec.json.decode(text, type=tuple[Device, ...])
    except msgspec.DecodeError:
        return ()


def _parsed(line: str) -> tuple[str, Mapping[str, str]]:
    try:
        command = ctl.parse_line(line)
    except FsError:
        return "", {}  # it is no control file's
    return command.verb, command.args
