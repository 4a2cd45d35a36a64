"""What can be written about annexes: the verbs of each file, as tables. A run is asked.py's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from skep.fs import ctl
from skep.fs.ctl import Arg, Verb

PRIORITY: Final = 5  # when none is given; 9 comes first.

LEASE: Final = Arg("lease", required=True, kind="name", help="its id")
FENCE: Final = Arg("fence", required=True, kind="number", help="the lease's")
TTL: Final = Arg("ttl", required=True, kind="duration", help="it lasts so long unless renewed; 1s to 24h")
SOURCE: Final = Arg("source", required=True, kind="sha256", help="of CUDA C source, as sha256sum tells it")

TABLES: Final[Mapping[str, ctl.Verbs]] = {
    "sources/ctl": ctl.verbs(
        Verb(
            "allow",
            (SOURCE, Arg("reason", help="why")),
            "allow source=0f… reason='read by two of us'",
            "it may run on devices",
        ),
        Verb("forbid", (SOURCE,), "forbid source=0f…", "it may run no more"),
    ),
    "*/ctl": ctl.verbs(
        Verb(
            "lease",
            (
                Arg("memory", required=True, kind="size", help="of the device: 4GiB, or bytes"),
                Arg("slots", kind="number", help="of the device, else 1"),
                TTL,
                Arg("priority", kind="|".join(map(str, range(10))), help=f"9 first, else {PRIORITY}"),
                Arg("exclusive", kind="true|false", help="true: nobody else on the device"),
                Arg("device", kind="name", help="cuda:0, else the one with the least room that is enough"),
                Arg("wait", kind="duration", help="stand in the queue so long, at most 1h; else be refused"),
            ),
            "lease memory=4GiB ttl=60s wait=10s",
            "the reply is its id, fence= and device=; with wait= it is the only line of its write",
        ),
        Verb(
            "renew",
            (LEASE, FENCE, TTL._replace(required=False, help="from now on; else as asked for")),
            "renew lease=01JD… fence=7",
            "its end moves on",
        ),
        Verb("release", (LEASE, FENCE), "release lease=01JD… fence=7", "the next in the queue gets it"),
        Verb(
            "disable",
            (Arg("reason", help="told to those who are refused"),),
            "disable reason=drill",
            "nothing more is given; what runs goes on, who waits is sent away",
        ),
        Verb("enable", (), "enable", "it is given again"),
    ),
    # The hive's own, written to no file.
    "*": ctl.verbs(
        Verb(
            "offer",
            (
                Arg("devices", required=True),
                Arg("driver"),
                Arg("every", required=True, kind="duration"),
                Arg("disabled"),
            ),
        ),
        Verb("expire"),  # end what is over
        Verb("withdraw", (LEASE,)),  # who asked for it is gone
        Verb("restart"),  # everybody who waits is gone
    ),
}
