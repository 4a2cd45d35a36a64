"""Booting: exactly, counting instructions to each symbol; and by the clock on the wall, as often as asked.

Source of the method: QEMU's documentation of -icount and query-replay; what is exact was measured."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import msgspec

from skep.boot.argv import command
from skep.boot.bootinfo import BootInfo
from skep.boot.classes import Class, Fault, Verdict
from skep.boot.diagnose import Observed, decoded, diagnose, registers, runs_user, worded
from skep.boot.grammar import Grammar, Lines
from skep.boot.interrupts import Interrupts, in_words
from skep.boot.manifest import Manifest, Milestone
from skep.boot.page import Found, find
from skep.boot.qemu import SERIAL_MAX, LabError, Machine, NotStarted, started
from skep.boot.scenario import Scenario, manifest_of, unmet
from skep.boot.symbols import Symbols, archived

ROM_AT: Final = 0xFFFC0000  # x86_64's firmware to its end: another package than QEMU's
ROM_SIZE: Final = 1 << 18
BEYOND_S: Final = 60.0  # after the total deadline: to look at a guest that hangs, and to end it
AFTERMATH_S: Final = 0.3  # what is still printed after a line that tells why
LOOKS: Final = 25  # at a processor, to see whether it stays at one instruction and is no loop
QUIET_S: Final = 0.5  # a guest that has printed nothing for so long does not go on
AGAIN_S: Final = 20.0  # at most, of a second boot whose exceptions are logged
# What a fault that nobody tells of looks like.
SILENT: Final = (Class.NO_OUTPUT, Class.BOOT_TIMEOUT, Class.TEST_TIMEOUT, Class.KERNEL_HALTED)
ATTEMPTS: Final = 2  # of what may end otherwise: QEMU that did not start, the lab's own failures


class Reached(msgspec.Struct, frozen=True, omit_defaults=True):
    """A milestone. Exact runs have ``instructions`` and ``virtual_ms`` from reset, others ``wall_ms``."""

    name: str
    instructions: int | None = None
    virtual_ms: float | None = None
    wall_ms: float | None = None


class Boot(msgspec.Struct, omit_defaults=True):
    """One boot. ``verdict`` None: as expected of it."""

    exact: bool
    reached: list[Reached]
    verdict: Verdict | None
    serial: bytes = b""
    stamps: list[tuple[float, int]] = []  # (ms since cont, bytes printed until then)
    qemu: str = ""
    rom: str = ""  # SHA-256 of the machine's own firmware; "": it has none, or the manifest names another
    tried: list[str] = []  # what became of the attempts before
    ended: Verdict | None = None  # as what it ended, also where that was expected; None: well
    page: bytes = b""  # BootInfo, and what follows it
    bootinfo: BootInfo | None = None
    delivered: dict[int, int] = {}  # interrupts, where they were counted


Printed = Callable[[bytes], None]


def _nobody(data: bytes) -> None:
    """Nobody listens."""


class SymbolError(Exception):
    """A milestone's symbol is not in its file."""


def addresses(manifest: Manifest, base: Path) -> dict[str, int]:
    """Of each milestone that is counted to. Raises SymbolError."""
    found = {}
    files = {name: Symbols(base / name) for name in {each.elf or each.entry for each in manifest.counted}}
    for each in manifest.counted:
        symbols = files[each.elf or each.entry]
        address = symbols.by_name.get(each.symbol) if each.symbol else symbols.entry
        if not address:
            what = each.symbol or "an entry"
            raise SymbolError(f"milestone {each.name}: {each.elf or each.entry} has no {what}")
        found[each.name] = address
    return found


async def exact(manifest: Manifest, base: Path, printed: Printed = _nobody) -> Boot:
    """Count to each symbol, and end there; ``printed`` gets what the guest prints. Raises SymbolError."""
    return await _tried(_Exact(manifest, base, printed))


async def wall(manifest: Manifest, base: Path, printed: Printed = _nobody) -> Boot:
    """Boot to the expected end, by the clock; the same."""
    return await _tried(_Wall(manifest, base, printed))


async def played(manifest: Manifest, base: Path, scenario: Scenario) -> Boot:
    """A boot that must end as its scenario says."""
    run = _Wall(manifest_of(manifest, scenario), base, _nobody)
    run.counts = bool(scenario.interrupts)
    run.demanded = scenario.demand
    boot = await _tried(run)
    if boot.verdict is None and (told := unmet(scenario, boot.serial, boot.ended, boot.delivered)):
        ended = boot.ended or Verdict(Class.TEST_TIMEOUT, "")
        boot.verdict = msgspec.structs.replace(ended, message="; ".join(told))
    return boot


