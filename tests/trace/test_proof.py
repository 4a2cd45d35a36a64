from __future__ import annotations

import pytest
import tlog
from hypothesis import given
from hypothesis import strategies as st
from test_merkle import INPUTS, ROOTS

from skep.trace.entry import leaf_hash
from skep.trace.merkle import EMPTY_ROOT
from skep.trace.proof import Node, consistency, inclusion, is_consistent, is_included, root_of

# What Certificate Transparency implementations share: transparency-dev/merkle, proof/verify_test.go.
PATHS = [
    (0, 8, [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]),
    (5, 8, [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]),
    (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (1, 5, [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]),
]  # fmt: skip
CONTINUED = [
    (1, 1, []),
    (1, 8, [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]),
    (6, 8, [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]),
    (2, 5, [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]),
    (6, 7, [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]),
]  # fmt: skip
LEAVES = [leaf_hash(bytes.fromhex(data)) for data in INPUTS]


def over(leaves: list[bytes]) -> Node:
    def node(level: int, index: int) -> bytes:
        found = leaves[index << level : (index + 1) << level]
        assert len(found) == 1 << level
        return tlog.mth(found)

    return node


def raw(path: list[str]) -> list[bytes]:
    return [bytes.fromhex(found) for found in path]


@pytest.mark.parametrize(("index", "size", "path"), PATHS)
def test_published_inclusion_proofs(index: int, size: int, path: list[str]) -> None:
    assert raw(path) == inclusion(index, size, over(LEAVES[:size]))
    root = bytes.fromhex(ROOTS[size - 1])
    assert is_included(index, size, LEAVES[index], raw(path), root)
    for at, width, leaf, hashes, other in [
        (index + 1, size, LEAVES[index], raw(path), root),
        (index ^ 2, size, LEAVES[index], raw(path), root),
        (index, size * 2, LEAVES[index], raw(path), root),
        (index, size // 2, LEAVES[index], raw(path), root),
        (index, size, LEAVES[index - 1], raw(path), root),
        (index, size, LEAVES[index], raw(path), EMPTY_ROOT),
        (index, size, LEAVES[index], [*raw(path), root], root),
        (index, size, LEAVES[index], [root, *raw(path)], root),
        (index, size, LEAVES[index], raw(path)[:-1], root),
        (-1, size, LEAVES[index], raw(path), root),
    ]:
        assert not is_included(at, width, leaf, hashes, other)


@pytest.mark.parametrize(("old", "new", "path"), CONTINUED)
def test_published_consistency_proofs(old: int, new: int, path: list[str]) -> None:
    assert raw(path) == consistency(old, new, over(LEAVES[:new]))
    before, after = (bytes.fromhex(ROOTS[size - 1]) for size in (old, new))
    assert is_consistent(old, new, before, after, raw(path))
    assert not is_consistent(old, new, before, after, [*raw(path), after])
    assert not is_consistent(old, new, before, after, [before, *raw(path)])
    assert not is_consistent(old, new, EMPTY_ROOT, after, raw(path))
    assert not is_consistent(new, old, after, before, raw(path)) or old == new
    if path:
        assert not is_consistent(old, new, before, after, [])
        assert not is_consistent(old, new, after, before, raw(path))
        assert not is_consistent(old, new, before, after, raw(path)[:-1])
        assert not is_consistent(old + 1, new, before, after, raw(path))
        assert not is_consistent(old, new * 2, before, after, raw(path))


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=70), st.data())
def test_every_proof_is_that_of_the_definition_and_is_believed(
    leaves: list[bytes], data: st.DataObject
) -> None:
    size, node = len(leaves), over(leaves)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    root = tlog.mth(leaves)
    assert root == root_of(size, node)
    path = inclusion(index, size, node)
    assert tlog.path(index, leaves) == path
    tlog.check_inclusion(index, size, leaves[index], root, path)
    assert is_included(index, size, leaves[index], path, root)
    hashes = consistency(old, size, node)
    assert tlog.proof(old, leaves) == hashes
    tlog.check_consistency(old, size, tlog.mth(leaves[:old]), root, hashes)
    assert is_consistent(old, size, tlog.mth(leaves[:old]), root, hashes)


def test_the_empty_tree_is_continued_by_every_other() -> None:
    assert [] == consistency(0, 8, over(LEAVES))
    assert EMPTY_ROOT == root_of(0, over(LEAVES))
    assert is_consistent(0, 8, EMPTY_ROOT, bytes.fromhex(ROOTS[7]), [])
    assert not is_consistent(0, 8, LEAVES[0], bytes.fromhex(ROOTS[7]), [])
    assert not is_consistent(1, 8, LEAVES[1], bytes.fromhex(ROOTS[7]), [])
