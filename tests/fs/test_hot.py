"""The session's inner loop and its twin, the session alone, give the same answers to the same bytes."""

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skep.fs import messages as m
from skep.fs.conversation import Conversation, Peer
from skep.fs.export import Export
from skep.fs.messages import Dialect, Message
from skep.fs.server import OpenGate
from skep.fs.shapes import Memory, Text
from skep.fs.tree import Dir, Listing
from skep.fs.wire import WireError, pack
from skep.native.hot import AVAILABLE

pytestmark = pytest.mark.slow
FIDS = st.integers(0, 4)
TAGS = st.integers(0, 5)
NAMES = st.sampled_from(["f", "dir", "g", "mem", "live", "list", "7", "x", "..", ".", "", "a/b", "é"])
OFFSETS = st.sampled_from([0, 1, 30, 63, 64, 65, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
COUNTS = st.sampled_from([0, 1, 10, 64, 5000, (1 << 32) - 1])
COMMON: list[st.SearchStrategy[Message]] = [
    st.builds(m.Twalk, FIDS, FIDS | st.just(m.NOFID), st.lists(NAMES, max_size=3).map(tuple)),
    st.builds(
        m.Twalk, st.just(0), FIDS, st.sampled_from([("f",), ("dir", "g"), ("mem",), ("list", "7"), ()])
    ),
    st.builds(m.Tread, FIDS, OFFSETS, COUNTS),
    st.builds(m.Twrite, FIDS, OFFSETS, st.binary(max_size=70)),
    st.builds(m.Tclunk, FIDS),
    st.builds(m.Tflush, TAGS),
    st.builds(m.Tattach, st.just(0), st.just(m.NOFID), st.just(""), st.just("")),
]
OF_DIALECT: dict[Dialect, list[st.SearchStrategy[Message]]] = {
    Dialect.L: [
        st.builds(m.Tgetattr, FIDS, st.just(m.GETATTR_BASIC)),
        st.builds(m.Tlopen, FIDS, st.sampled_from([0, 1, 2, 0o1000, 0o2001])),
        st.builds(m.Treaddir, FIDS, st.integers(0, 4), COUNTS),
    ],
    Dialect.U: [st.builds(m.Tstat, FIDS), st.builds(m.Topen, FIDS, st.sampled_from([0, 1, 2, 0x10, 0x40]))],
}
OF_DIALECT[Dialect.PLAIN] = OF_DIALECT[Dialect.U]


@st.composite
def segments(draw: st.DrawFn, dialect: Dialect) -> list[bytes]:
    """Bytes in pieces: requests, some of them damaged, some pieces cut anywhere."""
    frames = []
    for _ in range(draw(st.integers(1, 25))):
        frame = bytearray(pack(draw(TAGS), draw(st.one_of(COMMON + OF_DIALECT[dialect])), dialect))
        if draw(st.integers(0, 19)) == 0:  # a byte too many, or one too few, in a frame of the size it says
            frame = frame + b"\0" if draw(st.booleans()) else frame[:-1]
            frame[0:4] = len(frame).to_bytes(4, "little")
        frames.append(bytes(frame))
    data = b"".join(frames)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def answers(root: object, dialect: Dialect, pieces: list[bytes], kernel: bool, msize: int) -> bytes:
    out = bytearray()
    gate = OpenGate(root)  # type: ignore[arg-type]
    conversation = Conversation(gate, Peer("local"), lambda b: out.extend(b"".join(b)), kernel=kernel)
    conversation.receive(pack(m.NOTAG, m.Tversion(msize, dialect.value), Dialect.PLAIN))
    conversation.receive(pack(0, m.Tattach(0, m.NOFID, "", ""), dialect))
    try:
        for piece in pieces:
            conversation.receive(piece)
    except WireError:  # a frame longer than the msize: the server closes
        out += b"closed"
    conversation.lost()
    return bytes(out)


def tree() -> Dir:
    return Dir(
        {
            "f": "x" * 64,
            "dir": {"g": "hello\n", "deeper": {"f": b"\0" * 5000}},
            "live": Text(lambda: "now\n"),
            "list": Listing(
                lambda caller: ["7"], lambda name, caller: {"f": "in\n"} if name == "7" else None
            ),
        }
    )


@pytest.mark.parametrize("dialect", list(Dialect))
@settings(max_examples=300, deadline=None)
@given(data=st.data(), msize=st.sampled_from([64, 256, 8192, 1 << 20]))
def test_the_loop_answers_a_synthetic_tree_as_the_session_does(
    dialect: Dialect, data: st.DataObject, msize: int
) -> None:
    assert AVAILABLE
    pieces, root = data.draw(segments(dialect)), tree()
    assert answers(root, dialect, pieces, False, msize) == answers(root, dialect, pieces, True, msize)


MEMORY_OPS = st.one_of(
    st.builds(m.Twrite, st.integers(8, 9), OFFSETS, st.binary(max_size=70)),
    st.builds(m.Tread, st.integers(8, 9), OFFSETS, COUNTS),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(MEMORY_OPS, max_size=30))
def test_the_loop_writes_to_memory_as_the_session_does(asked: list[Message]) -> None:
    """Fid 9 is open for both, fid 8 appends."""
    flags = {9: 2, 8: 0o2002}
    opening = [o for fid in flags for o in (m.Twalk(0, fid, ("mem",)), m.Tlopen(fid, flags[fid]))]
    data = b"".join(pack(9, message, Dialect.L) for message in [*opening, *asked])
    results = []
    for kernel in (False, True):
        memory = Memory(b"y" * 64, size_max=1000)
        root = Dir({"mem": memory})
        memory.number, root.number = 77, 78
        results.append((answers(root, Dialect.L, [data], kernel, 8192), memory.data.read(0, 2000)))
    # Rlopen tells the version, the same for both; nothing else here depends on time.
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files read once, so that no later read moves an access time (relatime)."""
    top = tmp_path_factory.mktemp("hot")
    (top / "f").write_bytes(b"x" * 64)
    (top / "dir").mkdir()
    (top / "dir" / "g").write_bytes(b"hello\n")
    (top / "link").symlink_to("f")
    for path in (top / "f", top / "dir" / "g"):
        os.utime(path, ns=(2_000_000_000_000_000_000, 1_000_000_000_000_000_000))
    return top


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_loop_answers_a_directory_of_the_host_as_the_session_does(
    folder: Path, data: st.DataObject
) -> None:
    pieces = data.draw(segments(Dialect.L))
    root = Export(folder, read_only=True).root
    listdir = os.listdir(folder)  # so that reading directories moves no access time either
    assert listdir
    assert answers(root, Dialect.L, pieces, False, 8192) == answers(root, Dialect.L, pieces, True, 8192)


def test_a_call_that_waits_keeps_its_tag_and_fid_from_the_loop() -> None:
    async def scenario() -> bytes:
        gate_open = asyncio.Event()

        async def late() -> str:
            await gate_open.wait()
            return "late\n"

        out = bytearray()
        root = Dir({"late": late, "f": "x" * 64})
        conversation = Conversation(OpenGate(root), Peer("local"), lambda b: out.extend(b"".join(b)))
        send = [
            m.Tattach(0, m.NOFID, "", ""),
            m.Twalk(0, 1, ("f",)),
            m.Tlopen(1, 0),
            m.Twalk(0, 2, ("late",)),
            m.Tlopen(2, 0),  # waits
            m.Tread(2, 0, 10),  # behind it
            m.Tread(1, 0, 4),  # not behind it
        ]
        conversation.receive(pack(m.NOTAG, m.Tversion(8192, "9P2000.L"), Dialect.PLAIN))
        for tag, message in enumerate(send):
            conversation.receive(pack(tag, message, Dialect.L))
        before = len(out)
        conversation.receive(pack(6, m.Tread(1, 0, 5), Dialect.L))  # the tag is free again
        conversation.receive(pack(5, m.Tread(1, 0, 5), Dialect.L))  # this one is not
        assert bytes(out[before + 16 :]) == pack(5, m.Rlerror(71), Dialect.L)
        gate_open.set()
        while conversation.session.outstanding:
            await asyncio.sleep(0)
        return bytes(out)

    out = asyncio.run(scenario())
    assert pack(5, m.Rread(b"late\n"), Dialect.L) == out[-16:]


def test_a_steady_file_that_moved_is_told_anew() -> None:
    text = Text("x")
    root = Dir({"f": text})
    out: list[bytes] = []
    conversation = Conversation(OpenGate(root), Peer("local"), lambda b: out.append(b"".join(b)))
    conversation.receive(pack(m.NOTAG, m.Tversion(8192, "9P2000.L"), Dialect.PLAIN))
    conversation.receive(pack(0, m.Tattach(0, m.NOFID, "", ""), Dialect.L))
    conversation.receive(pack(0, m.Twalk(0, 1, ("f",)), Dialect.L))
    for _ in range(2):
        conversation.receive(pack(0, m.Tgetattr(1, 0x7FF), Dialect.L))
    assert out[-1] == out[-2]
    text.moved()
    conversation.receive(pack(0, m.Tgetattr(1, 0x7FF), Dialect.L))
    assert out[-1] != out[-2]


def test_the_fid_of_an_attribute_is_not_free_for_the_loop(folder: Path) -> None:
    out: list[bytes] = []
    root = Export(folder).root
    conversation = Conversation(OpenGate(root), Peer("local"), lambda b: out.append(b"".join(b)))
    conversation.receive(pack(m.NOTAG, m.Tversion(8192, "9P2000.L"), Dialect.PLAIN))
    conversation.receive(pack(0, m.Tattach(0, m.NOFID, "", ""), Dialect.L))
    conversation.receive(pack(0, m.Txattrwalk(0, 1, ""), Dialect.L))
    conversation.receive(pack(0, m.Twalk(0, 1, ("f",)), Dialect.L))
    assert pack(0, m.Rlerror(9), Dialect.L) == out[-1]
