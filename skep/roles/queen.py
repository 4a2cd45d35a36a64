"""A queen: opens the ledger, puts hive, tree and gates together, and listens.

What it is, a manifest says; who comes in through which socket, gate.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import msgspec

from skep.fs.address import Address
from skep.fs.errors import FsError
from skep.fs.identity import Identity
from skep.fs.server import Listener, listen
from skep.fs.spiffe import Spiffe
from skep.namespaces.boot.starts import FILE as STARTS
from skep.namespaces.boot.starts import Setting, Starts
from skep.namespaces.hive import OPERATOR, UNRECORDED, WORKER, HiveRules
from skep.namespaces.live import Hive, HiveTurn
from skep.namespaces.policy.keys import BadKey
from skep.namespaces.stored import Begun, newest
from skep.namespaces.tree import hive_tree
from skep.namespaces.trust.authority import NODE_TTL_NS, Authority, AuthorityError
from skep.namespaces.trust.keys import KeyStoreError
from skep.namespaces.validator.runs import ROLE as VALIDATOR
from skep.roles.alone import Held, alone
from skep.roles.gate import ANNEX, Doorkeeper
from skep.roles.manifest import Manifest, load
from skep.roles.sealed import Source
from skep.roles.signals import on_hangup, told_signals
from skep.roles.snapshots import EVERY, Maker, own_keys
from skep.trace.clock import SECOND, SystemClock, parse_duration
from skep.trace.ledger import Ledger, LedgerError, LedgerTampered, open_ledger
from skep.trace.snapshot import listed
from skep.trace.turn import Turn, TurnStopped

log = logging.getLogger("skep.queen")
YOUNG_MAX: Final = 20_000  # objects made and kept between two looks for cycles: those of some hundred jobs
QUEENS: Final = ("queen-primary",)  # the roles that serve a hive
LOCK: Final = "queen.lock"
NODE: Final = "queen"  # what its certificate calls it: the host's name is often a worker's
AS_CERTIFIED: Final = "its certificate says"  # the role of a TLS peer
GRACE_STEP_S: Final = 0.1  # between two looks at whether the last job has ended
PARTING_S: Final = 0.5  # between an order to shut down and the cut of the connection it came by


class QueenError(Exception):
    """The queen cannot begin, or cannot go on; the text says why and what to do."""


class Plan(msgspec.Struct, frozen=True):
    """What a queen is told. ``pools``: the lines for /pools/ctl of a hive that has no pool yet."""

    directory: Path
    role: str = "queen-primary"
    ledger: str = ""  # "": in the directory
    listen: tuple[Address, ...] = ()  # Unix: for operators; TCP: as tcp_role; TLS: by certificate
    listen_workers: tuple[Address, ...] = ()
    listen_validators: tuple[Address, ...] = ()
    listen_annexes: tuple[Address, ...] = ()
    tcp_role: str = "observer"
    pools: tuple[str, ...] = ()
    name: str = ""  # of the hive; "": the one it has, else one made up
    kms: str = ""  # what its keys are encrypted with, or kept in; "": in the directory as they are
    certificate_ttl_ns: int = NODE_TTL_NS  # of a node's
    artifacts: str = ""  # the URL of an object store for them; "": in the directory
    snapshot_every: int = EVERY  # entries from one snapshot to the next; 0: none are made
    settings: tuple[Setting, ...] = ()  # as /boot/config tells them
    began_ns: int = 0  # when the process was told to begin; 0: now


async def serve(plan: Plan, say: Callable[[str], None]) -> None:
    """Serve until a signal, or ``shutdown`` written to /ctl; ``say`` gets a line for each address, then
    ``ready``. Raises QueenError, ManifestError, ValueError for an address that may not be served."""
    if plan.role not in QUEENS:
        raise QueenError(f"role {plan.role!r} serves no hive: expected one of {' '.join(QUEENS)}")
    load(plan.role)  # no manifest, no queen
    plan.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone(plan.directory), told_signals() as told:
        version = metadata.version("skep")
        starts = Starts(plan.directory / STARTS, SystemClock(), version, plan.settings, plan.began_ns)
        starts.ended("preboot")
        async with _hive(plan) as hive, contextlib.AsyncExitStack() as stack:
            hive.starts = starts
            root = hive_tree(hive)
            for address, manifest in _doors(plan):
                keeper = Doorkeeper(hive, root, manifest)
                listener = await stack.enter_async_context(_listening(hive, keeper, address))
                if address.kind == "tls":
                    hive.reached_at.append(str(listener.address))
                say(f"serving {listener.address} as {manifest.role if manifest else AS_CERTIFIED}")
            stack.enter_context(on_hangup(lambda: hive.later(_reload_limits(hive))))
            say("ready")
            starts.ended("boot")
            await _until_told(hive, told)
            starts.ended("online")
        starts.ended("shutdown")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    try:
        with alone(directory / LOCK):
            yield
    except Held as error:
        raise QueenError(f"{directory}: another queen (pid {error}) serves this hive") from None


def _listening(
    hive: Hive, keeper: Doorkeeper, address: Address
) -> contextlib.AbstractAsyncContextManager[Listener]:
    if address.kind != "tls":
        return listen(keeper, address)
    authority = hive.authority
    assert authority is not None, "_hive has begun it"
    identity = Identity(authority.queen_pem, hive.clock)
    authority.changed.append(lambda: _reload(identity))
    return listen(keeper, address, identity=identity, refused=hive.refused, enrol=True)


async def _reload_limits(hive: Hive) -> None:
    try:
        await hive.say("/ctl", "reload")
    except FsError as error:
        log.warning("reload: %s", error)


def _reload(identity: Identity) -> None:
    """Sessions of who is not to be believed any more end here."""
    try:
        identity.reload()
    except ValueError:
        log.exception("what is trusted now cannot be used; it stays as it was")


def _doors(plan: Plan) -> Iterator[tuple[Address, Manifest | None]]:
    """Each address, and the manifest of everybody who comes that way; None: their certificate's."""
    for address in (
        *plan.listen,
        *plan.listen_workers,
        *plan.listen_validators,
        *plan.listen_annexes,
    ):
        if address.kind == "unix":
            _check_folder(Path(address.path).parent)
    roles = {"unix": OPERATOR, "tcp": plan.tcp_role}
    for address in plan.listen:
        yield address, load(roles[address.kind]) if address.kind in roles else None
    nodes = (
        (WORKER, "workers", plan.listen_workers),
        (VALIDATOR, "validators", plan.listen_validators),
        (ANNEX, "annexes", plan.listen_annexes),
    )
    for role, who, addresses in nodes:
        for address in addresses:
            if address.kind != "unix":
                raise QueenError(f"{address}: {who} come by a Unix socket, or by TLS to a --listen address")
            yield address, load(role)


