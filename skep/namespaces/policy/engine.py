"""Decisions: the bundles that are live, parsed once, asked for each request. Pure but for what it remembers.

All live bundles are asked. The strictest match wins, whatever the order: DENY, REQUIRE_APPROVAL, THROTTLE,
ALLOW_WITH_CONSTRAINTS, ALLOW. No match, an error in any policy, a bundle that does not parse: DENY.
The bundles ``default`` and ``operator`` grant. Those of others can only take away: what they permit counts
when one of the two permits it as well, and what they forbid is forbidden.

A decision is remembered under the values of exactly what the policies refer to that concern its action and
the role of its principal.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

import cedarpy
import msgspec
from cedarpy import pst

from skep.namespaces.policy.bundle import DECISIONS, BundleError, Rule, rules_of, unpack
from skep.namespaces.policy.constraint import Constraint
from skep.namespaces.policy.references import (
    NotUnderstood,
    concerns,
    dismisses,
    references,
)
from skep.namespaces.policy.request import (
    ACTION,
    ARGS,
    ATTRIBUTES,
    PRINCIPAL,
    PRINCIPAL_ROLE,
    RESOURCE,
    ROLE,
    TAGS,
    Name,
    Request,
    Value,
    cedar_value,
)
from skep.namespaces.policy.schema import group_of
from skep.trace.entry import canonical

GRANTING: Final = frozenset({"default", "operator"})
REMEMBERED_MAX: Final = 65536  # decisions, some hundred bytes each
ACTIONS_MAX: Final = 1024  # of a role, whose policies are kept apart: a request by hand may name any
ENGINES_MAX: Final = 16  # states share one; a publish and its tests make another
DEFAULT_DENY: Final = "default-deny"
REF_HEX: Final = 16  # digits of an approval's reference
_STRICTNESS: Final = {decision: i for i, decision in enumerate(DECISIONS)}


class Live(NamedTuple):
    """One live bundle; ``packed`` is its content."""

    bundle: str
    v: int
    sha256: str
    packed: str


class Ruling(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was decided, by which policy. ``reasons``: every policy of that strictness that matched."""

    decision: str
    rule: str  # bundle/id; default-deny, error/…, broken/…
    bundle: str = ""
    version: int = 0
    sha256: str = ""
    constraints: tuple[Constraint, ...] = ()
    retry_ms: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return self.decision == "ALLOW"


class Placed(NamedTuple):
    """A policy of a live bundle."""

    live: Live
    rule: Rule

    @property
    def name(self) -> str:
        return f"{self.live.bundle}/{self.rule.id}"

    @property
    def grants(self) -> bool:
        return self.live.bundle in GRANTING


class _Concerned(NamedTuple):
    """The policies that an action of a role concerns. ``seen`` None: decisions are not to be remembered.
    ``typed``: whether each value that is seen has one type, whatever the request."""

    policies: tuple[Placed, ...]
    handle: cedarpy.PolicySet
    seen: tuple[Name, ...] | None
    typed: bool


class Engine:
    """The policies of some live bundles. Made by ``engine``, which keeps them."""

    def __init__(self, live: Sequence[Live]) -> None:
        self.policies: list[Placed] = []
        self.broken = ""  # the bundle that cannot be used, and why; "": all can
        for each in live:
            try:
                self.policies += (Placed(each, rule) for rule in rules_of(unpack(each.packed)))
            except BundleError as error:
                self.broken = self.broken or f"{each.bundle}: {error}"
        self._concerned: dict[tuple[str, Value | None], _Concerned] = {}  # by action and role
        self._remembered: OrderedDict[tuple[Any, ...], Ruling] = OrderedDict()

    def __deepcopy__(self, memo: dict[int, Any]) -> Engine:
        """Itself: nothing of it changes but what it remembers."""
        return self

    def decide(self, request: Request) -> Ruling:
        """The ruling on the request, remembered or new."""
        whose = request.action, request.value(PRINCIPAL_ROLE)
        concerned = self._concerned.get(whose) or self._concerning(*whose)
        if concerned.seen is None:
            return self.ask(request)
        values = map(request.value, concerned.seen)
        key = (*whose, *(values if concerned.typed else map(_key, values)))
        found = self._remembered.get(key)
        if found is None:
            found = self._remembered[key] = self.ask(request)
            if len(self._remembered) > REMEMBERED_MAX:
                self._remembered.popitem(last=False)
        else:
            self._remembered.move_to_end(key)
        return found

    def ask(self, request: Request) -> Ruling:
        """The ruling on the request, from Cedar."""
        if self.broken:
            return Ruling("DENY", f"broken/{self.broken.partition(':')[0]}")
        whose = request.action, request.value(PRINCIPAL_ROLE)
        concerned = self._concerned.get(whose) or self._concerning(*whose)
        answer = _ask(concerned.handle, request, concerned.seen)
        matched = [concerned.policies[int(id.removeprefix("policy"))] for id in answer.diagnostics.reasons]
        if answer.diagnostics.errors:
            return Ruling("DENY", "error/policy", reasons=tuple(sorted(answer.diagnostics.errors)))
        return _strictest(matched)

    def _concerning(self, action: str, role: Value | None) -> _Concerned:
        if len(self._concerned) >= ACTIONS_MAX:
            self._concerned.clear()
        group = group_of(action)
        found = tuple(
            each
            for each in self.policies
            if concerns(each.rule.tree, action, group) and not dismisses(each.rule.tree, str(role))
        )
        # Policies are called policy0, policy1 … as they stand in the text.
        handle = cedarpy.PolicySet.from_str("\n".join(each.rule.text for each in found))
        assert len(handle) == len(found)
        seen: tuple[Name, ...] | None = None
        with contextlib.suppress(NotUnderstood):
            seen = tuple(sorted({name for each in found for name in references(each.rule.tree)}))
        typed = seen is not None and not any(name[:2] == ARGS for name in seen)
        self._concerned[action, role] = concerned = _Concerned(found, handle, seen, typed)
        return concerned

    def explain(self, request: Request) -> Iterator[dict[str, object]]:
        """Every policy, whether it matched, and why not."""
        for each in self.policies:
            why = _why_not(each.rule.tree, request)
            yield {
                "policy": each.name, "decision": each.rule.decision, "matched": not why,
                "file": each.rule.file, "line": each.rule.line, "version": each.live.v,
            } | ({"why": why} if why else {})  # fmt: skip


