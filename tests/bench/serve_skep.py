"""skep's columns: ``serve_skep.py control SOCKET`` serves memory, ``export SOCKET DIR`` a directory."""

import sys

from skep.fs.export import Export
from skep.fs.server import serve
from skep.fs.shapes import Memory
from skep.fs.tree import Dir


def tree(kind: str, *rest: str) -> object:
    if kind == "export":
        return Export(rest[0]).root
    return Dir({"f64": "x" * 64, "mem": Memory(b"x" * 64)})


if __name__ == "__main__":
    kind, socket, *rest = sys.argv[1:]
    serve(tree(kind, *rest), f"unix:{socket}")
