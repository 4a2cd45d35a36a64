"""Folding: from a ledger's entries to the state they mean."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from skep.trace.entry import VERSION, Entry
from skep.trace.ledger import Ledger, LedgerTampered
from skep.trace.rules import Meta, Rules

S = TypeVar("S")
E = TypeVar("E")
R = TypeVar("R")


def tail_entries(
    ledger: Ledger, decoder: msgspec.json.Decoder[Entry[E]], known: int = 0
) -> Iterator[Entry[E]]:
    """The ledger's tail after entry ``known``, decoded; raises LedgerTampered."""
    for seq, body in ledger.tail(known):
        try:
            entry = decoder.decode(body)
        except msgspec.DecodeError as error:
            raise LedgerTampered(f"entry {seq}: {error}") from error
        if entry.v != VERSION or entry.seq != seq:
            raise LedgerTampered(f"entry {seq}: says it is entry {entry.seq} of version {entry.v}")
        yield entry


def apply_entry(rules: Rules[S, E, Any], state: S, entry: Entry[E]) -> None:
    """Apply an entry's events, in order."""
    if entry.events:
        meta = Meta(entry.seq, entry.time, entry.trace)
        for event in entry.events:
            rules.apply(state, event, meta)
