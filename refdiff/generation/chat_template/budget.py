"""What each operation of a chat template costs: about one unit for each character that it reads or writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

CALL = 20
ELEMENT = 16
MAX_DEPTH = 100
MAX_BITS = 4096
MAX_WIDTH = 64

_LISTS: tuple[Any, ...] = (list, tuple, type({}.keys()), type({}.values()), type({}.items()))
SIZED: tuple[Any, ...] = (*_LISTS, dict, range)


class OverBudgetError(Exception):
    """The template used up its budget; no handler inside Jinja swallows this class."""


class Budget:
    """What is left for one rendering; every method takes its price off before the work is done."""

    def __init__(self) -> None:
        self.left = 0

    def pay(self, units: int) -> bool:
        """Take `units` from the budget; → True.

        Raises `OverBudgetError` when there are not as many left.
        """
        self.left -= units
        if self.left < 0:
            raise OverBudgetError
        return True

    def weigh(self, value: Any) -> None:
        """Pay for reading all of `value`: each character, and each element of what it holds, as often as it is held.

        Raises `OverBudgetError`; `RecursionError` for containers nested deeper than 100 levels.
        """
        open_items = [(value, 0)]
        while open_items:
            item, depth = open_items.pop()
            if isinstance(item, str):
                self.pay(len(item) + 1)
                continue
            children: list[Any] = []
            if isinstance(item, _LISTS):
                children = list(item)
            elif isinstance(item, dict):
                children = [*item.keys(), *item.values()]
            if depth > MAX_DEPTH:
                raise RecursionError(f"containers nested deeper than {MAX_DEPTH} levels")
            self.pay(ELEMENT * (1 + len(children)))
            open_items += [(child, depth + 1) for child in children]

    def pay_shallow(self, value: Any) -> None:
        """Pay for copying or walking through `value`, but not through what its elements hold."""
        if isinstance(value, str):
            self.pay(len(value) + 1)
        elif isinstance(value, SIZED):
            self.pay(ELEMENT * (1 + len(value)))
        else:
            self.pay(1)

    def pay_search(self, value: Any, among: Any) -> None:
        """Pay for comparing `value` with each element of `among`, or for looking it up in a dict or a text."""
        before = self.left
        self.weigh(value)
        spent = before - self.left
        self.pay_shallow(among)
        if isinstance(among, list | tuple):
            self.pay(spent * len(among))

    def pay_product(self, left: Any, right: Any) -> None:
        """Pay for `left * right`: a product of numbers, or text and lists repeated."""
        if isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() + right.bit_length())
        for text, times in ((left, right), (right, left)):
            if isinstance(text, str | list | tuple) and isinstance(times, int):
                self.pay(len(text) * max(times, 0) * (1 if isinstance(text, str) else ELEMENT))

    def pay_percent(self, text: str, values: Any) -> None:
        """Pay for `text % values`, each field as if it printed all values."""
        self.pay(len(text) * (1 + text.count("%(")))  # the search for a closing bracket may run to the end each time
        fields = re.findall(r"%(?:\([^)]*\))?[#0\- +]*(\*|\d*)(?:\.(\*|\d*))?", text)
        for width in [number for field in fields for number in field if number]:
            check_width(width)
        for _ in fields:
            self.weigh(values)

    def pay_method(self, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Pay for `text.name(*args, **kwargs)`; → the arguments, with one-pass iterables read into lists."""
        self.pay(len(text) + 1)
        values = [*args, *kwargs.values()]
        if name == "join" and values:
            return (self.joinable(values[0], text),)
        self.weigh(values)
        numbers = [abs(value) for value in values if isinstance(value, int)]
        if name == "replace" and len(values) >= 2 and isinstance(values[0], str) and isinstance(values[1], str):
            self.pay(text.count(values[0]) * len(values[1]))
        elif name in ("center", "ljust", "rjust", "zfill"):
            self.pay(sum(numbers))
        elif name == "expandtabs":
            self.pay(text.count("\t") * sum([*numbers, 8]))
        elif name in ("split", "rsplit", "splitlines"):
            separator = values[0] if values and isinstance(values[0], str) and values[0] else None
            self.pay(ELEMENT * (text.count(separator) if separator else len(text) // 2))
        return args

    def joinable(self, values: Iterable[Any], separator: str) -> list[Any]:
        """Pay for joining `values`; → them as a list."""
        items = []
        for value in values:
            self.pay(len(separator))
            self.weigh(value)
            items.append(value)
        return items


def check_bits(bits: int) -> None:
    """Raise `OverBudgetError` for an integer of more than 4096 bits."""
    if bits > MAX_BITS:
        raise OverBudgetError


def check_width(width: int | str) -> None:
    """Raise `OverBudgetError` for a field or indent wider than 64, or one (`*`) that the values decide."""
    if width == "*" or len(str(width)) > len(str(MAX_WIDTH)) or int(width) > MAX_WIDTH:
        raise OverBudgetError