async def _tried(run: _Run) -> Boot:
    tried: list[str] = []
    for attempt in range(ATTEMPTS):
        boot = await run.boot()
        boot.tried = list(tried)
        if boot.verdict is None or not boot.verdict.cause.row.retried or attempt == ATTEMPTS - 1:
            break
        tried.append(f"{boot.verdict.cause.value}: {boot.verdict.message}")
    if boot.verdict is not None and run.unexplained(boot.verdict):
        boot.ended = await run.logged(boot.verdict)
        boot.verdict = None if boot.ended.cause.value == run.manifest.expect else boot.ended
    return boot


class _Run:
    """What both kinds of boot share: QEMU's life, and what is seen when it ends."""

    exact = False

    def __init__(self, manifest: Manifest, base: Path, printed: Printed) -> None:
        self.manifest = manifest
        self.base = base
        self.printed = printed
        self.counts = False  # whether its interrupts are counted
        self.quiet = False  # whether it came to its deadline without a word

    @cached_property
    def symbols(self) -> list[Symbols]:
        """Those that name what failed: reading them takes as long as a boot."""
        return [Symbols(self.base / name) for name in self.manifest.elves] + archived(
            self.base / self.manifest.kernel
        )

    async def boot(self) -> Boot:
        self.reached: list[Reached] = []
        self.waiting: Milestone | None = self._milestones()[0] if self._milestones() else None
        deadline = self.manifest.deadline
        argv = command(self.manifest, self.exact)
        boot = Boot(self.exact, self.reached, None)
        machine: Machine | None = None
        told = Interrupts()
        begun = time.monotonic()
        self._until = begun + deadline.total
        try:
            async with (
                # Each wait has its own end before that; this is for what should not wait at all.
                asyncio.timeout(deadline.total + BEYOND_S),
                started(
                    argv,
                    self.base,
                    self.left(deadline.start),
                    self.exact,
                    told.feed if self.counts else None,
                ) as machine,
            ):
                machine.serial.copied = self.printed
                machine.reply_s = deadline.reply
                boot.qemu = await machine.version()
                if self.exact and self.manifest.arch == "x86_64" and not self.manifest.firmware:
                    boot.rom = sha256(await machine.memory(ROM_AT, ROM_SIZE, physical=True)).hexdigest()
                begun = time.monotonic()
                ended = await self._follow(machine)
                last = machine.serial.pieces[-1][0] if machine.serial.pieces else begun
                self.quiet = ended == "deadline" and time.monotonic() - last > QUIET_S
                said = await _looked_at(machine) if ended == "deadline" else {}
        except NotStarted as error:
            seen = Observed(b"", "exited", started=False, stderr=str(error))
            boot.verdict = diagnose(seen, self.manifest.arch)
            return boot
        except (LabError, TimeoutError, OSError) as error:
            boot.verdict = Verdict(Class.HARNESS_ERROR, str(error) or "its total deadline has passed")
        if machine is not None:
            boot.serial = bytes(machine.serial.data)
            boot.stamps = [((at - begun) * 1000, size) for at, size in machine.serial.pieces]
            boot.delivered = dict(told.delivered)
            boot.verdict = boot.verdict or self._judge(boot, machine, ended, said)
        return boot

    def left(self, seconds: float) -> float:
        """So many, or what is left of the total."""
        return max(min(seconds, self._until - time.monotonic()), 0.0)

    def _milestones(self) -> Sequence[Milestone]:
        raise NotImplementedError

    async def _follow(self, machine: Machine) -> str:
        raise NotImplementedError

    def _judge(self, boot: Boot, machine: Machine, ended: str, said: dict[str, str]) -> Verdict | None:
        """What became of it, beside what was expected. ``said``: the registers."""
        serial = boot.serial
        seen = Observed(
            serial,
            ended,
            self.waiting.name if self.waiting is not None else "",
            self.reached[-1].name if self.reached else "",
            machine.process.returncode,
            machine.stderr.decode("utf-8", "replace"),
            registers=said,
        )
        if ended == "reached":
            return self._forbidden(serial) or self._misfit(boot)
        verdict = boot.ended = diagnose(seen, self.manifest.arch, self.symbols)
        if verdict.cause.value == self.manifest.expect:
            return self._forbidden(serial)
        if machine.serial.full.is_set():
            more = f"{verdict.message}; it has printed more than {SERIAL_MAX >> 20} MiB"
            return msgspec.structs.replace(verdict, message=more)
        return verdict

    def unexplained(self, verdict: Verdict) -> bool:
        """Whether QEMU's log of exceptions may tell more: of a silent end, or of a reset of x86."""
        if verdict.cause is Class.RESET:
            return self.manifest.arch == "x86_64"
        # Where a thread still runs, whatever fault there was has been handled.
        return self.quiet and verdict.cause in SILENT and not runs_user(verdict.registers)

    async def logged(self, verdict: Verdict) -> Verdict:
        """What is found of a silent end, or of a reset, in another boot: of that QEMU logs the exceptions."""
        told = Interrupts()
        deadline = self.manifest.deadline
        try:
            async with (
                asyncio.timeout(deadline.start + AGAIN_S),
                started(
                    command(self.manifest, exact=False), self.base, deadline.start, logged=told.feed
                ) as machine,
            ):
                await machine.execute("cont")
                with _Ends(machine, _Watch(machine)) as ends:
                    await ends.before(asyncio.Future(), min(deadline.milestone, AGAIN_S))
        except (LabError, TimeoutError, OSError):
            return verdict
        if verdict.cause is Class.RESET:
            return self._triple(verdict, told)
        return self._unheard(verdict, told) if told.fault is not None else verdict

    def _triple(self, verdict: Verdict, told: Interrupts) -> Verdict:
        """With the place of a triple fault, if it was one."""
        if told.triple is None:
            return verdict
        fault = decoded(Fault("triple", pc=told.triple), self.manifest.arch, self.symbols)
        lines = tuple(line for _, _, line in told.last)
        return msgspec.structs.replace(
            verdict,
            message=f"{worded(f'a triple fault at {told.triple:#x}', fault)}, as QEMU saw it",
            evidence=verdict.evidence + lines,
            fault=fault,
        )

    def _unheard(self, verdict: Verdict, told: Interrupts) -> Verdict:
        """The last fault of user space, which nobody has told of."""
        assert told.fault is not None
        fault = decoded(told.fault, self.manifest.arch, self.symbols)
        return Verdict(
            Class.USER_FAULT,
            f"{worded(in_words(fault), fault)}, as QEMU saw it: nothing was printed of it",
            verdict.milestone,
            verdict.evidence + told.lines,
            verdict.registers,
            fault,
        )

    def _misfit(self, boot: Boot) -> Verdict | None:
        """What does not hold of BootInfo."""
        return None

    def _forbidden(self, serial: bytes) -> Verdict | None:
        lines = list(Lines().feed(serial + b"\n"))
        for pattern in self.manifest.forbid:
            for i, line in enumerate(lines):
                if re.search(pattern, line):
                    shown = tuple(lines[max(i - 15, 0) : i + 6])
                    last = self.reached[-1].name if self.reached else ""
                    return Verdict(Class.KERNEL_PANIC, f"forbidden: {line}", last, shown)
        return None


