"""Rules of the ranked system that stand in its programs alone. The programs are parsed, never run."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Final

from inference.errors import UsageError
from training.bundles.ranked import plain_task

# Parsing takes many times a program's size in memory. The authors' programs have some kilobytes.
_MOST_CODE: Final = 2**20


def decision_rules(sources: Mapping[str, bytes]) -> dict[str, str]:
    """The rules from probabilities to labels in functions of programs, each with the path of one that has it.

    `argmax` over the first axis, or `regions`: probabilities compared with a half. Raises UsageError for a comparison
    with another number.
    """
    rules: dict[str, str] = {}
    for path, raw in sources.items():
        # Only functions: what a module does when it is run may be an example.
        functions = [node for node in ast.walk(_parsed(raw, path)) if isinstance(node, ast.FunctionDef)]
        for node in (inner for function in functions for inner in ast.walk(function)):
            if isinstance(node, ast.Call) and _is_argmax(node):
                rules.setdefault("argmax", path)
            elif isinstance(node, ast.Compare) and (compared := _share_compared(node)) is not None:
                if compared != 0.5:
                    raise UsageError(f"{path}: found probabilities compared with {compared}, expected 0.5")
                rules.setdefault("regions", path)
    return rules


def _is_argmax(call: ast.Call) -> bool:
    """Whether a call is an argmax over the first axis, of a library or of an array."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    of_library = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") in ("np", "numpy", "torch")
    # A library's function takes the array first.
    axes = [keyword.value for keyword in call.keywords if keyword.arg in ("axis", "dim")]
    axes = axes or call.args[1:2] if of_library else axes or call.args[:1]
    return name == "argmax" and any(isinstance(axis, ast.Constant) and axis.value == 0 for axis in axes)


def _share_compared(node: ast.Compare) -> float | None:
    """The number between 0 and 1 that something is compared with."""
    if not any(isinstance(operator, (ast.Gt, ast.GtE, ast.Lt, ast.LtE)) for operator in node.ops):
        return None
    numbers = [side.value for side in (node.left, *node.comparators) if isinstance(side, ast.Constant)]
    return next((number for number in numbers if isinstance(number, float) and 0 < number < 1), None)


def fallback_clusters(sources: Mapping[str, bytes], task: str) -> dict[str, str]:
    """Subtypes that a runner takes where features fail (`except: cluster = N`), each with the path of one that does.

    Where runners name their task, only those of `task` count.
    """
    trees = {path: _parsed(raw, path) for path, raw in sources.items()}
    of_task = {path: tree for path, tree in trees.items() if task in map(plain_task, _constants(tree.body, "TASK"))}
    found: dict[str, str] = {}
    for path, tree in (of_task or trees).items():
        handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
        for number in (value for handler in handlers for value in _constants(handler.body, "cluster")):
            if number.isdecimal():
                found.setdefault(number, path)
    return found


def _constants(body: Iterable[ast.stmt], name: str) -> list[str]:
    """The constants that are assigned to a name, as texts."""
    values = []
    for statement in body:
        # `x = 1` may have several targets, `x: int = 1` has one.
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if isinstance(value, ast.Constant) and any(getattr(target, "id", "") == name for target in targets):
            values.append(str(value.value))
    return values


def _parsed(raw: bytes, path: str) -> ast.Module:
    if len(raw) > _MOST_CODE:
        raise UsageError(f"{path}: found {len(raw)} bytes of program, expected at most {_MOST_CODE}")
    try:
        return ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path}: found a program that Python cannot parse") from error
