"""Rewrite a parsed Jinja template so that every loop, macro, comparison and slice pays before it runs.

The payments call methods of the environment that runs the template: `pay`, `concatenate`, `compare`, `sliceable` and
`weighed` of `TemplateSandbox`.
"""

from __future__ import annotations

from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.visitor import NodeTransformer

# Units of the budget for one pass of a loop or macro, and for each node of its body.
PASS = 50
NODE = 5
MAX_DEPTH = 40


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant said; for reading the text it is its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class Meter(NodeTransformer):
    """Put a payment into every place of a parsed template that Jinja has no hook for."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._depth = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        """Rewrite one node, and refuse statements nested deeper than Python could run: compiling them takes minutes."""
        depth = self._depth
        self._depth += isinstance(node, nodes.Stmt)
        if self._depth > MAX_DEPTH:
            raise TemplateSyntaxError(f"statements nested deeper than {MAX_DEPTH} levels", node.lineno)
        result = super().visit(node, *args, **kwargs)
        self._depth = depth
        return result

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (Jinja's naming)
        price = PASS + NODE * self._size(node)
        self.generic_visit(node)
        node.body.insert(0, _paid_statement(price, node.lineno))
        if node.test is not None:
            node.test = nodes.And(_call("pay", [nodes.Const(price)]), node.test, lineno=node.lineno)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        price = PASS + NODE * self._size(node)
        self.generic_visit(node)
        node.body.insert(0, _paid_statement(price, node.lineno))
        return node

    visit_CallBlock = visit_Macro  # noqa: N815
    visit_Block = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _call("concatenate", node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        operands: list[nodes.Expr] = [node.expr]
        for operand in node.ops:
            operands += [nodes.Const(operand.op), operand.expr]
        return _call("compare", operands)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call("sliceable", [node.node])
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _call("weighed", [node.key])
        return node

    def _size(self, node: nodes.Node) -> int:
        # Kept, because a loop is counted again for each loop around it.
        if id(node) not in self._sizes:
            self._sizes[id(node)] = 1 + sum(map(self._size, node.iter_child_nodes()))
        return self._sizes[id(node)]


def _call(method: str, arguments: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)


def _paid_statement(price: int, line: int) -> nodes.Stmt:
    statement = nodes.ExprStmt(_call("pay", [nodes.Const(price)]), lineno=line)
    statement.set_lineno(line)
    return statement
