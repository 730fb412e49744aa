"""Patterns as text: what a YAML file says, read without evaluating anything. Imports no torch."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from typing import Any

from triune.attention.patterns import Pattern, causal, full, prefix, window
from triune.attention.routed.patterns import Routed, lsh, moba, nsa
from triune.attention.sparse import (
    block_local,
    dilated,
    fixed,
    global_tokens,
    per_head,
    random_blocks,
    sinks,
    strided,
)
from triune.errors import UserError, nearest

#: by name, what an expression may call
KNOWN: dict[str, Callable[..., Any]] = {
    make.__name__: make
    for make in (
        *(full, causal, window, prefix),
        *(dilated, block_local, sinks, strided, fixed, global_tokens, random_blocks, per_head),
        *(lsh, moba, nsa),
    )
}


def parse(text: str) -> Pattern | Routed:
    """Read a pattern expression such as "window(128, 0) | prefix(4)".

    It may hold calls of `KNOWN` with positional or named arguments (numbers, None, inf, True, False, lists of them,
    patterns), `& | ~` and parentheses. UserError quotes the expression, what is wrong and the nearest known name.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"Attention pattern {text!r} is no expression: write, for example, {_EXAMPLE}.") from error
    try:
        return _pattern(tree)
    except UserError as error:
        raise UserError(f"Attention pattern {text!r}: {error}") from None


_EXAMPLE = '"window(128, 0) | prefix(4)"'


def _pattern(node: ast.expr) -> Any:
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _pattern(left) & _pattern(right)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _pattern(left) | _pattern(right)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_pattern(operand)
        case ast.Call(func=ast.Name(id=name)):
            return _call(name, node)
        case ast.Name(id=name) if name in KNOWN:
            raise UserError(f"{name} lacks its parentheses; write {_signature(name)}.")
        case ast.Name(id=name):
            raise UserError(_unknown(name))
    raise UserError(f"{ast.unparse(node)!r} is not allowed; combine {', '.join(KNOWN)} with & | ~, as in {_EXAMPLE}.")


def _call(name: str, node: ast.Call) -> Any:
    if name not in KNOWN:
        raise UserError(_unknown(name))
    try:
        bound = inspect.signature(KNOWN[name]).bind(*node.args, **_named(node))
    except TypeError:
        raise UserError(f"{ast.unparse(node)} does not fit {_signature(name)}.") from None
    return KNOWN[name](*map(_value, bound.args), **{key: _value(value) for key, value in bound.kwargs.items()})


def _named(node: ast.Call) -> dict[str, ast.expr]:
    named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
    if len(named) < len(node.keywords):
        raise TypeError("a name is given twice, or unpacked with **")
    return named


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Name(id="inf"):
            return math.inf
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item) for item in items]
        case ast.Call() | ast.BinOp() | ast.UnaryOp(op=ast.Invert()):
            return _pattern(node)
    raise UserError(f"{ast.unparse(node)!r} is no value; give a number, None, True, False or a list of numbers.")


def _signature(name: str) -> str:
    parameters = inspect.signature(KNOWN[name]).parameters.values()
    return f"{name}({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})"


def _unknown(name: str) -> str:
    hint = nearest(name, KNOWN) or f"; known are {', '.join(map(_signature, KNOWN))}"
    return f"unknown pattern {name!r}{hint}"
