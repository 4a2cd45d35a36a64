"""A hive as the witness of another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from door import BOTH, rest, say
from hives import ANN, BOB, EYE, W1, living
from test_quorum import HERE, VAL, Stage

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.seen import named
from skep.trace.clock import SECOND
from skep.trace.note import COSIGNER, parse_vkey
from tests.trace import tlog

pytestmark = pytest.mark.slow  # two hives each

TRACE = "/log/trace"
ORIGIN = "hive/log/trace"


class Carrier(Stage):
    """A hive, and who brings things to it and from it."""

    async def ask(self, path: str, said: str, who: Caller = VAL) -> str:
        chan = await self.door(who).open(f"{TRACE}/{path}", BOTH)
        try:
            await say(chan, said)
            return (await rest(chan)).decode()
        finally:
            await chan.clunk()

    async def refused_to(self, path: str, said: str, who: Caller = VAL) -> tuple[E, str]:
        with pytest.raises(FsError) as caught:
            await self.ask(path, said, who)
        return caught.value.kind, caught.value.detail

    async def key(self) -> str:
        return (await self.read(f"{TRACE}/keys")).split(" ")[0]

    async def tell(self, line: str, who: Caller = ANN) -> None:
        await self.alive.write(f"{HERE}/ctl", line, who=who)


def two(story: Callable[[Carrier, Carrier, Path], Awaitable[None]]) -> None:
    """Run a story of two hives."""

    async def run() -> None:
        with TemporaryDirectory() as one, TemporaryDirectory() as other:
            async with living(Path(one)) as a, living(Path(other)) as b:
                await story(Carrier(a), Carrier(b), Path(other))

    asyncio.run(run())


def test_a_hive_cosigns_what_another_has_shown_it() -> None:
    async def story(a: Carrier, b: Carrier, directory: Path) -> None:
        key = parse_vkey((await b.read(f"{HERE}/key")).strip(), COSIGNER)
        assert "hive/witness" == key.name
        await a.tell(f"add name=b key={key}")
        await a.tell("quorum need=1")
        body = (await a.offered()).decode()
        assert E.DENIED is (await b.refused_to("witness/add-checkpoint", body))[0]
        await b.tell(f"watch key={await a.key()}")
        line = await b.ask("witness/add-checkpoint", body)
        text = body.partition("\n\n")[2].partition("\n\n")[0]
        assert "need=1" in await a.ask("witness/add-cosignature", f"{text}\n\n{line}")
        agreed = (await a.read(f"{TRACE}/agreed")).encode()
        size = tlog.open_cosigned(agreed, key.name, key.public)[1]
        assert a.alive.hive.turn.seq == size
        assert size == int((await b.read(f"{HERE}/origins/{named(ORIGIN)}/checkpoint")).split("\n")[1])
        # What does not continue that, is told what it should have continued.
        await a.alive.submit()
        a.alive.clock.advance(SECOND)
        assert f"{size}\n" == await b.ask("witness/add-checkpoint", (await a.offered()).decode())
        await b.ask("witness/add-checkpoint", (await a.offered(size)).decode())
        # It knows that after a restart.
        again = Carrier(b.alive)
        assert f"{size + 1}\n" == await again.ask("witness/add-checkpoint", body)
        await b.tell(f"unwatch origin={ORIGIN}")
        assert E.DENIED is (await b.refused_to("witness/add-checkpoint", body))[0]

    two(story)


def test_a_split_is_kept_until_an_operator_lets_it_be() -> None:
    async def story(a: Carrier, b: Carrier, directory: Path) -> None:
        await b.tell(f"watch key={await a.key()}")
        await a.add(1, 1)
        body = await a.offered()
        await b.ask("witness/add-checkpoint", body.decode())
        # The same key, with another history.
        with TemporaryDirectory() as third:
            (Path(third) / "merkle.key").write_bytes((a.alive.hive.directory / "merkle.key").read_bytes())
            async with living(Path(third)) as alive:
                other = Carrier(alive)
                await other.add(1, 1)
                while alive.hive.turn.seq < a.alive.hive.turn.seq:
                    await alive.submit()
                forged = (await other.offered()).decode()
        kind, why = await b.refused_to("witness/add-checkpoint", forged)
        assert (E.CONFLICT, True) == (kind, "it signed two roots" in why)
        (split,) = await b.door().names(f"{HERE}/splits")
        assert '"origin":"hive/log/trace"' in await b.read(f"{HERE}/splits/{split}")
        assert E.CONFLICT is (await b.refused_to("witness/add-checkpoint", body.decode()))[0]
        with pytest.raises(FsError, match="permission denied"):
            await b.tell(f"clear split={split}", VAL)
        await b.tell(f"clear split={split}")
        size = a.alive.hive.turn.seq
        assert f"{size}\n" == await b.ask("witness/add-checkpoint", body.decode())

    two(story)


@pytest.mark.parametrize(("who", "looks"), [(ANN, True), (VAL, True), (EYE, True), (BOB, False), (W1, False)])
def test_who_may_look_and_who_may_bring(who: Caller, looks: bool) -> None:
    async def story(a: Carrier, b: Carrier, directory: Path) -> None:
        await b.tell(f"watch key={await a.key()}")
        body = (await a.offered()).decode()
        if who in (ANN, VAL):
            await b.ask("witness/add-checkpoint", body, who)
        else:
            assert E.DENIED is (await b.refused_to("witness/add-checkpoint", body, who))[0]
        await b.ask("witness/add-checkpoint", body)
        path = f"{HERE}/origins/{named(ORIGIN)}/checkpoint"
        if looks:
            await b.read(path, who)
        else:
            # Its name would tell which log is watched.
            with pytest.raises(FsError, match="file does not exist"):
                await b.read(path, who)
        if who is not ANN:
            with pytest.raises(FsError, match="permission denied"):
                await b.tell("unwatch origin=hive/log/trace", who)

    two(story)
