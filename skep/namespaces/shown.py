"""What a witness serves, whoever it is: a process of its own, or a hive that witnesses others.

    key                        R its key, as a hive takes it: add name=w1 key=… > /log/trace/witness/ctl
    add-checkpoint             transaction: W the body of tlog-witness's request, R a cosignature; or where it
                               continues another size than the last, that. An error says what else is wrong
    origins/<hash>/checkpoint  R the last one that it cosigned of a log; <hash>: SHA-256 of the origin, in hex
    splits/<id>                R two checkpoints that cannot both be true, JSON

Source: c2sp.org/tlog-witness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from skep.fs.errors import E, FsError, from_oserror
from skep.fs.node import Caller
from skep.fs.shapes import Text, Transaction
from skep.fs.tree import Listing
from skep.namespaces.seen import ORIGINS, SPLITS, Frozen, Witness, named
from skep.trace.witness import Answer, Contradiction, Declined

_ERRORS: Final = {
    Answer.MALFORMED: E.USAGE,
    Answer.UNSIGNED: E.UNSIGNED,
    Answer.UNKNOWN: E.DENIED,
    Answer.UNPROVEN: E.TAMPER,
}


def files(
    found: Callable[[Caller], Witness], add: Callable[[Caller, bytes], str | Awaitable[str]]
) -> dict[str, Any]:
    """The files. ``found`` gives the witness to who may look at it, ``add`` is ``added``, asked as may be."""

    def notes(caller: Caller) -> dict[str, str]:
        return {named(seen.origin): seen.note for seen in found(caller).seen.copy().values() if seen.note}

    def origin(name: str, caller: Caller) -> dict[str, str] | None:
        known = notes(caller)
        return {"checkpoint": known[name]} if name in known else None

    def split(name: str, caller: Caller) -> bytes | None:
        known = found(caller).splits.get(name)
        return None if known is None else msgspec.json.encode(known) + b"\n"

    return {
        "key": Text(lambda caller: f"{found(caller).vkey}\n"),
        "add-checkpoint": Transaction(add),
        ORIGINS: Listing(lambda caller: list(notes(caller)), origin),
        SPLITS: Listing(lambda caller: list(found(caller).splits), split),
    }


def added(found: Witness, said: bytes) -> str:
    """The cosignature of what is shown, or the size that it should continue. Raises FsError."""
    try:
        return found.add_checkpoint(said)
    except Declined as error:
        if error.answer is Answer.CONFLICT:
            return f"{error.size}\n"
        rule = "rule=origins " if error.answer is Answer.UNKNOWN else ""
        raise FsError(_ERRORS[error.answer], f"{rule}{error}") from error
    except (Contradiction, Frozen) as error:
        raise FsError(E.CONFLICT, f"split={error.split.id} {error.split.why}") from error
    except OSError as error:
        raise from_oserror(error) from error
