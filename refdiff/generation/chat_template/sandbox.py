"""A Jinja environment for templates that nobody has read: no way out to Python, and a budget that ends every rendering.

Jinja's own sandbox shuts the way to Python's internals; it does not stop a template from running forever or from
building a string of 10^10 characters. Here every step that can take time or memory pays for it beforehand, in units of
about one character: loops and macros for each pass, operators and filters for what they read and write. What no chat
template needs and is hard to price (`"x".encode`, the `pprint` filter) is left out. The budget does not depend on the
machine, so a template that works once works always.
"""

from __future__ import annotations

import functools
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from refdiff.generation.chat_template.budget import CALL, ELEMENT, Budget, check_bits, check_width
from refdiff.generation.chat_template.meter import GenerationTag, Meter

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda a, b: a in b,
    "notin": lambda a, b: a not in b,
}
_FREE = {"abs", "attr", "count", "d", "default", "first", "items", "last", "length", "round", "safe"}
_WHOLE = {"dictsort", "groupby", "max", "min", "sort", "sum", "unique"}
_LAZY = {"map", "reject", "rejectattr", "select", "selectattr"}
_TEXT = {
    "capitalize",
    "e",
    "escape",
    "float",
    "int",
    "lower",
    "string",
    "title",
    "trim",
    "truncate",
    "upper",
    "wordcount",
}
_PRICED = {"center", "format", "indent", "join", "list", "replace", "reverse"}
_NUMBER_ATTRIBUTES = {"bit_length", "is_integer"}
_TEXT_ATTRIBUTES_OUT = {"encode", "maketrans", "striptags", "translate", "unescape"}


class RefusedError(Exception):
    """The template called `raise_exception`: it works, but does not take these messages."""


