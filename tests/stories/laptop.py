"""An operator far from the queen, for one session's length: laptop.py ADDRESS IDENTITY.

Each line of its stdin is done on one session over TLS, and answered by one line of JSON:

    submit COUNT PREFIX     submit COUNT jobs, one after the other, keyed PREFIX-<n>, and wait for them:
                            how many succeeded, and the highest number of attempts
    submit-on PREFIX        submit jobs like that for as long as two CAs are trusted, and ten more
    tell PATH LINE          write LINE to PATH: its reply, or the refusal's text
    hand-over               open a second session with what the identity holds now, go on with it, and close
                            the first
    token FILE              open a second connection with the token in FILE: what /whoami says there, or the
                            refusal's text
    token-here FILE         the same on this connection
    read PATH               what stands there
    wait-end                when the session ends: after how many seconds, and why
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.identity import Identity
from skep.fs.messages import Dialect


def identity(directory: Path) -> Identity:
    crl = directory / "crl.pem"
    files = (directory / name for name in ("cert.pem", "key.pem", "ca.pem"))
    return Identity.files(*files, crl if crl.exists() else None)


class Laptop:
    def __init__(self, address: str, directory: Path) -> None:
        self.address = address
        self.directory = directory

    async def connect(self, **more: Any) -> Client:
        return await Client.connect(
            self.address, identity=identity(self.directory), dialect=Dialect.U, **more
        )

    async def begin(self) -> None:
        self.client = await self.connect()

    async def submit(self, count: str, prefix: str) -> Any:
        succeeded, attempts = 0, 0
        for number in range(int(count)):
            reply = await self.tell("/jobs/ctl", f"submit topic=sha256 input=honey key={prefix}-{number}")
            job = f"/jobs/{reply.split()[0]}"
            state = (await self.client.read_file(f"{job}/wait")).decode().strip()
            succeeded += state == "succeeded"
            attempts = max(attempts, (await self.client.read_file(f"{job}/attempts")).count(b"\n"))
        return {"succeeded": succeeded, "attempts": attempts}

    async def submit_on(self, prefix: str) -> Any:
        rounds = 0
        while (await self.client.read_file("/trust/ca.pem")).count(b"BEGIN CERTIFICATE") > 1:
            rounds += 1
            said = await self.submit("1", f"{prefix}-{rounds}")
            if said != {"succeeded": 1, "attempts": 1}:
                return said
        return await self.submit("10", prefix)

    async def tell(self, path: str, *words: str) -> str:
        async with await self.client.open(path, "rw") as fid:
            await fid.write_all(f"{' '.join(words)}\n".encode())
            return (await fid.read(0, fid.unit)).decode()

    async def hand_over(self) -> str:
        before, self.client = self.client, await self.connect()
        await before.close()
        return "ok"

    async def token(self, path: str) -> str:
        async with await self.connect(token=Path(path).read_bytes()) as client:
            return (await client.read_file("/whoami")).decode()

    async def token_here(self, path: str) -> str:
        client = await self.client.attach(self.client.connection, uname="", token=Path(path).read_bytes())
        return (await client.read_file("/whoami")).decode()

    async def read(self, path: str) -> str:
        return (await self.client.read_file(path)).decode().strip()

    async def wait_end(self) -> Any:
        began = time.monotonic()
        await self.client.connection.closed
        return round(time.monotonic() - began, 3)


async def main(address: str, directory: str) -> None:
    laptop = Laptop(address, Path(directory))
    await laptop.begin()
    print(json.dumps("ready"), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, *words = line.split()
        try:
            said = await getattr(laptop, verb.replace("-", "_"))(*words)
        except (FsError, OSError) as error:
            said = {"refused": str(error)}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
