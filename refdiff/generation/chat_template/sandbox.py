"""A Jinja environment for templates from strangers: no way to Python, and bounds on time, memory and output.

Jinja's `ImmutableSandboxedEnvironment` closes the way to Python. It does not stop a template from running forever or
from building a text of 10^10 characters. These bounds do:

- Time: every pass of a loop, macro or block reads the clock.
- Memory: a value that an operation makes costs its characters and elements. What would explode before it can be
  measured (`"a" * 10**10`, `center`, `replace`) is estimated first.
- Size: no value is larger than the memory bound, each part counted as often as it is held. So no single operation
  takes long, and 60 lists that each hold the one before twice are refused.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 2.0  # of the thread's CPU; the templates in use take milliseconds
UNITS, UNITS_PER_CHARACTER = 4_000_000, 100  # memory: a unit is about a character, also of the conversation

_ELEMENT, _MAX_DEPTH, _MAX_BITS, _MAX_INDENT, _MAX_STATEMENTS = 32, 100, 4096, 64, 40
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS: tuple[Any, ...] = (list, tuple, set, dict, *_VIEWS)
_HAS_TEXT: tuple[Any, ...] = (type(None), int, float, complex, range, jinja2.Undefined, Namespace)
_TEXT_FILTERS = {
    "capitalize", "center", "e", "escape", "float", "format", "indent", "int", "join", "lower", "replace", "string",
    "title", "trim", "truncate", "upper", "wordcount",
}  # fmt: skip
_FILTERS = {
    "abs", "attr", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list", "map",
    "max", "min", "reject", "rejectattr", "reverse", "round", "safe", "select", "selectattr", "sort", "sum", "unique",
}  # fmt: skip
_FORBIDDEN_TEXT_METHODS = {"encode", "maketrans", "striptags", "translate", "unescape"}
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
        self.globals.update(raise_exception=_refuse, strftime_now=_strftime_now, namespace=_Namespace, dict=_Dict())
        self.filters = {name: self._bounded(name, self.filters[name]) for name in _TEXT_FILTERS | _FILTERS}
        self.filters["tojson"] = self._tojson

    def start(self, characters: int) -> None:
        """Begin to render a conversation of so many characters."""
        self._limit = self._left = UNITS + UNITS_PER_CHARACTER * characters
        self._deadline = _clock() + SECONDS + characters / 1e6
        self._measured: dict[int, tuple[Any, tuple[int, int, str]]] = {}

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

    def measure(self, value: Any) -> tuple[int, int, str]:
        """Return a value's size in units, its depth, and the type of a part that has no text ("" if all have).

        Raises `StoppedError` for a size beyond the memory bound, `RecursionError` for more than 100 levels.
        """
        if isinstance(value, str):
            return len(value) + 1, 0, ""
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise StoppedError
        if not isinstance(value, _CONTAINERS):
            return 1, 0, "" if isinstance(value, _HAS_TEXT) else type(value).__name__
        if id(value) not in self._measured:
            if _ELEMENT * len(value) > self._limit:
                raise StoppedError
            children = value
            if isinstance(value, dict | _VIEWS[2]):
                children = [*(table := getattr(value, "mapping", value)), *table.values()]
            parts = [self.measure(child) for child in children]
            size = _ELEMENT * (1 + len(value)) + sum(part[0] for part in parts)
            depth = 1 + max([part[1] for part in parts], default=0)
            if size > self._limit:
                raise StoppedError
            if depth > _MAX_DEPTH:
                raise RecursionError(f"containers nested deeper than {_MAX_DEPTH} levels")
            # Containers never change here. Holding them keeps their ids from being used again.
            self._measured[id(value)] = value, (size, depth, next((part[2] for part in parts if part[2]), ""))
        return self._measured[id(value)][1]

    def made(self, value: Any) -> Any:
        """Pay for a new value, but not for what a container holds; return it. Iterators pay as they are read."""
        if isinstance(value, Iterator):
            return self._items(value)
        unit = 1 if isinstance(value, str) else _ELEMENT if isinstance(value, _CONTAINERS) else 0
        self.pay(1 + (unit and unit * len(value)))
        self.measure(value)
        return value

    def printed(self, value: Any) -> Any:
        """Pay for the text of a value; return the value.

        Raises `TypeError` for an object without a text: Python would show its address.
        """
        size, _, object_name = self.measure(value)
        if object_name:
            raise TypeError(f"a {object_name} has no text")
        self.pay(size)
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
            self._need_percent(left, right)
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function, method or macro."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str) and name == "join" and args:
            args = (__self._joined(args[0], owner),)
        elif isinstance(owner, str):
            __self._need_growth(owner, name, [*args, *kwargs.values()])
        return __self._result(super().call(__context, __obj, *args, **kwargs), isinstance(owner, str))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may read this attribute."""
        if isinstance(obj, int | float) and attr not in ("bit_length", "is_integer"):
            return False
        forbidden = isinstance(obj, str) and attr in _FORBIDDEN_TEXT_METHODS
        return not forbidden and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replace the methods `format` and `format_map` of a text."""
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = str(value.__self__), value.__name__ == "format_map"

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            return str(self.made(_Formatter(self).vformat(text, () if is_map else args, args[0] if is_map else kwargs)))

        return bounded_format

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return template

    def _items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.pay(_ELEMENT)
            yield item

    def _result(self, value: Any, is_new_text: bool) -> Any:
        return value if isinstance(value, str) and not is_new_text and self.pay() else self.made(value)

    def _joined(self, values: Iterable[Any], separator: str) -> list[Any]:
        items = list(self._items(values))
        self.need(len(separator) * len(self.printed(items)))
        return items

    def _need_growth(self, text: str, name: str, options: list[Any]) -> None:
        """Check what a method or filter may add to a text: what replaces, or a width on every line or tab."""
        texts = [option for option in options if isinstance(option, str)]
        if name in ("split", "rsplit", "splitlines", "title", "wordcount"):
            pieces = text.count(texts[0]) if texts and name.endswith("split") else len(text)
            self.need(_ELEMENT // 2 * pieces)
        elif name == "replace":
            self.need(sum(text.count(old) * len(new) for old, new in (texts[:2], texts[1::-1]) if len(texts) > 1))
        else:
            widths = [abs(option) for option in options if isinstance(option, int)] + [len(option) for option in texts]
            self.need((text.count("\t" if name == "expandtabs" else "\n") + 1) * sum(widths))

    def _need_percent(self, text: str, values: Any) -> None:
        """Check what `text % values` may write, as if every field wrote all values."""
        self.need(len(text) * (1 + text.count("%(")))  # the search for a closing bracket may run to the end each time
        if _WIDE.search(text):
            raise StoppedError
        self.need(text.count("%") * (self.measure(self.printed(values))[0] + 100))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that pays for its result, and is checked before it starts for what it may add."""
        at = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, options = args[at], [*args[at + 1 :], *kwargs.values()]
            if name == "join":
                separator = kwargs.get("d", args[at + 1] if len(args) > at + 1 else "")
                value = self._joined(value, str(self.printed(separator)))
            elif name in _TEXT_FILTERS:
                for operand in (value, *options):
                    self.printed(operand)
                if name == "format":
                    self._need_percent(str(value), options)
                else:
                    self._need_growth(str(value), name, options)
            elif name in ("list", "sort", "unique") and isinstance(value, str):
                self.need(_ELEMENT * len(value))
            elif name == "round":
                self._need_growth("", name, options)
            elif name == "sum" and not isinstance(kwargs.get("start", [*args[at:], 0, 0][2]), int | float):
                raise TypeError("sum adds numbers only")
            return self._result(function(*args[:at], value, *args[at + 1 :], **kwargs), name in _TEXT_FILTERS)

        return bounded

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        for space in (indent, *(separators or ())):
            if (len(space) if isinstance(space, str) else space or 0) > _MAX_INDENT:
                raise StoppedError
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
    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(self._env.printed(value), conversion)  # type: ignore[attr-defined]

    def format_field(self, value: Any, format_spec: str) -> Any:
        if re.search(r"\d{3}", format_spec):
            raise StoppedError
        return super().format_field(self._env.printed(value), format_spec)  # type: ignore[attr-defined]


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; its text is its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Namespace(Namespace):
    """Jinja's `namespace()` without private names; it prints as one word, so that nested ones cannot explode."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold the private name {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


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


def _call(method: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)