class PlainNamespace(Namespace):
    """Jinja's `namespace()` without private names; it prints as one word, so that nested ones cannot explode."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            PlainNamespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        PlainNamespace._check(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:
        return "<Namespace>"

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the private name {name!r}")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates (syntax, filters, globals) with a budget; see the module."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self, strftime_now: Callable[[str], str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer runs constant expressions while compiling, before any budget
            extensions=[GenerationTag, LoopControlExtension],
            finalize=_paid_output,
        )
        self.budget = Budget()
        self.pay = self.budget.pay
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = strftime_now
        self.globals["namespace"] = PlainNamespace
        self.globals["dict"] = _PaidDict(self.budget)
        del self.globals["lipsum"]
        self.filters = {
            name: self._priced_filter(name, self.filters[name]) for name in _FREE | _WHOLE | _LAZY | _TEXT | _PRICED
        }
        self.filters["tojson"] = self._tojson
        tests: dict[str, Any] = self.tests
        self.tests = {name: self._priced_test(name, test) for name, test in tests.items()}

    def weighed(self, value: Any) -> Any:
        self.budget.weigh(value)
        return value

    def sliceable(self, value: Any) -> Any:
        self.budget.pay_shallow(value)
        return value

    def concatenate(self, *values: Any) -> str:
        for value in values:
            self.budget.weigh(value)
        return "".join(map(str, values))

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a block, macro or the whole template printed, paying piece by piece."""
        return "".join([piece for piece in pieces if self.budget.pay(len(piece) + 1)])

    def compare(self, left: Any, *rest: Any) -> bool:
        for name, right in zip(rest[::2], rest[1::2], strict=True):
            if name in ("in", "notin"):
                self.budget.pay_search(left, right)
            elif isinstance(left, str) and isinstance(right, str):
                self.budget.pay(min(len(left), len(right)) + 1)
            else:
                self.budget.weigh(left)
                self.budget.weigh(right)
            if not _COMPARE[name](left, right):
                return False
            left = right
        return True

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self.budget.pay_percent(left, right)
        elif operator == "*":
            self.budget.pay_product(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            check_bits(left.bit_length() * max(right, 0))
        else:
            self.budget.pay_shallow(left)
            self.budget.pay_shallow(right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        __self.budget.pay(CALL)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = __self.budget.pay_method(owner, __obj.__name__, args, kwargs)
        elif owner is not None and owner is not __self and owner is not __self.budget:
            # A container's method reads its elements, and compares each with the argument.
            __self.budget.pay_search([*args, *kwargs.values()], owner)
        return __self._paid(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, str | int):
            self.budget.weigh(argument)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, int | float) and attr not in _NUMBER_ATTRIBUTES:
            return False
        if isinstance(obj, str) and attr in _TEXT_ATTRIBUTES_OUT:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        formatter, text, is_map = _PaidFormatter(self), str(value.__self__), value.__name__ == "format_map"

        def paid_format(*args: Any, **kwargs: Any) -> str:
            self.budget.pay_shallow(text)
            return formatter.vformat(text, () if is_map else args, args[0] if is_map else kwargs)

        return paid_format

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = Meter().visit(super()._parse(source, name, filename))
        return template

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        for width in [len(text) for text in (indent, *(separators or ())) if isinstance(text, str)]:
            check_width(width)
        if isinstance(indent, int):
            check_width(indent)
        self.budget.weigh(value)
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.concat(encoder.iterencode(value))

    def _paid(self, result: Any) -> Any:
        """Pay for what a call or filter made; what it will only make when read pays as it is read."""
        if isinstance(result, int) and not isinstance(result, bool):
            check_bits(result.bit_length())
        if isinstance(result, Iterator):
            return self._paid_items(result)
        self.budget.pay_shallow(result)
        return result

    def _paid_items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.budget.pay(ELEMENT)
            yield item

    def _priced_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def priced(*args: Any, **kwargs: Any) -> Any:
            self.budget.pay(CALL)
            passed, value, rest = args[:skip], args[skip], args[skip + 1 :]
            value, rest = self._pay_filter(name, value, rest, kwargs)
            return self._paid(function(*passed, value, *rest, **kwargs))

        return priced

    def _pay_filter(
        self, name: str, value: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, tuple[Any, ...]]:
        options = [*rest, *kwargs.values()]
        if name in _TEXT or name in ("center", "format", "indent", "replace"):
            self.budget.weigh([value, options])
        if name == "reverse":
            self.budget.pay_shallow(value)
        elif name in _WHOLE:
            value = value if isinstance(value, dict) else list(self._paid_items(value))
            self.budget.weigh(value)
            if name == "sum" and not isinstance(kwargs.get("start", [*rest, 0, 0][1]), int | float):
                raise TypeError("sum adds numbers only")
        elif name == "list":
            value = list(self._paid_items(value))
        elif name == "round":
            check_width(max([abs(option) for option in options if isinstance(option, int)], default=0))
        elif name == "format":
            self.budget.pay_percent(str(value), [*rest, kwargs])
        elif name in ("indent", "center"):
            widths = [option if isinstance(option, int) else len(str(option)) for option in options]
            self.budget.pay((str(value).count("\n") + 1) * max([4, *map(abs, widths)]))
        elif name == "replace":
            old, new = str(kwargs.get("old", rest[0] if rest else "")), str(kwargs.get("new", [*rest, "", ""][1]))
            self.budget.pay(str(value).count(old) * len(new))
        elif name == "join":
            attribute = kwargs.pop("attribute", rest[1] if len(rest) > 1 else None)
            if attribute is not None:
                value = (self.getitem(item, attribute) for item in value)
            return self.budget.joinable(value, str(kwargs.get("d", rest[0] if rest else ""))), rest[:1]
        return value, rest

    def _priced_test(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        skip = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def priced(*args: Any) -> Any:
            self.budget.pay(CALL)
            value, rest = args[skip], args[skip + 1 :]
            if name == "in" and rest:
                return self.compare(value, "in", rest[0])
            if isinstance(value, str) or rest:
                for operand in (value, *rest):
                    self.budget.weigh(operand)
            return function(*args)

        return priced


class _PaidDict:
    """`dict(…)` and `dict.fromkeys(…)`, and nothing else of Python's dict."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        self._budget.weigh(list(args))
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        self._budget.weigh(keys)
        return dict.fromkeys(keys, value)


class _PaidFormatter(SandboxedFormatter):
    def __init__(self, environment: TemplateSandbox) -> None:
        super().__init__(environment)
        self._environment = environment

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._environment.budget.weigh(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        for width in re.findall(r"\d+", format_spec):
            check_width(width)
        self._environment.budget.weigh(value)
        return super().format_field(value, format_spec)


@jinja2.pass_context
def _paid_output(context: Any, value: Any) -> Any:
    context.environment.budget.weigh(value)
    return value


def _refuse(message: Any) -> None:
    raise RefusedError(str(message)[:1000])
