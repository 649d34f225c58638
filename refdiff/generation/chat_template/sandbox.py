"""Jinja's `ImmutableSandboxedEnvironment` with bounds on time, memory and output, for templates from strangers.

Jinja's sandbox denies access to Python. It stops neither an endless loop nor `"a" * 10**10`. Three rules do:

1. Every pass of a loop and every call reads the clock.
2. Every new value pays for its characters and elements. No value, each part counted as often as it is held, is larger
   than all that may be paid: 60 lists that each hold the one before twice are refused.
3. An operation that can make a large value in one step (`*`, `**`, `%`, `center`, `replace`) is estimated first.
"""

from __future__ import annotations

import functools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from types import GenericAlias
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from refdiff.errors import CheckpointError
from refdiff.generation.chat_template import MAX_CHARACTERS

SECONDS = 2.0  # of the thread's CPU; the templates in use take milliseconds
_UNITS, _UNITS_PER_CHARACTER = 4_000_000, 100  # memory: a unit is about a character, also of the conversation
_OUTPUT, _OUTPUT_PER_CHARACTER = 300_000, 10  # the most characters that a template may write
_ELEMENT, _MAX_DEPTH, _MAX_BITS, _MAX_STATEMENTS = 32, 200, 4096, 40

_CONTAINERS: Any = (list, tuple, set, dict, type({}.keys()), type({}.values()), type({}.items()))
_HAS_TEXT: Any = (*_CONTAINERS, str, int, float, complex, range, type(None), jinja2.Undefined)
_TEXT_FILTERS = {
    "capitalize", "center", "e", "escape", "float", "format", "indent", "int", "lower", "replace", "round", "safe",
    "string", "title", "trim", "truncate", "upper", "wordcount",
}  # fmt: skip
_FILTERS = _TEXT_FILTERS | {
    "abs", "attr", "count", "d", "default", "dictsort", "first", "groupby", "items", "join", "last", "length", "list",
    "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr", "sort", "sum", "unique",
}  # fmt: skip
_PLACES = {"expandtabs": "\t", "format": "%", "indent": "\n"}  # other operations put their operands in once
_FORBIDDEN_METHODS = {"encode", "from_bytes", "maketrans", "striptags", "to_bytes", "translate", "unescape"}
_WIDE = re.compile(r"%(?:\([^)]*\))?[#0\- +]*(?:\d{3}|\*|\d*\.(?:\d{3}|\*))")  # %1000d, %*d, %.1000f
_REASONS = {
    RecursionError: "it calls itself without end, or its values are nested too deeply",
    UnicodeEncodeError: "it writes half a surrogate pair, such as \\ud800, which is not a character",
}  # where Python's own words say nothing about a template
_clock = getattr(time, "thread_time", time.process_time)


class _StoppedError(Exception):
    """The template asked for more than it may have. No handler inside Jinja swallows this class."""


class _RefusedError(Exception):
    """The template called `raise_exception`: it works, but does not accept these messages."""


