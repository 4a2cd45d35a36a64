"""A hive and its witnesses: what is agreed, who is missing, who lies."""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from hashlib import sha256

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from door import BOTH, Door, rest, say
from hives import ANN, BOB, EYE, W1, Folded, Living, live

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.namespaces.packed import pack
from skep.namespaces.stored import pack_state, unpack_state
from skep.namespaces.tree import hive_tree
from skep.trace.clock import MINUTE, SECOND
from skep.trace.cosignature import cosign
from skep.trace.digest import digest
from skep.trace.note import COSIGNER, Signing, Vkey, parse_note, parse_vkey
from skep.trace.rules import Refusal
from tests.trace import tlog
from tests.validator.recorded import HIVE, Recorder, replayed

VAL = Caller("spiffe://hive/validator/v1", "validator")
HERE = "/log/trace/witness"


class Stage:
    """A hive with witnesses w0, w1 … who need a quorum."""

    def __init__(self, alive: Living) -> None:
        self.alive = alive
        self.tree = hive_tree(alive.hive)
        self.keys = [Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)) for n in range(4)]
        self.vkeys = [Vkey(f"w{n}.example", key.public, COSIGNER) for n, key in enumerate(self.keys)]

    def door(self, who: Caller = VAL) -> Door:
        return Door(self.tree, who)

    async def add(self, count: int, need: int) -> None:
        lines = [f"add name=w{n} key={self.vkeys[n]}" for n in range(count)]
        await self.alive.write(f"{HERE}/ctl", *lines, f"quorum need={need}")

    async def read(self, path: str, who: Caller = VAL) -> str:
        return await self.door(who).read(path)

    async def offered(self, after: int = 0) -> bytes:
        """What is offered, in one read."""
        chan = await self.door().open(f"{HERE}/offered@{after}")
        try:
            return bytes(await chan.read(0, 8192))
        finally:
            await chan.clunk()

    def cosigned(self, n: int, body: bytes, time_s: int | None = None, text: str = "") -> bytes:
        text = text or parse_note(body.partition(b"\n\n")[2]).text
        time_s = self.alive.clock.now_ns() // SECOND if time_s is None else time_s
        return f"{text}\n{cosign(text, self.vkeys[n].name, self.keys[n], time_s).line()}".encode()

    async def hand_in(self, said: bytes, who: Caller = VAL) -> str:
        chan = await self.door(who).open(f"{HERE}/add-cosignature", BOTH)
        try:
            await say(chan, said.decode())
            return (await rest(chan)).decode()
        finally:
            await chan.clunk()

    async def cosign(self, *ns: int) -> bytes:
        """These cosign what is offered."""
        body = await self.offered()
        for n in ns:
            await self.hand_in(self.cosigned(n, body))
        return body

    async def refused(self, said: bytes, who: Caller = VAL) -> tuple[E, str]:
        with pytest.raises(FsError) as caught:
            await self.hand_in(said, who)
        return caught.value.kind, caught.value.detail

    async def words(self) -> dict[str, str]:
        """How it is with each witness."""
        lines = (await self.read(f"{HERE}/status")).splitlines()[1:]
        return {name: word for name, word, *_ in (line.split(" ") for line in lines)}

    async def origin(self) -> tuple[str, bytes]:
        key = parse_vkey((await self.read("/log/trace/keys")).split(" ")[0])
        return key.name, key.public

    async def tick(self, duration_ns: int = 0) -> None:
        self.alive.clock.advance(duration_ns)
        await self.alive.hive.tick()

    def events(self, kind: str) -> list[bytes]:
        return [body for _, body in self.alive.hive.turn.read(0, 1000) if f'"{kind}"'.encode() in body]


