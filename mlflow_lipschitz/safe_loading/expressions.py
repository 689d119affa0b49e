"""Symbolic sizes. torch hands their text to sympy, which evaluates it as Python with all built-in functions in reach.

So the text has to parse as one expression made of listed calls, symbols named like torch names them, and whole numbers;
and no power may grow beyond reason, since sympy computes numbers as it reads them.
"""

from __future__ import annotations

import ast
import re

from mlflow_lipschitz.safe_loading.structure import Unexpected

SYMBOL = re.compile(r"(s|u|z|zf|zuf)[0-9]{1,5}")

_LENGTH = 4000
_LARGEST_POWER = 8
_CALL_NAMES = """
Integer Rational Add Mul Mod PythonMod FloorDiv CleanDiv CeilDiv Max Min CeilToInt FloorToInt TruncToInt ToFloat
IntTrueDiv FloatTrueDiv Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan
And Or Not
"""
_CALLS = frozenset(_CALL_NAMES.split())
_WORDS = frozenset(("oo", "true", "false"))
_ASSUMPTIONS = frozenset(("positive", "nonnegative", "negative", "integer", "real", "finite", "zero"))
_OPERATORS = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod)


def expression(value: object) -> str:
    """`value` when it is an arithmetic expression; raises Unexpected when it is anything else."""
    if not isinstance(value, str) or len(value) > _LENGTH or not value.isascii():
        raise Unexpected(f"the symbolic size {str(value)[:80]!r}")
    try:
        tree = ast.parse(value, mode="eval")
        plain = _is_plain(tree.body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        plain = False
    if not plain:
        raise Unexpected(f"the symbolic size {value[:80]!r}")
    return value


def _is_plain(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) is int and node.value < 2**63
    if isinstance(node, ast.Name):
        return node.id in _WORDS or bool(SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_plain(node.operand)
    if isinstance(node, ast.BinOp):
        if isinstance(node.op, ast.Pow):
            return _is_small_power(node.left, node.right)
        return isinstance(node.op, _OPERATORS) and _is_plain(node.left) and _is_plain(node.right)
    return isinstance(node, ast.Call) and _is_plain_call(node)


def _is_plain_call(node: ast.Call) -> bool:
    if not isinstance(node.func, ast.Name):
        return False
    if node.func.id == "Symbol":
        return _is_symbol(node)
    if node.keywords:
        return False
    if node.func.id == "Pow":
        return len(node.args) == 2 and _is_small_power(*node.args)
    return node.func.id in _CALLS and all(map(_is_plain, node.args))


def _is_symbol(node: ast.expr) -> bool:
    if isinstance(node, ast.Name):
        return bool(SYMBOL.fullmatch(node.id))
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol"):
        return False
    name = node.args[0] if len(node.args) == 1 else None
    assumed = all(
        word.arg in _ASSUMPTIONS and isinstance(word.value, ast.Constant) and isinstance(word.value.value, bool)
        for word in node.keywords
    )
    named = isinstance(name, ast.Constant) and isinstance(name.value, str) and SYMBOL.fullmatch(name.value)
    return assumed and bool(named)


def _is_small_power(base: ast.expr, exponent: ast.expr) -> bool:
    """A power of a symbol: powers of numbers, nested, are numbers of astronomic length."""
    called = isinstance(exponent, ast.Call) and isinstance(exponent.func, ast.Name) and exponent.func.id == "Integer"
    if isinstance(exponent, ast.Call) and called and len(exponent.args) == 1 and not exponent.keywords:
        exponent = exponent.args[0]
    if isinstance(exponent, ast.UnaryOp) and isinstance(exponent.op, ast.USub):
        exponent = exponent.operand
    small = isinstance(exponent, ast.Constant) and type(exponent.value) is int and exponent.value <= _LARGEST_POWER
    return small and _is_symbol(base)
