"""pyroute2's plan9 server on a Unix socket, serving a directory's files from memory.

    peer_pyroute2.py SOCKET DIR

Its own listener speaks TCP only; everything else is as it comes."""

import asyncio
import sys
from pathlib import Path

from pyroute2.plan9 import Marshal9P
from pyroute2.plan9.filesystem import Filesystem
from pyroute2.plan9.server import Plan9ServerProtocol


async def main(socket: str, directory: str) -> None:
    loop = asyncio.get_running_loop()
    filesystem = Filesystem()
    for path in Path(directory).iterdir():
        if path.is_file():
            filesystem.create(path.name).data.write(path.read_bytes())
    server = await loop.create_unix_server(
        lambda: Plan9ServerProtocol(loop.create_future(), Marshal9P(), filesystem), socket, backlog=1024
    )
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