def test_a_checkpoint_is_agreed_when_enough_have_cosigned_it() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(3, 2)
        body = await stage.offered()
        size = alive.hive.turn.seq
        assert (0, size) == check_shown(body, await stage.origin())
        assert f"size={size} have=1 need=2\n" == await stage.hand_in(stage.cosigned(0, body))
        with pytest.raises(FsError) as caught:
            await stage.read("/log/trace/agreed")
        assert E.MISSING is caught.value.kind
        assert f"size={size} have=2 need=2\n" == await stage.hand_in(stage.cosigned(2, body))
        agreed = (await stage.read("/log/trace/agreed")).encode()
        assert (size, alive.hive.turn.root) == tlog.open_checkpoint(agreed, *await stage.origin())
        for n in (0, 2):
            assert size == tlog.open_cosigned(agreed, stage.vkeys[n].name, stage.keys[n].public)[1]
        # A late one is put under it, too.
        await stage.hand_in(stage.cosigned(1, body))
        assert 4 == len(parse_note((await stage.read("/log/trace/agreed")).encode()).signatures)
        # Said twice, it counts once, and the log is as long as it was.
        assert f"size={size} have=3 need=2\n" == await stage.hand_in(stage.cosigned(1, body))
        assert size == alive.hive.turn.seq

    live(story)


def check_shown(body: bytes, origin: tuple[str, bytes]) -> tuple[int, int]:
    """Old and new size of an add-checkpoint that continues nothing."""
    head, _, checkpoint = body.partition(b"\n\n")
    assert b"old 0" == head
    return 0, tlog.open_checkpoint(checkpoint, *origin)[0]


def test_all_are_offered_the_same_while_the_log_grows() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(3, 2)
        body = await stage.cosign(0)
        for n in range(5):
            await alive.submit(f"key=k{n}")
        assert body == await stage.offered()
        await stage.hand_in(stage.cosigned(1, body))
        # It is agreed, and the next may be offered soon.
        alive.clock.advance(SECOND)
        size = alive.hive.turn.seq
        later = await stage.offered()
        assert (0, size) == check_shown(later, await stage.origin())
        # Given up for a later one, it is still taken.
        await alive.submit("key=k9")
        alive.clock.advance(3 * SECOND)
        assert later != await stage.offered()
        await stage.hand_in(stage.cosigned(0, later))
        await stage.hand_in(stage.cosigned(1, later))
        assert (
            size
            == tlog.open_checkpoint((await stage.read("/log/trace/agreed")).encode(), *await stage.origin())[
                0
            ]
        )

    live(story)


def test_a_witness_is_shown_how_what_is_offered_continues_what_it_has() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(1, 1)
        old, root = alive.hive.turn.seq, alive.hive.turn.root
        await stage.cosign(0)
        waiting = asyncio.ensure_future(stage.offered(old))
        await alive.submit()
        alive.clock.advance(SECOND)
        assert (old, old + 1) == tlog.check_add_checkpoint(await waiting, root, *await stage.origin())
        with pytest.raises(FsError, match=f"rewound: here are {old + 1} entries, not 99"):
            await stage.offered(99)

    live(story)


def test_when_nothing_is_new_the_same_is_offered_again() -> None:
    async def story(alive: Living) -> None:
        alive.hive.bookmark_s = 0
        stage = Stage(alive)
        await stage.add(1, 1)
        await stage.cosign(0)
        size = alive.hive.turn.seq
        body = await stage.offered(size)
        assert body.startswith(f"old {size}\n\n".encode())
        alive.clock.advance(SECOND)
        await stage.hand_in(stage.cosigned(0, body))
        assert {"w0": "agrees"} == await stage.words()

    live(story)


