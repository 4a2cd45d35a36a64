"""What the guest boots: Debian's own kernel, the modules a 9P mount needs, busybox and the test's probe.

The kernel is the package behind ``linux-image-amd64`` (the cloud kernel has no 9p), fetched once into
``.cache/guest`` under the project's root, or into ``$SKEP_TEST_CACHE``. Nothing of it is installed.
Debian packages needed on the host: qemu-system-x86, busybox-static, gcc and libc6-dev.
"""

import gzip
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cpio

HERE = Path(__file__).parent
META_PACKAGE = "linux-image-amd64"
BUSYBOX = Path("/bin/busybox")
MODULES = ("virtio_pci", "virtio_net", "9p", "9pnet_fd")
FOLDERS = ("bin", "dev", "etc", "mnt", "modules", "proc", "root", "sys", "tmp")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\n"
PT_INTERP = 3  # elf(5)

Unpack = Callable[[bytes], bytes]


def _unxz(data: bytes) -> bytes:
    # The kernel's build appends the unpacked size to the stream, so what follows the stream is let go.
    return lzma.LZMADecompressor().decompress(data)


COMPRESSIONS: dict[bytes, Unpack] = {b"\xfd7zXZ\0": _unxz, b"\x1f\x8b": gzip.decompress}


class ImageError(Exception):
    """The guest cannot be put together; the message says what is missing."""


class Kernel(NamedTuple):
    """A kernel to boot and its modules in the order in which they load."""

    image: Path
    modules: tuple[Path, ...]


