"""The interface's pages: every public name, in reStructuredText for autodoc, with an example that is run for them.

Also which names are missing.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import io
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docstrings
from equations import to_rst

from refdiff import layers

ROOT = Path(__file__).resolve().parents[2]
INTERFACE = {
    "refdiff": (),
    "refdiff.layers": (),
    "refdiff.model": (
        "refdiff.model.diffllama",
        "refdiff.model.variants",
        "refdiff.model.outputs",
        "refdiff.model.weights",
    ),
    "refdiff.generation": ("refdiff.generation.tokenizer", "refdiff.generation.results", "refdiff.generation.sampling"),
    "refdiff.pipelines": (),
    "refdiff.training": (),
    "refdiff.convert": (),
    "refdiff.oracle": (
        "refdiff.oracle.inputs",
        "refdiff.oracle.trace",
        "refdiff.oracle.diagnosis",
        "refdiff.oracle.divergence",
        "refdiff.oracle.golden",
        "refdiff.oracle.mistakes",
        "refdiff.oracle.conformance",
        "refdiff.oracle.submission",
        "refdiff.oracle.torch",
    ),
    "refdiff.viz": (),
    "refdiff.exercises": (),
    "refdiff.viz.page": (),
    "refdiff.backends": (),
    "refdiff.arrays": (),
    "refdiff.hub": (),
}
"""Pages of the interface, and which modules follow on each."""

BUILTIN = ("dict", "object", "Exception", "ValueError", "RuntimeError", "Mapping", "Pickled", "tuple")
"""Classes whose own methods are not listed again under those made of them."""

EXAMPLES = Path(__file__).with_name("examples")
"""Each file has imports and what they share at its top, and after each line `# %% names` an example for these names. A
name may have the module in front of it: `sampling.top_k`."""


def names_of(module: str) -> list[str]:
    """List what a module offers: its `__all__`, or what it defines and does not hide."""
    made = importlib.import_module(module)
    listed = getattr(made, "__all__", None)
    own = [n for n, x in vars(made).items() if not n.startswith("_") and getattr(x, "__module__", None) == module]
    return [name for name in (listed or own) if not inspect.ismodule(getattr(made, name))]


def missing() -> list[str]:
    """Name the packages that list their names and are on no page; the command line has its own."""
    known = {name for page, others in INTERFACE.items() for name in (page, *others)}
    listing = [
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for path in sorted((ROOT / "refdiff").rglob("__init__.py"))
        if re.search("^__all__", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    return [name for name in listing if name not in known and not name.startswith("refdiff.cli")]


@functools.cache
def public_names() -> dict[int, str]:
    """Where each function and class stands on the pages of the interface, by its identity."""
    found: dict[int, str] = {}
    for page, others in INTERFACE.items():
        for module in (page, *others):
            for name in names_of(module):
                found.setdefault(id(getattr(importlib.import_module(module), name)), f"{module}.{name}")
    return found


def docstrings_of_all() -> dict[str, str]:
    """The docstrings of all public names, and of the modules that they are in."""
    modules = [name for page, others in INTERFACE.items() for name in (page, *others)]
    found = {name: importlib.import_module(name).__doc__ or "" for name in modules}
    for place in public_names().values():
        home, _, name = place.rpartition(".")
        thing = getattr(importlib.import_module(home), name)
        found[place] = (inspect.getdoc(thing) or "") if callable(thing) else said_of(home, name)
    return found


def interface_pages() -> dict[str, str]:
    """The pages of all public names, in reStructuredText, by the module's name."""
    seen: set[int] = set()
    return {page: _interface_page(page, others, seen) for page, others in INTERFACE.items()}


@dataclass(frozen=True)
class Example:
    """Code that runs by itself, the public names that it is for, and the module whose page it is on."""

    page: str
    names: tuple[str, ...]
    code: str

    @property
    def first(self) -> str:
        """The name that has the example; the others lead there."""
        return f"{self.page}.{self.names[0]}"

    def run(self) -> tuple[str, Any]:
        """Run the code; return what it prints, and what its last line gives if that is an expression."""
        tree, given = ast.parse(self.code), None
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        said, names = io.StringIO(), {"__name__": "__main__"}
        with contextlib.redirect_stdout(said):
            exec(compile(tree, self.page, "exec"), names)  # noqa: S102  (the project's own file)
            if last is not None:
                given = eval(compile(ast.Expression(last.value), self.page, "eval"), names)  # noqa: S307
        return said.getvalue(), given


