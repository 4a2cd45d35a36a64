"""How a command ends: its exit status, and what it says on stderr when something went wrong.

0 ok    1 failed    2 usage    3 cannot reach the hive    4 refused
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
REFUSED: Final = 4


class Failed(Exception):
    """The command could not do its work. The text says what was wrong and what was expected."""

    status = FAILED


class Unreachable(Failed):
    """Nobody answers where the hive was said to be, or it went away."""

    status = UNREACHABLE


class Refused(Failed):
    """The hive says no."""

    status = REFUSED


@contextlib.contextmanager
def told(path: str) -> Iterator[None]:
    """What goes wrong inside with a file of the hive ends the command with a line that names ``path``."""
    # Imported here: a command that reaches no hive need not load the protocol.
    from skep.fs.connection import ConnectionLost
    from skep.fs.errors import E, FsError

    try:
        yield
    except ConnectionLost as error:
        # A server looks at our certificate last: it hangs up on who thought to be in.
        refused = "the other end refused" in error.detail
        raise (Refused if refused else Unreachable)(f"{path}: {error.detail}") from error
    except FsError as error:
        refusals = (E.DENIED, E.READONLY, E.UNAUTHENTICATED, E.APPROVAL, E.REVOKED, E.EXPIRED, E.UNSIGNED)
        raise (Refused if error.kind in refusals else Failed)(f"{path}: {error.text}") from error
