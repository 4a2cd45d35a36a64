from __future__ import annotations

import msgspec
import pytest
from hives import ANN, BOB, W1, W2, Folded

from skep.fs.node import Caller
from skep.trace.clock import MINUTE
from skep.trace.rules import Refusal

A, B = "ab" * 32, "cd" * 32
W1_FOR_BOB = msgspec.structs.replace(W1, tenant=BOB.tenant)


@pytest.fixture
def hive() -> Folded:
    return Folded()


def refusal(hive: Folded, path: str, line: str, who: Caller = ANN) -> str:
    with pytest.raises(Refusal) as caught:
        hive.write(path, line, who)
    return f"{caught.value.code} {caught.value.text}"


def test_a_pool_has_its_own_lease_and_topics(hive: Folded) -> None:
    assert "images" == hive.write("/pools/ctl", "create pool=images lease=1m")
    hive.write("/pools/ctl", "map topic=thumb pool=images")
    job = hive.write("/jobs/ctl", "submit topic=thumb")
    assert [job] == hive.state.jobs.waiting("images")
    hive.write("/pools/images/next", "lease", W1)
    assert hive.clock.now_ns() + MINUTE == hive.state.jobs.by_id[job].until_ns


def test_a_pool_is_made_once_and_named_before_it_is_used(hive: Folded) -> None:
    assert "EXISTS file exists: pool=default" == refusal(hive, "/pools/ctl", "create pool=default")
    said = "USAGE usage: map: pool=none: there is no such pool"
    assert said == refusal(hive, "/pools/ctl", "map topic=a pool=none")
    said = "USAGE usage: create: lease=10ms: expected 1s or more"
    assert said == refusal(hive, "/pools/ctl", "create pool=p lease=10ms")


def test_an_unmapped_topic_is_refused_and_its_waiting_jobs_stay(hive: Folded) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum")
    hive.write("/pools/ctl", "unmap topic=sum")
    assert "NOROUTE no_pool_mapping: topic=sum" == refusal(hive, "/jobs/ctl", "submit topic=sum")
    assert "NOROUTE no_pool_mapping: topic=sum" == refusal(hive, "/pools/ctl", "unmap topic=sum")
    assert job == hive.write("/pools/default/next", "lease", W1)


def test_a_pool_that_was_drained_can_go_on(hive: Folded) -> None:
    hive.write("/jobs/ctl", "submit topic=sum")
    hive.write("/pools/ctl", "drain pool=default")
    assert "NODATA" == refusal(hive, "/pools/default/next", "lease", W1).split(" ")[0]
    hive.write("/pools/ctl", "resume pool=default")
    hive.write("/pools/default/next", "lease", W1)


def test_a_nodes_state_is_the_first_thing_that_is_wrong(hive: Folded) -> None:
    states = []
    for path, line in [
        ("/nodes/ctl", "cordon node=w1"),
        ("/nodes/w1", "suspect"),
        ("/nodes/w1", "back"),
        ("/nodes/ctl", "drain node=w1"),
        ("/nodes/ctl", "uncordon node=w1"),
    ]:
        hive.hive(path, line) if path != "/nodes/ctl" else hive.write(path, line)
        states.append(hive.state.nodes.by_id["w1"].state)
    assert ["cordoned", "suspect", "cordoned", "draining", "online"] == states


def test_a_node_that_holds_leases_cannot_be_removed(hive: Folded) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum")
    hive.write("/pools/default/next", "lease", W1)
    said = "CONFLICT conflict: w1 holds 1 leases: drain it, or wait for their end"
    assert said == refusal(hive, "/nodes/ctl", "remove node=w1")
    hive.write("/jobs/ctl", f"cancel job={job}")
    hive.write("/nodes/ctl", "remove node=w1")
    assert "USAGE usage: cordon: node=w1: there is no such node" == refusal(
        hive, "/nodes/ctl", "cordon node=w1"
    )


def test_only_the_hive_says_who_joined(hive: Folded) -> None:
    said = "DENIED permission denied: rule=own-verbs lost is the hive's alone"
    assert said == refusal(hive, "/nodes/w1", "lost")


def test_a_name_is_the_latest_bytes_sealed_under_it(hive: Folded) -> None:
    assert f"sha256:{A}" == hive.write("/artifacts/ctl", f"seal name=f sha256={A} size=3 type=text/plain")
    hive.write("/artifacts/ctl", f"seal name=f sha256={B} size=4")
    assert B == hive.state.artifact_named(ANN.tenant, "f")
    assert hive.state.artifact_named(BOB.tenant, "f") is None
    assert (3, "text/plain") == (
        hive.state.artifacts.by_hash[ANN.tenant][A].size, hive.state.artifacts.by_hash[ANN.tenant][A].media
    )  # fmt: skip


def test_bytes_sealed_twice_are_kept_as_long_as_the_longer_class_says(hive: Folded) -> None:
    hive.write("/artifacts/ctl", f"seal name=f sha256={A} size=3 class=audit")
    hive.write("/artifacts/ctl", f"seal name=g sha256={A} size=3 class=short")
    artifact = hive.state.artifacts.by_hash[ANN.tenant][A]
    assert ("audit", "g") == (artifact.kind, artifact.name)


def test_a_node_seals_the_outputs_of_jobs_it_holds_for_their_tenant(hive: Folded) -> None:
    job = hive.write("/jobs/ctl", "submit topic=sum", BOB)
    hive.write("/pools/default/next", "lease", W1)
    # The door puts what a node does to a job into the job's tenant.
    hive.write("/artifacts/ctl", f"seal name=out sha256={A} size=3 job={job}", W1_FOR_BOB)
    assert {job: {"out": A}} == hive.state.artifacts.outputs
    assert [BOB.tenant] == list(hive.state.artifacts.by_hash)
    assert hive.state.artifact_named(BOB.tenant, "out") is None
    line = f"seal name=out sha256={A} size=3"
    assert "DENIED permission denied: rule=lease-holder" == refusal(
        hive, "/artifacts/ctl", f"{line} job={job}", W2
    )
    assert "DENIED" == refusal(hive, "/artifacts/ctl", f"{line} job={job}", BOB).split(" ")[0]
    assert "USAGE" == refusal(hive, "/artifacts/ctl", line, W1).split(" ")[0]
