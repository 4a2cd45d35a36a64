"""A client of a simulated hive: asks, and asks again under the same key when no answer came."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from typing import Final, TypeVar

from skep.fs.connection import ConnectionLost
from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import FsError
from skep.fs.messages import Dialect
from skep.sim.drone import written
from skep.sim.history import UNSURE, History, Said
from skep.sim.queen import OPERATORS
from skep.sim.story import HOME

T = TypeVar("T")
TRIES: Final = 60
AGAIN_S: Final = (0.05, 0.2, 1.0, 2.0)  # between tries; then the last one
PATIENCE_S: Final = 20.0  # then a connection is given up and another made


class Caller:
    """One process's way in, by tenant. All its methods record what was asked and answered."""

    def __init__(self, name: str, history: History) -> None:
        self.name = name
        self.history = history
        self._clients: dict[str, Client] = {}

    async def _client(self, tenant: str) -> Client:
        client = self._clients.get(tenant)
        if client is None or client.connection.closed.done():
            client = await Client.connect(OPERATORS, aname=tenant, uname="root", dialect=Dialect.U)
            self._clients[tenant] = client
        return client

    async def _once(self, tenant: str, said: Said, work: Callable[[Client], Awaitable[T]]) -> T | None:
        """What ``work`` gives; None: no answer came. Raises FsError for a refusal."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await work(await self._client(tenant))
        except FsError as error:
            if isinstance(error, ConnectionLost) or error.kind in UNSURE:
                return None
            self.history.refused(said, error)
            raise
        except TimeoutError:
            client = self._clients.pop(tenant, None)
            if client is not None:
                await client.close()
            return None
        except OSError:
            return None

    async def close(self) -> None:
        for client in self._clients.values():
            await client.close()

    async def write(
        self, tenant: str, path: str, verb: str, args: dict[str, str], about: str, again: bool, **more: str
    ) -> Said:
        """Write a line; ``again``, until there is an answer. The last thing said."""
        text = line(verb, args)
        for wait_s in (*AGAIN_S, *[AGAIN_S[-1]] * TRIES):
            said = self.history.ask(self.name, verb, about, text, tenant=tenant, path=path, args=args, **more)
            work = partial(self._write, said, path)
            try:
                await self._once(tenant, said, work)
            except FsError as error:
                if error.kind.name not in ("NOSPACE", "BUSY", "THROTTLED") or not again:
                    return said
            if said.answer == "ok" or not again:
                return said
            await asyncio.sleep(wait_s)
        return said

    async def _write(self, said: Said, path: str, client: Client) -> str:
        return await written(self.history, client, said, path)

    async def read(self, tenant: str, path: str, verb: str, about: str) -> Said:
        """Read a file once."""
        said = self.history.ask(self.name, verb, about, tenant=tenant, path=path)

        async def work(client: Client) -> None:
            async with await client.open(path) as fid:
                data = await fid.read(0, 4096)
                self.history.answered(said, data.decode().strip())

        with suppress(FsError):
            await self._once(tenant, said, work)
        return said

    async def publish(self, scope: str, content: bytes) -> Said:
        """Publish a document of the configuration, until that is done. A draft is lost with its queen."""
        name = scope.replace("/", ":")
        draft = "/config/draft" if scope == "system" else f"/config/{name}/draft"
        args = {"scope": scope, "sha256": sha256(content).hexdigest()}
        for wait_s in (*AGAIN_S, *[AGAIN_S[-1]] * TRIES):
            said = self.history.ask(self.name, "draft", scope, tenant=HOME)

            async def write(client: Client) -> None:
                if scope != "system":
                    with suppress(FsError):
                        await client.mkdir(f"/config/{name}")
                await client.write_file(draft, content)

            with suppress(FsError):
                await self._once(HOME, said, write)
                said = await self.write(HOME, "/config/ctl", "publish", args, scope, False)
            if said.answer == "ok" and said.verb == "publish":
                break
            await asyncio.sleep(wait_s)
        return said

    async def check(self, tenant: str, name: str, fence: str) -> Said:
        """Ask whether a grant of a lock holds."""
        text = f"name={name} fence={fence}"
        said = self.history.ask(self.name, "check", name, tenant=tenant, fence=int(fence))

        async def work(client: Client) -> None:
            async with await client.open("/locks/check", "rw") as fid:
                await fid.write_all(f"{text}\n".encode())
                self.history.answered(said)

        with suppress(FsError):
            await self._once(tenant, said, work)
        return said
