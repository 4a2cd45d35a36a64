"""A tree of three files: a text, what a function says, and a value that can be written.

python examples/hello.py unix:/tmp/hello.sock &
skep -H unix:/tmp/hello.sock cat /hello /time
"""

import sys
import time

from skep.fs.server import serve
from skep.fs.shapes import Memory

TREE = {"hello": "hello, world\n", "time": lambda: f"{time.ctime()}\n", "motto": Memory(b"per monstra\n")}

if __name__ == "__main__":
    serve(TREE, sys.argv[1] if len(sys.argv) > 1 else "tcp:127.0.0.1:0")
