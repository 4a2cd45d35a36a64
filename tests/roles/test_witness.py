"""A witness: what it cosigns, what it remembers, and that no hive that lies gets past it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from liar import KEYS, ORIGIN, VKEYS, Liar, following, leaves, until

from skep.fs.address import Address
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.local import local
from skep.fs.messages import Dialect
from skep.fs.server import listen
from skep.namespaces.seen import Frozen, Witness, WitnessError, named
from skep.roles.witness import Plan, tree, witness
from skep.roles.witnessing import Peer
from skep.trace.checkpoint import handover_text
from skep.trace.clock import SECOND, ManualClock
from skep.trace.note import Vkey, sign_note
from skep.trace.witness import Contradiction, Declined, is_evidence
from tests.trace import tlog

HERE = "/log/trace/witness"


def cosigned(witness: Witness) -> tuple[int, int, bytes]:
    """Time, size and root of what it has cosigned last."""
    note = witness.seen[ORIGIN].note.encode()
    tlog.open_checkpoint(note, ORIGIN, KEYS[0].public)
    return tlog.open_cosigned(note, witness.vkey.name, witness.vkey.public)


def size(witness: Witness) -> int:
    return witness.seen[ORIGIN].size


async def ask(client: Client, path: str, said: bytes) -> str:
    async with await client.open(f"{HERE}/{path}", "rw") as fid:
        await fid.write_all(said)
        return b"".join([piece async for piece in fid.pieces(ahead=1)]).decode()


async def refused(client: Client, path: str, said: bytes) -> tuple[E, str]:
    with pytest.raises(FsError) as caught:
        await ask(client, path, said)
    return caught.value.kind, caught.value.detail


def play(story: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await story()

    asyncio.run(run())


# following


def test_it_follows_a_hive_and_hands_in_what_it_cosigned(tmp_path: Path) -> None:
    async def story() -> None:
        liar = Liar(leaves(5))
        async with following(tmp_path, liar) as found:
            (witness,) = found.witnesses
            await until(lambda: liar.taken)
            assert (5, tlog.mth(leaves(5))) == cosigned(witness)[1:]
            for grown in (6, 8, 300):
                liar.show(leaves(grown))
                await until(lambda grown=grown: size(witness) == grown)
            await until(
                lambda: liar.taken[-1].text == f"{ORIGIN}\n300\n" + liar.taken[-1].text.split("\n")[2] + "\n"
            )
            # None but its own line: the hive knows its own.
            assert {(witness.vkey.name, witness.vkey.id)} == {
                (name, data[:4]) for note in liar.taken for name, data in note.signatures
            }

    play(story)


def test_a_key_is_believed_that_was_told_or_by_wish_the_first_that_is_shown(tmp_path: Path) -> None:
    async def story() -> None:
        liar = Liar(leaves(5))
        async with following(tmp_path / "a", liar, keys=()) as found:
            with pytest.raises(
                WitnessError, match=r"h1/log/trace is no log of this witness: --log h1/log/trace\+"
            ):
                await found.wait()
        async with following(tmp_path / "b", liar, keys=(), first=True) as found:
            await until(lambda: liar.taken)
        # From then on it is another's.
        liar.shown = VKEYS[1]
        liar.show(leaves(6), KEYS[1])
        async with following(tmp_path / "b", liar, keys=(), first=True):
            await until(lambda: any("expected a key that is known" in line for line in liar.told))

    play(story)


def test_a_new_key_is_believed_when_the_old_one_vouches_for_it(tmp_path: Path) -> None:
    async def story() -> None:
        liar = Liar(leaves(5))
        async with following(tmp_path, liar) as found:
            (witness,) = found.witnesses
            await until(lambda: liar.taken)
            liar.handovers = sign_note(handover_text(ORIGIN, VKEYS[1]), ORIGIN, KEYS[:1])
            liar.show(leaves(7), KEYS[1])
            await until(lambda: size(witness) == 7)
            liar.show(leaves(9), KEYS[2])
            await until(lambda: liar.told)
            assert 7 == size(witness)
            assert [str(key) for key in VKEYS[:2]] == list(witness.seen[ORIGIN].keys)

    play(story)


def test_a_hive_that_was_rewound_is_told_and_waited_for(tmp_path: Path) -> None:
    async def story() -> None:
        liar = Liar(leaves(9))
        async with following(tmp_path, liar) as found:
            (witness,) = found.witnesses
            await until(lambda: liar.taken)
            liar.show(leaves(4))
            await until(lambda: liar.told)
            assert "rewound: here are 4 entries, not 9" in liar.told[0]
            assert not witness.splits
            liar.show(leaves(12))
            await until(lambda: size(witness) == 12)

    play(story)


# hives that lie


@pytest.mark.parametrize(("old", "fork", "new"), [(9, 3, 12), (8, 3, 12), (9, 8, 9), (8, 7, 8), (1, 0, 2)])
def test_another_view_is_not_cosigned_and_the_proof_is_kept(
    tmp_path: Path, old: int, fork: int, new: int
) -> None:
    async def story() -> None:
        liar = Liar(leaves(old))
        async with following(tmp_path, liar) as found:
            (witness,) = found.witnesses
            await until(lambda: liar.taken)
            before = cosigned(witness)
            liar.show(leaves(max(new, old + 1), fork))
            await until(lambda: liar.told)
            (split,) = witness.splits.values()
            assert is_evidence(split, VKEYS[:1])
            assert split.why in liar.told[0]
            assert "first=" in liar.told[0] or '"first":' in liar.told[0]
            # It is not cosigned again until an operator lets it be, whatever is shown.
            liar.show(leaves(40))
            with pytest.raises(Frozen):
                witness.add_checkpoint(liar.body(old, 40))
            assert before == cosigned(witness)
            async with await Client.connect(found.address("w0"), dialect=Dialect.U) as client:
                assert [split.id] == [entry.name for entry in await client.listdir(f"{HERE}/splits")]
                assert E.CONFLICT is (await refused(client, "add-checkpoint", liar.body(old, 40)))[0]
                assert E.MISSING is (await refused(client, "ctl", b"clear split=00\n"))[0]
                assert split.id in await ask(client, "ctl", f"clear split={split.id}\n".encode())
                await until(lambda: size(witness) == 40)
                assert [split.id] == [entry.name for entry in await client.listdir(f"{HERE}/splits")]

    play(story)


def test_that_a_hive_proves_nothing_is_kept_too(tmp_path: Path) -> None:
    async def story() -> None:
        liar = Liar(leaves(9))
        async with following(tmp_path, liar) as found:
            (witness,) = found.witnesses
            await until(lambda: liar.taken)
            liar.proves = False
            liar.show(leaves(12, 3))
            await until(lambda: liar.told)
            (split,) = witness.splits.values()
            assert "it gave no proof that 12 entries continue the 9 before" == split.why
            # Somebody else need not believe it.
            assert not is_evidence(split, VKEYS[:1])

    play(story)


@pytest.mark.parametrize(("sizes", "fork"), [((9, 9, 12), 5), ((8, 16, 4), 3), ((7, 8, 30), 0)])
def test_a_view_for_each_is_found_by_all_who_talk_to_each_other(
    tmp_path: Path, sizes: tuple[int, int, int], fork: int
) -> None:
    """The last witness is shown another view than the others."""

    async def story() -> None:
        liars = [Liar(leaves(sizes[0])), Liar(leaves(sizes[1])), Liar(leaves(sizes[2], fork))]
        async with following(tmp_path, *liars, peers=True) as found:
            await until(lambda: all(witness.splits for witness in found.witnesses))
            for witness in found.witnesses:
                assert all(is_evidence(split, VKEYS[:1]) for split in witness.splits.values())
            await until(lambda: all(liar.told for liar in liars))

    play(story)


@pytest.mark.slow
def test_witnesses_of_one_view_find_nothing_in_each_other(tmp_path: Path) -> None:
    async def story() -> None:
        liars = [Liar(leaves(n)) for n in (5, 8, 13)]
        async with following(tmp_path, *liars, peers=True) as found:
            for grown in (20, 21, 32, 33):
                for liar in liars:
                    liar.show(leaves(grown))
                await until(lambda grown=grown: all(size(witness) == grown for witness in found.witnesses))
            assert not any(witness.splits for witness in found.witnesses)
            assert not any(liar.told for liar in liars)

    play(story)


def test_a_witness_that_lies_accuses_nobody(tmp_path: Path) -> None:
    async def story() -> None:
        honest, made_up = Liar(leaves(9)), Liar(leaves(9, 3), KEYS[1])
        made_up.shown = VKEYS[1]
        async with following(tmp_path, honest, made_up, peers=True) as found:
            good, bad = found.witnesses
            # It believes a key of its own, and so has a checkpoint and a split that the log never signed.
            bad.trust(ORIGIN, VKEYS[1:2])
            await until(lambda: honest.taken and made_up.taken)
            made_up.proves = False
            made_up.show(leaves(12))
            await until(lambda: bad.splits)
            for grown in (20, 21, 22, 23):
                honest.show(leaves(grown))
                await until(lambda grown=grown: size(good) == grown)
            assert not good.splits

    play(story)


# what others show it


def test_each_answer_has_an_error_of_its_own(tmp_path: Path) -> None:
    async def story() -> None:
        liar = Liar(leaves(20))
        witness = Witness(tmp_path, "w", ManualClock())
        witness.trust(ORIGIN, VKEYS[:1])
        async with await local(tree(witness), dialect=Dialect.U) as client:
            assert f"{witness.vkey}\n".encode() == await client.read_file(f"{HERE}/key")
            line = await ask(client, "add-checkpoint", liar.body(0, 9))
            note = liar.note(9) + line.encode()
            assert (9, tlog.mth(leaves(9))) == tlog.open_cosigned(note, "w", witness.vkey.public)[1:]
            kept = await client.read_file(f"{HERE}/origins/{named(ORIGIN)}/checkpoint")
            assert note == kept
            assert "9\n" == await ask(client, "add-checkpoint", liar.body(0, 12))
            liar.proves = False
            assert E.TAMPER is (await refused(client, "add-checkpoint", liar.body(9, 12)))[0]
            liar.key = KEYS[1]
            assert E.UNSIGNED is (await refused(client, "add-checkpoint", liar.body(9, 12)))[0]
            other = liar.body(0, 4).replace(ORIGIN.encode(), b"h2/log/trace")
            assert E.DENIED is (await refused(client, "add-checkpoint", other))[0]
            assert E.USAGE is (await refused(client, "add-checkpoint", b"new 9\n"))[0]
            # Who does not come by its Unix socket is no operator of it.
            assert E.DENIED is (await refused(client, "ctl", b"clear split=00\n"))[0]
            # By its size alone nobody is accused; by what it signed.
            assert not witness.splits
            forked = Liar(leaves(20, 3))
            assert E.CONFLICT is (await refused(client, "add-checkpoint", forked.body(0, 9)))[0]
            assert 1 == len(witness.splits)

    play(story)


def test_what_it_cosigned_is_known_after_a_restart_and_its_time_never_goes_back(tmp_path: Path) -> None:
    clock, liar = ManualClock(), Liar(leaves(20))
    witness = Witness(tmp_path, "w", clock)
    witness.trust(ORIGIN, VKEYS[:1])
    witness.add_checkpoint(liar.body(0, 9))
    first = cosigned(witness)
    clock.advance(-3600 * SECOND)
    again = Witness(tmp_path, "another name", clock)
    assert (witness.vkey, witness.seen) == (again.vkey, again.seen)
    again.add_checkpoint(liar.body(9, 9))
    assert first == cosigned(again)
    with pytest.raises(Declined):
        again.add_checkpoint(liar.body(4, 12))
    with pytest.raises(Contradiction):
        again.add_checkpoint(Liar(leaves(20, 3)).body(9, 12))
    third = Witness(tmp_path, "w", clock)
    assert again.splits == third.splits
    with pytest.raises(Frozen):
        third.add_checkpoint(liar.body(9, 12))


def test_a_state_that_cannot_be_read_is_not_begun_upon(tmp_path: Path) -> None:
    witness = Witness(tmp_path, "w", ManualClock())
    witness.trust(ORIGIN, VKEYS[:1])
    (path,) = (tmp_path / "origins").iterdir()
    path.write_text("{")
    with pytest.raises(WitnessError, match="what this witness has signed is not known"):
        Witness(tmp_path, "w", ManualClock())


def test_what_cannot_be_written_down_is_not_cosigned(tmp_path: Path) -> None:
    liar = Liar(leaves(20))
    witness = Witness(tmp_path, "w", ManualClock())
    witness.trust(ORIGIN, VKEYS[:1])
    witness.add_checkpoint(liar.body(0, 9))
    block = tmp_path / "origins" / f".{named(ORIGIN)}.json.new"
    block.mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        witness.add_checkpoint(liar.body(9, 12))
    assert 9 == size(witness) == size(Witness(tmp_path, "w", ManualClock()))
    block.rmdir()
    witness.add_checkpoint(liar.body(9, 12))
    assert 12 == size(witness)


@pytest.mark.slow
def test_killed_at_any_call_of_the_disk_it_knows_what_it_has_signed(tmp_path: Path) -> None:
    """Whatever left it before it died, is on the disk; it goes on, and cosigns no other view."""
    liar, forked = Liar(leaves(30)), Liar(leaves(30, 2))
    bodies = [liar.body(old, new) for old, new in ((0, 5), (5, 9), (9, 9), (9, 20))]
    fed = b"".join(b"%d\n%s" % (len(body), body) for body in bodies)
    program = str(Path(__file__).with_name("dying_witness.py"))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    deaths = 0
    for at in range(1, 40):
        directory = tmp_path / str(at)
        Witness(directory, "w", ManualClock()).trust(ORIGIN, VKEYS[:1])
        done = subprocess.run(
            [sys.executable, program, str(directory), str(at)],
            input=fed, capture_output=True, timeout=30, env=env, check=False,
        )  # fmt: skip
        left = len(done.stdout.splitlines())
        deaths += done.returncode == -9
        witness = Witness(directory, "w", ManualClock())
        assert size(witness) >= (0, 5, 9, 9, 20)[left]
        with pytest.raises((Declined, Contradiction)):
            witness.add_checkpoint(forked.body(size(witness), 25) if left else forked.body(7, 25))
        if not witness.splits:
            witness.add_checkpoint(liar.body(size(witness), 30))
            assert (30, tlog.mth(leaves(30))) == cosigned(witness)[1:]
        if done.returncode == 0:
            break
    assert (0, 4) == (done.returncode, left)
    assert deaths >= 12


def test_one_hive_that_is_not_believed_is_no_reason_to_leave_the_others(tmp_path: Path) -> None:
    async def story() -> None:
        good, other = Liar(leaves(5)), Liar(leaves(5))
        other.shown = Vkey("h2/log/trace", KEYS[1].public)
        hives = [Peer(Address("unix", path=str(tmp_path / f"h{n}"))) for n in range(2)]
        socket = Address("unix", path=str(tmp_path / "w.sock"))
        said: list[str] = []
        async with listen(good.root(), hives[0].address), listen(other.root(), hives[1].address):
            plan = Plan(tmp_path / "w", "w", hives, [socket], logs=VKEYS[:1], every_s=0.01)
            running = asyncio.create_task(witness(plan, said.append))
            await until(lambda: good.taken)
            assert not running.done()
            assert not other.taken
            assert ("ready", True) == (said[-1], said[0].startswith("key w+"))
            with pytest.raises(WitnessError, match="another witness"):
                await witness(plan, said.append)
            running.cancel()
            await asyncio.wait([running])
            alone = plan._replace(hives=hives[1:])
            with pytest.raises(WitnessError, match="h2/log/trace is no log of this witness"):
                await witness(alone, said.append)

    play(story)
