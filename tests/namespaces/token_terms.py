"""Terms of tokens for the tests, drawn so that they overlap, and who is asked about them."""

from __future__ import annotations

from biscuit_auth import Biscuit, BlockBuilder, KeyPair
from hypothesis import strategies as st

from skep.fs.chan import EVERYTHING, Right, View
from skep.namespaces.tokens.biscuit import OPS, Place, Terms, key_id, mint, public_key
from skep.namespaces.tokens.desk import Keys
from skep.trace.clock import HOUR, SECOND

TENANT = "default/default/default"
NOW_NS = 1_700_000_000 * SECOND  # a ManualClock's
UNTIL_NS = NOW_NS + HOUR
PAIR = KeyPair()
RAW = bytes(PAIR.public_key.to_bytes())
ID = key_id(RAW)
KEYS = {ID: public_key(RAW)}


def keys(pair: KeyPair = PAIR) -> Keys:
    return Keys(bytes(pair.private_key.to_bytes()), (bytes(pair.public_key.to_bytes()),))


def terms(
    ops: str = "read", places: str = "/jobs", until_ns: int = UNTIL_NS, tenant: str = TENANT, **more: object
) -> Terms:
    """``ops`` and ``places`` with blanks between."""
    found = frozenset(tuple(filter(None, place.split("/"))) for place in places.split())
    return Terms(frozenset(ops.split()), found, until_ns, tenant=tenant)._replace(**more)


def minted(pair: KeyPair = PAIR, **more: object) -> Biscuit:
    return mint(pair.private_key, ID, terms()._replace(**more))


def with_block(source: str, token: Biscuit | None = None) -> Biscuit:
    """A token with one more block, of whatever its holder likes."""
    return (token or minted()).append(BlockBuilder(source))


def rights_at(view: View, place: Place) -> Right | None:
    """What may be done at a place; None: it does not exist."""
    here: View | None = view
    for name in place:
        here = None if here is None else here.child(name)
    return None if here is None else here.rights


# Few names, so that places are often inside each other, and some that begin alike.
NAMES = st.sampled_from(["a", "b", "ab", "a b", "ü", "%2e"])
PLACES: st.SearchStrategy[Place] = st.lists(NAMES, max_size=4).map(tuple)
PLACE_SETS = st.frozensets(PLACES, min_size=1, max_size=4)
OP_SETS = st.frozensets(st.sampled_from(OPS), min_size=1)
TIMES = st.integers(1, 7200).map(lambda s: NOW_NS + s * SECOND)
SUBJECTS = st.sampled_from(["unix:ann", "unix:bob"])
CHANNELS = st.sampled_from(["ab" * 32, "cd" * 32])
USES = st.integers(1, 9)
FIRST = st.builds(
    Terms,
    OP_SETS,
    PLACE_SETS,
    TIMES,
    st.none() | SUBJECTS,
    st.none() | CHANNELS,
    st.none() | USES,
    st.just(TENANT),
)
NEXT = st.builds(
    Terms,
    st.none() | OP_SETS,
    st.none() | PLACE_SETS,
    st.none() | TIMES,
    st.none() | SUBJECTS,
    st.none() | CHANNELS,
    st.none() | USES,
    st.none(),
).filter(lambda more: more != Terms())


class Patchy:
    """A session's view with holes: what begins with b cannot be written, what is called ü is not there."""

    def __init__(self, rights: Right = EVERYTHING.rights) -> None:
        self.rights = rights

    def child(self, name: str) -> View | None:
        if name == "ü":
            return None
        return Patchy(self.rights & ~Right.WRITE if name.startswith("b") else self.rights)