def _check_folder(folder: Path) -> None:
    """Refuse a folder in which another user could put a socket of his own in the place of ours."""
    if not folder.exists():
        return  # it will be made, and be ours
    found = folder.stat()
    writable = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if found.st_uid not in (os.getuid(), 0) or writable:
        raise QueenError(f"{folder} is not yours alone: expected a folder that others cannot write to")


@contextlib.asynccontextmanager
async def _hive(plan: Plan) -> AsyncIterator[Hive]:
    """The hive of the plan's ledger, begun; closed with its ledger at the end."""
    url = plan.ledger or f"sqlite://{plan.directory.resolve()}/ledger.db"
    try:
        ledger = open_ledger(url)
        with contextlib.closing(ledger):
            begun = _begun(plan, ledger)
            turn = _folded(ledger, begun)
            try:
                version = metadata.version("skep")
                hive = Hive(turn, SystemClock(), plan.directory, version, artifacts=plan.artifacts)
                try:
                    async with _authority(plan, hive), _snapshots(plan, hive, url, begun):
                        yield hive
                finally:
                    await hive.close()
            finally:
                await turn.close()
    except LedgerTampered as error:
        raise QueenError(f"integrity: {error.where} (ledger {url})") from error
    except LedgerError as error:
        raise QueenError(f"ledger {url}: {error}") from error


