"""The rewritten template: a payment in every loop, macro and block, and nothing lost."""

from __future__ import annotations

import jinja2
import pytest
from jinja2 import nodes

from refdiff.generation.chat_template.meter import GenerationTag, Meter


def metered(text: str) -> nodes.Template:
    environment = jinja2.Environment(extensions=[GenerationTag], autoescape=True)
    template: nodes.Template = Meter().visit(environment.parse(text))
    return template


def calls(template: nodes.Template) -> list[str]:
    return sorted(node.name for node in template.find_all(nodes.EnvironmentAttribute))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{% for i in a %}{% endfor %}", ["pay"]),
        ("{% for i in a if i %}{% for j in i %}{% endfor %}{% endfor %}", ["pay"] * 3),
        ("{% macro m() %}{% endmacro %}{% block b %}{% endblock %}", ["pay"] * 2),
        ("{% call m() %}x{% endcall %}", ["pay"]),
        ("{{ a ~ b ~ (c ~ d) }}", ["concatenate"] * 2),
        ("{{ a < b < c }}{{ a in (b == c) }}", ["compare"] * 3),
        ("{{ a[1:] }}{{ a[1] }}{{ a['x'][:2][::-1] }}", ["sliceable"] * 3),
        ("{{ {a: 1, 'b': 2} }}", ["weighed"]),
        ("plain {{ a.b(c) | upper }}{% if a %}{% set d = 1 %}{% endif %}", []),
    ],
)
def test_payments(text: str, expected: list[str]) -> None:
    assert calls(metered(text)) == expected


def test_longer_bodies_cost_more() -> None:
    def price(body: str) -> int:
        statement = next(metered("{% for i in a %}" + body + "{% endfor %}").find_all(nodes.ExprStmt))
        value: int = statement.node.args[0].value
        return value

    assert price("{{ i }}" * 100) > price("{{ i }}") > 0


def test_generation_is_its_content() -> None:
    (scope,) = metered("{% generation %}x{% endgeneration %}").find_all(nodes.Scope)
    assert isinstance(scope.body[0], nodes.Output)
