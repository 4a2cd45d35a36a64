"""Token buckets, the meters made of them, and what a conversation does with its own."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.fs import messages as m
from skep.fs.chan import EVERYTHING, Chan
from skep.fs.conversation import Peer
from skep.fs.errors import E, FsError
from skep.fs.limits import MS, SECOND, Bucket, Meter
from skep.fs.messages import NOFID, Dialect, Message
from skep.fs.node import Caller
from skep.fs.server import OpenGate
from skep.fs.session import FIDS_MAX, TAGS_MAX, TURN_MAX
from skep.fs.shapes import Memory
from skep.fs.tree import as_node
from tests.fs.grounds import Raw, calm, wait_until

KERNELS = pytest.mark.parametrize("kernel", [False, True], ids=["python", "kernel"])
EVE = Caller("eve", "observer")


class Clock:
    """ns that go on when told."""

    def __init__(self) -> None:
        self.ns = 0

    def __call__(self) -> int:
        return self.ns


# buckets


@pytest.mark.slow
@given(st.integers(1, 10_000), st.integers(2 * MS, 50 * MS))
def test_over_ten_seconds_a_bucket_gives_its_rate_to_a_hundredth(rate: int, step_ns: int) -> None:
    burst = max(2.0, rate * 0.005)
    bucket = Bucket(rate, burst, 0)
    taken, now_ns, end_ns = 0, 0, 10 * SECOND
    while now_ns < end_ns:
        while bucket.take(1, now_ns):
            taken += 1
        # Who asks less often than the bucket overflows loses what overflowed.
        now_ns += min(step_ns, int((burst - 1) * SECOND / rate / 2))
    assert abs(taken - 10 * rate) <= 0.01 * 10 * rate + 2


def test_an_overdrawn_bucket_says_how_long_it_takes_to_pay_back() -> None:
    bucket = Bucket(100, 10, 0)
    bucket.draw(60, 0)
    assert bucket.wait_ns(0, 0) == SECOND // 2
    assert bucket.wait_ns(1, SECOND // 4) == SECOND // 4 + SECOND // 100
    assert bucket.wait_ns(1, SECOND) == 0


def test_time_that_goes_back_gives_and_takes_nothing() -> None:
    bucket = Bucket(100, 10, SECOND)
    assert bucket.take(10, SECOND)
    assert not bucket.take(1, 0)
    assert bucket.take(10, 2 * SECOND)


# conversations


def meter(clock: Clock, burst: float = 5, **rates: float) -> Meter:
    return Meter(clock, [{name: Bucket(rate, burst, clock()) for name, rate in rates.items()}])


async def attached(kernel: bool, **files: object) -> Raw:
    """Fid 0 is at the root."""
    raw = Raw(OpenGate(as_node({"file": Memory(b"text"), "text": "steady", **files})), kernel=kernel)
    await raw.version(Dialect.U)
    await raw.ask(0, m.Tattach(0, NOFID, "eve", ""))
    return raw


def throttled(answers: list[tuple[int, Message]]) -> list[str]:
    return [a.ename for _, a in answers if isinstance(a, m.Rerror)]


@KERNELS
def test_calls_beyond_the_limit_are_told_when_to_come_again(kernel: bool) -> None:
    async def story() -> None:
        clock = Clock()
        raw = await attached(kernel)
        raw.conversation.limit(FIDS_MAX, TAGS_MAX, meter(clock, calls=10))
        for _ in range(2):  # the second time the inner loop knows the answer
            del raw.answers[:]
            raw.say(*((tag, m.Tstat(0)) for tag in range(20)))
            assert throttled(raw.answers) == ["throttled: retry-ms=100"] * 15
            clock.ns += SECOND // 2
        found = raw.conversation.session.meter
        assert found is not None
        assert found.throttled == 30

    asyncio.run(story())


@pytest.mark.slow
@KERNELS
def test_over_ten_seconds_a_session_gets_its_calls_to_a_hundredth(kernel: bool) -> None:
    async def story() -> None:
        clock = Clock()
        raw = await attached(kernel)
        await raw.ask(1, m.Tstat(0))
        raw.conversation.limit(FIDS_MAX, TAGS_MAX, meter(clock, burst=10, calls=1000))
        del raw.answers[:]
        for _ in range(2000):
            clock.ns += 5 * MS
            raw.say(*((tag, m.Tstat(0)) for tag in range(20)))
        assert abs(2000 * 20 - len(throttled(raw.answers)) - 10_000) <= 100

    asyncio.run(story())


@KERNELS
def test_walks_are_limited_by_themselves(kernel: bool) -> None:
    async def story() -> None:
        clock = Clock()
        raw = await attached(kernel)
        raw.conversation.limit(FIDS_MAX, TAGS_MAX, meter(clock, walks=10))
        for round in range(2):
            clock.ns += SECOND
            del raw.answers[:]
            raw.say(*((n, m.Twalk(0, 100 * round + n, ("text",))) for n in range(1, 9)))
            raw.say(*((n, m.Tstat(0)) for n in range(50)))
            assert len(throttled(raw.answers)) == 3
        for n in range(200):  # a fid can always be given back
            raw.say((1, m.Tclunk(n)))
        assert 3 == len([t for t in throttled(raw.answers) if t.startswith("throttled")])

    asyncio.run(story())


def test_of_two_sources_the_emptier_counts() -> None:
    clock = Clock()
    peer, mine, other = Bucket(1000, 20, 0), Bucket(1000, 5, 0), Bucket(1000, 50, 0)
    first, second = (Meter(clock, [{"calls": peer}, {"calls": who}]) for who in (mine, other))
    assert [0] * 5 + [1] == [first.call(False) for _ in range(6)]
    assert (0, 1 << 62) == first.left()
    assert (15, 1 << 62) == second.left()


def test_bytes_beyond_the_limit_are_not_read_for_a_while() -> None:
    async def story() -> None:
        raw = await attached(True)
        flows: list[bool] = []
        raw.conversation.flow = flows.append
        clock = Clock()
        raw.conversation.limit(FIDS_MAX, TAGS_MAX, meter(clock, burst=100, bytes=100_000))
        raw.say(*((tag, m.Tstat(0)) for tag in range(10)))
        assert flows == [False]
        clock.ns += 10 * SECOND
        await wait_until(lambda: flows == [False, True])
        assert 10 == len(raw.answers) - 2  # nothing is refused

    asyncio.run(story())


def test_a_lost_connection_waits_for_no_bytes() -> None:
    async def story() -> None:
        raw = await attached(True)
        raw.conversation.limit(FIDS_MAX, TAGS_MAX, meter(Clock(), burst=1, bytes=1))
        raw.say((1, m.Tstat(0)))
        raw.conversation.lost()
        assert raw.conversation._braked is None

    asyncio.run(story())


@KERNELS
def test_fids_and_tags_can_be_fewer_for_a_session(kernel: bool) -> None:
    async def story() -> None:
        raw = await attached(kernel)
        await raw.ask(1, m.Twalk(0, 1, ("text",)))
        raw.conversation.limit(3, TAGS_MAX, None)
        raw.say(*((n, m.Twalk(0, n, ("text",))) for n in range(2, 9)))
        refused = throttled(raw.answers)
        assert ["quota exceeded: fids have=3 max=3"] * 6 == refused
        assert 3 == len(raw.conversation.session.fids)

    asyncio.run(story())


class Noted:
    """A witness that keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, E, Caller | None]] = []

    def refused(self, op: str, given: str, canonical: str, error: FsError, caller: Caller | None) -> str:
        self.told.append((op, error.kind, caller))
        return "01HF7YAT00X1XE8GYZF2ANH1KZ"

    def missed(self, op: str, given: str, canonical: str, caller: Caller, hidden: bool) -> None:
        raise AssertionError("nothing is missing")


