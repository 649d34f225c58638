"""Jinja's `ImmutableSandboxedEnvironment` with bounds on time, memory and output, for templates from strangers.

Jinja's sandbox denies access to Python. It stops neither an endless loop nor `"a" * 10**10`. Four rules do:

1. A template has Jinja's tests, and of filters, methods and functions only those that published templates use.
2. Each operation, loop iteration and piece of output is charged for the size of its result, and checks the time.
3. No value is larger than the limit of the output, where repeated parts count each time, and all parts are data.
4. An operation whose result or time grows with the product of its operands (`_ESTIMATED`) is estimated first.
"""

from __future__ import annotations

import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from refdiff import limits
from refdiff.errors import CheckpointError

SECONDS = 2.0  # of the thread's CPU; the templates in use take milliseconds
_SIZE, _SIZE_PER_CHARACTER = 300_000, 10  # the largest value or output; a unit is about a character
_VALUES = 10  # the size of all results together, in units of the largest value
_ELEMENT, _MAX_DEPTH, _MAX_STATEMENTS = 8, 100, 40
_MAX_NAMES_OF_IFS = 500_000  # Jinja copies every name at each `if`, in 0.4 µs; published: some hundreds × 100

_CONTAINERS: Any = (list, tuple, dict, type({}.keys()), type({}.values()), type({}.items()))
_FILTERS = {
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "indent", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse",
    "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
}  # fmt: skip
_METHODS = {
    "capitalize", "count", "endswith", "find", "get", "isalnum", "isalpha", "isdigit", "isspace", "items", "keys",
    "lower", "lstrip", "removeprefix", "removesuffix", "replace", "rsplit", "rstrip", "split", "splitlines",
    "startswith", "strip", "title", "upper", "values",
}  # fmt: skip
_ESTIMATED = {
    "*", "capitalize", "e", "escape", "indent", "join", "lower", "lstrip", "max", "min", "replace", "rsplit", "rstrip",
    "safe", "sort", "string", "strip", "title", "tojson", "trim", "unique", "upper",
}  # fmt: skip
_REASONS = {
    RecursionError: "it calls itself without end, or its values are nested too deeply",
    UnicodeEncodeError: "it writes half a surrogate pair, such as \\ud800, which is not a character",
}  # for errors whose own message says nothing about a template
_clock = getattr(time, "thread_time", time.process_time)


class _StoppedError(Exception):
    """The template asked for more than it may have. No handler inside Jinja swallows this class."""


class _RefusedError(Exception):
    """The template called `raise_exception`: it works, but does not accept these messages."""


