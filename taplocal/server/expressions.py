"""Metric math: the part of CloudWatch's expressions that the program's alarms are made of."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

#: A value of a period; None without data.
Value = float | None

OPERATORS: Mapping[type[ast.AST], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}


def value_of(expression: str, values: Mapping[str, Value]) -> Value:
    """The value of an expression of one period, whose ids have these values.

    Understands numbers, ids, `+ - * /`, comparisons, `IF(condition, then, else)` and `FILL(id,
    number)`. What has no data gives none, and a division by zero neither. Raises ValueError for
    anything else.
    """
    try:
        return _value(ast.parse(expression, mode="eval").body, values)
    except SyntaxError as error:
        raise ValueError(f"{expression} is no expression: {error.msg}") from None


def _value(node: ast.AST, values: Mapping[str, Value]) -> Value:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return _of_both(type(op), _value(left, values), _value(right, values))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in OPERATORS:
            return _of_both(type(op), _value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id="IF"), args=[condition, then, otherwise], keywords=[]):
            holds = _value(condition, values)
            return None if holds is None else _value(then if holds else otherwise, values)
        case ast.Call(func=ast.Name(id="FILL"), args=[of, number], keywords=[]):
            found = _value(of, values)
            return _value(number, values) if found is None else found
    raise ValueError(f"the local cloud does not understand {ast.unparse(node)}")


def _of_both(kind: type[ast.AST], left: Value, right: Value) -> Value:
    if left is None or right is None or (kind is ast.Div and right == 0):
        return None
    return float(OPERATORS[kind](left, right))
