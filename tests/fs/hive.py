"""The server that the mount's tests are played on, as a process of its own: hive.py SOCKET DIRECTORY.

Files of each kind, and at /host the directory. ``/waiting`` tells how many reads of ``/events`` wait,
``/given-up`` how many have been given up.
"""

from __future__ import annotations

import asyncio
import errno
import sys

from skep.fs import ctl
from skep.fs.export import Export
from skep.fs.node import Caller, Handle, How
from skep.fs.server import listen
from skep.fs.shapes import Append, Ctl, File, Memory, Stream, Text, Transaction
from skep.fs.tree import Dir

VERBS = ctl.verbs(
    ctl.Verb("say", (ctl.Arg("what", required=True),)),
    ctl.Verb("fail", (ctl.Arg("errno", required=True),)),
    ctl.Verb("drop"),
)


class Events:
    """Lines said, to everybody who listens."""

    def __init__(self) -> None:
        self.listeners: set[Listener] = set()
        self.waiting = 0
        self.given_up = 0

    def open(self, caller: Caller) -> Listener:
        listener = Listener(self)
        self.listeners.add(listener)
        return listener


class Listener:
    def __init__(self, events: Events) -> None:
        self.events = events
        self.lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def next(self) -> bytes | None:
        self.events.waiting += 1
        try:
            return await self.lines.get()
        except asyncio.CancelledError:
            self.events.given_up += 1
            raise
        finally:
            self.events.waiting -= 1

    def close(self, undelivered: bytes | None) -> None:
        self.events.listeners.discard(self)


class Refusing(File):
    """A file that opens, and takes nothing."""

    def __init__(self) -> None:
        super().__init__(0o666)

    def opened(self, how: How, caller: Caller) -> Handle:
        return _Refusing()


class _Refusing(Handle):
    def read(self, offset: int, count: int) -> bytes:
        raise OSError(errno.ENODATA, "nothing here")

    def write(self, offset: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "no room")


def tree(directory: str) -> Dir:
    events = Events()
    journal = bytearray(b"begin\n")

    def run(caller: Caller, commands: list[ctl.Command]) -> list[str]:
        for command in commands:
            if command.verb == "fail":
                raise OSError(int(command.args["errno"]), "as told")
            for listener in events.listeners:
                listener.lines.put_nowait(
                    None if command.verb == "drop" else command.args["what"].encode() + b"\n"
                )
        return []

    def append(caller: Caller, data: bytes) -> None:
        journal.extend(data)

    return Dir(
        {
            "hello": Text("hello, world\n"),
            "long": Text("".join(f"line {i}\n" for i in range(100_000))),
            "ctl": Ctl(VERBS, run),
            "events": Stream(events.open),
            "waiting": Text(lambda: f"{events.waiting}\n"),
            "given-up": Text(lambda: f"{events.given_up}\n"),
            "ask": Transaction(lambda caller, question: question[::-1]),
            "journal": Append(
                append, lambda offset, count: bytes(journal[offset : offset + count]), lambda: len(journal)
            ),
            "memory": Memory(b"0123456789"),
            "refusing": Refusing(),
            "host": Export(directory).root,
        }
    )


async def main(address: str, directory: str) -> None:
    async with listen(tree(directory), address):
        print("serving", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