class ChatTemplate:
    """A compiled chat template; errors name `source`, a file or folder."""

    def __init__(self, text: str, source: str) -> None:
        self.text, self.source = text, source
        self._lock = threading.Lock()
        if len(text) > limits.MAX_TEMPLATE:
            raise CheckpointError(
                f"{source}: the chat template: got {len(text):,} characters, expected at most {limits.MAX_TEMPLATE:,}"
            )
        try:
            self._sandbox = _Sandbox()
            self._template = self._sandbox.from_string(text)
        except Exception as error:  # Jinja, Python's compiler and number parsing each have errors of their own
            raise CheckpointError(f"{source}: the chat template does not compile: {_first_line(error)}") from None

    def render(self, variables: dict[str, Any]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text for these variables, which must be plain data, and where its `generation` blocks stand."""
        try:
            with self._lock:
                self._sandbox.start(variables)
                text = self._sandbox.write(self._template.generate(variables))
                self._sandbox.measure(text)
                spans = self._sandbox.spans
            text.encode()  # raises for half a surrogate pair, which JSON can spell
            return text, spans
        except _RefusedError as error:
            raise ValueError(f"{self.source}: the chat template refuses these messages: {_first_line(error)}") from None
        except _StoppedError:
            reason = "was stopped: it takes more time or memory, or writes more, than a chat needs"
        except Exception as error:  # any other error is a failure of the template
            words = _REASONS.get(type(error)) or f"{type(error).__name__}: {_first_line(error)}"
            reason = f"failed on these messages: {words}"
        raise CheckpointError(f"{self.source}: the chat template {reason}")


class _Sandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' chat templates within bounds; see the module."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    iter = staticmethod(iter)  # for `_Bounds`, as is `same`
    same = staticmethod(lambda value: value)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # the optimizer runs constant expressions while compiling, outside the bounds
            extensions=[_GenerationTag, LoopControlExtension],
            finalize=jinja2.pass_context(lambda context, value: context.environment.to_text(value)),
        )
        self.globals = {"dict": dict, "namespace": _Namespace, "range": self.globals["range"]}
        self.globals.update(raise_exception=self._refuse, strftime_now=_strftime_now)
        self.filters["tojson"] = _tojson
        self.filters = {name: self._bounded(name, self.filters[name]) for name in (*_FILTERS, "tojson")}

    def start(self, variables: dict[str, Any]) -> None:
        """Begin to render a conversation: set the bounds in proportion to it."""
        self.spans: list[tuple[int, int]] = []
        self._written = 0
        self._most: float = math.inf
        size = self.measure(variables)
        self._most = _SIZE + _SIZE_PER_CHARACTER * size
        self._left = _VALUES * self._most
        self._deadline = _clock() + SECONDS + size / 1e6

    def pay(self, units: int) -> None:
        """Subtract `units` from what is left, and check the time."""
        self._left -= units
        if self._left < 0 or _clock() > self._deadline:
            raise _StoppedError

    def measure(self, value: Any, depth: int = 0) -> int:
        """Return the size of a value with all its parts; raise if it is too large or too deep, or a part is no data."""
        size = _size(value)
        if depth > _MAX_DEPTH:
            raise RecursionError
        if isinstance(value, _CONTAINERS):
            for part in value.items() if isinstance(value, dict) else value:
                size += self.measure(part, depth + 1)
                if size > self._most:
                    break
        if size > self._most:
            raise _StoppedError
        return size

    def charge_result(self, value: Any) -> Any:
        """Pay for a new value and return it. Iterators pay as they are read."""
        return self.charge_items(value) if isinstance(value, Iterator) else self.pay_for(value)

    def pay_for(self, value: Any) -> Any:
        """Pay for a value, but not for what a container holds; return it."""
        self.measure(value)
        self.pay(_ELEMENT + _size(value))
        return value

    def to_text(self, value: Any) -> str:
        """Pay for a value and for its text, which may be longer; return the text."""
        text = value if isinstance(value, str) else str(self.pay_for(value))
        self.pay_for(text)
        return text

    def charge_items(self, items: Iterable[Any]) -> Iterator[Any]:
        """Yield the items; each pays."""
        for item in items:
            self.pay(_ELEMENT)
            yield item

    def write(self, pieces: Iterable[str]) -> str:
        """Join what the whole template writes, and count its characters for the spans of `generation` blocks."""
        written = []
        for piece in pieces:
            written.append(self.pay_for(piece))
            self._written += len(piece)
        return "".join(written)

    def mark_generated(self, caller: Callable[[], str]) -> str:
        """Write a `generation` block, and note where it stands."""
        text = caller()
        self.spans.append((self._written, self._written + len(text)))
        return text

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a macro writes."""
        return "".join([self.pay_for(piece) for piece in pieces])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`."""
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise TypeError(f"a chat template may not compute {type(left).__name__} {operator} {type(right).__name__}")
        if operator == "*" and not all(isinstance(x, int | float) for x in (left, right)):
            self._estimate("*", left, right)
        return self.charge_result(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call a function, method or macro, which may keep its arguments."""
        __self.pay(_ELEMENT * (1 + len(args) + len(kwargs)))
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            __self._estimate(__obj.__name__, owner, *args, **kwargs)
        return __self.charge_result(super().call(__context, __obj, *args, **kwargs))

    def call_test(self, *args: Any, **kwargs: Any) -> Any:
        """Run a test that `select` or `reject` names."""
        self.pay(0)
        return super().call_test(*args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return `obj[argument]`, also for a filter's `attribute`."""
        self.pay(0)
        return super().getitem(obj, argument)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether a template may read this attribute."""
        is_known = attr in _METHODS or isinstance(obj, Namespace | LoopContext)
        return is_known and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """Leave the methods `format` and `format_map` to `is_safe_attribute`."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return template

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a filter that is estimated and pays."""
        at = 1 if hasattr(function, "jinja_pass_arg") else 0

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            is_read = name in ("join", "max", "min", "sort", "unique") and isinstance(args[at], Iterator | range)
            operands = [list(args[at]) if is_read else args[at], *args[at + 1 :]]
            self._estimate(name, *operands, **kwargs)
            return self.charge_result(function(*args[:at], *operands, **kwargs))

        return bounded

    def _estimate(self, name: str, value: Any, *operands: Any, **options: Any) -> None:
        """Stop an operation whose result or time may be larger than what is left."""
        if name in _ESTIMATED:
            is_exact = name == "replace" and operands and all(isinstance(text, str) for text in (value, operands[0]))
            places = value.count(operands[0]) if is_exact else self._amount(value)
            if (1 + places) * sum(map(self._amount, (*operands, *options.values()))) > self._left:
                raise _StoppedError

    def _amount(self, operand: Any) -> int:
        self.pay(0)
        return abs(operand) if isinstance(operand, int) else self.measure(operand)

    def _refuse(self, message: Any) -> None:
        raise _RefusedError(self.to_text(message))


class _Bounds(NodeTransformer):
    """Wrap in a call, which pays, what Jinja has no hook for: literals, slices, tests, `varargs`, `~` and loops.

    Refuse statements that compile to a list of all variables: a page of them takes gigabytes. Refuse templates whose
    number of `if` times names is too large to compile in a fraction of a second.
    """

    depth = ifs = 0

    def __init__(self) -> None:
        self.names: set[str] = set()

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        is_statement = isinstance(node, nodes.Stmt)
        self.depth += is_statement
        self.ifs += isinstance(node, nodes.If)
        if isinstance(node, nodes.Name):
            self.names.add(node.name)
        reason = ""
        if self.depth > _MAX_STATEMENTS:  # Python takes minutes to compile deeper ones
            reason = f"statements nested deeper than {_MAX_STATEMENTS} levels"
        elif self.ifs * len(self.names) > _MAX_NAMES_OF_IFS:
            reason = f"if × names: got {self.ifs:,} × {len(self.names):,}, expected at most {_MAX_NAMES_OF_IFS:,}"
        elif isinstance(node, nodes.Include | nodes.Import | nodes.FromImport) or getattr(node, "scoped", False):
            reason = "a chat template has no includes, imports or scoped blocks"
        if reason:
            raise jinja2.TemplateSyntaxError(reason, node.lineno)
        self.generic_visit(node)
        self.depth -= is_statement
        if isinstance(node, nodes.For):
            node.iter = _call("iter", node.iter)
        elif isinstance(node, nodes.Pair):
            node.key = _call("same", node.key)
        elif isinstance(node, nodes.Compare):
            for operand in node.ops[1:]:  # a chain, `a == b == c`, pays between its comparisons
                operand.expr = _call("same", operand.expr)
        elif isinstance(node, nodes.Concat):
            return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None, lineno=node.lineno)
        is_slice = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        is_tuple = isinstance(node, nodes.Tuple) and node.ctx == "load"
        is_varargs = isinstance(node, nodes.Name) and node.ctx == "load" and node.name in ("varargs", "kwargs")
        if is_slice or is_tuple or is_varargs or isinstance(node, nodes.List | nodes.Dict | nodes.Compare | nodes.Test):
            return _call("same", node)
        return node


class _Namespace(Namespace):
    def __repr__(self) -> str:  # also in errors; namespaces that each hold the one before twice would be long
        return "a namespace"


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant wrote; see `mark_generated`."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = nodes.Call(nodes.EnvironmentAttribute("mark_generated"), [], [], None, None)
        return nodes.CallBlock(call, [], [], body, lineno=line)


def _strftime_now(form: str) -> str:
    if len(form) > 200:  # Python tries buffers of up to 256 times the format's length
        raise _StoppedError
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _size(value: Any) -> int:
    if not isinstance(value, _DATA):
        raise TypeError(f"a {type(value).__name__} is no data")  # and Python would print its address
    if isinstance(value, str):
        return len(value)
    if isinstance(value, _CONTAINERS):
        return _ELEMENT * len(value)
    if isinstance(value, range | Macro):
        return len(repr(value))
    return 1 + (value.bit_length() // 64) ** 2 if isinstance(value, int) else 1  # large numbers take long


def _call(method: str, value: Any) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), [value], [], None, None, lineno=value.lineno)


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return line if line.isprintable() else ascii(line)[1:-1]


_DATA: Any = (*_CONTAINERS, str, int, float, range, type(None), jinja2.Undefined, Macro, _Namespace)
