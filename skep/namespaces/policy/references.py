"""Which values of a request a policy can see: read from its syntax tree, so that nothing else need be given.

What is not understood raises NotUnderstood, and then the policy is given everything and its decision is not
remembered. So a decision remembered under the values found here is the decision, by construction.
Source: the Cedar policy language reference, policy syntax; cedarpy.pst.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeGuard

from cedarpy import pst

from skep.namespaces.policy.request import (
    ARGS,
    ATTRIBUTES,
    PRINCIPAL_ID,
    PRINCIPAL_ROLE,
    RESOURCE_ID,
    ROLE,
    TAGS,
    TIME,
    Name,
)

# Always there: asking for them tells nothing.
_CONTAINERS: Final = frozenset({ARGS})
# What a bare variable shows. The action is in every key.
_BARE: Final[dict[str, tuple[Name, ...]]] = {
    "principal": (PRINCIPAL_ID, PRINCIPAL_ROLE), "resource": (RESOURCE_ID,), "action": (),
}  # fmt: skip


class NotUnderstood(Exception):
    """The policy looks at something that has no name here."""


def references(tree: pst.Template) -> frozenset[Name]:
    """The values that decide whether the policy matches, the action aside. Raises NotUnderstood."""
    found: set[Name] = set()
    found.update(_scope("principal", tree.principal))
    found.update(_scope("resource", tree.resource))
    for clause in tree.clauses:
        found.update(_expr(clause.expr))
    if TIME in found:
        raise NotUnderstood("it never stays the same: time")
    return frozenset(found)


def concerns(tree: pst.Template, action: str, group: str) -> bool:
    """Whether the policy's scope lets it match the action at all."""
    match tree.action:
        case pst.ScopeAny():
            return True
        case pst.ActionEq(entity):
            return entity.id == action
        case pst.ActionIn(entities):
            return any(entity.id in (action, group) for entity in entities)


def dismisses(tree: pst.Template, role: str) -> bool:
    """Whether the policy neither matches nor errs, whatever a principal of the role asks for.

    Cedar looks at the scope, then at one clause after the other, and at nothing behind what is false."""
    match tree.principal:
        case pst.ScopeIn(entity) | pst.ScopeIsIn(_, entity) if _is_role(entity) and entity.id != role:
            return True
    for clause in tree.clauses:
        truth = _truth(clause.expr, role)
        if truth is None:
            return False
        if truth is not isinstance(clause, pst.When):
            return True
    return False


def _truth(expr: pst.Expr, role: str) -> bool | None:
    """What the condition comes to for a principal of the role; None: more decides it, or it may err."""
    match expr:
        case pst.BinaryOp("in", pst.Var("principal"), pst.EntityLit(entity)) if _is_role(entity):
            return entity.id == role
        case pst.BinaryOp("eq", pst.GetAttr(pst.Var("principal"), "role"), pst.StringLit(said)):
            return said == role
        case pst.BinaryOp("and" | "or" as op, left, right):
            truth = _truth(left, role)
            return truth if truth is None or truth is (op == "or") else _truth(right, role)
        case pst.UnaryOp("not", arg):
            truth = _truth(arg, role)
            return None if truth is None else not truth
        case _:
            return None


def _scope(var: str, scope: pst.PrincipalOrResourceConstraint) -> tuple[Name, ...]:
    match scope:
        case pst.ScopeAny() | pst.ScopeIs():
            return ()
        case pst.ScopeIn(entity) | pst.ScopeIsIn(_, entity) if var == "principal" and _is_role(entity):
            return (PRINCIPAL_ROLE,)
        case _:
            return _BARE[var]


def _is_role(entity: object) -> TypeGuard[pst.EntityUid]:
    return isinstance(entity, pst.EntityUid) and str(entity.type) == ROLE


def _expr(expr: pst.Expr) -> Iterator[Name]:
    match expr:
        case pst.BoolLit() | pst.LongLit() | pst.StringLit() | pst.EntityLit():
            return
        case pst.Var(name):
            if name not in _BARE:
                raise NotUnderstood(name)
            yield from _BARE[name]
        case pst.GetAttr(base):
            path = _path(expr)
            if path is None:
                yield from _expr(base)
            else:
                yield _leaf(path)
        case pst.HasAttr(base, attrs):
            path = _path(base)
            if path is None:
                yield from _expr(base)
            elif (*path, *attrs) not in _CONTAINERS:
                yield _leaf((*path, *attrs))
        case pst.BinaryOp("get_tag" | "has_tag", pst.Var("resource"), pst.StringLit(tag)):
            yield (*TAGS, tag)
        case pst.BinaryOp("get_tag" | "has_tag"):
            raise NotUnderstood("a tag that only the request names")
        case pst.BinaryOp("in", pst.Var("principal"), pst.EntityLit(entity)) if _is_role(entity):
            yield PRINCIPAL_ROLE
        case pst.BinaryOp(_, left, right):
            yield from _expr(left)
            yield from _expr(right)
        case pst.UnaryOp(_, arg):
            yield from _expr(arg)
        case pst.Like(base):
            yield from _expr(base)
        case pst.Is(base, _, inner):
            yield from _expr(base)
            if inner is not None:
                yield from _expr(inner)
        case pst.IfThenElse(cond, then_expr, else_expr):
            yield from _expr(cond)
            yield from _expr(then_expr)
            yield from _expr(else_expr)
        case pst.Set(elements):
            for element in elements:
                yield from _expr(element)
        case pst.Record(fields):
            for field in fields.values():
                yield from _expr(field)
        case _:
            raise NotUnderstood(type(expr).__name__)


def _path(expr: pst.Expr) -> Name | None:
    """``context.args.topic`` as a name; None: it does not begin at a variable."""
    match expr:
        case pst.Var(name):
            return (name,)
        case pst.GetAttr(base, attr):
            path = _path(base)
            return None if path is None else (*path, attr)
        case _:
            return None


def _leaf(path: Name) -> Name:
    if path in ATTRIBUTES or (path[:2] == ARGS and len(path) == 3):
        return path
    raise NotUnderstood(".".join(path))
