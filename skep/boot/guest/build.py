"""Building the guests: the same bytes from the same compiler, wherever it is done."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

FLAGS: Final = (
    *("-ffreestanding", "-nostdlib", "-static", "-fno-pic", "-no-pie", "-O2", "-g0"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-mgeneral-regs-only"),
    *("-Wall", "-Wextra", "-Werror", "-Wl,--build-id=none", "-Wl,-z,noexecstack"),
    *("-Wl,-z,max-page-size=4096", "-Wl,--no-warn-rwx-segments"),
)
BUILD_S: Final = 60.0  # one file takes some tenths of a second
EFI: Final = ("efi_header.S", "efi.c")
EFI_FLAGS: Final = ("-fpie", "-fshort-wchar")  # firmware puts it anywhere; strings are UTF-16
MANIFEST: Final = "boot.toml"
SHARED: Final = ("say.c", "elf.c")


class BuildError(Exception):
    """A compiler is missing, or does not do it."""


class Part(NamedTuple):
    """One linked file: its linker script and sources, and the flags that it alone has."""

    name: str
    script: str
    sources: tuple[str, ...]
    flags: tuple[str, ...] = ()


class Arch(NamedTuple):
    """``prefix`` of its compiler, the Debian package that has it, its flags and parts, in order."""

    prefix: str
    package: str
    flags: tuple[str, ...]
    parts: tuple[Part, ...]
    archived: tuple[str, ...] = ()  # what the parts after them find in archive.cpio


ARCHES: Final = {
    "x86_64": Arch(
        "x86_64-linux-gnu-",
        "gcc",
        ("-m64", "-mno-red-zone", "-fcf-protection=none"),
        (
            Part("kernel.elf", "x86.ld", ("x86_boot.S", "x86.c", "kernel.c", *SHARED), ("-mcmodel=kernel",)),
            Part("rootserver", "root.ld", ("x86_root.S", "root.c", "say.c")),
            Part("app.efi", "efi.ld", EFI, EFI_FLAGS),
        ),
    ),
    "aarch64": Arch(
        "aarch64-linux-gnu-",
        "gcc-aarch64-linux-gnu",
        ("-mcmodel=large", "-mstrict-align", "-mno-outline-atomics"),
        (
            Part("kernel.elf", "arm.ld", ("arm_boot.S", "arm.c", "kernel.c", *SHARED)),
            Part("rootserver", "arm_root.ld", ("arm_root.S", "root.c", "say.c")),
            Part("image", "loader.ld", ("loader_boot.S", "loader.c", *SHARED)),
            Part("app.efi", "efi.ld", EFI, (*EFI_FLAGS, "-mcmodel=small")),
        ),
        ("kernel.elf", "rootserver"),
    ),
}


def build(arch: str, into: Path) -> None:
    """The files of ``arch``, written to the directory ``into``. Raises BuildError, OSError."""
    how = ARCHES[arch]
    into.mkdir(parents=True, exist_ok=True)
    with (
        resources.as_file(resources.files("skep.boot.guest")) as sources,
        tempfile.TemporaryDirectory(prefix="skep-guest-") as made,
    ):
        where = Path(made)
        for part in how.parts:
            if part.name == "image":
                archive = [(name, (where / name).read_bytes()) for name in how.archived]
                (where / "archive.cpio").write_bytes(cpio(archive))
            flags = [*FLAGS, *how.flags, *part.flags, f"-Wa,-I{where}", f"-Wl,-T,{part.script}"]
            compiler = (f"{how.prefix}gcc", *flags, "-o", str(where / part.name), *part.sources)
            _run(compiler, sources, how.package)
            if part.sources == EFI:  # its header is in the source
                _run((f"{how.prefix}objcopy", "-O", "binary", str(where / part.name)), sources, "binutils")
            shutil.copy(where / part.name, into / part.name)
        if arch == "x86_64":
            # QEMU's multiboot loader takes 64-bit code in an ELF32 alone.
            names = (str(where / "kernel.elf"), str(where / "kernel"))
            _run((f"{how.prefix}objcopy", "-O", "elf32-i386", *names), sources, "binutils")
            shutil.copy(where / "kernel", into / "kernel")
        shutil.copytree(sources / "scenarios", into / "scenarios", dirs_exist_ok=True)
        if not (into / MANIFEST).exists():  # one that is there is somebody's own
            shutil.copy(sources / f"{arch}.toml", into / MANIFEST)


def cpio(members: Sequence[tuple[str, bytes]]) -> bytes:
    """A newc archive of files, all their other facts 0."""
    made = b""
    for number, (name, content) in enumerate([*members, ("TRAILER!!!", b"")], 1):
        fields = [number, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        made += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        made += b"\0" * (-len(made) % 4) + content
        made += b"\0" * (-len(made) % 4)
    return made


def _run(command: Sequence[str], where: Path, package: str) -> None:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=BUILD_S)
    except FileNotFoundError:
        raise BuildError(f"{command[0]} is not there: Debian has it in the package {package}") from None
    if done.returncode:
        raise BuildError(f"{command[0]}: {done.stderr.strip()}")
