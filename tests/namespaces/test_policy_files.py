"""/policy as its callers see it: drafts, versions, questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bundles import ANNS, bundle, trust
from door import BOTH, Door, rest, say
from hives import ANN, SIGNER
from test_hive_tree import Served, refused, served

from skep.fs.errors import E
from skep.fs.messages import LO
from skep.fs.node import How
from skep.namespaces.policy import keys
from skep.namespaces.policy.bundle import Bundle, shipped, signed

DENY_DRAIN = '@id("no-drain") forbid (principal, action == Skep::Action::"hive.drain", resource);'


async def draft(door: Door, name: str, made: Bundle) -> None:
    """Put the bundle's files where they are published from."""
    if not await door.exists(f"/policy/bundles/{name}"):
        bundles = await door.walk("/policy/bundles")
        await bundles.mkdir(name, 0o755, 0)
    for file, text in made.files.items():
        chan = await door.create(f"/policy/bundles/{name}/draft", file)
        await say(chan, text)
        await chan.clunk()


async def publish(door: Door, name: str, made: Bundle) -> str:
    await draft(door, name, made)
    chan = await door.open("/policy/ctl", BOTH)
    sig = ANNS.sign(signed(name, made.sha256))
    await say(chan, f"publish bundle={name} sha256={made.sha256} sig={sig}\n")
    return (await rest(chan)).decode()


async def ask(door: Door, file: str, **said: Any) -> dict[str, Any]:
    chan = await door.open(f"/policy/{file}", BOTH)
    await say(chan, json.dumps(said))
    answer: dict[str, Any] = json.loads(await rest(chan))
    return answer


def test_a_hive_begins_with_the_default_bundle_signed_by_its_own_key() -> None:
    async def story(hive: Served) -> None:
        key = keys.load(hive.hive.directory / "policy.key")
        assert f"hive {key.public} *\n" == await hive.ann.read("/policy/keys")
        assert (await hive.ann.read("/policy/snapshot")).startswith(
            f"default v=1 sha256:{shipped().sha256} by=hive at="
        )
        assert ["draft", "live", "versions", "sig", "tests"] == await hive.ann.names(
            "/policy/bundles/default"
        )
        assert sorted(["sig", *shipped().files]) == sorted(
            await hive.ann.names("/policy/bundles/default/live")
        )
        sig = (await hive.ann.read("/policy/bundles/default/sig")).split()
        assert keys.verify(key.public, sig[2], signed("default", shipped().sha256))

    served(story)


def test_a_draft_is_published_and_holds_at_once() -> None:
    async def story(hive: Served) -> None:
        await hive.ann.write("/policy/ctl", trust("ann", ANNS) + "\n")
        made = bundle(DENY_DRAIN)
        assert (await publish(hive.ann, "mine", made)).startswith("mine@1 rev=")
        assert DENY_DRAIN == await hive.ann.read("/policy/bundles/mine/live/mine.cedar")
        assert DENY_DRAIN == await hive.ann.read("/policy/bundles/mine/versions/1/mine.cedar")
        assert [] == await hive.ann.names("/policy/bundles/mine/draft")
        error = await refused(hive.ann.write("/ctl", "drain\n"))
        assert error.text.startswith("permission denied: rule=mine/no-drain ")
        await hive.ann.write("/policy/ctl", "rollback bundle=mine v=1\n")
        assert ["1"] == await hive.ann.names("/policy/bundles/mine/versions")

    served(story)


def test_a_bad_draft_stays_a_draft_and_is_told_with_its_line() -> None:
    async def story(hive: Served) -> None:
        await hive.ann.write("/policy/ctl", trust("ann", ANNS) + "\n")
        error = await refused(publish(hive.ann, "mine", bundle("\n" + DENY_DRAIN[:-2])))
        assert error.text.startswith("schema: mine.cedar:2: a policy does not end")
        assert ["draft"] == await hive.ann.names("/policy/bundles/mine")
        assert 3 == len(await hive.ann.names("/policy/bundles/mine/draft"))
        error = await refused(hive.ann.write("/policy/ctl", f"publish bundle=x sha256={'0' * 64} sig=0\n"))
        assert "schema: /policy/bundles/x/draft is empty" == error.text

    served(story)


def test_drafts_take_the_files_of_a_bundle_and_no_others() -> None:
    async def story(hive: Served) -> None:
        await draft(hive.ann, "mine", bundle(""))
        place = "/policy/bundles/mine/draft"
        assert E.USAGE is (await refused(hive.ann.create(place, "mine.exe"))).kind
        assert E.EXISTS is (await refused(hive.ann.create(place, "mine.cedar"))).kind
        again = await hive.ann.create(place, "mine.cedar", How(write=True, flags=LO.CREAT))
        await again.clunk()
        await (await hive.ann.walk(f"{place}/mine.cedar")).remove()
        assert not await hive.ann.exists(f"{place}/mine.cedar")
        bundles = await hive.ann.walk("/policy/bundles")
        assert E.EXISTS is (await refused(bundles.mkdir("mine", 0o755, 0))).kind
        assert E.NOTEMPTY is (await refused(bundles.unlinkat("mine", True))).kind
        assert E.READONLY is (await refused(bundles.unlinkat("default", True))).kind

    served(story)


