"""Prices: what is read and written costs about its length, and what would explode costs too much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from refdiff.generation.chat_template.budget import Budget, OverBudgetError, check_bits, check_width


def price(action: Callable[[Budget], Any]) -> int:
    budget = Budget()
    budget.left = 10**9
    action(budget)
    return 10**9 - budget.left


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("a" * 1000, 1000, 1100),
        (["a" * 10] * 100, 1000, 5000),
        ({"k" * 10: "v" * 10}, 20, 200),
        ({"a": 1}.items(), 1, 200),
        ([[[]]], 3, 200),
        (5, 1, 50),
    ],
)
def test_weigh(value: Any, least: int, most: int) -> None:
    assert least <= price(lambda budget: budget.weigh(value)) <= most


def test_an_element_held_twice_is_paid_twice() -> None:
    shared = ["x" * 1000]
    assert price(lambda b: b.weigh([shared, shared])) >= 2000


def test_exponential_values_end_soon() -> None:
    value: Any = [1]
    for _ in range(60):
        value = [value, value]
    budget = Budget()
    budget.left = 10**5
    with pytest.raises(OverBudgetError):
        budget.weigh(value)


def test_deep_values() -> None:
    value: Any = ()
    for _ in range(200):
        value = (value,)
    with pytest.raises(RecursionError, match="100 levels"):
        price(lambda b: b.weigh(value))


def test_shallow_is_cheap() -> None:
    assert price(lambda b: b.pay_shallow([["x" * 10**6]])) < 100
    assert price(lambda b: b.pay_shallow("x" * 1000)) >= 1000
    assert price(lambda b: b.pay_shallow(range(1000))) >= 1000
    assert price(lambda b: b.pay_shallow(None)) == 1


def test_searches_compare_with_each_element() -> None:
    needle = ["x" * 1000]
    assert price(lambda b: b.pay_search(needle, [1] * 10)) >= 10_000
    assert price(lambda b: b.pay_search("x", {"y": "z" * 1000})) < 200
    assert price(lambda b: b.pay_search("x", "y" * 1000)) >= 1000


def test_products() -> None:
    assert price(lambda b: b.pay_product("ab", 1000)) >= 2000
    assert price(lambda b: b.pay_product(1000, [1])) >= 1000
    assert price(lambda b: b.pay_product("ab", -5)) == 0
    with pytest.raises(OverBudgetError):
        price(lambda b: b.pay_product(1 << 3000, 1 << 3000))


def test_percent() -> None:
    assert price(lambda b: b.pay_percent("%s %(name)s", ["x" * 1000])) >= 2000
    for text in ("%999d", "%.99f", "%*d", "%.*f", "%(a)-100s"):
        with pytest.raises(OverBudgetError):
            price(lambda b, text=text: b.pay_percent(text, ()))


def test_methods() -> None:
    assert price(lambda b: b.pay_method("aaa", "replace", ("a", "x" * 1000), {})) >= 3000
    assert price(lambda b: b.pay_method("a", "center", (1000,), {})) >= 1000
    assert price(lambda b: b.pay_method("\t\t", "expandtabs", (1000,), {})) >= 2000
    assert price(lambda b: b.pay_method("a " * 500, "split", (), {})) >= 5000
    assert price(lambda b: b.pay_method("a,b,c", "split", (",",), {})) < 200
    budget = Budget()
    budget.left = 10**6
    assert budget.pay_method(", ", "join", (iter(["a", "b"]),), {}) == (["a", "b"],)


def test_limits() -> None:
    check_bits(4096)
    check_width(64)
    check_width("064"[1:])
    for width in (65, "65", "*", "9" * 5000):
        with pytest.raises(OverBudgetError):
            check_width(width)
    with pytest.raises(OverBudgetError):
        check_bits(4097)
