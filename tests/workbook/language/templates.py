"""The messages that a program says through gettext and its like, read from its text: a template that cannot be read is an error."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping

FUNCTIONS = {"gettext": (0,), "ngettext": (0,), "_": (0,), "say": (0,), "Sentence": (0,), "plural": (1, 2), "Check": (0,), "_status": (0,)}
"""Functions, and which of their arguments are messages; the first of two forms stands for both."""


def said_in(tree: ast.AST, handed_on: bool = False, known: Mapping[str, list[str]] | None = None) -> Iterator[str]:
    """All messages of a module, a cell or a function; a name stands for every text that is assigned to it there, or around it (`known`).

    Raises:
        AssertionError: a message with values whose template is neither a text nor such a name, unless templates are `handed_on` here.
    """
    own = list(nodes_of(tree))
    names = dict(known or {}) | assigned(own)
    for call in (node for node in own if isinstance(node, ast.Call)):
        for place in FUNCTIONS.get(named(call), ()):
            found = strings(call.args[place], names) if len(call.args) > place else []
            assert found or handed_on or not call.keywords, f"no test can read the template of {ast.unparse(call)}"
            yield from found
    for function in (node for node in own if isinstance(node, ast.FunctionDef)):
        yield from said_in(function, handed_on, names)


def nodes_of(scope: ast.AST) -> Iterator[ast.AST]:
    """What stands below, functions themselves included, but not what stands in them."""
    for node in ast.iter_child_nodes(scope):
        yield node
        if not isinstance(node, ast.FunctionDef):
            yield from nodes_of(node)


def assigned(nodes: Iterable[ast.AST]) -> dict[str, list[str]]:
    """The texts that are assigned to each name."""
    found: dict[str, list[str]] = {}
    for node in (node for node in nodes if isinstance(node, ast.Assign)):
        target, value = node.targets[0], node.value
        pairs = [(target, value)]
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            pairs = list(zip(target.elts, value.elts))
        for name, text in pairs:
            if isinstance(name, ast.Name):
                found.setdefault(name.id, []).extend(strings(text, {}))
    return found


def strings(node: ast.expr, names: Mapping[str, list[str]]) -> list[str]:
    """The texts that an expression may stand for."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return strings(node.body, names) + strings(node.orelse, names)
    return names.get(node.id, []) if isinstance(node, ast.Name) else []


def keys_in(tree: ast.AST) -> Iterator[str]:
    """The names of columns: keys of dictionaries that are written out as the rows of a list."""
    for node in ast.walk(tree):
        elements = node.elts if isinstance(node, ast.List) else [node.elt] if isinstance(node, (ast.ListComp, ast.GeneratorExp)) else []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "append":
            elements = node.args
        for row in (part for element in elements for part in ast.walk(element) if isinstance(part, ast.Dict)):
            yield from (key.value for key in row.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def named(call: ast.Call) -> str:
    """The name of the function that is called."""
    return call.func.id if isinstance(call.func, ast.Name) else ""
