"""The rules of trust: who may be invited, what an invite is good for, what was revoked stays revoked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trusting import KEYS, Book, as_value, refused

from skep.fs.errors import FsError
from skep.namespaces.order import HIVE_TENANT
from skep.namespaces.trust import core, record
from skep.namespaces.trust.core import DAY, secret_hash
from skep.namespaces.trust.record import Trust
from skep.namespaces.trust.verbs import INVITED_ROLES, KINDS
from skep.trace.clock import HOUR, MINUTE, SECOND
from skep.trace.rules import Refusal

T = TypeVar("T")


@pytest.fixture
def book() -> Book:
    made = Book()
    made.found()
    return made


def enrolled(book: Book, node: str = "w1") -> str:
    return book.enroll(book.invite(f"role=drone-worker node={node}"), node)


# founding


def test_a_hive_is_founded_once_and_keeps_its_name(book: Book) -> None:
    assert "hive" == book.trust.hive
    assert KEYS == {what: book.trust.active(what).id for what in KINDS}
    with pytest.raises(Refusal, match="file exists: the hive is hive"):
        book.found()


def test_before_that_there_is_nothing_to_command() -> None:
    assert "operation not supported: revoke: this hive has no certificates" == refused(
        Book(), "revoke node=w1"
    )


# invites


@pytest.mark.parametrize("name", ["W1", "w_1", "-w", "w" * 65, "w.1", "q1/x"])
def test_a_node_has_a_name_that_fits_into_a_certificate(book: Book, name: str) -> None:
    with pytest.raises((Refusal, FsError)):
        book.invite(f"role=drone-worker node={name}")


@pytest.mark.parametrize("role", ["queen-primary", "queen-regional", "queen-bare-metal", "enrolling", "root"])
def test_nobody_is_invited_to_be_a_queen_or_what_is_no_role(book: Book, role: str) -> None:
    assert role not in INVITED_ROLES
    with pytest.raises(FsError, match="role="):
        book.invite(f"role={role} node=w1")


@pytest.mark.parametrize("ttl", ["9s", "0s", "169h", "10000h"])
def test_an_invite_lasts_ten_seconds_to_seven_days(book: Book, ttl: str) -> None:
    with pytest.raises(Refusal, match="expected 10s to 168h"):
        book.invite(f"role=drone-worker node=w1 ttl={ttl}")
    book.invite("role=drone-worker node=w1 ttl=10s")
    book.invite("role=drone-worker node=w1 ttl=168h")


def test_an_invite_is_good_once(book: Book) -> None:
    invite = book.invite()
    serial = book.enroll(invite, key="QUxJQ0U=")
    assert book.is_good(serial)
    with pytest.raises(Refusal, match="rule=invite-once"):
        book.enroll(invite, key="TUFMTE9SWQ==")


def test_who_lost_the_answer_hears_it_again_with_the_same_key(book: Book) -> None:
    invite = book.invite()
    serial = book.enroll(invite)
    assert serial == book.enroll(invite)
    assert 1 == len(book.trust.certificates)
    book.write(f"revoke serial={serial}")
    with pytest.raises(Refusal, match="rule=invite-once"):
        book.enroll(invite)


def test_an_invite_ends(book: Book) -> None:
    invite = book.invite("role=drone-worker node=w1 ttl=10m")
    book.clock.advance(10 * MINUTE)
    with pytest.raises(Refusal, match="expired: invite until="):
        book.enroll(invite)


def test_a_wrong_secret_and_no_invite_are_told_alike(book: Book) -> None:
    invite, told = book.invite(), set()
    for id, secret in ((invite, "guess"), ("01ABC", "w1"), ("01ABC", "")):
        with pytest.raises(Refusal) as caught:
            book.enroll(id, secret)
        told.add(caught.value.text)
    assert {"permission denied: rule=invite there is no such invite"} == told


def test_an_invite_says_whose_tenants_the_node_serves(book: Book) -> None:
    book.enroll(book.invite())
    assert (HIVE_TENANT,) == book.trust.tenants_of("w1")
    book.enroll(book.invite("role=drone-worker node=w2 tenant=acme/web/prod,acme/web/test"), "w2")
    assert ("acme/web/prod", "acme/web/test") == book.trust.tenants_of("w2")
    assert () == book.trust.tenants_of("w3")
    for bad in ("acme", "acme/web", "acme/web/prod/x", "Acme/web/prod", "a/b/..", ""):
        with pytest.raises(Refusal, match="expected org/project/env"):
            book.invite(f"role=drone-worker node=w3 tenant='{bad}'")


def test_a_name_stands_for_one_role_at_a_time(book: Book) -> None:
    second = book.invite("role=observer node=w1")
    enrolled(book)
    said = "conflict: w1 is a drone-worker: revoke node=w1 first"
    assert said == refused(book, f"invite role=observer node=w1 secret={secret_hash('w1')}")
    with pytest.raises(Refusal, match=said):
        book.enroll(second)
    book.write("revoke node=w1")
    serial = book.enroll(book.invite("role=observer node=w1"))
    assert "observer" == book.trust.certificates[serial].role


def test_a_name_stands_for_one_tenant_s_node_at_a_time(book: Book) -> None:
    """Else who had it first would find what is of the tenant that has it next."""
    first = book.enroll(book.invite("role=drone-worker node=w1 tenant=acme/web/prod"))
    taken = "conflict: w1 is of acme/web/prod: revoke node=w1 first"
    late = "role=drone-worker node=w2 tenant=other/web/prod"
    invite = book.invite(late)
    book.enroll(book.invite("role=drone-worker node=w2 tenant=acme/web/prod"), "w2")
    for tenant in ("other/web/prod", "acme/web/prod,other/web/prod", HIVE_TENANT):
        assert taken == refused(
            book, f"invite role=drone-worker node=w1 tenant={tenant} secret={secret_hash('w1')}"
        )
    with pytest.raises(Refusal, match="conflict: w2 is of acme/web/prod: revoke node=w2 first"):
        book.enroll(invite, "w2", key="TkVX")
    assert ("acme/web/prod",) == book.trust.tenants_of("w1")
    # It may be invited again as what it is, or as less; and as another's when nobody can show it any more.
    book.invite("role=drone-worker node=w1 tenant=acme/web/prod")
    book.write("revoke node=w1")
    book.enroll(book.invite("role=drone-worker node=w1 tenant=other/web/prod"))
    assert (False, ("other/web/prod",)) == (book.is_good(first), book.trust.tenants_of("w1"))


def test_the_queens_name_is_hers(book: Book) -> None:
    book.own("issue role=queen-primary node=q1 key=S0VZ ttl=2160h")
    with pytest.raises(Refusal, match="q1 is the queen"):
        book.invite("role=drone-worker node=q1")
    enrolled(book)
    with pytest.raises(Refusal, match="w1 is a drone-worker"):
        book.own("issue role=queen-primary node=w1 key=S0VZ ttl=2160h")
    with pytest.raises(Refusal, match="expected one of queen"):
        book.own("issue role=operator node=w1 key=S0VZ ttl=1h")


def test_there_are_so_many_open_invites_at_most(book: Book) -> None:
    for n in range(core.INVITES_MAX):
        book.trust.invites[str(n)] = record.Invite(
            str(n), "", "observer", "w", (), book.clock.now_ns() + MINUTE
        )
    with pytest.raises(Refusal, match="quota exceeded: invites have=4096 max=4096"):
        book.invite()
    book.clock.advance(MINUTE)
    book.invite()
    assert 1 == len(book.trust.invites), "those that ended are forgotten"


# certificates


def test_a_certificate_begins_before_now_and_ends_when_it_was_said(book: Book) -> None:
    book.clock.advance(SECOND // 3)
    found = book.trust.certificates[enrolled(book)]
    now_ns = book.clock.now_ns() // SECOND * SECOND
    assert (now_ns - core.SKEW_NS, now_ns + DAY) == (found.begin_ns, found.end_ns)
    assert KEYS["ca"] == found.ca


def test_no_certificate_outlives_its_ca(book: Book) -> None:
    book.clock.time_ns = book.trust.active("ca").certificate_until_ns - HOUR
    found = book.trust.certificates[enrolled(book)]
    assert book.trust.active("ca").certificate_until_ns == found.end_ns


def test_a_node_renews_what_is_good_and_stays_what_it_was(book: Book) -> None:
    first = book.enroll(book.invite("role=drone-worker node=w1 tenant=acme/web/prod"))
    book.clock.advance(12 * HOUR)
    second = book.renew(first, key="TkVX")
    assert [first, second] == [found.serial for found in book.trust.good("w1", book.clock.now_ns())]
    found = book.trust.certificates[second]
    assert ("w1", "drone-worker", ("acme/web/prod",), "TkVX") == (
        found.node, found.role, found.tenants, found.key,
    )  # fmt: skip


def test_who_lost_the_answer_to_a_renewal_hears_it_again(book: Book) -> None:
    first = enrolled(book)
    assert first == book.renew(first)
    book.clock.advance(12 * HOUR)
    second = book.renew(first)
    assert first != second
    assert second == book.renew(first)


@pytest.mark.parametrize("name", ["drone-worker/w2", "observer/w1", "operator/boss"])
def test_a_certificate_is_renewed_by_its_holder_alone(book: Book, name: str) -> None:
    first = enrolled(book)
    with pytest.raises(Refusal, match="rule=own-certificate"):
        book.renew(first, name=name)


def test_only_what_is_good_is_renewed(book: Book) -> None:
    with pytest.raises(Refusal, match="not authenticated: renew: the session has shown no certificate"):
        book.renew("")
    first = enrolled(book)
    book.write(f"revoke serial={first}")
    with pytest.raises(Refusal, match=f"revoked: serial={first}"):
        book.renew(first)
    second = enrolled(book, "w2")
    book.clock.advance(DAY)
    with pytest.raises(Refusal, match=f"expired: serial={second}"):
        book.renew(second, name="drone-worker/w2")


def test_a_node_has_so_many_certificates_at_most(book: Book) -> None:
    first = enrolled(book)
    for n in range(core.LIVE_MAX - 1):
        book.renew(first, key=f"S0VZ{n:04}")
    with pytest.raises(Refusal, match="quota exceeded: certificates node=w1 have=16 max=16"):
        book.renew(first, key="TU9SRQ==")


def test_what_has_ended_is_forgotten_an_hour_later(book: Book) -> None:
    first = enrolled(book)
    book.clock.advance(DAY - MINUTE)
    second = book.renew(first, key="TkVX")
    book.clock.advance(HOUR + MINUTE)
    third = book.renew(second, key="TkVXRVI=")
    assert [second, third] == list(book.trust.certificates)
    assert (second, third) == book.trust.nodes["w1"].serials


# revocation


def test_a_revoked_certificate_is_good_no_more_and_on_its_cas_list(book: Book) -> None:
    first, second = enrolled(book), enrolled(book, "w2")
    assert first == book.write(f"revoke serial={first} reason='left in a train'")
    assert (False, True) == (book.is_good(first), book.is_good(second))
    assert [first] == [found.serial for found in book.trust.revoked(KEYS["ca"])]
    assert "left in a train" == book.trust.certificates[first].reason
    assert first == book.write(f"revoke serial={first}"), "once more changes nothing"
    assert "left in a train" == book.trust.certificates[first].reason


def test_a_revoked_node_loses_all_it_has_and_its_invites(book: Book) -> None:
    first = enrolled(book)
    second = book.renew(first, key="TkVX")
    waiting = book.invite()
    book.write("revoke node=w1 reason=stolen")
    assert not book.is_good(first)
    assert not book.is_good(second)
    assert () == book.trust.tenants_of("w1")
    with pytest.raises(Refusal, match="rule=invite there"):
        book.enroll(waiting)
    with pytest.raises(Refusal, match="revoked"):
        book.renew(second)


def test_a_revoked_node_comes_back_by_a_new_invite_with_a_new_certificate_alone(book: Book) -> None:
    first = enrolled(book)
    book.write("revoke node=w1")
    third = enrolled(book)
    assert (False, True) == (book.is_good(first), book.is_good(third))
    assert book.is_good(book.renew(third, key="TkVX"))


def test_a_node_that_was_only_invited_can_be_revoked(book: Book) -> None:
    invite = book.invite()
    book.write("revoke node=w1")
    with pytest.raises(Refusal, match="rule=invite"):
        book.enroll(invite)


def test_revoking_names_one_thing_that_is_there(book: Book) -> None:
    book.own("issue role=queen-primary node=q1 key=S0VZ ttl=2160h")
    for line, said in {
        "revoke": "usage: revoke: expected one of serial= node= token=",
        "revoke node=w1 serial=ab": "usage: revoke: expected one of serial= node= token=",
        "revoke serial=ab": "usage: revoke: serial=ab: there is no such certificate",
        "revoke node=w9": "usage: revoke: node=w9: there is no such node",
        "revoke node=q1": "conflict: q1 is the queen: revoke its serial, and it takes a new key",
        "revoke token=xyz": "usage: revoke: token=xyz: expected a revocation id, ",
        f"revoke serial=ab reason={'x' * 257}": "too large: max=256 characters of reason",
    }.items():
        assert refused(book, line).startswith(said), line


def test_a_revoked_token_is_known_by_its_beginning(book: Book) -> None:
    short, long = "ab" * 16, "cd" * 64
    book.write(f"revoke token={short}")
    book.write(f"revoke token={long}")
    assert [short, "cd" * 16] == list(book.trust.tokens)


def test_revocation_may_depend_on_the_revision(book: Book) -> None:
    serial = enrolled(book)
    assert "conflict: rev have=3 want=1" == refused(book, f"revoke serial={serial} if-rev=1")
    book.write(f"revoke serial={serial} if-rev=3")


# rotation


def test_while_a_rotation_overlaps_both_cas_are_trusted_and_the_new_one_signs(book: Book) -> None:
    before = enrolled(book)
    new = book.rotate("ca")
    assert [new, KEYS["ca"]] == [key.id for key in book.trust.trusted("ca")]
    after = enrolled(book, "w2")
    assert new == book.trust.certificates[after].ca
    assert book.is_good(before)
    book.clock.advance(HOUR)
    assert [("ca", KEYS["ca"])] == list(core.due(book.trust, book.clock.now_ns()))
    book.own(f"retire what=ca key={KEYS['ca']}")
    assert [new] == [key.id for key in book.trust.trusted("ca")]
    assert (False, True) == (book.is_good(before), book.is_good(after))
    assert [] == list(core.due(book.trust, book.clock.now_ns()))
    assert () == book.trust.nodes["w1"].serials


def test_an_overlap_is_not_cut_short_by_retiring(book: Book) -> None:
    book.rotate("token")
    said = f"conflict: what=token key={KEYS['token']} is good still"
    assert said == refused(book, f"retire what=token key={KEYS['token']}", "hive", "*")
    active = book.trust.active("token").id
    assert refused(book, f"retire what=token key={active}", "hive", "*").endswith("is good still")


def test_one_rotation_at_a_time_unless_it_is_at_once(book: Book) -> None:
    book.rotate("ca")
    with pytest.raises(Refusal, match="conflict: what=ca overlaps until="):
        book.rotate("ca")
    newest = book.rotate("ca", "0s")
    assert [newest] == [key.id for key in book.trust.trusted("ca")]
    assert 3 == len(book.trust.keys["ca"])
    book.rotate("token"), book.rotate("merkle"), book.rotate("policy")


def test_a_rotation_that_was_overtaken_is_refused(book: Book) -> None:
    book.rotate("ca", "0s")
    line = f"rotate what=ca key={'9' * 64} before={KEYS['ca']} certificate=QQ== until=2043-11-14T22:13:20Z"
    assert "conflict: what=ca was rotated meanwhile" == refused(book, line)


def test_a_key_comes_once_and_complete(book: Book) -> None:
    for key, before, more, said in [
        (KEYS["token"], KEYS["token"], "", "file exists: key="),
        ("short", KEYS["token"], "", "usage: rotate: token short: expected 64 hex digits"),
        ("9" * 64, KEYS["token"], " overlap=2161h", "usage: rotate: overlap=2161h: expected at most 2160h"),
    ]:
        assert refused(book, f"rotate what=token key={key} before={before}{more}").startswith(said)
    line = f"rotate what=ca key={'9' * 64} before={KEYS['ca']}"
    assert refused(book, line).startswith("usage: rotate: until: time ''")


def test_an_old_token_key_takes_the_revocations_of_its_tokens_with_it(book: Book) -> None:
    before, after = "ab" * 16, "cd" * 16
    book.write(f"revoke token={before}")
    book.clock.advance(SECOND)
    book.rotate("token")
    book.clock.advance(SECOND)
    book.write(f"revoke token={after}")
    assert {before, after} == set(book.trust.tokens)
    book.clock.advance(HOUR)
    book.own(f"retire what=token key={KEYS['token']}")
    assert {after} == set(book.trust.tokens)


def test_old_keys_are_remembered_but_not_for_ever(book: Book) -> None:
    for _ in range(record.RETIRED_MAX + 5):
        book.rotate("merkle", "0s")
    assert record.RETIRED_MAX + 1 == len(book.trust.keys["merkle"])
    assert 1 == len(book.trust.trusted("merkle"))


# whatever is written

NODES = ("w1", "w2")
SOME = st.integers(0, 3)  # one of the latest things of a kind, 0 the latest
ROLE = st.sampled_from(["drone-worker", "drone-worker", "drone-worker", "observer"])
KEY = st.sampled_from(["QQ==", "Qg==", "Qw=="])
NOTHING = st.just("")
COMMANDS = st.one_of(
    st.tuples(st.just("invite"), st.sampled_from(NODES), ROLE),
    st.tuples(st.just("enroll"), SOME, KEY),
    st.tuples(st.just("join"), st.sampled_from(NODES), ROLE),
    st.tuples(st.just("renew"), SOME, KEY),
    st.tuples(st.just("revoke-serial"), SOME, NOTHING),
    st.tuples(st.just("revoke-node"), st.sampled_from(NODES), NOTHING),
    st.tuples(st.just("rotate"), st.sampled_from(["ca", *KINDS]), st.sampled_from(["0s", "1h"])),
    st.tuples(st.just("retire"), st.sampled_from(["ca", *KINDS]), SOME),
    st.tuples(st.just("wait"), st.sampled_from([1, MINUTE, HOUR, 12 * HOUR, 2 * DAY]), NOTHING),
)
STORY = st.lists(COMMANDS, min_size=5, max_size=40)
Commands = list[tuple[str, object, object]]


class Player:
    """Writes commands, and remembers by itself what was taken back."""

    def __init__(self) -> None:
        self.book = Book()
        self.book.found()
        self.invites: list[str] = []
        self.invited: dict[str, str] = {}  # by invite: the node
        self.serials: list[str] = []
        self.dead: set[str] = set()  # revoked, or of a CA that is trusted no more
        self.barred: set[str] = set()
        self.withdrawn: set[str] = set()  # invites of who was thrown out

    def play(self, what: str, which: object, more: object) -> None:
        book, trust = self.book, self.book.trust
        match what, which:
            case "invite", str():
                self.invites.append(book.invite(f"role={more} node={which}"))
                self.invited[self.invites[-1]] = which
            case "enroll", int():
                invite = trust.invites[latest(self.invites, which)]
                self.enroll(invite.id, invite.node, str(more))
            case "join", str():
                self.enroll(book.invite(f"role={more} node={which}"), which, "QQ==")
            case "renew", int():
                found = trust.certificates[latest(self.serials, which)]
                serial = book.renew(found.serial, str(more), f"{found.role}/{found.node}")
                if serial not in self.serials:
                    self.serials.append(serial)
            case "revoke-serial", int():
                self.dead.add(book.write(f"revoke serial={latest(self.serials, which)}"))
            case "revoke-node", str():
                book.write(f"revoke node={which}")
                self.dead |= {s for s, found in trust.certificates.items() if found.node == which}
                self.barred.add(which)
                self.withdrawn |= {id for id in self.invites if self.invited[id] == which}
            case "rotate", str():
                book.rotate(which, str(more))
            case "retire", str():
                assert isinstance(more, int)
                book.own(f"retire what={which} key={latest(trust.keys[which][::-1], more).id}")
            case "wait", int():
                book.clock.advance(which)

    def enroll(self, invite: str, node: str, key: str) -> None:
        serial = self.book.enroll(invite, node, key)
        if serial not in self.serials:
            assert invite not in self.withdrawn
            self.barred.discard(node)
            self.serials.append(serial)

    def tell(self, commands: Commands) -> Player:
        for command in commands:
            with suppress(Refusal, LookupError):  # it may always say no, or what is meant is gone
                self.play(*command)
            self.look()
        return self

    def look(self) -> None:
        trust, now_ns = self.book.trust, self.book.clock.now_ns()
        cas = {key.id for key in trust.trusted("ca")}
        self.dead |= {serial for serial, found in trust.certificates.items() if found.ca not in cas}
        self.dead |= {serial for serial, found in trust.certificates.items() if found.end_ns <= now_ns}
        self.dead |= {serial for serial in self.serials if serial not in trust.certificates}
        assert not [serial for serial in self.dead if self.book.is_good(serial)]
        assert not [node for node in self.barred if any(trust.good(node, now_ns))]
        assert not [node for node in self.barred if trust.tenants_of(node)]
        for node in NODES:
            assert 1 >= len({found.role for found in trust.good(node, now_ns)})
        for what in KINDS:
            assert 1 == sum(not key.until_ns for key in trust.trusted(what))
            assert 2 >= len(trust.trusted(what))
        assert set(trust.certificates) == {s for node in trust.nodes.values() for s in node.serials}


def latest(things: Sequence[T], which: int) -> T:
    """The latest but ``which``; LookupError when there are none at all."""
    return things[-1 - which % (len(things) or 1)]


@pytest.mark.slow
@given(STORY)
@settings(max_examples=300, deadline=None)
def test_no_commands_make_good_again_what_was_taken_back(commands: Commands) -> None:
    player = Player().tell(commands)
    book = player.book
    assert len(player.serials) == len(set(player.serials))
    assert as_value(book.trust) == as_value(book.folded())
    assert [reply for _, reply in book.lines] == book.decided_again()


@given(STORY, STORY)
@settings(max_examples=50, deadline=None)
def test_a_copy_is_not_touched_by_what_comes_after(first: Commands, then: Commands) -> None:
    player = Player().tell(first)
    copy: Trust = player.book.trust.copy()
    said = as_value(copy)
    player.tell(then)
    assert said == as_value(copy)
