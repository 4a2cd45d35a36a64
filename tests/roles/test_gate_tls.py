"""Who may attach with which certificate, as what, and to which tenant."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificate

from skep.fs.address import parse
from skep.fs.connection import Connection
from skep.fs.dial import Client
from skep.fs.errors import E, FsError
from skep.fs.fid import Fid
from skep.fs.identity import Identity, Pem
from skep.fs.messages import NOFID, NONUNAME, Dialect, Rattach, Tattach
from skep.roles.enrolling import parse_invite
from skep.roles.papers import Papers
from tests.fs.authority import Authority
from tests.networked import NAME, Enrolled, Networked, networked

pytestmark = pytest.mark.slow  # processes begin and end

OTHER = "acme/web/prod"
HOME = "default/default/default"


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Networked]:
    with networked(tmp_path_factory.mktemp("gate")) as found:
        yield found


@pytest.fixture(scope="module")
def ann(hive: Networked) -> Enrolled:
    """An operator of the hive's own tenant."""
    return hive.enroll("operator", "ann")


@pytest.fixture(scope="module")
def bob(hive: Networked) -> Enrolled:
    """An operator of another tenant."""
    return hive.enroll("operator", "bob", "--tenant", OTHER)


@pytest.fixture(scope="module")
def w1(hive: Networked) -> Enrolled:
    return hive.enroll("drone-worker", "w1")


async def whoami(client: Client) -> dict[str, str]:
    text = (await client.read_file("/whoami")).decode()
    return dict(line.split(" ", 1) for line in text.splitlines())


def attached(who: Enrolled, **more: str) -> dict[str, str]:
    async def ask() -> dict[str, str]:
        async with await who.connect(**more) as client:
            return await whoami(client)

    return asyncio.run(ask())


def refused(who: Enrolled, **more: str) -> FsError:
    with pytest.raises(FsError) as caught:
        attached(who, **more)
    return caught.value


@pytest.mark.parametrize("uname", [None, "", "nobody", "ann", f"spiffe://{NAME}/operator/ann"])
def test_the_certificate_is_the_principal(ann: Enrolled, uname: str | None) -> None:
    found = attached(ann, **({} if uname is None else {"uname": uname}))
    assert (f"spiffe://{NAME}/operator/ann", "operator", HOME) == (
        found["principal"],
        found["role"],
        found["tenant"],
    )
    assert "node" not in found


@pytest.mark.parametrize(
    "uname", ["root", "w1", "Ann", f"spiffe://{NAME}/operator/w1", "spiffe://other/operator/ann"]
)
def test_a_uname_that_says_otherwise_is_refused(ann: Enrolled, uname: str) -> None:
    error = refused(ann, uname=uname)
    assert E.UNAUTHENTICATED is error.kind
    assert f"uname {uname!r}: the certificate says 'ann'" in error.detail
    assert error.detail.count("trace=") <= 1


def test_an_operator_of_the_hive_attaches_to_any_tenant_that_could_be_one(ann: Enrolled) -> None:
    assert OTHER == attached(ann, aname=OTHER)["tenant"]
    assert [E.MISSING] * 3 == [
        refused(ann, aname=aname).kind for aname in ("acme/web", "../../etc", "a/b/c/d")
    ]


def test_another_tenants_operator_finds_no_other_tenant(bob: Enrolled) -> None:
    assert [OTHER, OTHER] == [attached(bob, aname=aname)["tenant"] for aname in ("", OTHER)]
    foreign, nowhere = refused(bob, aname=HOME), refused(bob, aname="no/such/tenant")
    assert (E.MISSING, foreign.text) == (nowhere.kind, nowhere.text)


def test_a_worker_is_its_node_and_sees_no_more_than_that(w1: Enrolled) -> None:
    async def look() -> tuple[dict[str, str], list[str], list[E]]:
        async with await w1.connect() as client:
            kinds = []
            for path in ("/sessions", "/trust/ctl", "/trust/enroll", "/trust/keys", "/nodes/w2", "/ctl"):
                with pytest.raises(FsError) as caught:
                    await client.stat(path)
                kinds.append(caught.value.kind)
            names = [entry.name for entry in await client.listdir("/trust")]
            return await whoami(client), names, kinds

    found, names, kinds = asyncio.run(look())
    assert ("drone-worker", "w1") == (found["role"], found["node"])
    assert ["ca.pem", "crl.pem", "renew"] == sorted(names)
    assert [E.MISSING] * 6 == kinds


