"""A Linux guest that lives for one script: QEMU without KVM, Debian's kernel, busybox, user networking.

    result = run_guest('''
        mount9p 9p2000.L 5640 /mnt/hive aname=/
        section listing ls -lR /mnt/hive
    ''')
    assert "jobs" in result.passed("listing")

The script is POSIX sh for busybox's ash, run as root after the network is up; lib.sh is its vocabulary.
The host's loopback is 10.0.2.2 in the guest ($HOST). One boot costs about two seconds, so a script has many
sections, and each test looks at some of them. What the guest boots is put together in image.py.
"""

import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import image

MEMORY_MIB = 512
# Quiet: the console is a serial port, and each byte on it costs. panic=-1 with -no-reboot: an oops in
# process 1 ends QEMU at once. Mitigations and KASLR protect nobody here and take time.
KERNEL_COMMAND_LINE = "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off nokaslr"
KERN_WARNING = 4  # syslog(2)
TAIL_CHARS = 3000  # Of an output quoted in an error.
BOOT_S = 120  # Until the script begins: two seconds, but for a host that is busy.
# Said of a virtual processor that was not run for a while, by a kernel that lives on a busy host.
BUSY_HOST = re.compile(r"clocksource:|sched_clock:|[Tt][Ss][Cc]\b|hrtimer: interrupt took|hogged CPU")


class GuestError(Exception):
    """The guest did not come to its end, or what it printed is no series of sections."""


@dataclass(frozen=True, slots=True)
class Section:
    """What ran between a begin and its end."""

    name: str
    output: str  # stdout and stderr, as they came; bytes that are not UTF-8 as \\xNN.
    status: int | None  # None: it never ended.
    began_ns: int  # Guest's uptime, in steps of 10 ms.
    took_ns: int | None  # None: it never ended.


@dataclass(frozen=True, slots=True)
class GuestResult:
    """What a guest left behind. "script" and "dmesg" are sections too: the script's own output outside
    of its sections with the status of its last command, and what the kernel said during the script."""

    output: str  # All the script printed, markers included.
    console: str  # What the kernel printed by itself: an oops, mostly.
    sections: Mapping[str, Section]
    wall_ns: int  # From starting QEMU to its end.

    def __getitem__(self, name: str) -> Section:
        if name not in self.sections:
            raise GuestError(
                f"no section {name!r} in\n{self.output[-TAIL_CHARS:]}{self.console[-TAIL_CHARS:]}"
            )
        return self.sections[name]

    def passed(self, name: str) -> str:
        """The output of a section that must have ended with status 0."""
        section = self[name]
        quoted = f"{section.output[-TAIL_CHARS:]}\ndmesg:\n{self['dmesg'].output[-TAIL_CHARS:]}"
        assert section.status == 0, f"section {name}: status {section.status}\n{quoted}"
        return section.output

    def complaints(self) -> list[str]:
        """What the kernel said during the script at the level of a warning or worse, but of the host."""
        lines = re.findall(r"^<(\d+)>(.*)$", self["dmesg"].output, re.M)
        return [
            text for level, text in lines if int(level) % 8 <= KERN_WARNING and not BUSY_HOST.search(text)
        ]


