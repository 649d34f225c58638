"""Jinja's `ImmutableSandboxedEnvironment` with bounds on time, memory and output, for templates from strangers.

Jinja's sandbox denies access to Python. It stops neither an endless loop nor `"a" * 10**10`. Three rules do:

1. Every pass of a loop, macro or block reads the clock.
2. Every new value pays for its characters and elements. No value, each part counted as often as it is held, is larger
   than all that may be paid: 60 lists that each hold the one before twice are refused.
3. An operation that can make a large value in one step (`*`, `**`, `%`, `center`, `replace`) is estimated first.
"""

from __future__ import annotations

import functools
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # of the thread's CPU; the templates in use take milliseconds
UNITS, UNITS_PER_CHARACTER = 4_000_000, 100  # memory: a unit is about a character, also of the conversation

_ELEMENT, _MAX_DEPTH, _MAX_BITS, _MAX_STATEMENTS = 32, 100, 4096, 40
_ITEMS: Any = type({}.items())
_CONTAINERS: Any = (list, tuple, set, dict, type({}.keys()), type({}.values()), _ITEMS)
_HAS_TEXT: Any = (*_CONTAINERS, str, int, float, complex, range, type(None), jinja2.Undefined)
_TEXT_FILTERS = {
    "capitalize", "center", "e", "escape", "float", "format", "indent", "int", "lower", "replace", "round", "string",
    "title", "trim", "truncate", "upper", "wordcount",
}  # fmt: skip
_FILTERS = {
    "abs", "attr", "count", "d", "default", "dictsort", "first", "groupby", "items", "join", "last", "length", "list",
    "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr", "sort", "sum", "unique",
}  # fmt: skip
_PLACES = {"expandtabs": "\t", "format": "%", "indent": "\n"}  # other operations put their operands in once
_SPLITS = {"rsplit", "split", "splitlines", "title", "wordcount"}
_FORBIDDEN_METHODS = {"encode", "from_bytes", "maketrans", "striptags", "to_bytes", "translate", "unescape"}
_WIDE = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(?:\d{3}|\*|\d*\.(?:\d{3}|\*))")  # %1000d, %*d, %.1000f
_clock = getattr(time, "thread_time", time.process_time)


class StoppedError(Exception):
    """The template asked for more than it may have. No handler inside Jinja swallows this class."""


