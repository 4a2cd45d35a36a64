"""The token's format: what it says survives writing it, blocks only narrow, and nothing else is a token."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from biscuit_auth import AuthorizerBuilder, Biscuit, BiscuitBuilder, BlockBuilder, KeyPair
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from skep.fs.chan import EVERYTHING, Right, View
from skep.namespaces.tokens.biscuit import (
    BLOCKS_MAX,
    OPS,
    TOKEN_MAX,
    Asked,
    Place,
    Terms,
    TokenError,
    allows,
    attenuate,
    decode,
    ids_of,
    mint,
    parse_place,
    place_of,
    place_text,
    read,
    verify,
)
from skep.namespaces.tokens.grant import RIGHTS, Grant, granted
from skep.trace.clock import SECOND
from tests.namespaces.token_terms import (
    CHANNELS,
    FIRST,
    ID,
    KEYS,
    NEXT,
    NOW_NS,
    PAIR,
    PLACES,
    SUBJECTS,
    TENANT,
    Patchy,
    minted,
    rights_at,
    terms,
    with_block,
)


def grant_of(token: Biscuit) -> Grant:
    return granted(ids_of(token), read(token))


def again(token: Biscuit) -> Biscuit:
    """The token as another machine reads it."""
    return verify(decode(token.to_base64().encode()), KEYS)


# what it says


@pytest.mark.slow
@given(FIRST, st.lists(NEXT, max_size=4))
def test_what_was_written_is_read(first: Terms, more: list[Terms]) -> None:
    token = mint(PAIR.private_key, ID, first)
    for block in more:
        token = attenuate(token, block)
    assert [first, *more] == read(again(token))


@given(
    st.text(max_size=60).filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name)
)
def test_any_name_of_a_file_can_be_in_a_place(name: str) -> None:
    place = tuple(filter(None, (name.encode("utf-8", "replace").decode(), "x")))
    assert place == parse_place(place_text(place))


@pytest.mark.parametrize(
    "path",
    ["jobs", "", "/jobs/../policy", "/..", "/jobs/.", "//", "/jobs//1", "/jobs\0", "/" + "n" * 256],
)
def test_what_is_no_canonical_path_is_refused(path: str) -> None:
    with pytest.raises(TokenError):
        place_of(path)


@pytest.mark.parametrize(
    "text", ["/jobs", "/%2e%2e/", "/a%2Fb/", "/a%2fb/", "/%41/", "/a%/", "/a%zz/", "/é/"]
)
def test_a_place_has_one_spelling(text: str) -> None:
    with pytest.raises(TokenError):
        parse_place(text)


# what it allows


@pytest.mark.slow
@given(FIRST, st.lists(NEXT, max_size=3), st.sampled_from(OPS), PLACES, st.booleans())
def test_attenuation_never_widens(
    first: Terms, more: list[Terms], op: str, place: Place, patchy: bool
) -> None:
    token = mint(PAIR.private_key, ID, first)
    base: View = Patchy() if patchy else EVERYTHING
    before = base
    for block in (None, *more):
        token = token if block is None else attenuate(token, block)
        view = grant_of(token).view(base)
        narrow, wide = rights_at(view, place), rights_at(before, place)
        if wide is None:
            assert narrow is None
        if narrow is not None and wide is not None:
            # LIST is a lesser READ.
            wide |= Right.LIST if wide & Right.READ else Right(0)
            assert not narrow & ~wide
        before = view


@pytest.mark.slow
@given(
    FIRST,
    st.lists(NEXT, max_size=3),
    st.sampled_from(OPS),
    PLACES,
    st.integers(0, 7300),
    SUBJECTS,
    CHANNELS,
    st.integers(1, 10),
)
def test_views_and_biscuits_own_authoriser_agree(
    first: Terms,
    more: list[Terms],
    op: str,
    place: Place,
    after_s: int,
    principal: str,
    channel: str,
    use: int,
) -> None:
    token = mint(PAIR.private_key, ID, first)
    for block in more:
        token = attenuate(token, block)
    grant, now_ns = grant_of(token), NOW_NS + after_s * SECOND
    rights = rights_at(grant.view(EVERYTHING), place)
    ours = (
        bool((rights or Right(0)) & RIGHTS[op])
        and now_ns < grant.until_ns
        and grant.subjects <= {principal}
        and grant.channels <= {channel}
        and all(uses is None or use <= uses for uses in grant.uses)
    )
    assert ours is allows(token, Asked(TENANT, op, place, now_ns, principal, channel, use))


@pytest.mark.parametrize(
    ("place", "rights"),
    [
        ("srv", Right.READ | Right.LIST),
        ("srv/x", Right.READ | Right.LIST),
        ("srvX", None),
        ("srv.", None),
        ("sr", None),
        ("", Right.LIST),
        ("other", None),
    ],
)
def test_a_place_ends_where_its_name_ends(place: str, rights: Right | None) -> None:
    view = grant_of(minted(places=frozenset({("srv",)}))).view(EVERYTHING)
    assert rights == rights_at(view, tuple(filter(None, place.split("/"))))


def test_a_token_for_everything_changes_no_view() -> None:
    grant = grant_of(minted(ops=frozenset(OPS), places=frozenset({()})))
    assert grant.view(EVERYTHING) is EVERYTHING


def test_blocks_that_have_nothing_in_common_leave_nothing() -> None:
    token = attenuate(minted(), Terms(places=frozenset({("nodes",)})))
    view = grant_of(token).view(EVERYTHING)
    assert (Right(0), None) == (view.rights, view.child("jobs"))


def test_another_tenants_request_is_refused_by_the_library_too() -> None:
    asked = Asked(TENANT, "read", ("jobs",), NOW_NS, "unix:ann")
    assert allows(minted(), asked)
    assert not allows(minted(), asked._replace(tenant="other/project/env"))


# what is no token


def refusal(token: bytes) -> str:
    with pytest.raises(TokenError) as caught:
        read(verify(decode(token), KEYS))
    return str(caught.value)


TOKEN = bytes(minted().to_bytes())


def test_another_hives_token_is_refused() -> None:
    assert "it is not signed by this hive's key" == refusal(bytes(minted(KeyPair()).to_bytes()))


def test_a_token_for_an_unknown_key_is_refused() -> None:
    token = mint(PAIR.private_key, ID + 1, terms())
    assert "it is not signed by this hive's key" == refusal(bytes(token.to_bytes()))


def test_a_token_that_names_no_key_is_refused() -> None:
    assert "it is not signed" in refusal(bytes(BiscuitBuilder("skep(1)").build(PAIR.private_key).to_bytes()))


@given(st.integers(0, len(TOKEN) - 1), st.integers(1, 255))
def test_no_byte_can_be_changed(at: int, by: int) -> None:
    changed = bytearray(TOKEN)
    changed[at] ^= by
    refusal(bytes(changed))


@given(st.integers(0, len(TOKEN) - 1))
def test_no_byte_can_be_left_out(size: int) -> None:
    refusal(TOKEN[:size])


@given(st.binary(max_size=512))
def test_bytes_are_no_token(data: bytes) -> None:
    refusal(data)


def test_a_block_cannot_be_taken_away() -> None:
    fields = dict(_fields(bytes(attenuate(minted(), Terms(uses=1)).to_bytes())))
    assert {1, 2, 3, 4} == fields.keys()
    assert "it is not signed by this hive's key" == refusal(fields[1] + fields[2] + fields[4])


@pytest.mark.parametrize(
    ("block", "why"),
    [
        ("", "one of its blocks makes no sense"),
        ("12046e6f7065", "one of its blocks makes no sense"),
        ("180322050a0308990b", "block 1: '<?>()': unknown here"),
        (
            "32250a230a02081b120808850812030886081a130a050a030886080a040a0210010a041a020802",
            "one of its blocks makes no sense",
        ),
    ],
)
def test_a_block_that_its_holder_signed_and_that_makes_no_sense_is_refused(block: str, why: str) -> None:
    assert why == refusal(_appended(bytes(minted().to_bytes()), bytes.fromhex(block)))


def _appended(token: bytes, block: bytes) -> bytes:
    """The token with any bytes as its next block, signed as its holder can."""
    fields = dict(_fields(token))
    last = Ed25519PrivateKey.from_private_bytes(fields[4][-32:])
    following = Ed25519PrivateKey.generate()
    public = following.public_key().public_bytes_raw()
    signature = last.sign(block + bytes(4) + public)
    signed = _field(1, block) + _field(2, b"\x08\x00" + _field(2, public)) + _field(3, signature)
    return fields[1] + fields[2] + _field(3, signed) + _field(4, _field(1, following.private_bytes_raw()))


def test_a_block_can_be_appended_by_hand() -> None:
    """So what the test above appends is refused for what it says."""
    narrow = bytes(attenuate(minted(), Terms(uses=1)).to_bytes())
    signed = dict(_fields(narrow))[3]
    block = signed[signed.index(b"\x0a", 2) :]
    block = block[2 : 2 + block[1]]
    assert Terms(uses=1) == read(verify(_appended(bytes(minted().to_bytes()), block), KEYS))[1]


def _field(number: int, data: bytes) -> bytes:
    size, left = b"", len(data)
    while left > 0x7F:
        size, left = size + bytes([left & 0x7F | 0x80]), left >> 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + data


def _fields(token: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each field of a protobuf message: root key, first block, the others, proof."""
    at = 0
    while at < len(token):
        begin, number, kind = at, token[at] >> 3, token[at] & 7
        at += 1
        value = shift = 0
        while True:
            value |= (token[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not token[at - 1] & 0x80:
                break
        at += value if kind == 2 else 0
        yield number, token[begin:at]


def test_an_overlong_token_is_not_looked_at() -> None:
    assert f"longer than {TOKEN_MAX} bytes" == refusal(bytes(TOKEN_MAX + 1))
    assert f"longer than {TOKEN_MAX} bytes" == refusal(base64.urlsafe_b64encode(bytes(TOKEN_MAX + 1)))


def test_a_token_of_too_many_blocks_is_refused() -> None:
    token = minted()
    for _ in range(BLOCKS_MAX - 1):
        token = attenuate(token, Terms(uses=1))
    assert len(read(token)) == BLOCKS_MAX
    with pytest.raises(TokenError, match="more than 16 blocks"):
        attenuate(token, Terms(uses=1))
    more = with_block("check if use($n), $n <= 1", token)
    assert "it has 17 blocks, at most 16 were expected" == refusal(bytes(more.to_bytes()))


@pytest.mark.parametrize(
    "source",
    [
        'op("write")',
        'path("/")',
        'tenant("other/project/env")',
        "skep(1)",
        "rule($x) <- op($x)",
        'check if operation($o), {"read", "exec"}.contains($o)',
        'check if operation("read")',
        'check all op($o), {"read"}.contains($o)',
        'reject if operation("read")',
        "check if true",
        'check if op("read")',
        'check if resource($r), $r.starts_with("/jobs")',
        'check if resource($r), $r.starts_with("/jobs/../")',
        'check if resource($r), $r.starts_with("/jobs/") or true',
        "check if time($t), $t > 2020-01-01T00:00:00Z",
        "check if time($t), $t < 2030-01-01T00:00:00Z, true",
        "check if use($n), $n <= 5; check if use($n), $n <= 6",
        'check if principal("unix:ann") trusting previous',
        "check if use($n), $n <= 5 trusting authority",
    ],
)
def test_a_block_that_says_more_than_blocks_say_is_refused(source: str) -> None:
    text = refusal(bytes(with_block(source).to_bytes()))
    assert "block 1" in text or "unknown" in text or "path" in text


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "block 0 is not of version 1"),
        ("skep(2)", "block 0 is not of version 1"),
        ("skep(1)", "block 0 says nothing of tenant"),
        ('skep(1); tenant("a/b/c")', "block 0 says nothing of ops"),
        ('skep(1); tenant("a/b/c"); op("read")', "block 0 says nothing of places"),
        ('skep(1); tenant("a/b/c"); op("read"); path("/")', "block 0 says nothing of until_ns"),
        (
            'skep(1); tenant("a/b/c"); op("exec")',
            "operation 'exec': unknown, expected some of create,read,remove,write",
        ),
        ('skep(1); tenant("a/b/c"); right("read")', "block 0: 'right(\"read\")': unknown here"),
    ],
)
def test_a_first_block_that_is_not_whole_is_refused(source: str, why: str) -> None:
    builder = BiscuitBuilder(source)
    builder.set_root_key_id(ID)
    assert why == refusal(bytes(builder.build(PAIR.private_key).to_bytes()))


