"""Small changes of a source file, each of which a test should notice: found in its syntax tree, written into its text."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
WORDS_ONLY = {"warn", "simplefilter", "print", "add_note", "debug", "info", "cast", "TypeVar", "Option", "Argument"}
"""Calls that speak to people or to the type checker: what stands in them is no behaviour."""


@dataclass(frozen=True)
class Mutation:
    """The text between two offsets of a file, and what comes in its place."""

    file: str
    operator: str
    start: int
    end: int
    replacement: str

    def apply(self, source: str) -> str:
        return source[: self.start] + self.replacement + source[self.end :]

    def line(self, source: str) -> int:
        return source.count("\n", 0, self.start) + 1

    def diff(self, source: str) -> str:
        changed = difflib.unified_diff(source.splitlines(), self.apply(source).splitlines(), lineterm="", n=1)
        return "\n".join(list(changed)[2:])


def mutations_of(file: str, source: str) -> list[Mutation]:
    """All mutations of a file; none in messages, docstrings, annotations and decorators."""
    lines = source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))

    def offset(line: int, column: int) -> int:
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    found = []
    for node, operator, replacement in _changes(ast.parse(source)):
        start, end = (offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset))  # type: ignore[attr-defined]
        mutation = Mutation(file, operator, start, end, replacement)
        try:
            ast.parse(mutation.apply(source))
        except SyntaxError:  # inside an f-string of an older grammar, say
            continue
        found.append(mutation)
    return found


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    """(what is replaced, how, by what) in a tree, in the order of the text."""
    if _is_for_people(node):
        return
    yield from _changes_here(node)
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases", "exc"):
            continue
        if isinstance(node, ast.AnnAssign) and name == "target":
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _changes(child)


def _is_for_people(node: ast.AST) -> bool:
    if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.Call) and _called(node) in WORDS_ONLY:
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _changes_here(node: ast.AST) -> Iterator[tuple[ast.AST, str, str]]:
    if isinstance(node, ast.Compare):
        for index, operation in enumerate(node.ops):
            if type(operation) in SWAPPED:
                other = copy.deepcopy(node)
                other.ops[index] = SWAPPED[type(operation)]()
                yield node, "comparison", f"({ast.unparse(other)})"
    elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in SWAPPED:
        other = copy.deepcopy(node)
        other.op = SWAPPED[type(node.op)]()  # type: ignore[attr-defined]
        yield node, "operator", f"({ast.unparse(other)})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield node, "negation", str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield node, "constant", repr(node.value + 1)
        yield node, "constant", f"({node.value - 1!r})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield node, "not removed", f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.IfExp):
        yield node, "other branch", f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    elif isinstance(node, ast.Call) and len(node.args) >= 2:
        if not any(isinstance(each, ast.Starred) for each in node.args[:2]):
            other = copy.deepcopy(node)
            other.args[:2] = other.args[1::-1]
            if ast.unparse(other) != ast.unparse(node):
                yield node, "arguments", ast.unparse(other)
    elif _may_be_deleted(node):
        yield node, "deletion", "pass"
    if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.UnaryOp):
        yield node.test, "negation", f"not ({ast.unparse(node.test)})"


def _may_be_deleted(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and _called(node.value) not in WORDS_ONLY
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    return isinstance(node, ast.Raise | ast.AugAssign | ast.Continue | ast.Break | ast.Delete)