@lru_cache(maxsize=ENGINES_MAX)
def engine(live: tuple[Live, ...]) -> Engine:
    """The engine of these bundles, the same for the same."""
    return Engine(live)


def _strictest(matched: Sequence[Placed]) -> Ruling:
    if not any(each.grants or each.rule.decision == "DENY" for each in matched):
        return Ruling("DENY", DEFAULT_DENY, reasons=tuple(sorted(each.name for each in matched)))
    decision = min((each.rule.decision for each in matched), key=_STRICTNESS.__getitem__)
    # By name, so that the order of policies and bundles changes nothing.
    deciding = sorted(
        (each for each in matched if each.rule.decision == decision), key=lambda each: each.name
    )
    first = deciding[0]
    return Ruling(
        decision,
        first.name,
        first.live.bundle,
        first.live.v,
        first.live.sha256,
        # Nothing that constrains is dropped: all of them hold.
        tuple(sorted({one for each in deciding for one in each.rule.constraints})),
        max(each.rule.retry_ms for each in deciding),
        tuple(each.name for each in deciding),
    )


def approval_ref(request: Request, ruling: Ruling) -> str:
    """The name of the approval that is asked for: of this request, by this version of the rule."""
    payload = request.value(("context", "payload"))
    said = (request.principal, request.action, request.resource, payload, ruling.rule, ruling.sha256)
    return sha256(canonical(said)).hexdigest()[:REF_HEX]


# Cedar's form of a request


def _key(value: Value | None) -> object:
    """The value where 1 is not True, as they are to Python and are not to Cedar."""
    return (value,) if type(value) is bool else value


def _ask(
    policies: cedarpy.PolicySet, request: Request, seen: tuple[Name, ...] | None = None
) -> cedarpy.AuthzResult:
    """Cedar's answer, from the values ``seen``; None: from all there are."""
    if seen is None:
        seen = (
            *ATTRIBUTES,
            *((*ARGS, name) for name in request.args),
            *((*TAGS, tag) for tag in request.tags),
        )
    principal: dict[str, Any] = {}
    resource: dict[str, Any] = {}
    tags: dict[str, Any] = {}
    args: dict[str, Any] = {}
    context: dict[str, Any] = {"args": args}
    places = {"principal": principal, "resource": resource, "context": context}
    for name in seen:
        value = None if len(name) == 1 else request.value(name)
        if value is None:
            continue
        place = tags if name[:2] == TAGS else args if name[:2] == ARGS else places[name[0]]
        place[name[-1]] = cedar_value(name, value)
    role = request.value(("principal", "role"))
    who = {"type": PRINCIPAL, "id": request.principal}
    what = {"type": ACTION, "id": request.action}
    which = {"type": RESOURCE, "id": request.resource}
    group = group_of(request.action)
    groups = [{"type": ACTION, "id": group}] if group != request.action else []
    entities: list[dict[str, Any]] = [
        {"uid": who, "attrs": principal, "parents": [{"type": ROLE, "id": role}]},
        {"uid": what, "attrs": {}, "parents": groups},
        {"uid": which, "attrs": resource, "parents": [], "tags": tags},
    ]
    asked = {"principal": who, "action": what, "resource": which, "context": context}
    return cedarpy.is_authorized(asked, policies, entities)


# explaining


def _why_not(tree: pst.Template, request: Request) -> str:
    """The first part of the policy that the request does not satisfy; "": it satisfies all."""
    if not _matches(tree, request):
        for name, part in _parts(tree):
            if not _matches(part, request):
                return name
    return ""


def _parts(tree: pst.Template) -> Iterator[tuple[str, pst.Template]]:
    """Each part of the policy as one of its own. A clause is asked with those before it, which guard it."""
    bare = dataclasses.replace(
        tree, principal=pst.ScopeAny(), action=pst.ScopeAny(), resource=pst.ScopeAny(), clauses=()
    )
    yield "principal", dataclasses.replace(bare, principal=tree.principal)
    yield "action", dataclasses.replace(bare, action=tree.action)
    yield "resource", dataclasses.replace(bare, resource=tree.resource)
    for i, clause in enumerate(tree.clauses):
        kind = "when" if isinstance(clause, pst.When) else "unless"
        yield f"{kind} clause {i + 1}", dataclasses.replace(tree, clauses=tree.clauses[: i + 1])


def _matches(tree: pst.Template, request: Request) -> bool:
    alone = dataclasses.replace(tree, id="policy0", annotations=pst.FrozenMap())
    handle = cedarpy.PolicySet.from_pst(pst.PolicySet(pst.FrozenMap(), pst.FrozenMap({"policy0": alone}), ()))
    return bool(_ask(handle, request).diagnostics.reasons)


def told(ruling: Ruling) -> Mapping[str, object]:
    """A ruling as JSON tells it."""
    said: dict[str, object] = msgspec.to_builtins(ruling)
    return said | ({"constraints": [str(each) for each in ruling.constraints]} if ruling.constraints else {})