def test_what_limits_refuse_is_recorded_and_its_id_told() -> None:
    class Gate(OpenGate):
        def attach(self, peer: Peer, uname: str, aname: str, n_uname: int, afid: Chan | None = None) -> Chan:
            return Chan(self.root, EVE, EVERYTHING)

    async def story() -> None:
        raw = Raw(Gate(as_node({"text": "steady"})))
        raw.conversation.witness = noted = Noted()
        await raw.version(Dialect.U)
        await raw.ask(0, m.Tattach(0, NOFID, "eve", ""))
        raw.conversation.limit(1, TAGS_MAX, meter(Clock(), burst=1, calls=1))
        raw.say((1, m.Twalk(0, 1, ())), (2, m.Tstat(0)))
        assert [("walk", E.QUOTA, EVE), ("stat", E.THROTTLED, EVE)] == noted.told
        assert all(text.endswith(" trace=01HF7YAT00X1XE8GYZF2ANH1KZ") for text in throttled(raw.answers))

    asyncio.run(story())


# turns


def test_one_segment_of_many_calls_lets_others_have_their_turn() -> None:
    async def story() -> None:
        raw = await attached(False)
        flows: list[bool] = []
        raw.conversation.flow = flows.append
        count = 4 * TURN_MAX
        seen: list[int] = []
        done = asyncio.Event()

        def look() -> None:
            seen.append(len(raw.answers) - 2)
            if seen[-1] < count:
                asyncio.get_running_loop().call_soon(look)
            else:
                done.set()

        raw.say(*((n, m.Tstat(0)) for n in range(count)))
        look()
        await done.wait()
        assert [TURN_MAX * k for k in (1, 2, 3, 4)] == sorted(set(seen))
        assert flows == [False, True]

    asyncio.run(story())


def test_what_comes_in_the_midst_of_a_turn_keeps_its_order() -> None:
    async def story() -> None:
        raw = await attached(False)
        raw.say(*((n, m.Tstat(0)) for n in range(2 * TURN_MAX)))
        raw.say(*((n, m.Tstat(0)) for n in range(2 * TURN_MAX, 3 * TURN_MAX)))
        await raw.heard(2 + 3 * TURN_MAX)
        assert list(range(3 * TURN_MAX)) == [tag for tag, _ in raw.answers[2:]]

    asyncio.run(story())


def test_a_connection_lost_in_the_midst_of_a_turn_is_over() -> None:
    async def story() -> None:
        raw = await attached(False)
        raw.say(*((n, m.Tstat(0)) for n in range(3 * TURN_MAX)))
        raw.conversation.lost()
        await calm()
        assert TURN_MAX == len(raw.answers) - 2
        assert {} == raw.conversation.session.fids

    asyncio.run(story())
