"""What of a Python expression is known without running it."""

from __future__ import annotations

import ast
from typing import Any

from glimmer.migration.call import UNKNOWN

_MAX_DEPTH = 30
_MAX_STEPS = 500_000


class Literals:
    """The values of one file's expressions, names that are assigned once being followed."""

    def __init__(self, tree: ast.Module) -> None:
        self._known = _constants(tree)
        # Lists of names of lists of names ... would be of any size; then the rest is UNKNOWN.
        self._steps_left = _MAX_STEPS

    def value(self, node: ast.expr | None, depth: int = 0) -> Any:
        """The JSON value of ``node``, with UNKNOWN for what only a run would tell."""
        self._steps_left -= 1
        if node is None or depth > _MAX_DEPTH or self._steps_left < 0:
            return UNKNOWN
        match node:
            case ast.Constant(value=str() | int() | float() | None as value):  # bool is an int
                return value
            case ast.Name(id=name) if name in self._known:
                return self.value(self._known[name], depth + 1)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.List(elts=entries) | ast.Tuple(elts=entries):
                if any(isinstance(entry, ast.Starred) for entry in entries):
                    return UNKNOWN
                return [self.value(entry, depth + 1) for entry in entries]
            case ast.Dict():
                return self.object(node, depth)[0]
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
                return {k.arg: self.value(k.value, depth + 1) for k in keywords if k.arg}
            case ast.JoinedStr(values=parts):
                return _joined(parts)
            case ast.Call(func=function, args=[_, default]) if _is_environment(function):
                return self.value(default, depth + 1)
        return UNKNOWN

    def object(self, node: ast.Dict, depth: int = 0) -> tuple[dict[str, Any], dict[str, int], bool]:
        """Values by key, lines by key, and whether no other key can be there."""
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        is_whole = True
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:  # {**other}
                other = self.value(value, depth + 1)
                if isinstance(other, dict):
                    values |= other
                else:
                    is_whole = False
            elif isinstance(key, ast.Constant) and isinstance(key.value, str):
                values[key.value] = self.value(value, depth + 1)
                lines[key.value] = value.lineno
            else:
                is_whole = False
        return values, lines, is_whole

    def named(self, node: ast.expr | None) -> ast.expr | None:
        """What a name stands for; other expressions as they are."""
        return self._known.get(node.id, node) if isinstance(node, ast.Name) else node


def dotted(node: ast.expr) -> str:
    """``client.chat.completions`` of an attribute chain.

    A call in it counts as its function's name, and anything else as "?".
    """
    parts: list[str] = []
    while True:
        if isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            parts.append(node.id if isinstance(node, ast.Name) else "?")
            return ".".join(reversed(parts))


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """Names that are assigned exactly once in the file, with what they are assigned."""
    assigned: dict[str, ast.expr | None] = {}
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign | ast.NamedExpr):
            targets, value = [node.target], node.value
        elif isinstance(node, ast.AugAssign | ast.For | ast.AsyncFor | ast.comprehension):
            targets = [node.target]
        elif isinstance(node, ast.arg):
            assigned[node.arg] = None
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    is_first = name is target and name.id not in assigned
                    assigned[name.id] = value if is_first else None
    return {name: value for name, value in assigned.items() if value is not None}


def _is_environment(function: ast.expr) -> bool:
    return dotted(function) in ("os.getenv", "getenv", "os.environ.get", "environ.get")


def _joined(parts: list[ast.expr]) -> Any:
    """An f-string of which the end is known, such as f"{base}/chat/completions"."""
    text = "".join(str(p.value) if isinstance(p, ast.Constant) else "{}" for p in parts)
    return text if "{}" not in text or "/" in text else UNKNOWN