def _begun(plan: Plan, ledger: Ledger) -> Begun | None:
    """The newest snapshot that this hive has signed; None: there is none, all is folded."""
    if not listed(plan.directory):
        return None
    try:
        begun = newest(plan.directory, ledger, own_keys(plan.directory, plan.kms).keys())
    except (KeyStoreError, BadKey) as error:
        # What is to be done about it, the authority tells.
        log.warning("snapshots are passed over: %s", error)
        return None
    if begun is not None:
        log.info("what is before entry %d is in a snapshot", begun.seq + 1)
    return begun


@contextlib.asynccontextmanager
async def _snapshots(plan: Plan, hive: Hive, url: str, begun: Begun | None) -> AsyncIterator[None]:
    """Within it snapshots of the hive are made, unless it is to have none."""
    if not plan.snapshot_every:
        yield
        return
    command = [sys.executable, "-P", "-m", "skep", "snapshot", str(plan.directory), "--ledger", url]
    last = 0 if begun is None else begun.seq
    making = asyncio.create_task(Maker(hive, command, plan.snapshot_every, last).run())
    try:
        yield
    finally:
        making.cancel()
        await asyncio.wait([making])


def _folded(ledger: Ledger, begun: Begun | None) -> HiveTurn:
    """The ledger's turn. Cycles are not looked for while it is folded, less often afterwards, and never among
    what it was folded to: that stays, and what a request leaves behind goes without being looked for."""
    gc.disable()
    try:
        state, seq = begun or (None, 0)
        turn = Turn(ledger, HiveRules(), UNRECORDED, begun=state, known=seq)
    finally:
        gc.enable()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX)
    return turn


@contextlib.asynccontextmanager
async def _authority(plan: Plan, hive: Hive) -> AsyncIterator[None]:
    """Within it the hive has begun, and signs certificates; its keys are made at its first start."""
    name = plan.name or hive.state.trust.hive or f"hive-{secrets.token_hex(4)}"
    roles = Source.told().roles()
    try:
        authority = Authority.open(plan.directory, plan.kms, plan.certificate_ttl_ns, roles, hive.clock)
        with contextlib.closing(authority):
            try:
                await hive.establish(authority, Spiffe(name, plan.role, NODE))
                await hive.start(plan.pools)
            except FsError as error:
                raise QueenError(f"the hive does not begin: {error}") from error
            yield
    except (AuthorityError, KeyStoreError) as error:
        raise QueenError(f"the hive's keys: {error}") from error


async def _until_told(hive: Hive, told: asyncio.Event) -> None:
    """Return when it is time to stop; the hive has been told. Raises QueenError when it cannot go on."""
    timers = asyncio.create_task(hive.run())
    failed = asyncio.create_task(hive.turn.wait_failed())
    signalled = asyncio.create_task(told.wait())
    tasks = (timers, failed, signalled)
    try:
        await asyncio.wait((*tasks, hive.shutdown), return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            raise QueenError(_why(failed.result()))
        if timers.done():
            raise QueenError(_why(timers.exception()))
        if hive.shutdown.done():
            await _quiesce(hive, hive.shutdown.result(), signalled)
            # Who wrote the order hears that it was taken.
            await asyncio.sleep(PARTING_S)
        elif hive.state.mode == "online":
            # Workers keep their leases, and find their way back after the next start, which takes this back;
            # a drained hive is drained still.
            try:
                await hive.say("/ctl", "shutdown")
            except FsError as error:
                # On a full disk it is not written down, and the next start needs nothing of it.
                log.warning("shutdown: %s", error)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _quiesce(hive: Hive, grace: str, signalled: asyncio.Task[bool]) -> None:
    """Return when no lease is held any more, when the grace is over, or at a signal."""
    until_ns = hive.clock.now_ns() + (parse_duration(grace) if grace else 0)
    log.info("shutting down, grace %s", grace or "none")
    while hive.state.jobs.held and hive.clock.now_ns() < until_ns:
        left_s = (until_ns - hive.clock.now_ns()) / SECOND
        done, _ = await asyncio.wait((signalled,), timeout=min(GRACE_STEP_S, left_s))
        if done:
            return


def _why(error: BaseException | None) -> str:
    """What stopped the hive, in one line."""
    cause = error.__cause__ if isinstance(error, TurnStopped) and error.__cause__ else error
    if isinstance(cause, LedgerTampered):
        return f"integrity: {cause.where}"
    return f"the hive has stopped: {cause}"