def cache() -> Path:
    """The folder that outlives a test run; made if it is not there."""
    folder = Path(os.environ.get("SKEP_TEST_CACHE", HERE.parents[1] / ".cache")) / "guest"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _locked() -> Iterator[None]:
    """Only one process at a time adds to the cache."""
    with (cache() / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


def _output(*command: str, cwd: Path | None = None) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if ran.returncode:
        raise ImageError(f"{' '.join(command)}: exit {ran.returncode}\n{ran.stderr}")
    return ran.stdout


# The kernel.


def kernel() -> Kernel:
    """Debian's current kernel, from the cache or fetched into it (about 70 MB, once).

    Raises ImageError when apt cannot tell or fetch it."""
    package, version = _current_package()
    folder = cache() / f"{package}_{version.replace(':', '%3a')}"
    with _locked():
        if not folder.exists():
            _build_kernel(package, folder)
    return Kernel(folder / "vmlinux", tuple(sorted((folder / "modules").iterdir())))


def _current_package() -> tuple[str, str]:
    """Name and version of the package that the meta package stands for today."""
    try:
        return _look_up()
    except ImageError:
        # A machine that never ran update (a fresh container) knows no packages.
        _output("apt-get", "-q", "update")
        return _look_up()


def _look_up() -> tuple[str, str]:
    package = re.search(r"Depends: (linux-image-\S+)", _output("apt-cache", "depends", META_PACKAGE))
    if package is None:
        raise ImageError(f"apt-cache depends {META_PACKAGE}: expected a linux-image package")
    version = re.search(
        r"^Version: (\S+)", _output("apt-cache", "show", "--no-all-versions", package[1]), re.M
    )
    if version is None:
        raise ImageError(f"apt-cache show {package[1]}: expected a version")
    return package[1], version[1]


def _build_kernel(package: str, folder: Path) -> None:
    with TemporaryDirectory(dir=cache()) as name:
        scratch = Path(name)
        _download(package, scratch)
        (deb,) = scratch.glob("*.deb")
        _output("dpkg-deb", "-x", str(deb), str(scratch / "tree"))
        built = scratch / "built"
        (built / "modules").mkdir(parents=True)
        (image,) = (scratch / "tree/boot").glob("vmlinuz-*")
        (built / "vmlinux").write_bytes(_unpacked_kernel(image.read_bytes()))
        for number, (module, data) in enumerate(_in_order(scratch / "tree").items()):
            (built / "modules" / f"{number:02}-{module}.ko").write_bytes(data)
        # Renamed when whole: a build that was killed leaves nothing that looks finished.
        built.rename(folder)


def _download(package: str, folder: Path) -> None:
    try:
        _output("apt-get", "-q", "download", package, cwd=folder)
    except ImageError:
        # The version of an old list is gone from the mirror once a newer one is there.
        _output("apt-get", "-q", "update")
        _output("apt-get", "-q", "download", package, cwd=folder)


def _unpacked_kernel(image: bytes) -> bytes:
    """The ELF inside a bzImage, which QEMU boots by its PVH entry: unpacking it in the guest takes 3 s.

    A bzImage of a compression unknown here stays what it is and boots the long way.
    Source: Linux, Documentation/x86/boot.rst (setup_sects, payload_offset, payload_length)."""
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (image[0x1F1] + 1) * 512 + offset
    return _decompressed(image[start : start + length], otherwise=image)


def _decompressed(data: bytes, otherwise: bytes) -> bytes:
    for magic, unpack in COMPRESSIONS.items():
        if data.startswith(magic):
            return unpack(data)
    return otherwise


def _in_order(tree: Path) -> dict[str, bytes]:
    """Each module needed, after those it depends on. The names are the kernel's, with underscores."""
    files = {path.name.split(".")[0].replace("-", "_"): path for path in tree.rglob("*.ko*")}
    order: dict[str, bytes] = {}

    def add(module: str) -> None:
        if module in order:
            return
        if module not in files:
            raise ImageError(f"the kernel package has no module {module}")
        packed = files[module].read_bytes()
        data = _decompressed(packed, otherwise=packed)
        depends = re.search(rb"\0depends=([^\0]*)", data)
        for other in depends[1].decode().split(",") if depends and depends[1] else ():
            add(other.replace("-", "_"))
        order[module] = data

    for module in MODULES:
        add(module)
    return order


# The initramfs.


def initramfs(modules: tuple[Path, ...], script: str, nonce: str, files: Mapping[str, bytes]) -> bytes:
    """The root file system: busybox, /bin/probe, the modules, the script and ``files`` by absolute path.

    A file's folder is one of FOLDERS."""
    return cpio.archive(
        (
            *map(cpio.folder, FOLDERS),
            cpio.file("bin/busybox", _busybox(), 0o755),
            cpio.file("bin/probe", _probe().read_bytes(), 0o755),
            cpio.file("etc/passwd", PASSWD),
            cpio.file("etc/group", GROUP),
            *(cpio.file(f"modules/{module.name}", module.read_bytes()) for module in modules),
            cpio.file("modules/order", "\n".join(module.name for module in modules).encode()),
            cpio.file("init", (HERE / "init.sh").read_bytes(), 0o755),
            cpio.file("lib.sh", (HERE / "lib.sh").read_bytes()),
            cpio.file("script.sh", script.encode()),
            cpio.file("nonce", nonce.encode() + b"\n"),
            *(cpio.file(path.removeprefix("/"), data) for path, data in files.items()),
        )
    )


def _busybox() -> bytes:
    data = BUSYBOX.read_bytes() if BUSYBOX.exists() else b""
    if not data or _needs_loader(data):
        raise ImageError("no static /bin/busybox: apt-get install busybox-static")
    return data


def _needs_loader(elf: bytes) -> bool:
    """Whether the program asks for a dynamic loader (PT_INTERP); there is none in the guest."""
    (table,) = struct.unpack_from("<Q", elf, 0x20)
    size, count = struct.unpack_from("<HH", elf, 0x36)
    return any(struct.unpack_from("<I", elf, table + n * size) == (PT_INTERP,) for n in range(count))


def _probe() -> Path:
    """The helper for what busybox has no command for, compiled once for each state of its source."""
    source = HERE / "probe.c"
    program = cache() / f"probe-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    with _locked():
        if not program.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise ImageError("no C compiler: apt-get install gcc libc6-dev")
            with TemporaryDirectory(dir=cache()) as scratch:
                built = Path(scratch) / "probe"
                _output(compiler, "-static", "-O1", "-Wall", "-Wextra", "-o", str(built), str(source))
                built.rename(program)
    return program
