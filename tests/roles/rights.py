"""The rights as the docs tell them, in a few lines that share no code with the server.

What it is written from: the manifest's rules (roles/view.py, its first lines), bind(1), what a token gives
(namespaces/tokens/grant.py, its first lines), and that every operation asks for its right at the place in
the tree.
"""

from __future__ import annotations

from typing import Final, NamedTuple

Path_ = tuple[str, ...]
Line = tuple[str, ...]  # allow rights path | deny rights path | bind flags new old | unmount old
FULL: Final = frozenset({"read", "write", "create", "remove"})
MISSING, DENIED, OTHER = "missing", "denied", "other"


def split(path: str) -> Path_:
    return tuple(filter(None, path.split("/")))


class Refused(Exception):
    """``args[0]``: MISSING, DENIED or OTHER."""


def covers(pattern: Path_, place: Path_) -> bool:
    """Whether a rule's path is the place, or its ** one above."""
    if pattern[-1:] == ("**",):
        return any(covers(pattern[:-1], place[:n]) for n in range(len(place) + 1))
    return len(pattern) == len(place) and all(p in ("*", n) for p, n in zip(pattern, place, strict=True))


def leads(pattern: Path_, place: Path_) -> bool:
    """Whether a rule's path is, or may be, below the place."""
    deep = pattern[-1:] == ("**",)
    return (deep and covers(pattern, place)) or (
        len(pattern) - deep > len(place) - deep and covers(pattern[: len(place)], place)
    )


class Block(NamedTuple):
    """What one block of a token says. None: nothing of that."""

    ops: frozenset[str] | None = None
    places: frozenset[Path_] | None = None


class Model:
    """The tree (None: a directory; else what the file holds), the rules, what is bound where, and the blocks
    of the token that narrows all this (none: no token does)."""

    def __init__(
        self, files: dict[Path_, str | None], lines: list[Line], blocks: tuple[Block, ...] = ()
    ) -> None:
        self.files = files
        self.blocks: tuple[Block, ...] = ()
        self.rules = [(line[0], frozenset(line[1].split(",")), split(line[2])) for line in lines
                      if line[0] in ("allow", "deny")]  # fmt: skip
        self.unions: dict[Path_, list[tuple[Path_, bool]]] = {}
        for line in lines:
            if line[0] == "bind":
                self.bind(line[1], split(line[2]), split(line[3]))
            elif line[0] == "unmount" and not self.unions.pop(self.resolve(split(line[1]), False)[0], None):
                raise Refused(OTHER)
        self.blocks = blocks  # a manifest's lines are done before: what they bind is the manifest's own
        self.parts(())

    def bind(self, flags: str, new: Path_, old: Path_) -> None:
        parts = [(place, False) for place in self.resolve(new)]
        there, *_ = self.resolve(old, False)
        if (self.files[there] is None) is not (self.files[parts[0][0]] is None):
            raise Refused(OTHER)
        if (flags not in ("", "c") and self.files[there] is not None) or ("c" in flags and len(parts) > 1):
            raise Refused(OTHER)
        parts[0] = (parts[0][0], "c" in flags)
        union = self.unions.get(there, [(there, False)])
        self.unions[there] = union + parts if "a" in flags else parts + union if "b" in flags else parts

    def rights(self, place: Path_) -> frozenset[str]:
        """What may be done there. "seen": it exists for the caller."""
        allowed, denied, below, ahead = set[str](), set[str](), set[str](), set[str]()
        for verb, rights, pattern in self.rules:
            rights = FULL if "all" in rights else rights
            if covers(pattern, place):
                (allowed if verb == "allow" else denied).update(rights)
                below.update(rights if verb == "deny" and pattern[-1:] == ("**",) else ())
            if verb == "allow" and leads(pattern, place):
                ahead.update(rights)
        found = frozenset(allowed - denied)
        if found or ahead - below:
            found |= {"seen", "list"} if ahead - below else {"seen"}
        return self.under_token(place, found)

    def under_token(self, place: Path_, found: frozenset[str]) -> frozenset[str]:
        """What is left of what the manifest gives: only what every block says."""
        if not self.blocks:
            return found
        ops = FULL.intersection(*(block.ops for block in self.blocks if block.ops is not None))
        kept = {"seen", "list"} if found & {"read", "list"} else {"seen"}
        if not ops or not found:
            return frozenset()
        if self.granted(place):
            return frozenset(found & ops | kept)
        named = [here for block in self.blocks for here in block.places or ()]
        ahead = any(here[: len(place)] == place and self.granted(here) for here in named)
        return frozenset(kept) if ahead else frozenset()

    def granted(self, place: Path_) -> bool:
        """Whether each block names the place or one above it, name by name."""
        above = [place[:n] for n in range(len(place) + 1)]
        return all(block.places is None or set(above) & set(block.places) for block in self.blocks)

    def union(self, place: Path_) -> list[tuple[Path_, bool]]:
        """What is at a place, as far as it exists for the session."""
        if place not in self.unions:
            return [(place, False)]
        found = [part for part in self.unions[place] if not part[0] or "seen" in self.rights(part[0])]
        if not found:
            raise Refused(MISSING)
        return found

    def parts(self, place: Path_) -> list[Path_]:
        return [part for part, _ in self.union(place)]

    def entry(self, places: list[Path_], name: str) -> Path_:
        """The place of an entry of a union (or of one directory), before what is bound on it."""
        for place in places:
            if (*place, name) in self.files and "seen" in self.rights((*place, name)):
                return (*place, name)
        raise Refused(MISSING)

    def resolve(self, path: Path_, last: bool = True) -> list[Path_]:
        """The places that a path leads to, several when it is a union. ``last``: into what is bound there."""
        way: list[Path_] = [()]
        for name in path:
            if self.files[self.parts(way[-1])[0]] is not None:
                raise Refused(OTHER)
            if name == "..":
                way = way[:-1] or way
            else:
                way.append(self.entry(self.parts(way[-1]), name))
        return self.parts(way[-1]) if last else [way[-1]]

    def need(self, right: str, place: Path_) -> None:
        if right not in self.rights(place):
            raise Refused(DENIED)

    def listing(self, path: Path_) -> set[str]:
        places = self.resolve(path)
        if self.files[places[0]] is not None:
            self.need("read", places[0])
            raise Refused(OTHER)
        readable = [place for place in places if self.rights(place) & {"read", "list"}]
        if not readable:
            raise Refused(DENIED)
        return {f[-1] for f in self.files for place in readable
                if f and f[:-1] == place and "seen" in self.rights(f) and self.leads_on(f)}  # fmt: skip

    def leads_on(self, place: Path_) -> bool:
        """Whether there is anything at the place: of what is bound there, some exists."""
        try:
            return bool(self.parts(place))
        except Refused:
            return False

    def making(self, path: Path_, name: str) -> Path_:
        """Where a new entry goes."""
        first, *_ = places = self.resolve(path)
        place = first
        if self.files[first] is not None:
            raise Refused(OTHER)
        if self.resolve(path, False)[0] in self.unions:
            takes = [part for part, create in self.union(self.resolve(path, False)[0]) if create]
            if not takes:
                raise Refused(DENIED)
            place = takes[0]
            for part in places:
                if (*part, name) in self.files and "seen" in self.rights((*part, name)):
                    if part != place:
                        raise Refused(OTHER)
                    break
        self.need("create", place)
        self.need("seen", (*place, name))
        return (*place, name)