class RefusedError(Exception):
    """The template called `raise_exception`: it works, but does not accept these messages."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates (syntax, filters, globals) within bounds; see the module."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer runs constant expressions while compiling, outside the bounds
            extensions=[_GenerationTag, LoopControlExtension],
            finalize=_printed,
        )
        del self.globals["lipsum"]
        self.globals.update(raise_exception=_refuse, strftime_now=_strftime_now, dict=_Dict())
        self.filters = {name: self._bounded(name, self.filters[name]) for name in _TEXT_FILTERS | _FILTERS}
        self.filters["tojson"] = self._tojson

    def start(self, variables: dict[str, Any]) -> int:
        """Begin to render a conversation; return its size, about its characters."""
        self._limit: float = math.inf
        size = self.measure(variables)[0]
        self._limit = self._left = UNITS + UNITS_PER_CHARACTER * size
        self._deadline = _clock() + SECONDS + size / 1e6
        return size

    def pay(self, units: int = 50) -> bool:
        """Take `units` from the memory bound and look at the clock; return True, or raise `StoppedError`."""
        self._left -= units
        if self._left < 0 or _clock() > self._deadline:
            raise StoppedError
        return True

    def need(self, units: int) -> None:
        """Raise `StoppedError` where an operation would write more than is left; `made` takes it off afterwards."""
        if units > self._left:
            raise StoppedError

    def measure(self, value: Any) -> tuple[int, str]:
        """Return a value's size in units, and the type of a part that has no text ("" if all have).

        Raises `StoppedError` for a size beyond the memory bound, `RecursionError` for more than 100 levels.
        """
        size, object_name, level = 0, "", [value]
        for _ in range(_MAX_DEPTH + 1):
            for part in level:
                size += len(part) if isinstance(part, str) else _ELEMENT * len(part) if _is_container(part) else 1
                if size > self._limit or (isinstance(part, int) and part.bit_length() > _MAX_BITS):
                    raise StoppedError
                object_name = object_name or ("" if isinstance(part, _HAS_TEXT) else type(part).__name__)
            level = [child for part in level if _is_container(part) for child in _children(part)]
            if not level:
                return size, object_name
        raise RecursionError(f"containers nested deeper than {_MAX_DEPTH} levels")

    def made(self, value: Any) -> Any:
        """Pay for a new value, but not for what a container holds; return it. Iterators pay as they are read."""
        if isinstance(value, Iterator):
            return self._items(value)
        self.measure(value)
        self.pay(1 + (len(value) if isinstance(value, str) else _ELEMENT * len(value) if _is_container(value) else 0))
        return value

    def printed(self, value: Any) -> Any:
        """Pay for the text of a value; return the value.

        Raises `TypeError` for an object without a text: Python would show its address.
        """
        size, object_name = self.measure(value)
        if object_name:
            raise TypeError(f"a {object_name} has no text")
        self.pay(1 + size)
        return value

    def concatenate(self, *values: Any) -> str:
        """Return `a ~ b ~ c`."""
        return "".join([str(self.printed(value)) for value in values])

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a block, a macro or the whole template writes."""
        return "".join([piece for piece in pieces if self.pay(len(piece) + 1)])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`."""
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, str | list | tuple) and isinstance(times, int):
                    self.need(len(value) * max(times, 0) * (1 if isinstance(value, str) else _ELEMENT))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.measure(1 << min(left.bit_length() * max(right, 0), _MAX_BITS))
        elif operator == "%" and isinstance(left, str):
            self._estimate("format", left, [self.printed(right)])
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function, method or macro."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "join" and args:
            args = (__self._to_join(args[0], [owner]),)
        elif isinstance(owner, str):
            __self._estimate(__obj.__name__, owner, [*args, *kwargs.values()])
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may read this attribute."""
        is_forbidden = isinstance(obj, str | int) and attr in _FORBIDDEN_METHODS
        return not is_forbidden and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replace the methods `format` and `format_map` of a text."""
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = str(value.__self__), value.__name__ == "format_map"
        return lambda *args, **kwargs: _Formatter(self).vformat(
            text, () if is_map else args, args[0] if is_map else kwargs
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return template

    def _items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.pay(_ELEMENT)
            yield item

    def _to_join(self, values: Iterable[Any], options: Sequence[Any]) -> list[Any]:
        items = list(self._items(values))
        self.need(len(self.printed(items)) * sum(len(o) for o in options if isinstance(o, str)))
        return items

    def _estimate(self, name: str, text: str, operands: Sequence[Any]) -> None:
        """Check what a method, filter or % may make of a text: all operands, wherever they can be put in."""
        if is_format := name == "format":
            self.need(len(text) * text.count("%("))  # the search for a closing bracket may run to the end each time
            if _WIDE.search(text):
                raise StoppedError
        if name in _SPLITS:
            self.need(_ELEMENT // 2 * len(text))
        sizes = [abs(o) if isinstance(o, int) and not is_format else self.measure(o)[0] + 100 for o in operands]
        place = str(operands[0]) if name == "replace" and operands else _PLACES.get(name, text)
        self.need((1 + text.count(place)) * sum(sizes))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that pays for its result, and is checked before it starts for what it may make."""
        at = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, options = args[at], [*args[at + 1 :], *(kwargs[k] for k in sorted(kwargs)[::-1])]  # old before new
            if name == "join":
                value = self._to_join(value, self.printed(options))
            elif name in _TEXT_FILTERS:
                self._estimate(name, str(self.printed([value, *options])[0]), options)
            elif name in ("list", "sort", "unique") and isinstance(value, str):
                self.need(_ELEMENT * len(value))
            elif name == "sum" and any(map(_is_container, options)):
                raise TypeError("sum adds numbers only")
            return self.made(function(*args[:at], value, *args[at + 1 :], **kwargs))

        return bounded

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        widths = [len(o) if isinstance(o, str) else o for o in (indent, *(separators or ())) if o]
        self.need(_MAX_DEPTH * sum(widths))
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.concat(encoder.iterencode(self.printed(value)))


class _Bounds(NodeTransformer):
    """Put `pay` into every loop, macro and block, and `made` around new values that Jinja has no hook for."""

    depth = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        is_statement = isinstance(node, nodes.Stmt)
        self.depth += is_statement
        if self.depth > _MAX_STATEMENTS:  # Python takes minutes to compile deeper ones
            raise jinja2.TemplateSyntaxError(f"statements nested deeper than {_MAX_STATEMENTS} levels", node.lineno)
        self.generic_visit(node)
        self.depth -= is_statement
        if isinstance(node, nodes.For) and node.test is not None:
            node.test = nodes.And(_call("pay"), node.test, lineno=node.lineno)
        if isinstance(node, nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block):
            node.body.insert(0, nodes.ExprStmt(_call("pay")).set_lineno(node.lineno))
        elif isinstance(node, nodes.Concat):
            return _call("concatenate", *node.nodes)
        is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        is_literal = isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
        return _call("made", node) if is_slice or is_literal else node


class _Formatter(SandboxedFormatter):
    def get_field(self, *args: Any) -> Any:
        value, key = super().get_field(*args)
        return self._env.printed(value), key  # type: ignore[attr-defined]

    def format_field(self, value: Any, format_spec: str) -> Any:
        if re.search(r"\d{3}", format_spec):
            raise StoppedError
        return super().format_field(value, format_spec)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; its text is its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)` alone: other methods of Python's class could change the messages."""

    fromkeys = staticmethod(dict.fromkeys)

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


@jinja2.pass_context
def _printed(context: Any, value: Any) -> Any:
    return context.environment.printed(value)


@jinja2.pass_context
def _refuse(context: Any, message: Any) -> None:
    raise RefusedError(str(context.environment.printed(message)))


def _strftime_now(form: str) -> str:
    if len(form) > 200:  # Python tries buffers of up to 256 times the format's length
        raise StoppedError
    return datetime.now().strftime(form)


def _is_container(value: Any) -> bool:
    return isinstance(value, _CONTAINERS)


def _children(container: Any) -> Iterable[Any]:
    if not isinstance(container, dict | _ITEMS):
        return container  # type: ignore[no-any-return]
    return [part for pair in dict(container).items() for part in pair]


def _call(method: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)
