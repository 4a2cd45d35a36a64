from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skep.trace.entry import leaf_hash
from skep.trace.merkle import EMPTY_ROOT, Frontier

# The inputs and roots that Certificate Transparency implementations share (merkletree tests).
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def tree_hash(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, as it is written there, over leaf hashes."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01" + tree_hash(leaves[:k]) + tree_hash(leaves[k:])).digest()


def grown(leaves: list[bytes]) -> Frontier:
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier


def test_published_roots() -> None:
    leaves = [leaf_hash(bytes.fromhex(data)) for data in INPUTS]
    assert [grown(leaves[:n]).root().hex() for n in range(1, 9)] == ROOTS


def test_the_empty_tree() -> None:
    assert Frontier().root() == EMPTY_ROOT == tree_hash([])


@given(st.lists(st.binary(min_size=32, max_size=32), max_size=130))
def test_a_grown_tree_has_the_root_of_its_definition(leaves: list[bytes]) -> None:
    frontier = grown(leaves)
    assert frontier.size == len(leaves)
    assert frontier.root() == tree_hash(leaves)


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70), st.data())
def test_a_frontier_goes_on_from_its_bytes(leaves: list[bytes], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(leaves)))
    frontier = Frontier.unpack(grown(leaves[:cut]).pack())
    copy = frontier.copy()
    for leaf in leaves[cut:]:
        frontier.append(leaf)
    assert frontier.root() == tree_hash(leaves)
    assert copy.root() == tree_hash(leaves[:cut])


def test_bytes_that_are_no_frontier_are_refused() -> None:
    with pytest.raises(ValueError, match="frontier of 3 leaves"):
        Frontier.unpack((3).to_bytes(8, "big") + bytes(32))
