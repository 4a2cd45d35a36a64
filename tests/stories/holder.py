"""A worker that holds what it gets: holder.py SOCKET NODE DIALECT POOL.

Takes one lease, prints its line, and says every line of its stdin to the job, printing what became of it.
"""

from __future__ import annotations

import asyncio
import json
import sys

from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.messages import Dialect


async def main(socket: str, node: str, dialect: str, pool: str) -> None:
    async with await Client.connect(socket, uname=node, dialect=Dialect[dialect]) as client:
        async with await client.open(f"/pools/{pool}/next") as fid:
            lease = await fid.read(0, fid.unit)
        print(lease.decode(), end="", flush=True)
        path = f"/jobs/{json.loads(lease)['job']}/ctl"
        while line := await asyncio.to_thread(sys.stdin.readline):
            try:
                async with await client.open(path, "w") as fid:
                    await fid.write_all(line.encode())
                print("ok", flush=True)
            except FsError as error:
                print(json.dumps([error.errno, error.text]), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
