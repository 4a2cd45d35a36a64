"""The witnesses of a living hive: what they are offered, what they cosigned, what is agreed.

All of them are offered the same checkpoint, and the next one when that is agreed or its time is over: of a
log that grows all the time each would otherwise cosign another. What they cosign is no entry, for it would
make the next checkpoint; the agreed checkpoint is a file beside the ledger, which whoever lacks it can have
made again.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final, NamedTuple

from skep.fs.ctl import line
from skep.fs.errors import E, FsError, from_oserror
from skep.namespaces.evidence import Evidence
from skep.namespaces.live import told_as_fs_error
from skep.namespaces.log.tree import shown
from skep.namespaces.log.witnesses import Witness, Witnesses
from skep.trace.checkpoint import parse_checkpoint
from skep.trace.clock import MS, SECOND, rfc3339
from skep.trace.cosignature import Cosignature, cosignatures
from skep.trace.note import COSIGNER, NoteError, parse_note, parse_vkey
from skep.trace.whole import write_whole

log = logging.getLogger("skep.witness")
FILE: Final = Path("log", "trace", "agreed")  # in the hive's directory, where all that is made of traces lies
LIMIT: Final = "trace/agreed-within"  # of /config
ROUND_NS: Final = 200 * MS  # between two checkpoints that are offered, at least: what is agreed is synced
ROUND_MAX_NS: Final = 2 * SECOND  # then one that is not agreed is given up for a later one
ROUNDS_KEPT: Final = 8  # whose cosignatures are still taken
SKEW_S: Final = 300  # how wrong a witness's clock may be


class Round(NamedTuple):
    """A checkpoint that is offered. ``note``: as the hive signed it; ``begun_ns``: monotonic."""

    size: int
    text: str
    note: bytes
    begun_ns: int
    cosigned: dict[str, Cosignature]  # by the witness's name


class Heard(NamedTuple):
    """The last cosignature of a witness. ``time_ns``: when it came, by our clock."""

    size: int
    time_ns: int
    time_s: int


class Standing(NamedTuple):
    """How it is with a witness. ``word``: agrees, behind, missing, disagrees. ``counts``: whether it can be
    counted upon for a quorum."""

    word: str
    why: str
    counts: bool


class Quorum:
    """What of a hive's checkpoints is witnessed. ``tick`` is to be called now and then."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.hive = evidence.hive
        self.rounds: dict[int, Round] = {}  # by size, the newest last
        self.heard: dict[str, Heard] = {}
        self.grown_ns: dict[str, int] = {}  # witness -> since when there is more than it has cosigned
        self._path = self.hive.directory / FILE
        self._agreed: bytes | None = None  # None: not read yet; b"": none is
        self._writing = asyncio.Lock()
        self.hive.on_tick.append(self.tick)

    @property
    def witnesses(self) -> Witnesses:
        return self.hive.state.log.witnesses

    # what is offered

    async def wait_offered(self, after: int) -> bytes:
        """An add-checkpoint of the offered checkpoint, from ``after`` on; when nothing is new for a while,
        the same again, so that a witness can say that it is still there. Raises FsError."""
        if after > self.evidence.size:
            raise FsError(E.CONFLICT, f"rewound: here are {self.evidence.size} entries, not {after}")
        again_ns = min(int(self.hive.bookmark_s * SECOND), self._limit_ns() // 3)
        until_ns = self.hive.clock.monotonic_ns() + again_ns
        while True:
            offered, wait_ns = await self._offered()
            left_ns = until_ns - self.hive.clock.monotonic_ns()
            if offered.size > after or (offered.size == after and left_ns <= 0):
                return await shown(self.evidence, after, offered.size)
            if offered.size == self.evidence.size:
                await self._grown(offered.size, left_ns)
            else:
                await asyncio.sleep(max(wait_ns, MS) / SECOND)

    async def _grown(self, size: int, wait_ns: int) -> None:
        """Return when there are more than ``size`` entries, or the time is over."""
        try:
            with told_as_fs_error():
                await asyncio.wait_for(self.hive.turn.wait_past(size), max(wait_ns, 0) / SECOND)
        except TimeoutError:
            return

    async def _offered(self) -> tuple[Round, int]:
        """The newest round, begun now if it is time for one; how long until it is."""
        now_ns = self.hive.clock.monotonic_ns()
        last = next(reversed(self.rounds.values()), None)
        if last is not None:
            agreed = len(last.cosigned) >= max(self.witnesses.need, 1)
            due_ns = last.begun_ns + (ROUND_NS if agreed else ROUND_MAX_NS)
            if last.size == self.evidence.size or now_ns < due_ns:
                return last, due_ns - now_ns
        note = self.evidence.checkpoint()
        text = parse_note(note).text
        begun = Round(parse_checkpoint(text).size, text, note, now_ns, {})
        self.rounds[begun.size] = begun
        if len(self.rounds) > ROUNDS_KEPT:
            del self.rounds[next(iter(self.rounds))]
        return begun, ROUND_MAX_NS

    # what is handed in

    async def take(self, said: bytes) -> str:
        """A checkpoint that was offered, and cosignatures under it. Raises FsError."""
        try:
            note = parse_note(said)
            checkpoint = parse_checkpoint(note.text)
        except NoteError as error:
            raise FsError(E.USAGE, str(error)) from error
        found = self.rounds.get(checkpoint.size)
        if found is None:
            sizes = " ".join(map(str, self.rounds))
            raise FsError(E.CONFLICT, f"size={checkpoint.size}: offered were {sizes}")
        if found.text != note.text:
            raise FsError(E.CONFLICT, f"another checkpoint of {checkpoint.size} entries was offered")
        known = {parse_vkey(each.key, COSIGNER): each for each in self.witnesses.by_name.values()}
        good = cosignatures(note, known)
        if not good:
            ours = {(vkey.name, vkey.id): each.name for vkey, each in known.items()}
            for name, data in note.signatures:
                if (name, data[:4]) in ours:
                    raise FsError(E.UNSIGNED, f"the cosignature of {ours[name, data[:4]]} is not good")
            # Not a denial, which is an entry: that would make the next checkpoint to be cosigned.
            raise FsError(E.INVALID, "none of those who cosigned it is a witness here: add name= key=")
        for cosignature in good:
            self._hear(found, known[cosignature.vkey], cosignature)
        await self._agree(found)
        return f"size={found.size} have={len(found.cosigned)} need={self.witnesses.need}\n"

    def _hear(self, found: Round, witness: Witness, cosignature: Cosignature) -> None:
        now_ns = self.hive.clock.now_ns()
        before = self.heard.get(witness.name)
        skew_s = cosignature.time_s - now_ns // SECOND
        if abs(skew_s) > SKEW_S:
            raise FsError(E.INVALID, f"{witness.name} says a time {skew_s} s from ours: set its clock")
        if before is not None and (cosignature.time_s < before.time_s or found.size < before.size):
            raise FsError(E.INVALID, f"{witness.name} has cosigned {before.size} entries since")
        found.cosigned[witness.name] = cosignature
        self.heard[witness.name] = Heard(found.size, now_ns, cosignature.time_s)
        if before is None or found.size > before.size:
            self.grown_ns.pop(witness.name, None)

    # what is agreed

    def agreed(self) -> bytes:
        """The last checkpoint with enough cosignatures, and those; b"": none was."""
        if self._agreed is None:
            try:
                self._agreed = self._path.read_bytes()
                _size(self._agreed)
            except FileNotFoundError:
                self._agreed = b""
            except (OSError, NoteError) as error:
                # What is agreed next takes its place.
                log.warning("%s: %s", self._path, error)
                self._agreed = b""
        return self._agreed

    @property
    def agreed_size(self) -> int:
        note = self.agreed()
        return _size(note) if note else 0

    async def _agree(self, found: Round) -> None:
        names = self.witnesses.by_name
        async with self._writing:
            # Who was removed meanwhile does not count.
            lines = [each.line() for name, each in sorted(found.cosigned.items()) if name in names]
            if not self.witnesses.need or len(lines) < self.witnesses.need or found.size < self.agreed_size:
                return
            note = found.note + "".join(lines).encode()
            if note != self.agreed():
                try:
                    self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    await asyncio.to_thread(write_whole, self._path, note)
                except OSError as error:
                    raise from_oserror(error) from error
                self._agreed = note

    # how it is

    def standing(self, witness: Witness) -> Standing:
        now_ns, limit_ns = self.hive.clock.now_ns(), self._limit_ns()
        heard = self.heard.get(witness.name)
        if witness.why and (heard is None or heard.time_ns <= witness.told_ns):
            return Standing("disagrees", f"{witness.why}, told {_at(witness.told_ns)}", False)
        if heard is None:
            since_ns = max(witness.since_ns, self.hive.started_ns)
            return Standing("missing", f"not heard since {_at(since_ns)}", now_ns - since_ns <= limit_ns)
        if now_ns - heard.time_ns > limit_ns:
            return Standing("missing", f"not heard since {_at(heard.time_ns)}", False)
        since_ns = self.grown_ns.get(witness.name, now_ns)
        if now_ns - since_ns > limit_ns:
            entries = self.evidence.size - heard.size
            return Standing("behind", f"by {entries} entries since {_at(since_ns)}", False)
        return Standing("agrees", "", True)

    def _limit_ns(self) -> int:
        found = self.hive.state.setting_or_default("", LIMIT)
        assert isinstance(found, int)
        return found

    def status(self) -> str:
        """The quorum, then a line for each witness."""
        of = self.witnesses
        lines = [f"quorum={of.need}/{len(of.by_name)} agreed={self.agreed_size} size={self.evidence.size}"]
        lines[0] += f" degraded={rfc3339(of.lost_ns)}" if of.lost else ""
        for witness in of.by_name.values():
            heard, standing = self.heard.get(witness.name), self.standing(witness)
            at = f" size={heard.size} at={rfc3339(heard.time_ns)}" if heard is not None else ""
            why = f" why={standing.why!r}" if standing.why else ""
            lines.append(f"{witness.name} {standing.word}{at} key={witness.key}{why}")
        return "".join(f"{line}\n" for line in lines)

    async def tick(self, now_ns: int) -> None:
        """Notice who lags, and whether there is a quorum; what changed is written down."""
        of = self.witnesses
        for name, heard in list(self.heard.items()):
            if name not in of.by_name:
                del self.heard[name]
            elif heard.size < self.evidence.size:
                self.grown_ns.setdefault(name, now_ns)
        standings = {name: self.standing(witness) for name, witness in of.by_name.items()}
        absent = {name: each for name, each in standings.items() if not each.counts}
        if len(standings) - len(absent) >= of.need:
            # One that was lost is there again when they have cosigned, not when they have been given time.
            if of.lost and sum(each.word == "agrees" for each in standings.values()) >= of.need:
                log.warning("quorum %d/%d is there again", of.need, len(of.by_name))
                await self._say("regained")
        elif not of.lost or any(not _is_told(of.lost, name, each) for name, each in absent.items()):
            why = self._why(absent)
            log.error("%s", why)
            await self._say(line("lost", {"why": why}))

    def _why(self, absent: dict[str, Standing]) -> str:
        of = self.witnesses
        who = "; ".join(f"{name} {each.word}: {each.why}" for name, each in absent.items())
        words = {each.word for each in absent.values()}
        have = len(of.by_name) - len(absent)
        do = " ".join(text for word, text in _DO.items() if word in words)
        return f"quorum {have}/{len(of.by_name)}, need {of.need}: {who}. {do}"

    async def _say(self, said: str) -> None:
        try:
            await self.hive.say("/log/trace/witness", said)
        except FsError as error:
            # It is said again at the next tick; a full disk has said so itself.
            log.warning("quorum: %s", error)


def _is_told(lost: str, name: str, standing: Standing) -> bool:
    """Whether the reason that was written down will do for a witness. Who is missing or behind may come and
    go; that one disagrees must stand there."""
    return standing.word != "disagrees" or f" {name} disagrees: " in lost


def _at(time_ns: int) -> str:
    return f"{rfc3339(time_ns)[:19]}Z"


def _size(note: bytes) -> int:
    """Raises NoteError."""
    return parse_checkpoint(parse_note(note).text).size


_DO: Final = {
    "missing": "Start who is missing again (skep witness), or remove name= > /log/trace/witness/ctl.",
    "behind": "See what keeps who is behind from following: its own log tells.",
    "disagrees": "Compare what who disagrees has kept (its /log/trace/witness/splits) before anything else.",
}
