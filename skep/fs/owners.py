"""Names of the host's users and groups. A look-up may ask the network: answers are kept."""

from __future__ import annotations

import functools
import grp
import pwd
from typing import Final

from skep.fs.errors import E, FsError

NAMES_MAX: Final = 4096  # remembered, of users and of groups each


@functools.lru_cache(NAMES_MAX)
def user_name(uid: int) -> str:
    """A user's name; the number, where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@functools.lru_cache(NAMES_MAX)
def group_name(gid: int) -> str:
    """A group's name; the number, where it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def gid_of(group: str) -> int:
    """The number of a group, given by name or number. Raises FsError(E.INVALID) when there is none."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isascii() and group.isdigit():
            return int(group)
        raise FsError(E.INVALID, f"group {group!r} is unknown") from None