async def _looked_at(machine: Machine) -> dict[str, str]:
    """The registers of a guest that does not go on; PC only where it stays."""
    told = registers(await machine.registers())
    for _ in range(LOOKS):
        again = registers(await machine.registers())
        if told.get("PC") != again.get("PC"):
            told.pop("PC", None)
            break
    return told


class _Watch:
    """Reads what is printed: ``told`` is set when a line says why it will not go on."""

    def __init__(self, machine: Machine) -> None:
        self._lines, self._grammar = Lines(), Grammar()
        self.told = asyncio.Event()
        self.each: Callable[[str], None] = lambda line: None
        machine.serial.heard = self._heard

    def _heard(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            self._grammar.read(line)
            self.each(line)
        self.each(self._lines.rest)
        if self._grammar.found:
            self.told.set()


class _Ends:
    """What ends a boot beside what it is waited for. Used as a context, so that no wait is left."""

    def __init__(self, machine: Machine, watch: _Watch) -> None:
        self._machine = machine
        self._waits = {
            "reset": machine.was_reset.wait(),
            "exited": machine.process.wait(),
            "full": machine.serial.full.wait(),
            "told": watch.told.wait(),
        }
        self._tasks: dict[asyncio.Future[Any], str] = {}

    def __enter__(self) -> _Ends:
        self._tasks = {asyncio.ensure_future(wait): name for name, wait in self._waits.items()}
        return self

    def __exit__(self, *error: object) -> None:
        for each in self._tasks:
            each.cancel()

    async def before(self, wanted: asyncio.Future[Any], seconds: float) -> str:
        """ "" when ``wanted`` is done first; else how it ended: "reset", "exited", "told" or "deadline".

        Raises LabError when ``wanted`` did, and the guest is none of these."""
        await asyncio.wait({wanted, *self._tasks}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if wanted.done() and not wanted.cancelled() and wanted.exception() is None:
            return ""
        wanted.cancel()
        await asyncio.gather(wanted, return_exceptions=True)
        # What is printed after the line that tells, and the event by which QEMU ends, are on their way.
        await asyncio.sleep(AFTERMATH_S)
        if self._machine.was_reset.is_set():
            return "reset"
        ended = [name for task, name in self._tasks.items() if task.done() and name != "full"]
        if not ended and not wanted.cancelled() and (error := wanted.exception()) is not None:
            raise error
        return "told" if "told" in ended else ended[0] if ended else "deadline"


class _Exact(_Run):
    exact = True

    def __init__(self, manifest: Manifest, base: Path, printed: Printed) -> None:
        super().__init__(manifest, base, printed)
        self.addresses = addresses(manifest, base)

    found: Found | None = None  # BootInfo, where the manifest says where it is

    def _milestones(self) -> Sequence[Milestone]:
        return self.manifest.counted

    async def _follow(self, machine: Machine) -> str:
        stub = machine.stub
        assert stub is not None
        with _Ends(machine, _Watch(machine)) as ends:
            for each in self.manifest.counted:
                self.waiting = each
                address = self.addresses[each.name]
                await stub.set_break(address)
                if ended := await self._gone(machine, ends, self.manifest.deadline.milestone):
                    return ended
                count = await machine.icount()
                self.reached.append(Reached(each.name, count, (count << self.manifest.shift) / 1e6))
                await stub.clear_break(address)
            if self.manifest.bootinfo is not None:
                self.found = await find(machine, self.manifest.bootinfo, self.base)
            self.waiting = None
            if self.manifest.expect == "reached":
                return "reached"
            return await self._gone(machine, ends, self.manifest.deadline.end) or "exited"

    async def _gone(self, machine: Machine, ends: _Ends, seconds: float) -> str:
        """Let it run to a breakpoint: "", else how it ended."""
        assert machine.stub is not None
        seconds = self.left(seconds)
        going = asyncio.ensure_future(machine.stub.go(seconds + BEYOND_S))
        if ended := await ends.before(going, seconds):
            return ended
        if going.result().startswith("T05"):
            return ""
        await asyncio.sleep(AFTERMATH_S)
        return "reset" if machine.was_reset.is_set() else "exited"

    def _misfit(self, boot: Boot) -> Verdict | None:
        if self.found is None:
            return None
        boot.page, boot.bootinfo = self.found.data, self.found.info
        told = "; ".join(self.found.broken)
        return Verdict(Class.LAYOUT_INVALID, f"bootinfo: {told}", self.reached[-1].name) if told else None


class _Wall(_Run):
    demanded: Sequence[str] = ()  # lines that must come too, in any order, where it shall end well

    def _milestones(self) -> Sequence[Milestone]:
        return [each for each in self.manifest.milestones if each.line]

    async def _follow(self, machine: Machine) -> str:
        """Read lines as they come, to the last milestone or to a line that says why not."""
        deadline = self.manifest.deadline
        coming = list(self._milestones())
        demanded = list(self.demanded) if self.manifest.expect == "reached" else []
        watch = _Watch(machine)
        step = asyncio.Event()

        def each(line: str) -> None:
            while coming and re.search(coming[0].line, line):
                ms = (time.monotonic() - begun) * 1000
                self.reached.append(Reached(coming.pop(0).name, wall_ms=ms))
                step.set()
            self.waiting = coming[0] if coming else None
            for pattern in [each for each in demanded if re.search(each, line)]:
                demanded.remove(pattern)
                step.set()

        watch.each = each
        begun = time.monotonic()
        await machine.execute("cont")
        with _Ends(machine, watch) as ends:
            while coming or demanded:
                step.clear()
                going = asyncio.ensure_future(step.wait())
                seconds = deadline.milestone if coming else deadline.end
                if ended := await ends.before(going, self.left(seconds)):
                    # Of lines that were demanded, it is told which did not come.
                    return "reached" if ended == "deadline" and not coming else ended
            if self.manifest.expect == "reached":
                return "reached"
            return await ends.before(asyncio.Future(), self.left(deadline.end))