def run_guest(
    script: str, *, deadline_s: float = 150, files: Mapping[str, bytes] | None = None
) -> GuestResult:
    """Boot a guest, run ``script`` in it and wait until it has powered itself off, which must be
    ``deadline_s`` after the script began.

    ``files`` are put into the guest by absolute path (in /root, /tmp, /etc or another of image.FOLDERS).
    Whatever happens, QEMU is gone afterwards. Raises GuestError with what the guest had printed when it
    is not off by the deadline or died before its end, image.ImageError when the host lacks something."""
    nonce = secrets.token_hex(8)
    kernel = image.kernel()
    began_ns = time.monotonic_ns()
    with TemporaryDirectory(prefix="guest-") as name:
        folder = Path(name)
        (folder / "initramfs").write_bytes(image.initramfs(kernel.modules, script, nonce, files or {}))
        with _qemu(kernel.image, folder) as qemu:
            ended = _waited(qemu, lambda: f"\x1e{nonce} script-begin" in _text(folder / "output"), deadline_s)
        console, output = (_text(folder / port) for port in ("console", "output"))
    if not ended or f"\x1e{nonce} powered-off" not in output:
        what = "was not off after the deadline" if not ended else f"died, QEMU's status {qemu.returncode}"
        raise GuestError(f"the guest {what}\n{output[-TAIL_CHARS:]}\nconsole:\n{console[-TAIL_CHARS:]}")
    return GuestResult(output, console, _sections(output, nonce), time.monotonic_ns() - began_ns)


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="backslashreplace") if path.exists() else ""


# The machine.


def _command(kernel: Path, folder: Path) -> list[str]:
    program = shutil.which("qemu-system-x86_64")
    if program is None:
        raise image.ImageError("no qemu-system-x86_64: apt-get install qemu-system-x86")
    return [
        # Should the tests be killed outright, QEMU goes with them.
        *("setpriv", "--pdeathsig", "KILL", program),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", "tcg", "-machine", "q35", "-m", str(MEMORY_MIB)),
        # ttyS0 is the kernel's, ttyS1 the script's: no kernel message lands in the middle of a line.
        *("-serial", f"file:{folder / 'console'}", "-serial", f"file:{folder / 'output'}"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-kernel", str(kernel), "-initrd", str(folder / "initramfs"), "-append", KERNEL_COMMAND_LINE),
    ]


@contextmanager
def _qemu(kernel: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "console").open("ab") as console:
        # What QEMU itself complains of goes to the console's file.
        qemu = subprocess.Popen(
            _command(kernel, folder),
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            start_new_session=True,
        )
    try:
        yield qemu
    finally:
        if qemu.poll() is None:
            os.killpg(qemu.pid, signal.SIGKILL)
        qemu.wait()


def _waited(qemu: subprocess.Popen[bytes], begun: Callable[[], bool], deadline_s: float) -> bool:
    """Whether QEMU ended by itself before the deadline."""
    booted_by = time.monotonic() + BOOT_S
    while qemu.poll() is None and not begun() and time.monotonic() < booted_by:
        time.sleep(0.05)
    try:
        qemu.wait(deadline_s)
    except subprocess.TimeoutExpired:
        return False
    return True


# What it printed.


def _sections(output: str, nonce: str) -> dict[str, Section]:
    marker = re.compile(rf"\n\x1e{nonce} (\S+)(?: (.*))? (\d+)\.(\d\d)\n")
    sections: dict[str, Section] = {}
    outside: list[str] = []
    begun: tuple[str, int] | None = None  # None: between sections.
    script_began_ns = position = 0
    for match in marker.finditer(output):
        text, position = output[position : match.start()], match.end()
        verb, argument = match[1], match[2] or ""
        now_ns = int(match[3]) * 1_000_000_000 + int(match[4]) * 10_000_000
        if begun is not None:
            name, began_ns = begun
            ended = (int(argument), now_ns - began_ns) if verb == "end" else (None, None)
            _put(sections, Section(name, text, ended[0], began_ns, ended[1]))
        elif verb == "end":
            raise GuestError(f"end {argument} without a begin, after\n{text[-TAIL_CHARS:]}")
        else:
            outside.append(text)
        begun = (argument, now_ns) if verb == "begin" else None
        if verb == "script-begin":
            script_began_ns = now_ns
        if verb == "script-end":
            took_ns = now_ns - script_began_ns
            _put(sections, Section("script", "".join(outside), int(argument), script_began_ns, took_ns))
    return sections


def _put(sections: dict[str, Section], section: Section) -> None:
    if section.name in sections:
        raise GuestError(f"two sections {section.name!r}")
    sections[section.name] = section