def _read_examples(path: Path) -> list[Example]:
    """List the examples of a file."""
    shared, *parts = re.split(r"^# %% ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    page = "refdiff" if path.stem == "refdiff" else f"refdiff.{path.stem}"
    found = []
    for part in parts:
        names, _, code = part.partition("\n")
        found.append(Example(page, tuple(name.strip() for name in names.split(",")), shared + code.rstrip() + "\n"))
    return found


def examples() -> dict[str, Example]:
    """Return the example of each public name: `refdiff.layers.rope` → its example."""
    every = (example for path in sorted(EXAMPLES.glob("*.py")) for example in _read_examples(path))
    return {f"{example.page}.{name}": example for example in every for name in example.names}


@functools.cache
def outcome(example: Example) -> tuple[str, Any]:
    """What an example prints, and the figure that it draws, or None; an example of several names is run once.

    Raises:
        RuntimeError: it fails.
    """
    try:
        said, given = example.run()
    except Exception as error:
        raise RuntimeError(f"the example of {', '.join(example.names)} fails: {error!r}\n{example.code}") from error
    return said, getattr(given, "figure", given)


def figures() -> dict[str, Any]:
    """The figures of the examples, by the names of their files."""
    drawn = {example.first: outcome(example)[1] for example in examples().values()}
    return {f"{place}.png": figure for place, figure in drawn.items() if figure is not None}


def _shown(place: str) -> list[str]:
    """The example of a name and what it gives, to stand in the directive of the name."""
    example = examples().get(place)
    if example is None:
        return []
    if place != example.first:
        return ["", f"   Example: :py:obj:`{example.names[0]} <{example.first}>`", ""]
    said, figure = outcome(example)
    lines = ["", "   .. code-block:: python", "", *(f"      {line}" for line in example.code.splitlines())]
    if said:
        lines += [
            "",
            "   .. code-block:: text",
            "      :class: output",
            "",
            *(f"      {line}" for line in said.splitlines()),
        ]
    if figure is not None:
        lines += ["", f"   .. image:: {place}.png", f"      :alt: what the example of {place} draws"]
    return [*lines, ""]


def _interface_page(page: str, others: tuple[str, ...], seen: set[int]) -> str:
    made = [_title(f"``{page}``", "=")]
    if page == "refdiff.layers":
        made.append("The equations: pure functions on arrays of any array-API namespace. :doc:`The map </equations>` "
                    "has each with its number in the paper, and its tests.")  # fmt: skip
        made.append(f".. py:module:: {page}\n")
        for module in dict.fromkeys(getattr(layers, name).__module__ for name in names_of(page)):
            first = (importlib.import_module(module).__doc__ or "").splitlines()[0].rstrip(".")
            made += [f".. _{label(module)}:", _title(module.split(".")[-1], "-"), to_rst(first)]
            own = [n for n in names_of(page) if getattr(layers, n).__module__ == module]
            made += [f".. py:currentmodule:: {page}\n", *(_entry(page, name, seen) for name in own)]
        return "\n\n".join(made) + "\n"
    made += [f".. automodule:: {page}\n   :no-members:\n", *_entries(page, seen)]
    for module in others:
        taken = "   :no-index:\n" if module.rpartition(".")[2] in names_of(page) else ""  # a function has that name
        made += [_title(f"``{module}``", "-"), f".. automodule:: {module}\n   :no-members:\n{taken}"]
        made += _entries(module, seen)
    return "\n\n".join(made) + "\n"


def label(layer: str) -> str:
    """The place of a file of layers among the pages."""
    return f"layer-{layer.rpartition('.')[2].replace('_', '-')}"


def _entries(module: str, seen: set[int]) -> list[str]:
    names = [n for n in names_of(module) if n != "main"]
    made = [f".. py:currentmodule:: {module}\n"]
    made += [entry for name in names if (entry := _entry(module, name, seen))]
    return made


def _entry(module: str, name: str, seen: set[int]) -> str:
    """One name; one that another page has already leads there."""
    thing: Any = getattr(importlib.import_module(module), name)
    if callable(thing):
        if id(thing) in seen:
            return ""
        seen.add(id(thing))
    if inspect.isclass(thing):
        bases = "" if thing.__bases__ == (object,) else "   :show-inheritance:\n"
        head = f".. autoclass:: {name}\n   :members:\n   :inherited-members: {', '.join(BUILTIN)}\n{bases}"
        return head + "\n".join(_shown(f"{module}.{name}"))
    if callable(thing) and not isinstance(thing, type):
        return f".. autofunction:: {name}\n" + "\n".join(_shown(f"{module}.{name}"))
    said = docstrings.convert(said_of(module, name).splitlines())
    return "\n".join([f".. py:data:: {name}", "", *(f"   {line}".rstrip() for line in said), ""])


def said_of(module: str, name: str) -> str:
    """The string under a constant, where that is defined; Python itself does not keep it."""
    tree = ast.parse(inspect.getsource(importlib.import_module(module))).body
    for node in tree:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            return said_of(node.module or "", name)
    for node, after in itertools.pairwise(tree):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == name for t in targets) and isinstance(after, ast.Expr):
            return inspect.cleandoc(ast.literal_eval(after.value))
    return ""


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"
