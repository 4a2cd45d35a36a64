"""/trust as it is read and written: from invite to renewal, what it keeps to itself, who guesses."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from bundles import bundle, publish
from cryptography import x509
from door import BOTH, Door, rest, say
from hives import ANN, BOB, EYE, W1, Living
from trusting import QUEEN, Applicant

from skep.fs.errors import E, FsError
from skep.fs.node import Caller
from skep.fs.spiffe import name_of
from skep.namespaces.hive import UNRECORDED, HiveRules
from skep.namespaces.live import Hive
from skep.namespaces.policy.keys import Signer
from skep.namespaces.sessions.core import Session
from skep.namespaces.tree import hive_tree
from skep.namespaces.trust.authority import Authority
from skep.namespaces.trust.core import DAY
from skep.trace.clock import HOUR, MS, SECOND, ManualClock
from skep.trace.sqlite import SqliteLedger
from skep.trace.turn import Turn

NOBODY = Caller("tls:anonymous", "enrolling")


class Trusting(Living):
    """A hive that signs certificates, and doors to it."""

    def __init__(self, hive: Hive, clock: ManualClock, ledger: SqliteLedger) -> None:
        super().__init__(hive, clock)
        self.ledger = ledger
        self.root = hive_tree(hive)

    def door(self, who: Caller = ANN) -> Door:
        return Door(self.root, who)

    async def tell(self, line: str, who: Caller = ANN) -> str:
        """The first words of the replies to a write to /trust/ctl."""
        text = await self.ask("/trust/ctl", line, who)
        return " ".join(reply.split(" ")[0] for reply in text.splitlines())

    async def ask(self, path: str, said: str, who: Caller = ANN) -> str:
        chan = await self.door(who).open(path, BOTH)
        try:
            await say(chan, said)
            return (await rest(chan)).decode()
        finally:
            await chan.clunk()

    async def invite(self, more: str = "role=drone-worker node=w7") -> dict[str, str]:
        word = (await self.tell(f"invite {more}")).removeprefix("skep1.")
        found: dict[str, str] = json.loads(urlsafe_b64decode(word + "=" * (-len(word) % 4)))
        return found

    async def enroll(
        self, invite: dict[str, str], applicant: Applicant, who: Caller = NOBODY, **other: str
    ) -> dict[str, str]:
        request = {"invite": invite["id"], "secret": invite["secret"], "csr": applicant.csr} | other
        found: dict[str, str] = json.loads(await self.ask("/trust/enroll", json.dumps(request), who))
        return found

    async def renew(self, answer: dict[str, str], applicant: Applicant, serial: str = "") -> dict[str, str]:
        said = json.dumps({"csr": applicant.csr})
        found: dict[str, str] = json.loads(await self.ask("/trust/renew", said, holder(answer, serial)))
        return found

    def attached(self, who: Caller, peer: str) -> Caller:
        """The caller in a session from that peer."""
        id = self.clock.new_id()
        made = Caller(who.principal, who.role, who.tenant, session=id)
        self.hive.sessions.add(Session(id, made, peer, 0, lambda: 0, "", lambda: None))
        return made

    def written(self) -> str:
        """All that the ledger holds."""
        return "\n".join(body.decode() for _, body in self.ledger.read(0))


def parsed(answer: dict[str, str]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(answer["certificate"].encode())


def holder(answer: dict[str, str], serial: str = "") -> Caller:
    """Whoever shows the certificate, as the gate makes it."""
    found = parsed(answer)
    name = name_of(found)
    return Caller(str(name), name.role, node=name.node, certificate=serial or f"{found.serial_number:x}")


@asynccontextmanager
async def trusting(directory: Path, ledger: str = ":memory:", roles: Any = None) -> AsyncIterator[Trusting]:
    clock = ManualClock(time.time_ns() // SECOND * SECOND)
    opened = SqliteLedger(ledger)
    turn = Turn(opened, HiveRules(), UNRECORDED)
    hive = Hive(turn, clock, directory)
    authority = Authority.open(directory, clock=clock, **({"roles": roles} if roles else {}))
    try:
        await hive.establish(authority, QUEEN)
        await hive.start()
        yield Trusting(hive, clock, opened)
    finally:
        authority.close()
        await hive.close()
        await turn.close()
        opened.close()


def play(story: Callable[[Trusting], Awaitable[None]], directory: Path, **more: Any) -> None:
    async def run() -> None:
        async with trusting(directory, **more) as hive:
            await story(hive)

    asyncio.run(run())


async def refused(work: Awaitable[object]) -> str:
    """The class and text of the refusal, without its trace."""
    with pytest.raises(FsError) as caught:
        await work
    return f"{caught.value.kind.name} {caught.value.detail.partition(' trace=')[0]}"


# enrolment


def test_a_node_is_invited_enrolled_and_renewed(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        node = Applicant()
        invite = await hive.invite()
        pin = (await hive.door().read("/trust/spki")).strip()
        assert ("hive", "w7", "drone-worker", pin) == (
            invite["hive"], invite["node"], invite["role"], invite["spki"],
        )  # fmt: skip
        answer = await hive.enroll(invite, node)
        assert "spiffe://hive/drone-worker/w7" == str(name_of(parsed(answer)))
        assert await hive.door(NOBODY).read("/trust/ca.pem") == answer["bundle"]
        hive.clock.advance(12 * HOUR)
        again = await hive.renew(answer, node)
        assert parsed(answer).serial_number != parsed(again).serial_number
        assert name_of(parsed(answer)) == name_of(parsed(again))
        assert parsed(answer).public_key() == parsed(again).public_key()
        with_new_key = await hive.renew(again, Applicant())
        assert parsed(again).public_key() != parsed(with_new_key).public_key()

    play(story, tmp_path)


def test_a_lost_answer_is_made_again_for_the_same_key_alone(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        node, invite = Applicant(), await hive.invite()
        first, again = await hive.enroll(invite, node), await hive.enroll(invite, node)
        assert parsed(first).tbs_certificate_bytes == parsed(again).tbs_certificate_bytes
        said = await refused(hive.enroll(invite, Applicant()))
        assert "DENIED rule=invite-once it was used" == said

    play(story, tmp_path)


def test_the_ledger_and_the_files_hold_no_secret_and_no_key(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        node, invite = Applicant(), await hive.invite()
        answer = await hive.enroll(invite, node)
        await hive.tell("rotate what=ca overlap=1h")
        await hive.tell("rotate what=token")
        read = [hive.written()]
        for name in ("keys", "certificates.jsonl", "invites.jsonl", "ctl", "enroll"):
            read.append(await hive.door().read(f"/trust/{name}"))
        everything = "\n".join(read)
        assert invite["id"] in everything
        assert invite["secret"] not in everything
        assert "PRIVATE" not in everything
        for path in (tmp_path / "keys").iterdir():
            lines = path.read_text().splitlines()[1:-1]
            assert not [line for line in lines if line in everything]
        assert "PRIVATE" not in json.dumps(answer)

    play(story, tmp_path)


def test_a_request_is_looked_at_closely(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        node, invite = Applicant(), await hive.invite()
        good = {"invite": invite["id"], "secret": invite["secret"], "csr": node.csr}
        for said, why in [
            ("hello", "SCHEMA "),
            ("[]", "SCHEMA "),
            ("{}", "SCHEMA Object missing required field `invite`"),
            (json.dumps(good | {"role": "operator"}), "SCHEMA Object contains unknown field `role`"),
            (json.dumps(good | {"csr": "nothing"}), "UNSIGNED no certificate request in PEM"),
            (json.dumps(good | {"csr": "A" * 20000}), "TOOBIG max="),
            (json.dumps(good | {"invite": 7}), "SCHEMA "),
        ]:
            assert (await refused(hive.ask("/trust/enroll", said, NOBODY))).startswith(why), said
        await hive.enroll(invite, node)

    play(story, tmp_path)


def test_a_role_without_a_manifest_is_not_invited(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        said = await refused(hive.tell("invite role=observer node=o1"))
        assert "USAGE invite: role=observer has no manifest" == said
        await hive.invite()

    play(story, tmp_path, roles=["drone-worker", "queen-primary"])


def test_a_write_invites_all_or_nobody(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        line = "invite role=drone-worker node="
        words = (await hive.tell(f"{line}a\n{line}b\n")).split()
        assert 2 == len(set(words))
        before = (tmp_path / "keys").iterdir()
        kept = sorted(path.name for path in before)
        said = await refused(hive.tell(f"{line}c\nrotate what=token\nrevoke node=nobody\n"))
        assert "USAGE revoke: node=nobody: there is no such node (line 3)" == said
        assert kept == sorted(path.name for path in (tmp_path / "keys").iterdir()), "no key is left behind"
        assert ["a", "b"] == [invite.node for invite in hive.state.trust.invites.values()]

    play(story, tmp_path)


# renewal


def test_renewing_needs_the_certificate_that_the_session_showed(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        node = Applicant()
        answer = await hive.enroll(await hive.invite(), node)
        other = await hive.enroll(await hive.invite("role=drone-worker node=w8"), Applicant())
        said = json.dumps({"csr": node.csr})
        assert (await refused(hive.ask("/trust/renew", said, W1))).startswith("UNAUTHENTICATED renew: ")
        assert (await refused(hive.ask("/trust/renew", said, ANN))).startswith("UNAUTHENTICATED renew: ")
        stolen = f"{parsed(other).serial_number:x}"
        assert "DENIED rule=own-certificate" == await refused(hive.renew(answer, node, stolen))
        await hive.tell("revoke node=w7")
        assert (await refused(hive.renew(answer, node))).startswith("REVOKED serial=")
        hive.clock.advance(DAY)
        assert (await refused(hive.renew(other, node))).startswith("EXPIRED serial=")

    play(story, tmp_path)


def test_nobody_without_a_certificate_renews_and_nobody_with_one_enrolls(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        node = Applicant()
        answer = await hive.enroll(await hive.invite(), node)
        said = json.dumps({"csr": node.csr})
        assert (await refused(hive.ask("/trust/renew", said, NOBODY))).startswith("UNAUTHENTICATED renew:")
        assert (await refused(hive.enroll(await hive.invite(), node, holder(answer)))).startswith(
            "DENIED rule="
        )

    play(story, tmp_path)


def test_a_token_written_where_its_id_belongs_is_not_in_the_ledger(tmp_path: Path) -> None:
    """Who reads the trace would have it, and it would not even be revoked."""

    async def story(hive: Trusting) -> None:
        token = await hive.ask("/trust/tokens/clone", "ops=read paths=/jobs ttl=1h")
        for what in ("token", "serial"):
            said = await refused(hive.tell(f"revoke {what}={token.strip()}"))
            assert said.startswith(f"USAGE revoke: {what}=: expected a ")
            assert token.strip()[:16] not in said
        assert token.strip() not in hive.written()

    play(story, tmp_path)


def test_who_has_no_certificate_writes_nothing_into_the_ledger_by_asking_for_the_next(tmp_path: Path) -> None:
    """Observers may write to renew, and some of them are anybody on this machine."""

    async def story(hive: Trusting) -> None:
        size = hive.ledger.size
        for who in (EYE, ANN, NOBODY):
            said = await refused(hive.ask("/trust/renew", json.dumps({"csr": Applicant().csr}), who))
            assert "UNAUTHENTICATED renew: the session has shown no certificate of this hive" == said
        assert size == hive.ledger.size

    play(story, tmp_path)


# who guesses


def test_who_guesses_waits_longer_each_time_and_nobody_else_does(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        invite, node = await hive.invite(), Applicant()
        thief = hive.attached(NOBODY, "tls:192.0.2.7:4711")
        size = hive.ledger.size
        wrong = "DENIED rule=invite there is no such invite"
        for _ in range(4):
            assert wrong == await refused(hive.enroll(invite, node, thief, secret="guess"))
        waits = []
        for _ in range(4):
            said = await refused(hive.enroll(invite, node, thief, secret="guess"))
            waits.append(int(said.partition("retry-ms=")[2].partition(" ")[0]))
            assert said.startswith("THROTTLED retry-ms=")
            hive.clock.advance(waits[-1] * MS)
            assert wrong == await refused(hive.enroll(invite, node, thief, secret="guess"))
        assert [250, 500, 1000, 2000] == waits
        # The same network from another port waits too; others do not, and the ledger has not grown.
        same = hive.attached(NOBODY, "tls:192.0.2.7:999")
        assert (await refused(hive.enroll(invite, node, same))).startswith("THROTTLED")
        assert size == hive.ledger.size
        await hive.enroll(invite, node, hive.attached(NOBODY, "tls:192.0.2.8:4711"))
        hive.clock.advance(HOUR)
        assert (await refused(hive.enroll(invite, node, same))).startswith("EXPIRED invite until=")

    play(story, tmp_path)


def test_who_shows_an_invite_that_was_used_waits_too(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        invite = await hive.invite()
        await hive.enroll(invite, Applicant())
        thief = hive.attached(NOBODY, "tls:192.0.2.7:4711")
        for _ in range(4):
            assert (await refused(hive.enroll(invite, Applicant(), thief))).startswith(
                "DENIED rule=invite-once"
            )
        assert (await refused(hive.enroll(invite, Applicant(), thief))).startswith("THROTTLED retry-ms=")

    play(story, tmp_path)


def test_a_guess_from_an_ipv6_network_is_held_against_all_of_it(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        invite, node = await hive.invite(), Applicant()
        for n in range(4):
            thief = hive.attached(NOBODY, f"tls:[2001:db8::{n:x}]:4711")
            await refused(hive.enroll(invite, node, thief, secret="guess"))
        neighbour = hive.attached(NOBODY, "tls:[2001:db8::ffff]:4711")
        assert (await refused(hive.enroll(invite, node, neighbour))).startswith("THROTTLED")

    play(story, tmp_path)


# who may


def test_only_operators_of_the_hives_own_tenant_command(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        for who in (EYE, W1, NOBODY, BOB):
            for line in ("invite role=operator node=me", "revoke node=w1", "rotate what=ca"):
                assert (await refused(hive.tell(line, who))).startswith("DENIED rule="), (who, line)
        assert 1 == len(list((tmp_path / "keys").glob("ca-*"))), "a key that was made for it is gone"
        for line in ("found hive=x", "retire what=ca key=x", "issue role=queen-primary node=x", "enroll"):
            assert (await refused(hive.tell(line))).startswith("USAGE line 1: "), line

    play(story, tmp_path)


def test_the_tables_are_for_the_hives_own_tenant(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        await hive.enroll(await hive.invite(), Applicant())
        await hive.invite("role=observer node=o1")
        for name in ("certificates.jsonl", "invites.jsonl"):
            assert "" == await hive.door(BOB).read(f"/trust/{name}")
        certificates = [
            json.loads(row) for row in (await hive.door().read("/trust/certificates.jsonl")).split("\n")[:-1]
        ]
        assert [("q1", "good"), ("w7", "good")] == [(row["node"], row["state"]) for row in certificates]
        invites = [
            json.loads(row) for row in (await hive.door().read("/trust/invites.jsonl")).split("\n")[:-1]
        ]
        assert [("w7", True), ("o1", False)] == [(row["node"], bool(row["serial"])) for row in invites]
        await hive.tell("revoke node=w7 reason=stolen")
        last = (await hive.door().read("/trust/certificates.jsonl")).splitlines()[-1]
        assert json.loads(last)["state"].startswith("revoked 20")
        assert "stolen" == json.loads(last)["reason"]

    play(story, tmp_path)


# rotation


def test_a_rotation_is_seen_in_the_tree_and_ends_by_itself(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        before = (await hive.door().read("/trust/spki")).strip()
        after = await hive.tell("rotate what=ca overlap=1h")
        assert [after, before] == [key.id for key in hive.state.trust.trusted("ca")]
        assert after == (await hive.door().read("/trust/spki")).strip()
        assert 2 == (await hive.door().read("/trust/ca.pem")).count("BEGIN CERTIFICATE")
        assert 2 == (await hive.door().read("/trust/crl.pem")).count("BEGIN X509 CRL")
        states = [line.split(" ")[:2] for line in (await hive.door().read("/trust/keys")).splitlines()]
        assert [["ca", "active"], ["ca", "overlap"]] == states[:2]
        assert "CONFLICT" == (await refused(hive.tell("rotate what=ca"))).split(" ")[0]
        assert 2 == len(list((tmp_path / "keys").glob("ca-*")))
        hive.clock.advance(HOUR)
        await hive.hive.tick()
        assert 1 == (await hive.door().read("/trust/ca.pem")).count("BEGIN CERTIFICATE")
        assert 1 == len(list((tmp_path / "keys").glob("ca-*")))

    play(story, tmp_path)


def test_bundles_are_believed_by_the_key_that_signs_them_now(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        def keys() -> list[tuple[str, str]]:
            return sorted((key.name, key.key) for key in hive.state.policy.keys.values())

        async def publish_by(signer: Signer | None, text: str) -> None:
            assert signer is not None
            made = bundle(f'@id("{text}") forbid(principal, action == Skep::Action::"hive.drain", resource);')
            await hive.hive.command(ANN, "/policy/ctl", [publish("mine", made, signer)])

        old = hive.hive.signer
        await hive.tell("rotate what=policy overlap=1h")
        new = hive.hive.signer
        assert old is not None
        assert new is not None
        assert [("hive", new.public), ("hive-before", old.public)] == keys()
        await publish_by(new, "one")
        await publish_by(old, "two")
        hive.clock.advance(HOUR)
        await hive.hive.tick()  # the overlap is over
        await hive.hive.tick()  # so its key signs no bundles
        assert [("hive", new.public)] == keys()
        await publish_by(new, "three")
        assert (await refused(publish_by(old, "four"))).startswith("UNSIGNED ")
        await hive.tell("rotate what=policy overlap=0s")
        assert hive.hive.signer is not None
        assert [("hive", hive.hive.signer.public)] == keys()
        assert (await refused(publish_by(new, "five"))).startswith("UNSIGNED ")

    play(story, tmp_path)


def test_a_hives_key_that_was_distrusted_is_so_until_it_is_rotated(tmp_path: Path) -> None:
    async def story(hive: Trusting) -> None:
        await hive.hive.command(ANN, "/policy/ctl", ["distrust-key name=hive"])
        await hive.hive.tick()
        assert {} == hive.state.policy.keys
        await hive.tell("rotate what=policy overlap=0s")
        assert hive.hive.signer is not None
        assert {"hive": hive.hive.signer.public} == {n: key.key for n, key in hive.state.policy.keys.items()}
        for name in ("hive", "hive-before"):
            said = hive.hive.command(ANN, "/policy/ctl", [f"trust-key name={name} key={'7d' * 32}"])
            assert f"EXISTS name={name}" == await refused(said)

    play(story, tmp_path)


def test_trust_is_what_it_was_after_a_start(tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger.db")

    async def first(hive: Trusting) -> None:
        answers.append(await hive.enroll(await hive.invite(), applicant))
        await hive.tell("rotate what=ca overlap=2h")
        answers.append(await hive.enroll(await hive.invite("role=observer node=o1"), applicant))
        await hive.tell("revoke node=w7")
        pems.append(hive.hive.authority.queen_pem() if hive.hive.authority else None)

    async def second(hive: Trusting) -> None:
        assert hive.hive.authority is not None
        assert pems[0].key == hive.hive.authority.queen_pem().key
        assert pems[0].bundle == hive.hive.authority.queen_pem().bundle
        revoked = f"{parsed(answers[0]).serial_number:x}"
        assert [revoked] == [s for s, found in hive.state.trust.certificates.items() if found.revoked_ns]
        assert (await refused(hive.renew(answers[0], applicant))).startswith("REVOKED")
        await hive.renew(answers[1], Applicant())

    applicant, answers, pems = Applicant(), [], []  # type: ignore[var-annotated]
    play(first, tmp_path, ledger=ledger)
    play(second, tmp_path, ledger=ledger)


def test_a_hive_without_an_authority_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        opened = SqliteLedger(":memory:")
        turn = Turn(opened, HiveRules(), UNRECORDED)
        hive = Hive(turn, ManualClock(), tmp_path)
        await hive.start()
        door = Door(hive_tree(hive), ANN)
        for name in ("ca.pem", "crl.pem", "spki"):
            with pytest.raises(FsError) as caught:
                await door.read(f"/trust/{name}")
            assert caught.value.kind is E.NOTSUP
        with pytest.raises(FsError, match="this hive has no certificates"):
            await door.write("/trust/ctl", "invite role=observer node=o1")
        assert "" == await door.read("/trust/keys")
        await hive.close()
        await turn.close()
        opened.close()

    asyncio.run(run())
