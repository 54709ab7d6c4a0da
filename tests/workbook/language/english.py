"""English that no catalogue can translate, read from a program's text: sentences that are put together before they are said.

Found are f-strings, sums and formatted texts with English words in them, `gettext(…).format(…)`, which writes numbers as English does, and
texts that a drawing or `print` gets as they are. What is raised, recorded, or made for programs is not looked at.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

UNSAID = {"record", "Test"}  # what they get is data, or a message of its own (tests/workbook/language/messages.py)
# Names of rules of claims, which are messages once they are made, and of CSS; a function that makes a header of HTTP.
FOR_PROGRAMS = {"rule", "ABOUT_RULE", "COLOURS", "content_security_policy"}
SYMBOLS = {"dmin"}  # of formulas
UNITS = {"KB", "MB", "GB"}
DRAWS = {"set_xlabel", "set_ylabel", "set_title", "suptitle", "caption", "new_axes", "panels", "stacked", "print"}
LABELS = {"label", "title", "xlabel", "ylabel"}  # keywords of what is drawn
VALUE = "\0"  # stands for a value in a text


def english_in(tree: ast.AST, drawn: bool = True) -> Iterator[str]:
    """What of a module, a function or a cell stays English; `drawn`: whether plain texts given to drawings and to print count."""
    nodes = list(said(tree))
    templates = {name for node in nodes if isinstance(node, ast.Assign) and of_gettext(node.value) for name in names(node)}
    for node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            of = node.func.value
            if of_gettext(of) or (isinstance(of, ast.Name) and of.id in templates) or is_english(text_of(of)):
                yield ast.unparse(node)
        elif isinstance(node, (ast.JoinedStr, ast.BinOp)) and VALUE in (text := text_of(node)) and is_english(text):
            yield ast.unparse(node)
        elif drawn and isinstance(node, ast.Call):
            yield from (ast.unparse(node) for given in drawn_by(node) if is_english(text_of(given)))


def said(node: ast.AST) -> Iterator[ast.AST]:
    """What stands below a node, but for what is raised, recorded or made for programs, and for how values are formatted."""
    for child in ast.iter_child_nodes(node):
        made = set(names(child)) if isinstance(child, ast.Assign) else {child.name} if isinstance(child, ast.FunctionDef) else set()
        if isinstance(child, (ast.Raise, ast.Assert)) or made & FOR_PROGRAMS:
            continue
        if isinstance(child, ast.Call) and (called(child) in UNSAID or called(child).endswith(("Error", "re.compile", "re.search"))):
            continue
        yield child
        if isinstance(child, ast.FormattedValue):
            yield child.value
            yield from said(child.value)
        else:
            yield from said(child)


def drawn_by(call: ast.Call) -> list[ast.expr]:
    """What a drawing, or print, is given to show."""
    plain = call.args if called(call).rpartition(".")[2] in DRAWS else []
    return [given for given in (*plain, *(word.value for word in call.keywords if word.arg in LABELS)) if isinstance(given, ast.Constant)]


def text_of(node: ast.expr) -> str:
    """A text with VALUE for what is put into it; empty where it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        left, right = text_of(node.left), text_of(node.right)
        return (left or VALUE) + (right or VALUE) if left or right else ""
    return ""


def is_english(text: str) -> bool:
    """Whether a text has words, in place of markup, a path, a command, an assignment or a key."""
    if "<" in text or not re.search(r"\s", text) or re.search(r"(^|/)qlab |^\w+ = ", text):
        return False
    text = re.sub(r"\]\([^)]*\)", "]", text)  # where a link leads
    found = (part.strip(".,;:!?()[]\"'…") for part in re.split(rf"[\s{VALUE}]+", text))
    words = (part for part in found if re.fullmatch(r"[A-Za-z]{2,}(['’]s)?", part))
    return any(word not in SYMBOLS and (word in UNITS or not word.isupper()) for word in words)


def of_gettext(node: ast.expr) -> bool:
    """Whether an expression is gettext's, or one of two of them."""
    if isinstance(node, ast.IfExp):
        return of_gettext(node.body) or of_gettext(node.orelse)
    return isinstance(node, ast.Call) and called(node) == "gettext"


def names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def called(call: ast.Call) -> str:
    return ast.unparse(call.func)
