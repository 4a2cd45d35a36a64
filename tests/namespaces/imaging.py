"""Archives of images, good ones and others."""

from __future__ import annotations

import io
import tarfile

MANIFEST = b'name = "w"\narch = "x86_64"\nkernel = "kernel"\n[[milestone]]\nname = "r"\nline = "^ok"\n'


def archive(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=tarfile.USTAR_FORMAT) as made:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size, header.type = len(data), kind
            made.addfile(header, io.BytesIO(data))
    return held.getvalue()
