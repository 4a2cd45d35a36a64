"""The ledger's tree as files: what stands there, a verifier written from the public texts believes."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from door import BOTH, Door, rest, say
from hives import ANN, BOB, EYE, W1, Living, live
from test_trust_files import Trusting, play

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.tree import hive_tree
from skep.trace.entry import leaf_hash
from skep.trace.note import parse_vkey
from tests.trace import tlog

TRACE = "/log/trace"
VAL = Caller("spiffe://hive/validator/v1", "validator")


class Log:
    """The log of a hive as one caller reads it, copied to be looked at."""

    def __init__(self, hive: Living | Trusting, caller: Caller = VAL) -> None:
        self.door = Door(hive_tree(hive.hive), caller)
        self.files: dict[str, bytes] = {}

    async def read(self, path: str) -> bytes:
        chan = await self.door.open(f"{TRACE}/{path}")
        try:
            return await rest(chan)
        finally:
            await chan.clunk()

    async def copied(self, *under: str) -> None:
        """What is listed, and can be read."""
        place = "/".join((TRACE, *under))
        for name in await self.door.names(place):
            if name in (
                "live.jsonl",
                "proof",
                "agreed",
                "witness",
                "ctl",
                "sessions",
                "snapshot",
                "snapshots",
            ):
                continue
            path = "/".join((*under, name))
            if under == ("tile",) or name == "tile" or name.startswith("x") or name.endswith(".p"):
                await self.copied(*under, name)
            else:
                self.files[path] = await self.read(path)

    async def ask(self, path: str, said: str) -> bytes:
        chan = await self.door.open(f"{TRACE}/{path}", BOTH)
        await say(chan, said)
        answer = await rest(chan)
        await chan.clunk()
        return answer

    async def origin(self) -> tuple[str, bytes]:
        key = parse_vkey((await self.read("keys")).decode().split(" ")[0])
        return key.name, key.public


async def filled(alive: Living, count: int) -> None:
    """So many entries more."""
    lines = [alive.submit(f"key=k{n}") for n in range(count)]
    await asyncio.gather(*lines)


def test_the_published_texts_believe_every_file_of_the_log() -> None:
    async def story(alive: Living) -> None:
        await filled(alive, 530)
        log = Log(alive)
        await log.copied()
        bodies = [body for _, body in alive.hive.turn.read(0, 1000)]
        assert bodies == tlog.check_log(log.files.__getitem__, *await log.origin())
        assert {"tile/0/000", "tile/0/001", "tile/entries/001", "tile/1/000.p/2"} < log.files.keys()
        # What an earlier checkpoint needed is there still, and whole tiles have no other name than theirs.
        assert log.files["tile/0/000"][: 32 * 17] == await log.read("tile/0/000.p/17")

    live(story)


@pytest.mark.parametrize(
    "path",
    ["tile/0/009", "tile/0/000.p/256", "tile/0/000.p/0", "tile/1/000", "tile/8", "tile/00", "tile/0/x000",
     "tile/0/x001", "tile/0/00", "tile/entries/000", "tile/0/000.p/250"],
)  # fmt: skip
def test_what_is_not_there_yet_is_not_there(path: str) -> None:
    async def story(alive: Living) -> None:
        with pytest.raises(FsError) as caught:
            await Log(alive).read(path)
        assert E.MISSING is caught.value.kind

    live(story)


def test_a_checkpoint_is_signed_for_what_is_on_disk_now() -> None:
    async def story(alive: Living) -> None:
        log = Log(alive)
        origin = await log.origin()
        first = await log.read("checkpoint")
        assert first == await log.read("checkpoint")
        assert (alive.hive.turn.seq, alive.hive.turn.ledger.root) == tlog.open_checkpoint(first, *origin)
        await alive.submit()
        after = await log.read("checkpoint")
        assert (alive.hive.turn.seq, alive.hive.turn.ledger.root) == tlog.open_checkpoint(after, *origin)
        assert after != first

    live(story)


def test_proofs_are_what_the_published_texts_ask_for() -> None:
    async def story(alive: Living) -> None:
        log = Log(alive)
        origin = await log.origin()
        old, root = tlog.open_checkpoint(await log.read("checkpoint"), *origin)
        await filled(alive, 300)
        bodies = [body for _, body in alive.hive.turn.read(0, 1000)]
        for entry in (1, 256, 257, len(bodies)):
            said = await log.ask("proof/inclusion", f"entry={entry}\n")
            assert entry - 1 == tlog.check_tlog_proof(said, bodies[entry - 1], *origin)
        said = await log.ask("proof/consistency", f"old={old}\n")
        assert (old, len(bodies)) == tlog.check_add_checkpoint(said, root, *origin)

    live(story)


@pytest.mark.parametrize(
    ("path", "said"),
    [("inclusion", "entry=0"), ("inclusion", "entry=9999"), ("inclusion", "entry=x"), ("inclusion", "old=1"),
     ("inclusion", "entry=1\nentry=2"), ("consistency", "old=9999"), ("consistency", "")],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_says_so(path: str, said: str) -> None:
    async def story(alive: Living) -> None:
        with pytest.raises(FsError) as caught:
            await Log(alive).ask(f"proof/{path}", said)
        assert E.USAGE is caught.value.kind

    live(story)


@pytest.mark.parametrize(
    ("who", "kept"),
    [(ANN, ()), (VAL, ()), (EYE, ("tile/entries/000.p/3",)), (BOB, ("", "tile/entries/000.p/3")),
     (W1, ("", "tile/entries/000.p/3"))],
)  # fmt: skip
def test_the_tree_is_the_hives_own_and_its_entries_auditors(who: Caller, kept: tuple[str, ...]) -> None:
    async def story(alive: Living) -> None:
        log = Log(alive, who)
        for path in ("checkpoint", "keys", "handovers", "tile/0/000.p/3", "tile/entries/000.p/3"):
            if path in kept or "" in kept:
                with pytest.raises(FsError) as caught:
                    await log.read(path)
                # To who sees nothing of the tree no tile exists: its name tells how long the ledger is.
                hidden = "" in kept and path.startswith("tile")
                assert (E.MISSING if hidden else E.DENIED) is caught.value.kind
            else:
                await log.read(path)
        for path, said in (("proof/inclusion", "entry=1"), ("proof/consistency", "old=1")):
            if "" in kept:
                with pytest.raises(FsError) as caught:
                    await log.ask(path, said)
                assert E.DENIED is caught.value.kind
            else:
                await log.ask(path, said)

    live(story)


def test_a_hive_does_not_prove_what_it_did_not_sign() -> None:
    async def story(alive: Living) -> None:
        log = Log(alive)
        await filled(alive, 5)
        ledger = alive.hive.turn.ledger
        ledger._writer.execute("UPDATE entries SET leaf = ? WHERE seq = 3", (leaf_hash(b"forged"),))  # type: ignore[attr-defined]
        with pytest.raises(FsError, match="entry 3: its leaf hash is not in the signed tree"):
            await log.ask("proof/inclusion", "entry=3")
        with pytest.raises(FsError, match="the first 4 entries are not those of the signed tree"):
            await log.ask("proof/consistency", "old=4")

    live(story)


def test_a_hive_without_certificates_keeps_a_key_of_its_own() -> None:
    async def story(alive: Living) -> None:
        first = await Log(alive).origin()
        assert "hive/log/trace" == first[0]
        assert first == await Log(alive).origin()
        assert 0o600 == os.stat(alive.hive.directory / "merkle.key").st_mode & 0o777

    live(story)


def test_the_old_key_vouches_for_the_new_and_both_sign_while_they_overlap(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        log = Log(hive)
        name, old = await log.origin()
        assert "hive/log/trace" == name
        assert b"" == await log.read("handovers")
        await hive.tell("rotate what=merkle overlap=1h")
        again, new = await log.origin()
        assert name == again
        assert new != old
        states = [line.split(" ")[1] for line in (await log.read("keys")).decode().splitlines()]
        assert ["active", "overlap"] == states
        note = await log.read("checkpoint")
        assert tlog.open_checkpoint(note, name, old) == tlog.open_checkpoint(note, name, new)
        vkey = (await log.read("keys")).decode().split(" ")[0]
        handover = await log.read("handovers")
        assert f"{name}\nkey handover\n{vkey}\n" == tlog.open_note(handover, name, old)
        # The end of the overlap: the old key signs no more, its word stays.
        hive.clock.advance(2 * 3600 * 10**9)
        assert hive.hive.authority is not None
        await hive.hive.authority.tend()
        with pytest.raises(AssertionError):
            tlog.open_checkpoint(await log.read("checkpoint"), name, old)
        assert handover == await log.read("handovers")

    play(story, tmp_path)