def test_a_third_partys_block_is_refused() -> None:
    token, other = minted(), KeyPair()
    block = token.third_party_request().create_block(
        other.private_key, BlockBuilder("check if use($n), $n <= 5")
    )
    assert "block 1 is somebody else's" == refusal(
        bytes(token.append_third_party(other.public_key, block).to_bytes())
    )


@given(st.text(max_size=64))
def test_a_string_that_prints_as_other_sentences_widens_nothing(text: str) -> None:
    """The library prints what is in a string as it is."""
    builder = BlockBuilder("check if principal({text})", {"text": text + '"); op("write'})
    token = minted().append(builder)
    try:
        grant = grant_of(token)
    except TokenError:
        return
    assert grant.ops <= {"read"}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ops": frozenset({"exec"})}, "operation 'exec'"),
        ({"tenant": "a/b"}, "tenant 'a/b'"),
        ({"subject": 'x"; op("write'}, "subject"),
        ({"channel": "zz"}, "channel 'zz'"),
        ({"uses": 0}, "uses 0"),
        ({"places": frozenset({("..",)})}, "'..' is no name"),
        ({"places": frozenset({(f"{n:0200}",) for n in range(50)})}, "longer than 8192 bytes"),
    ],
)
def test_what_cannot_be_read_is_not_minted(change: dict[str, Any], why: str) -> None:
    with pytest.raises(TokenError, match=why):
        mint(PAIR.private_key, ID, terms()._replace(**change))


def test_the_librarys_own_limit_of_time_is_raised() -> None:
    """By default its authoriser gives up after a millisecond of the wall's clock."""
    assert 0.001 == AuthorizerBuilder("").limits().max_time.total_seconds()  # type: ignore[attr-defined]
    many = frozenset((f"{n:x}",) for n in range(300))
    token = mint(PAIR.private_key, ID, terms(places="/")._replace(places=many))
    asked = Asked(TENANT, "read", ("1",), NOW_NS, "unix:ann")
    assert all(allows(token, asked) for _ in range(20))
