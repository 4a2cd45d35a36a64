"""Following a hive as its witness: each checkpoint that it offers is checked against the last, cosigned and
handed in; and what other witnesses were shown is compared with what we were.

A hive that shows different things to different witnesses has signed both. Whoever sees two of them asks the
hive how the one continues the other: it cannot say, or what it says is the proof.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from skep.fs.address import Address
from skep.fs.ctl import line
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.link import Standing
from skep.fs.messages import Dialect
from skep.namespaces.seen import SPLITS, Frozen, Witness, WitnessError, named
from skep.roles.uplink import Uplink
from skep.trace.checkpoint import parse_checkpoint, parse_handovers, vouched
from skep.trace.note import NoteError, parse_note, parse_vkey
from skep.trace.witness import (
    Answer,
    Contradiction,
    Declined,
    Seen,
    Shown,
    Split,
    check,
    check_same,
    parse_shown,
    unproven,
)

log = logging.getLogger("skep.witness")
TRACE: Final = "/log/trace"
HERE: Final = f"{TRACE}/witness"
DIAL_S: Final = 5.0  # for reaching another witness
READ_MAX: Final = 1 << 20  # bytes of a file of the hive or of another: thousands of keys
SPLIT_MAX: Final = 64 * 1024  # bytes of another's split that are looked at


class Peer(NamedTuple):
    """Another witness."""

    address: Address
    standing: Callable[[], Standing] | None = None  # with TLS


class Follower:
    """One hive, followed on ``uplink``, which somebody keeps."""

    def __init__(self, witness: Witness, uplink: Uplink, every_s: float, first: bool) -> None:
        """``every_s``: between two looks. ``first``: believe the key that a new hive shows first."""
        self.witness = witness
        self.uplink = uplink
        self.every_s = every_s
        self.first = first
        self.origin = ""  # "": not asked yet
        self._told = ""  # the last thing that was said of this hive
        self._accused: set[str] = set()  # what it has been told already
        self._found = asyncio.Event()  # another witness knew something against it

    async def follow(self) -> None:
        """Until cancelled. Raises WitnessError when this is a hive that we were not told to believe."""
        self.origin = await self._named()
        while True:
            try:
                pause_s = await self._step()
            except (FsError, OSError, NoteError) as error:
                self._say(str(error))
                if isinstance(error, FsError) and error.detail.startswith("rewound"):
                    await self._disagree(error.detail)
                pause_s = self.every_s
            await asyncio.sleep(pause_s)

    async def _named(self) -> str:
        """The origin of this hive, whose keys are believed."""
        lines = (await self._read("keys")).decode("utf-8", "replace").splitlines()
        try:
            key = parse_vkey(lines[0].split(" ")[0] if lines else "")
        except NoteError as error:
            raise WitnessError(f"{self.uplink.address}: {error}") from error
        if key.name not in self.witness.seen:
            if not self.first:
                raise WitnessError(
                    f"{self.uplink.address}: {key.name} is no log of this witness: --log {key}"
                )
            self.witness.trust(key.name, [key])
            log.warning("%s: believed from now on: %s", self.uplink.address, key)
        return key.name

    async def _step(self) -> float:
        """One checkpoint more, cosigned and handed in, or one that must not be; how long to wait then."""
        if (split := self.witness.frozen(self.origin)) is not None:
            self._say(f"split={split.id} {split.why}")
            await self._disagree(split.why, split)
            return self.every_s
        seen = self.witness.seen[self.origin]
        self._found.clear()
        body = await self.uplink.wait_read(f"{HERE}/offered@{seen.size}", self._found)
        if not body:
            return 0
        try:
            cosigned = self.witness.add_checkpoint(body)
        except (Contradiction, Frozen):
            return self.every_s
        except Declined as error:
            return await self._declined(seen, body, error)
        text = parse_shown(body).note.text
        await self._ask("witness/add-cosignature", f"{text}\n{cosigned}")
        self._say("")
        return self.every_s

    async def _declined(self, seen: Seen, body: bytes, error: Declined) -> float:
        match error.answer:
            case Answer.UNSIGNED if await self._learn(seen):
                return 0
            case Answer.UNPROVEN:
                await self._demand(seen, parse_shown(body))
                return self.every_s
        self._say(str(error))
        await self._disagree(str(error))
        return self.every_s

    async def _learn(self, seen: Seen) -> bool:
        """Whether there are more keys that those we believe have handed over to."""
        keys = vouched(seen.vkeys, parse_handovers(await self._read("handovers")))
        self.witness.trust(self.origin, keys)
        return len(keys) > len(seen.keys)

    async def _demand(self, seen: Seen, shown: Shown) -> None:
        """The hive has shown ``shown``, and no proof that it continues ``seen``: what it says of as many
        entries proves it, or that it will not say is kept."""
        try:
            with contextlib.suppress(Declined, NoteError, FsError):
                again = parse_shown(await self._between(seen.size, seen.size))
                again.note.signers(seen.vkeys)
                check_same(seen, again)
        except Contradiction as error:
            self.witness.keep_split(error.split)
        else:
            self.witness.keep_split(unproven(seen, shown))

    # other witnesses

    async def compare(self, client: Client) -> None:
        """Hold what the witness at ``client`` has cosigned against ours, and take over what it has found."""
        for entry in await client.listdir(f"{HERE}/{SPLITS}"):
            data = await client.read_file(f"{HERE}/{SPLITS}/{entry.name}", READ_MAX)
            if len(data) <= SPLIT_MAX:
                self._adopt(data)
        if self.witness.frozen(self.origin) is not None:
            return
        try:
            note = await client.read_file(f"{HERE}/origins/{named(self.origin)}/checkpoint", READ_MAX)
        except FsError as error:
            if error.kind is not E.MISSING:
                raise
        else:
            await self._confront(note)

    def _adopt(self, data: bytes) -> None:
        try:
            split = msgspec.json.decode(data, type=Split)
        except msgspec.DecodeError:
            return
        if split.origin == self.origin and self.witness.adopt(split):
            log.error("%s: another witness has found: %s", self.origin, split.why)
            self._found.set()

    async def _confront(self, data: bytes) -> None:
        """Ask the hive how of what the other has cosigned and what we have, the larger continues the
        smaller."""
        mine = self.witness.seen[self.origin]
        note = parse_note(data)
        # Not signed by the log, it is the other's mistake.
        note.signers(mine.vkeys)
        theirs = Seen(mine.origin, mine.keys, data.decode())
        if parse_checkpoint(note.text).origin != self.origin or not mine.size or not theirs.size:
            return
        small, large = sorted((mine, theirs), key=lambda seen: seen.size)
        try:
            # What it does not have yet, it cannot be asked: then the other asks for ours.
            shown = parse_shown(await self._between(small.size, large.size))
            shown.note.signers(mine.vkeys)
            check_same(large, shown)
            check(small, shown)
        except Contradiction as error:
            log.error("%s: another witness was shown something else: %s", self.origin, error)
            self.witness.keep_split(error.split)
            self._found.set()
        except Declined as error:
            if error.answer is Answer.UNPROVEN:
                await self._demand(small, shown)
                self._found.set()

    # what the hive is asked and told

    async def _read(self, name: str) -> bytes:
        return await self.uplink.do(lambda client: client.read_file(f"{TRACE}/{name}", READ_MAX))

    async def _between(self, old: int, size: int) -> bytes:
        return await self._ask("proof/consistency", f"old={old} size={size}\n")

    async def _ask(self, name: str, said: str) -> bytes:
        async def work(client: Client) -> bytes:
            async with await client.open(f"{TRACE}/{name}", "rw") as fid:
                await fid.write_all(said.encode())
                return await fid.whole(READ_MAX, ahead=1)

        return await self.uplink.do(work)

    async def _disagree(self, why: str, split: Split | None = None) -> None:
        """Tell the hive, once, what we cannot cosign."""
        if why in self._accused:
            return
        args = {"key": str(self.witness.vkey), "why": why}
        if split is not None:
            args |= {"first": split.first, "second": split.second}
        try:
            await self.uplink.write(f"{HERE}/ctl", line("disagree", args))
        except FsError as error:
            log.warning("%s: it does not take our word: %s", self.origin, error)
            return
        self._accused.add(why)

    def _say(self, what: str) -> None:
        """Once, until it is something else. "": all is well."""
        if what != self._told and what:
            log.warning("%s: %s", self.origin or self.uplink.address, what)
        self._told = what


async def exchange(peers: Sequence[Peer], followers: Sequence[Follower], every_s: float) -> None:
    """Compare with every other witness, again and again until cancelled."""
    told: dict[str, str] = {}
    # Witnesses that were started together need not all ask at one time.
    pause_s = every_s * (0.5 + os.getpid() % 512 / 512)
    while True:
        for peer in peers:
            try:
                async with asyncio.timeout(DIAL_S):
                    await _compare(peer, followers)
                said = ""
            except (OSError, FsError, NoteError) as error:
                said = str(error) or "no answer"
            if said and told.get(str(peer.address)) != said:
                log.warning("witness %s: %s", peer.address, said)
            told[str(peer.address)] = said
        await asyncio.sleep(pause_s)


async def _compare(peer: Peer, followers: Sequence[Follower]) -> None:
    identity = None if peer.standing is None else peer.standing().identity
    client = await Client.connect(peer.address, dialect=Dialect.U, identity=identity)
    async with client:
        for follower in followers:
            if follower.origin:
                await follower.compare(client)