def test_without_a_quorum_the_hive_goes_on_and_says_who_is_missing() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(3, 2)
        await stage.cosign(0, 1, 2)
        agreed = await stage.read("/log/trace/agreed")
        await stage.tick(MINUTE // 2)
        assert {"w0": "agrees", "w1": "agrees", "w2": "agrees"} == await stage.words()
        await alive.submit()
        # One is lost: a minority.
        await stage.cosign(0, 1)
        await stage.tick(MINUTE // 2 + SECOND)
        assert {"w0": "agrees", "w1": "agrees", "w2": "missing"} == await stage.words()
        assert "online\n" == await stage.read("/state")
        # Two are.
        await stage.tick(MINUTE)
        assert {"w0": "missing", "w1": "missing", "w2": "missing"} == await stage.words()
        state = await stage.read("/state", ANN)
        assert state.startswith(
            "degraded: quorum 0/3, need 2: w0 missing: not heard since 2023-11-14T22:13:50Z; w1 missing"
        )
        assert "skep witness" in state
        assert "degraded\n" == await stage.read("/state", BOB)
        assert "ok\n" == await stage.read("/health/ready")
        await alive.submit()
        assert agreed != await stage.read("/log/trace/agreed")
        await stage.tick(MINUTE)
        assert 1 == len(stage.events("witness.lost"))
        assert " degraded=" in (await stage.read(f"{HERE}/status")).splitlines()[0]
        # They are back.
        await stage.cosign(1)
        await stage.tick()
        assert (await stage.read("/state", ANN)).startswith("degraded")
        await stage.cosign(2)
        await stage.tick()
        assert "online\n" == await stage.read("/state", ANN)
        assert 1 == len(stage.events("witness.regained"))

    live(story)


def test_who_is_told_how_long_may_be_configured() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(1, 1)
        content = msgspec.json.encode({"trace": {"agreed-within": "5m"}})
        await alive.write(
            "/config/ctl",
            f"publish scope=system sha256={sha256(content).hexdigest()} content={pack(content)}",
        )
        await stage.tick(4 * MINUTE)
        assert [] == stage.events("witness.lost")
        await stage.tick(2 * MINUTE)
        assert 1 == len(stage.events("witness.lost"))

    live(story)


def test_a_witness_that_follows_no_more_is_behind() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(2, 2)
        body = await stage.cosign(0, 1)
        await alive.submit()
        await stage.tick(SECOND)
        # It is heard, but cosigns what is old.
        for _ in range(2):
            await stage.tick(31 * SECOND)
            await stage.cosign(1)
            await stage.hand_in(stage.cosigned(0, body))
        await stage.tick()
        assert {"w0": "behind", "w1": "agrees"} == await stage.words()
        state = await stage.read("/state", ANN)
        assert re.search(r"need 2: w0 behind: by \d entries since 2023-11-14T22:13:21Z\. See", state)
        alive.clock.advance(SECOND)
        await stage.cosign(0, 1)
        await stage.tick()
        assert {"w0": "agrees", "w1": "agrees"} == await stage.words()

    live(story)


def test_a_lying_witness_is_not_counted() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(3, 2)
        body = await stage.offered()
        text = parse_note(body.partition(b"\n\n")[2]).text
        now_s = alive.clock.now_ns() // SECOND
        good = stage.cosigned(0, body)
        spoilt = good[:-12] + b"AAAAAAAAAA=" + good[-1:]
        assert E.UNSIGNED is (await stage.refused(spoilt))[0]
        root = b64encode(bytes(32)).decode()
        other = "\n".join((*text.split("\n")[:2], root, ""))
        assert E.CONFLICT is (await stage.refused(stage.cosigned(0, body, text=other)))[0]
        beyond = text.replace(f"\n{alive.hive.turn.seq}\n", "\n9999\n")
        assert E.CONFLICT is (await stage.refused(stage.cosigned(0, body, text=beyond)))[0]
        for late_s in (-3600, 3600, 301, -301):
            kind, why = await stage.refused(stage.cosigned(0, body, now_s + late_s))
            assert (E.INVALID, True) == (kind, "set its clock" in why)
        assert E.INVALID is (await stage.refused(stage.cosigned(3, body)))[0]
        assert E.USAGE is (await stage.refused(b"no note"))[0]
        assert "size=0" not in await stage.hand_in(good)
        # It takes nothing back.
        kind, why = await stage.refused(stage.cosigned(0, body, now_s - 10))
        assert (E.INVALID, True) == (kind, "since" in why)
        assert f"agreed=0 size={alive.hive.turn.seq}" in await stage.read(f"{HERE}/status")

    live(story)


def test_a_witness_that_disagrees_is_named_until_it_cosigns_again() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(2, 2)
        await stage.cosign(0, 1)
        alive.clock.advance(SECOND)
        line = f"disagree key={stage.vkeys[1]} why='it signed two roots of 57 entries' first=a second=b"
        assert ["w1"] == await alive.write(f"{HERE}/ctl", line, who=VAL)
        await stage.tick(SECOND)
        assert {"w0": "agrees", "w1": "disagrees"} == await stage.words()
        state = await stage.read("/state", ANN)
        assert "w1 disagrees: it signed two roots of 57 entries" in state
        assert "/log/trace/witness/splits" in state
        assert b'"first":"a"' in stage.events("witness.disagreed")[0]
        alive.clock.advance(SECOND)
        await stage.cosign(0, 1)
        await stage.tick()
        assert {"w0": "agrees", "w1": "agrees"} == await stage.words()
        assert "online\n" == await stage.read("/state", ANN)

    live(story)


def test_who_disagrees_is_named_also_where_the_quorum_was_lost_before() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(2, 2)
        await stage.tick(2 * MINUTE)
        assert "disagrees" not in await stage.read("/state", ANN)
        await alive.write(f"{HERE}/ctl", f"disagree key={stage.vkeys[1]} why='two roots'", who=VAL)
        for _ in range(3):
            await stage.tick(SECOND)
        state = await stage.read("/state", ANN)
        assert "w0 missing: " in state
        assert "w1 disagrees: two roots" in state
        assert 2 == len(stage.events("witness.lost"))

    live(story)


def test_what_was_agreed_is_there_after_a_restart() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(1, 1)
        await stage.cosign(0)
        agreed = await stage.read("/log/trace/agreed")
        again = Stage(alive)
        assert agreed == await again.read("/log/trace/agreed")
        assert {"w0": "missing"} == await again.words()
        # Spoilt, it is made again.
        (alive.hive.directory / "log" / "trace" / "agreed").write_text("no note")
        third = Stage(alive)
        assert "agreed=0" in await third.read(f"{HERE}/status")
        await third.cosign(0)
        assert agreed == await third.read("/log/trace/agreed")

    live(story)


def test_what_cannot_be_written_down_is_not_agreed() -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(1, 1)
        await stage.cosign(0)
        agreed = await stage.read("/log/trace/agreed")
        blocked = alive.hive.directory / "log" / "trace" / ".agreed.new"
        blocked.mkdir()
        await alive.submit()
        alive.clock.advance(SECOND)
        body = await stage.offered()
        assert E.ISDIR is (await stage.refused(stage.cosigned(0, body)))[0]
        assert agreed == await stage.read("/log/trace/agreed")
        blocked.rmdir()
        await stage.hand_in(stage.cosigned(0, body))
        assert agreed != await stage.read("/log/trace/agreed")

    live(story)


@pytest.mark.parametrize(
    ("who", "reads", "hands_in"),
    [(ANN, True, True), (VAL, True, True), (EYE, True, False), (BOB, False, False), (W1, False, False)],
)  # fmt: skip
def test_who_may_look_and_who_may_cosign(who: Caller, reads: bool, hands_in: bool) -> None:
    async def story(alive: Living) -> None:
        stage = Stage(alive)
        await stage.add(1, 1)
        body = await stage.cosign(0)
        for path in ("/log/trace/agreed", f"{HERE}/status"):
            if reads:
                await stage.read(path, who)
            else:
                with pytest.raises(FsError, match="permission denied"):
                    await stage.read(path, who)
        if hands_in:
            await stage.hand_in(stage.cosigned(0, body), who)
        else:
            assert E.DENIED is (await stage.refused(stage.cosigned(0, body), who))[0]
        if who is not ANN:
            with pytest.raises(FsError, match="permission denied"):
                await alive.write(f"{HERE}/ctl", "remove name=w0", who=who)
        if who in (EYE, BOB, W1):
            with pytest.raises(FsError, match="permission denied"):
                await alive.write(f"{HERE}/ctl", f"disagree key={stage.vkeys[0]} why=no", who=who)

    live(story)


KEYS = [
    Vkey(f"w{n}", Signing.of(Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)).public, COSIGNER)
    for n in range(5)
]


def refused(folded: Folded, line: str) -> str:
    with pytest.raises(Refusal) as caught:
        folded.write(f"{HERE}/ctl", line)
    return caught.value.code


def test_a_quorum_is_a_majority_of_different_keys() -> None:
    folded = Folded()
    assert "USAGE" == refused(folded, "quorum need=1")
    for n in range(3):
        assert f"w{n}" == folded.write(f"{HERE}/ctl", f"add name=w{n} key={KEYS[n]}")
    assert "EXISTS" == refused(folded, f"add name=w0 key={KEYS[3]}")
    assert "EXISTS" == refused(folded, f"add name=w9 key={KEYS[2]}")
    assert "EXISTS" == refused(folded, f"add name=w9 key={Vkey('another', KEYS[2].public, COSIGNER)}")
    assert "USAGE" == refused(folded, f"add name=w9 key={Vkey('w9', KEYS[4].public)}")
    assert "USAGE" == refused(folded, "add name=w9 key=w9+00000000+AAAA")
    assert ["USAGE"] * 2 == [refused(folded, f"quorum need={need}") for need in (1, 4)]
    assert "2/3" == folded.write(f"{HERE}/ctl", "quorum need=2")
    folded.write(f"{HERE}/ctl", f"add name=w3 key={KEYS[3]}")
    assert 3 == folded.state.log.witnesses.need
    folded.write(f"{HERE}/ctl", "remove name=w3")
    assert "CONFLICT" == refused(folded, "remove name=w2")
    assert "MISSING" == refused(folded, "remove name=w3")
    assert "MISSING" == refused(folded, f"disagree key={KEYS[4]} why=no")
    assert "TOOBIG" == refused(folded, f"disagree key={KEYS[0]} why=no first={'x' * 7000}")
    assert "0/3" == folded.write(f"{HERE}/ctl", "quorum need=0")


def test_what_was_said_of_witnesses_is_decided_again_as_it_was() -> None:
    hive = Recorder()
    ctl = f"{HERE}/ctl"
    assert "USAGE" == hive.write(ctl, "quorum need=1")
    for n in range(3):
        hive.write(ctl, f"add name=w{n} key={KEYS[n]}")
    hive.write(ctl, "quorum need=2")
    hive.write(ctl, f"disagree key={KEYS[1]} why=no first=a second=b", who=VAL)
    assert "DENIED" == hive.write(ctl, "remove name=w1", who=VAL)
    hive.write(ctl, f"watch key={Vkey('h2/log/trace', KEYS[0].public)}")
    assert "EXISTS" == hive.write(ctl, f"watch key={Vkey('h2/log/trace', KEYS[0].public)}")
    hive.write(ctl, "clear split=00", "unwatch origin=h2/log/trace")
    assert "MISSING" == hive.write(ctl, "unwatch origin=h2/log/trace")
    hive.write("/log/trace/witness", "lost why=missing", who=HIVE)
    assert ("missing", 2) == (hive.state.log.witnesses.lost, hive.state.log.witnesses.need)
    hive.write("/log/trace/witness", "regained", who=HIVE)
    assert "DENIED" == hive.write("/log/trace/witness", "regained")
    assert [] == replayed(hive.bodies)
    assert digest(hive.state) == digest(unpack_state(pack_state(hive.state)))