def test_one_certificate_may_be_here_twice_and_another_principal_may_not(
    hive: Networked, w1: Enrolled
) -> None:
    async def look() -> tuple[str, str, E]:
        async with await w1.connect() as one, await w1.connect() as two:
            with pytest.raises(FsError) as caught:
                await Client.connect(hive.workers, uname="w1", dialect=Dialect.U)
            return (await whoami(one))["node"], (await whoami(two))["node"], caught.value.kind

    assert ("w1", "w1", E.BUSY) == asyncio.run(look())


def test_a_nodes_name_stays_the_certificates_when_it_is_not_here(hive: Networked, w1: Enrolled) -> None:
    attached(w1)

    async def impostor() -> None:
        await Client.connect(hive.workers, uname="w1", dialect=Dialect.U)

    with pytest.raises(FsError) as caught:
        asyncio.run(impostor())
    assert E.DENIED is caught.value.kind


@pytest.mark.parametrize(
    ("role", "node"),
    [
        ("sensor-relay", "eye1"),
        ("cuda-annex", "gpu1"),
        ("boot-lab", "lab1"),
        ("validator", "v1"),
        ("kiosk-interactive", ""),
    ],
)
def test_a_role_is_a_nodes_when_it_has_a_place_of_its_own(hive: Networked, role: str, node: str) -> None:
    who = hive.enroll(role, node or role)
    found = attached(who)
    assert (role, node) == (found["role"], found.get("node", ""))


def test_who_comes_to_enrol_sees_what_that_needs_and_nothing_else(hive: Networked) -> None:
    pin = parse_invite(hive.invite("observer", "new")).spki

    async def look() -> tuple[dict[str, list[str]], list[E]]:
        async with await Client.connect(hive.tls, pin=pin, dialect=Dialect.U) as client:
            seen = {path: [e.name for e in await client.listdir(path)] for path in ("/", "/trust")}
            kinds = []
            for path in (
                "/whoami",
                "/jobs",
                "/nodes",
                "/trust/renew",
                "/trust/crl.pem",
                "/trust/ctl",
                "/ctl",
            ):
                with pytest.raises(FsError) as caught:
                    await client.stat(path)
                kinds.append(caught.value.kind)
            return {path: sorted(names) for path, names in seen.items()}, kinds

    seen, kinds = asyncio.run(look())
    assert {"/": ["trust", "version"], "/trust": ["ca.pem", "enroll"]} == seen
    assert [E.MISSING] * 7 == kinds


def test_one_connection_of_a_node_is_that_node_in_every_attach(w1: Enrolled) -> None:
    async def look() -> list[str]:
        async with await w1.connect() as client:
            fid = client.connection.session.take_fid()
            reply = await client.connection.rpc(Tattach(fid, NOFID, "w1", "", NONUNAME), Rattach)
            again = Client(client.connection, Fid(client.connection, fid, reply.qid))
            return [(await whoami(one))["session"] for one in (client, again)]

    first, second = asyncio.run(look())
    assert first == second


@pytest.mark.parametrize("name", ["operator/ghost", "operator/w1", "drone-worker/w1"])
def test_what_a_stolen_ca_key_signs_is_nothing_that_the_hive_granted(
    hive: Networked, w1: Enrolled, name: str
) -> None:
    """Nor is it when it has the serial number of a certificate that the hive did grant."""
    granted = None if name.endswith("ghost") else Papers(w1.directory).certificate().serial_number
    bundle = (hive.ask("cat", "/trust/ca.pem") + "\n").encode()
    [stolen] = (hive.directory / "keys").glob("ca-*.key")
    key = load_pem_private_key(stolen.read_bytes(), None)
    assert isinstance(key, EllipticCurvePrivateKey)
    forger = Authority(key=key)
    forger.certificate = load_pem_x509_certificate(bundle)
    forger.subject = forger.certificate.subject
    issued = forger.issue(f"spiffe://{NAME}/{name}", serial=granted)
    identity = Identity(lambda: Pem(issued.pem, issued.key_pem, bundle))

    async def come() -> None:
        await Client.connect(hive.tls, identity=identity, dialect=Dialect.U)

    with pytest.raises(FsError) as caught:
        asyncio.run(come())
    assert E.UNAUTHENTICATED is caught.value.kind
    assert "is no certificate that this hive granted" in caught.value.detail


def test_plaintext_is_no_way_in(hive: Networked) -> None:
    async def dial() -> None:
        async with asyncio.timeout(30):
            await Connection.open(parse(hive.tls.replace("tls:", "tcp:")))

    with pytest.raises((FsError, OSError)):
        asyncio.run(dial())
