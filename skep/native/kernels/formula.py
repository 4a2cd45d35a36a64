"""Arithmetic over named sizes, kept as text: shapes, rules and costs of kernels are data, and no code."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final

_OPERATORS: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def value(formula: str, sizes: Mapping[str, float]) -> Any:
    """What a formula of names, numbers, + - * and parentheses is; an int where all in it are."""
    return _value(_parsed(formula), sizes)


@cache
def _parsed(formula: str) -> ast.expr:
    return ast.parse(formula, mode="eval").body


def _value(node: ast.expr, sizes: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant(value=number):
            return number
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
    raise AssertionError(ast.unparse(node))