class ChatTemplate:
    """A compiled chat template; errors name `source`, a file or folder.

    Raises:
        CheckpointError: a text that is not a valid template.
    """

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self._lock = threading.Lock()
        if len(text) > MAX_CHARACTERS:
            raise CheckpointError(
                f"{source}: the chat template: got {len(text):,} characters, expected at most {MAX_CHARACTERS:,}"
            )
        try:
            self._sandbox = _Sandbox()
            self._template = self._sandbox.from_string(text)
        except Exception as error:  # Jinja, Python's compiler and number parsing each have errors of their own
            raise CheckpointError(f"{source}: the chat template does not compile: {_first_line(error)}") from None

    def render(self, variables: dict[str, Any]) -> str:
        """Return the text for these variables, which must be plain data.

        Raises:
            CheckpointError: the template fails or goes beyond the bounds.
            ValueError: the template refuses the messages by `raise_exception`.
        """
        try:
            with self._lock:
                most = self._sandbox.start(variables)
                text = self._template.render(variables)
            if len(text) > most:
                raise _StoppedError
            text.encode()  # half of a surrogate pair, which JSON can spell, is no text
            return text
        except _RefusedError as error:
            raise ValueError(f"{self.source}: the chat template refuses these messages: {_first_line(error)}") from None
        except _StoppedError:
            reason = "was stopped: it takes more time or memory, or writes more, than a chat needs"
        except Exception as error:  # whatever a stranger's template runs into is the template's failure
            words = _REASONS.get(type(error)) or f"{type(error).__name__}: {_first_line(error)}"
            reason = f"failed on these messages: {words}"
        raise CheckpointError(f"{self.source}: the chat template {reason}")


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates (syntax, filters, globals) within bounds; see the module."""

    intercepted_binops = frozenset(["+", "-", "*", "%", "**"])  # "-" of keys makes a set

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer runs constant expressions while compiling, outside the bounds
            extensions=[_GenerationTag, LoopControlExtension],
            finalize=_printed,
        )
        del self.globals["lipsum"]
        self.globals.update(raise_exception=self._refuse, strftime_now=_strftime_now)
        self.filters = {name: self._bounded(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = self._tojson

    def start(self, variables: dict[str, Any]) -> int:
        """Begin to render a conversation; return how many characters may be written."""
        self._limit: float = math.inf
        size = self.measure(variables)
        self._limit = self._left = _UNITS + _UNITS_PER_CHARACTER * size
        self._deadline = _clock() + SECONDS + size / 1e6
        return _OUTPUT + _OUTPUT_PER_CHARACTER * size

    def pay(self, units: int = 50) -> bool:
        """Take `units` from the memory bound and look at the clock; return True, or raise `_StoppedError`."""
        self._left -= units
        if self._left < 0 or _clock() > self._deadline:
            raise _StoppedError
        return True

    def need(self, units: int) -> None:
        """Raise `_StoppedError` where an operation would write more than is left; `made` takes it off afterwards."""
        if units > self._left:
            raise _StoppedError

    def measure(self, value: Any, *, is_printed: bool = False) -> int:
        """Return the size of a value and all its parts in units.

        Raises:
            _StoppedError: a size beyond the memory bound.
            RecursionError: too many levels.
            TypeError: an object that has no text is printed: Python would show its address.
        """
        size, level = 0, [value]
        for _ in range(_MAX_DEPTH):
            children: list[Any] = []
            for part in level:
                size += _size(part)
                if size > self._limit or (isinstance(part, int) and part.bit_length() > _MAX_BITS):
                    raise _StoppedError
                if is_printed and not isinstance(part, _HAS_TEXT):
                    raise TypeError(f"a {type(part).__name__} has no text")
                if isinstance(part, _CONTAINERS):
                    children += part.items() if isinstance(part, dict) else part
            if not children:
                return size
            level = children
        raise RecursionError

    def made(self, value: Any) -> Any:
        """Pay for a new value, but not for what a container holds; return it. Iterators pay as they are read."""
        if isinstance(value, Iterator):
            return self._items(value)
        self.measure(value)
        self.pay(1 + _size(value))
        return value

    def printed(self, value: Any) -> Any:
        """Pay for the text of a value; return the value."""
        self.pay(1 + self.measure(value, is_printed=True))
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
                    self.need(_size(value) * times)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.measure(1 << min(left.bit_length() * max(right, 0), _MAX_BITS))
        elif operator == "%" and isinstance(left, str):
            self._estimate("format", left, [self.printed(right)])
        return self.made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function, method or macro, which may keep its arguments."""
        __self.pay(_ELEMENT * (1 + len(args) + len(kwargs)))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "join" and args:
            args = (__self._to_join(args[0], [owner]),)
        elif isinstance(owner, str):
            __self._estimate(__obj.__name__, owner, [*args, *kwargs.values()])
        return __self.made(super().call(__context, __obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may read this attribute: of the class dict, `update` could change the messages."""
        is_class = isinstance(obj, type | GenericAlias)
        is_forbidden = attr != "fromkeys" if is_class else isinstance(obj, str | int) and attr in _FORBIDDEN_METHODS
        return not is_forbidden and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Replace the methods `format` and `format_map` of a text."""
        if super().wrap_str_format(value) is None:
            return None
        text, write = str(value.__self__), _Formatter(self).vformat
        if value.__name__ == "format_map":
            return lambda mapping: write(text, (), mapping)
        return lambda *args, **kwargs: write(text, args, kwargs)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return template

    def _items(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.pay(_ELEMENT)
            yield item

    def _to_join(self, values: Iterable[Any], options: Sequence[Any]) -> list[Any]:
        items = list(self._items(values))
        self.need(len(self.printed(items)) * sum(map(_size, options)))
        return items

    def _estimate(self, name: str, text: str, operands: Sequence[Any]) -> None:
        """Check what an operation may make of a text: a list of it, and all operands wherever they can be put in."""
        is_format = name == "format"
        sizes = [abs(o) if isinstance(o, int) and not is_format else self.measure(o) + 100 for o in operands]
        if is_format:
            sizes.append(len(text))  # the search for the bracket that closes `%(` may run to the end each time
        place = str(operands[0]) if name == "replace" and operands else _PLACES.get(name, text)
        self.need(_ELEMENT // 2 * len(text) + (1 + text.count(place)) * sum(sizes))
        if is_format and _WIDE.search(text):
            raise _StoppedError

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that pays for its result, and is checked before it starts for what it may make."""
        at = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            value, options = args[at], [*args[at + 1 :], *(kwargs[k] for k in sorted(kwargs)[::-1])]  # old before new
            if name == "join":
                value = self._to_join(value, self.printed(options))
            elif name in _TEXT_FILTERS or isinstance(value, str):
                self._estimate(name, str(self.printed([value, *options])[0]), options)
            elif name == "sum" and any(isinstance(option, _CONTAINERS) for option in options):
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
        self.need(_MAX_DEPTH * (len(indent) if isinstance(indent, str) else indent or 0))
        encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
        return self.concat(encoder.iterencode(self.printed(value)))

    def _refuse(self, message: Any) -> None:
        raise _RefusedError(str(self.printed(message)))


class _Bounds(NodeTransformer):
    """Put `pay` into every loop, and `made` around new values that Jinja has no hook for."""

    depth = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        is_statement = isinstance(node, nodes.Stmt)
        self.depth += is_statement
        if self.depth > _MAX_STATEMENTS:  # Python takes minutes to compile deeper ones
            raise jinja2.TemplateSyntaxError(f"statements nested deeper than {_MAX_STATEMENTS} levels", node.lineno)
        self.generic_visit(node)
        self.depth -= is_statement
        if isinstance(node, nodes.For):
            node.body.insert(0, nodes.ExprStmt(_call("pay")).set_lineno(node.lineno))
            if node.test is not None:
                node.test = nodes.And(_call("pay"), node.test, lineno=node.lineno)
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
            raise _StoppedError
        return super().format_field(value, format_spec)


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; its text is its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


@jinja2.pass_context
def _printed(context: Any, value: Any) -> Any:
    return context.environment.printed(value)


def _strftime_now(form: str) -> str:
    if len(form) > 200:  # Python tries buffers of up to 256 times the format's length
        raise _StoppedError
    return datetime.now().strftime(form)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str) else _ELEMENT * len(value) if isinstance(value, _CONTAINERS) else 1


def _call(method: str, *arguments: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return line if line.isprintable() else ascii(line)[1:-1]