def test_bundles_are_the_hives_own() -> None:
    async def story(hive: Served) -> None:
        assert [] == await hive.bob.names("/policy/bundles")
        assert "" == await hive.bob.read("/policy/snapshot") == await hive.bob.read("/policy/keys")
        assert not await hive.bob.exists("/policy/bundles/default")
        assert E.DENIED is (await refused((await hive.bob.walk("/policy/bundles")).mkdir("x", 0, 0))).kind
        assert E.DENIED is (await refused(ask(hive.bob, "explain", action="hive.drain"))).kind
        assert "ALLOW" == (await ask(hive.bob, "decide", action="jobs.submit"))["decision"]

    served(story)


def test_a_decision_is_told_as_a_command_would_have_it() -> None:
    async def story(hive: Served) -> None:
        said = await ask(hive.ann, "decide", action="jobs.submit", context={"args": {"topic": "sum"}})
        assert ("ALLOW", "default/operator-commands", "default", 1, shipped().sha256) == (
            said["decision"], said["rule"], said["bundle"], said["version"], said["sha256"]
        )  # fmt: skip
        assert "DENY" == (await ask(hive.eye, "decide", action="jobs.submit"))["decision"]
        assert "default/workers-work" == (await ask(hive.w1, "decide", action="pools.lease"))["rule"]
        await hive.ann.write("/nodes/ctl", "trust node=w1 level=red\n")
        assert "default/red-gets-no-work" == (await ask(hive.w1, "decide", action="pools.lease"))["rule"]

    served(story)


def test_asking_for_another_takes_the_right_to() -> None:
    async def story(hive: Served) -> None:
        other = {"id": "unix:x", "role": "observer"}
        assert "DENY" == (await ask(hive.ann, "decide", action="jobs.submit", principal=other))["decision"]
        error = await refused(ask(hive.eye, "decide", action="jobs.submit", principal=other))
        assert "permission denied: rule=default-deny role observer may not ask for others" == error.text
        foreign = await refused(ask(hive.bob, "decide", action="jobs.submit", principal=other))
        assert E.DENIED is foreign.kind

    served(story)


def test_a_job_is_known_by_its_path() -> None:
    async def story(hive: Served) -> None:
        job = await hive.submit("labels=team:red")
        booth = {"id": ANN.principal, "role": "interactive-ai-booth"}
        about = {"action": "jobs.cancel", "resource": {"id": f"/jobs/{job}"}}
        assert "default/own-jobs-cancel" == (await ask(hive.ann, "decide", principal=booth, **about))["rule"]
        other = booth | {"id": "unix:other"}
        assert "default-deny" == (await ask(hive.ann, "decide", principal=other, **about))["rule"]

    served(story)


def test_an_explanation_has_every_policy_and_why_it_did_not_match() -> None:
    async def story(hive: Served) -> None:
        said = await ask(hive.w1, "explain", action="pools.lease")
        by = {each["policy"]: each for each in said["policies"]}
        assert len(hive.state.policy.live.policies) == len(by)
        assert by["default/workers-work"]["matched"]
        assert ("principal", "operator.cedar") == (
            by["default/operator-commands"]["why"], by["default/operator-commands"]["file"]
        )  # fmt: skip
        assert "when clause 1" == by["default/red-gets-no-work"]["why"]
        assert "action" == by["default/devices-submit"]["why"]

    served(story)


def test_a_simulation_takes_the_draft_and_leaves_no_trace() -> None:
    async def story(hive: Served) -> None:
        await draft(hive.ann, "mine", bundle(DENY_DRAIN))
        before = hive.hive.turn.seq, len(hive.state.policy.live._remembered)
        said = await ask(hive.ann, "simulate", action="hive.drain", bundle="mine")
        assert ("DENY", "mine/no-drain", "ALLOW") == (said["decision"], said["rule"], said["now"]["decision"])
        assert "ALLOW" == (await ask(hive.ann, "decide", action="hive.drain"))["decision"]
        assert before == (hive.hive.turn.seq, len(hive.state.policy.live._remembered))

    served(story)


def test_a_question_that_is_none_is_told_why() -> None:
    async def story(hive: Served) -> None:
        for said, why in (
            ({"action": "jobs.submit", "context": {"waiting": "x"}}, "context.waiting: expected a Long"),
            ({"action": "jobs.submit", "context": {"wait": 1}}, "context.wait: expected one of args "),
            ({"action": "jobs.submit", "context": {"args": 1}}, "context.args: expected an object"),
            ({"acton": "jobs.submit"}, "Object contains unknown field `acton`"),
            ({"action": "x", "bundle": "none"}, "/policy/bundles/none/draft is empty"),
        ):
            error = await refused(ask(hive.ann, "simulate", **said))
            assert error.text.startswith("schema: ")
            assert why in error.text

    served(story)


def test_a_key_file_is_its_owners_alone_and_made_once(tmp_path: Path) -> None:
    made = keys.load_or_create(tmp_path / "keys" / "policy.key")
    assert made.public == keys.load_or_create(tmp_path / "keys" / "policy.key").public != SIGNER.public
    assert 0o600 == (tmp_path / "keys" / "policy.key").stat().st_mode & 0o777
    assert ["policy.key"] == [path.name for path in (tmp_path / "keys").iterdir()]
