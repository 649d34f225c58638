"""Every small change of a Python file that could be a mistake.

Each mutant differs from its file in one place:

    operator      + −   * /   // /   % //   ** *   & |   and or   a sign dropped
    comparison    < <=   > >=   == !=   is, is not   in, not in
    condition     `if`, `while`, `x if … else y` and the `if` of a comprehension negated
    constant      n + 1, x · 1.001 (0 becomes 1), True False, a character more in a string; defaults of arguments too
    argument      two neighbors swapped, the last one dropped, one given by name dropped
    statement     an assignment, expression, return or raise replaced by pass
    slice         a bound dropped, `[:n]` and `[n:]` exchanged

Left alone: annotations, docstrings and other texts of several lines, imports, `__all__`, and the text of errors (what
stands in a `raise`).
"""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
SYMMETRIC = {"namespace", "max", "min", "isinstance"}
"""Calls whose arguments are not swapped: the order means nothing, or the swap is no call at all."""


@dataclass(frozen=True)
class Mutant:
    """One changed file: where, what kind of change, and its text before and after."""

    file: str
    line: int
    function: str
    kind: str
    before: str
    after: str
    source: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What a mutant is known by, whatever line it has moved to."""
        return self.file, self.function, self.before, self.after

    def diff(self) -> str:
        """The changed lines, as a diff shows them."""
        lines = [f"- {line}" for line in self.before.splitlines()] + [f"+ {line}" for line in self.after.splitlines()]
        return "\n".join(lines)

    def rank(self, seed: str) -> str:
        """A number that puts the mutants in an order that depends on `seed` only."""
        return hashlib.sha256("\0".join((seed, *self.key, self.kind)).encode()).hexdigest()


def mutants_of(path: Path, root: Path) -> list[Mutant]:
    """List the mutants of one file, in the order of its lines, each changed text once."""
    source = path.read_text(encoding="utf-8")
    finder = _Finder(source)
    finder.visit(ast.parse(source))
    original, seen, found = ast.dump(ast.parse(source)), set[str](), []
    for change in sorted(finder.changes, key=lambda c: (c.start, c.end)):
        text = source.encode()
        new = (text[: change.start] + change.text.encode() + text[change.end :]).decode()
        try:
            tree = ast.dump(ast.parse(new))
        except SyntaxError:
            continue
        if tree == original or tree in seen:
            continue
        seen.add(tree)
        before, after = _changed_lines(source, new)
        file = path.relative_to(root).as_posix()
        found.append(Mutant(file, change.line, change.function, change.kind, before, after, new))
    return found


def _changed_lines(old: str, new: str) -> tuple[str, str]:
    """The lines that differ, without what they are indented by."""
    matcher = difflib.SequenceMatcher(None, a := old.splitlines(), b := new.splitlines(), autojunk=False)
    spans = [op for op in matcher.get_opcodes() if op[0] != "equal"]
    first, last = spans[0], spans[-1]
    return tuple("\n".join(s.strip() for s in part) for part in (a[first[1] : last[2]], b[first[3] : last[4]]))  # type: ignore[return-value]


@dataclass(frozen=True)
class _Change:
    """Bytes `start` to `end` of the source replaced by `text`."""

    start: int
    end: int
    text: str
    kind: str
    line: int
    function: str


class _Finder(ast.NodeVisitor):
    """Walk a module and note every change."""

    def __init__(self, source: str) -> None:
        self.changes: list[_Change] = []
        self._lines = [0]
        for line in source.encode().splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))
        self._source = source
        self._names: list[str] = []

    def _note(self, node: ast.expr | ast.stmt, text: str, kind: str) -> None:
        start = self._lines[node.lineno - 1] + node.col_offset
        end = self._lines[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        self.changes.append(_Change(start, end, text, kind, node.lineno, ".".join(self._names)))

    def _with(self, node: ast.expr, kind: str, **fields: object) -> None:
        """Note `node` with some of its fields changed."""
        values = {name: getattr(node, name) for name in node._fields} | fields
        self._note(node, f"({ast.unparse(type(node)(**values))})", kind)

    # -- what is left alone, and where we are

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._names.append(node.name)
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                self.visit(default)
        self._body(node.body)
        self._names.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._names.append(node.name)
        self._body(node.body)
        self._names.pop()

    def visit_Module(self, node: ast.Module) -> None:
        self._body(node.body)

    def _body(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        """No mutants."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """No mutants."""

    # -- statements

    def visit_Assign(self, node: ast.Assign) -> None:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return
        self._note(node, "pass", "statement")
        self.visit(node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._note(node, "pass", "statement")
            self.visit(node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._note(node, "pass", "statement")
        other = OPERATORS.get(type(node.op))
        if other is not None:
            self._note(node, ast.unparse(ast.AugAssign(node.target, other(), node.value)), "operator")  # type: ignore[arg-type]
        self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        self._note(node, "pass", "statement")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        self._note(node, "pass", "statement")
        self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        self._note(node, "pass", "statement")

    # -- conditions

    def _negate(self, test: ast.expr) -> None:
        self._note(test, f"(not ({ast.unparse(test)}))", "condition")

    def visit_If(self, node: ast.If) -> None:
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        self._negate(node.test)
        self.generic_visit(node)

    def visit_While(self, node: ast.While) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    # -- expressions

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if type(node.op) in OPERATORS:
            self._with(node, "operator", op=OPERATORS[type(node.op)]())
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self._with(node, "operator", op=OPERATORS[type(node.op)]())
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.USub | ast.Not):
            self._note(node, f"({ast.unparse(node.operand)})", "operator")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for i, op in enumerate(node.ops):
            self._with(node, "comparison", ops=[*node.ops[:i], OPERATORS[type(op)](), *node.ops[i + 1 :]])
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        value = node.value
        if isinstance(value, bool):
            changed: object = not value
        elif isinstance(value, int):
            changed = value + 1
        elif isinstance(value, float):
            changed = value * 1.001 if value else 1.0
        elif isinstance(value, str) and "\n " not in value:
            changed = value + "x"
        else:
            return
        self._note(node, repr(changed), "constant")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """No mutants: text for people."""

    def visit_Call(self, node: ast.Call) -> None:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        args = node.args
        if not any(isinstance(a, ast.Starred) for a in args):
            if name not in SYMMETRIC:
                for i in range(len(args) - 1):
                    self._with(node, "argument", args=[*args[:i], args[i + 1], args[i], *args[i + 2 :]])
            if len(args) > 1:
                self._with(node, "argument", args=args[:-1])
        for i, keyword in enumerate(node.keywords):
            if keyword.arg is not None:
                self._with(node, "argument", keywords=node.keywords[:i] + node.keywords[i + 1 :])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for i, part in enumerate(parts):
            if not isinstance(part, ast.Slice):
                continue
            for lower, upper in {(part.upper, part.lower), (None, part.upper), (part.lower, None)}:
                zero = isinstance(part.lower, ast.Constant) and part.lower.value == 0 and lower is None
                if (lower, upper) != (part.lower, part.upper) and not (zero and upper is part.upper):  # [0:n] is [:n]
                    other = [*parts[:i], ast.Slice(lower, upper, part.step), *parts[i + 1 :]]
                    index = ast.Tuple(other, ast.Load()) if isinstance(node.slice, ast.Tuple) else other[0]
                    self._with(node, "slice", slice=index)
        self.generic_visit(node)


def mutants_under(paths: list[Path], root: Path) -> Iterator[Mutant]:
    """Give the mutants of every Python file that `paths` are or hold."""
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            yield from mutants_of(file, root)
