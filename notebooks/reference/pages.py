"""The pages that no file has: the map of equations, the tests that hold them, the interface and the command line."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equations import to_markdown, to_rst

from refdiff import layers
from refdiff.cli.options import build_parser

ROOT = Path(__file__).resolve().parents[2]
INTERFACE = {
    "refdiff": (),
    "refdiff.layers": (),
    "refdiff.model": ("refdiff.model.diffllama", "refdiff.model.outputs", "refdiff.model.weights"),
    "refdiff.generation": ("refdiff.generation.tokenizer", "refdiff.generation.results", "refdiff.generation.sampling"),
    "refdiff.pipelines": (),
    "refdiff.training": ("refdiff.training.retrieval",),
    "refdiff.convert": (),
    "refdiff.oracle": (
        "refdiff.oracle.inputs",
        "refdiff.oracle.tracing",
        "refdiff.oracle.diagnosis",
        "refdiff.oracle.divergence",
        "refdiff.oracle.deviations",
        "refdiff.oracle.strategies",
        "refdiff.oracle.golden",
        "refdiff.oracle.mistakes",
        "refdiff.oracle.selftest",
        "refdiff.oracle.conformance",
    ),
    "refdiff.viz": (),
    "refdiff.viz.page": (),
    "refdiff.backends": (),
    "refdiff.arrays": (),
    "refdiff.hub": (),
}
"""Pages of the interface, and which modules follow on each."""

ENTRY = re.compile(
    r"^ {4}(?P<label>\S.{14}) (?P<equation>.+)\n {8}by {10}(?P<functions>.+)\n"
    r" {8}held by {5}(?P<tests>.+(?:\n {20}.+)*)",
    re.MULTILINE,
)
BUILTIN = ("dict", "object", "Exception", "ValueError", "RuntimeError", "Mapping", "Pickled", "tuple")
"""Classes whose own methods are not listed again under those made of them."""


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


# --- the map


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(heading, body) of the parts of the map."""
    body = text.split("The wirings, side by side")[0]
    for part in re.split(r"^(?=\S)", body, flags=re.MULTILINE):
        heading, _, rest = part.partition("\n")
        if ENTRY.search(rest):
            yield heading, rest


def tests_in(names: str) -> list[str]:
    """The tests of an entry, each file::name with its file's path in tests."""
    return [test if "/" in test else f"layers/{test}" for test in re.sub(r"\s+", " ", names).split(", ")]


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
        found[place] = inspect.getdoc(getattr(importlib.import_module(home), name)) or ""
    return found


def linked(function: str) -> str:
    """A function of the map as a link.

    Raises:
        ValueError: it is on no page.
    """
    home, _, name = (f"refdiff.{function}" if "." in function else f"refdiff.layers.{function}").rpartition(".")
    place = public_names().get(id(getattr(importlib.import_module(home), name)))
    if place is None:
        raise ValueError(f"{home}.{name}, which the map names, is on no page: add {home} to INTERFACE")
    return f"{{py:obj}}`{name} <{place}>`"


def in_words(test: str) -> str:
    """A test's name as a sentence, behind the file that it is in."""
    file, _, name = test.partition("::")
    return f"{file.rpartition('/')[2].removeprefix('test_')}: {name.removeprefix('test_').replace('_', ' ')}"


def anchor(test: str) -> str:
    """The place of a test on its page."""
    return re.sub(r"\W+", "-", test).strip("-").lower()


def front_page() -> str:
    """The first page: what this is, and the map of equations."""
    text = layers.__doc__ or ""
    axes = " ".join(text.split("\n\n")[1].split())
    made = [
        "# refdiff",
        "The Differential Transformer as equations that run: each equation of the papers, the function that computes "
        "it, and the tests that hold it to what is printed. A function leads to its page and its source, a test to "
        "its own. [How to install it, and what it does](readme.md). Where a small model looks, layer by layer and pair "
        'by pair, is <a href="explore.html">to be explored</a>.',
        axes,
    ]
    for heading, body in sections(text):
        made.append(f"## {heading.rstrip(',')}")
        for entry in ENTRY.finditer(body):
            functions = [name.strip() for name in entry["functions"].split(",")]
            links = ", ".join(map(linked, functions))
            tests = "; ".join(f"[{in_words(t)}](tests.md#{anchor(t)})" for t in tests_in(entry["tests"]))
            made.append(
                f"{entry['label'].strip()}\n: {to_markdown(entry['equation'])}\n\n"
                f"  computed by {links}\n\n  held by {tests}"
            )
    wirings = "The wirings, side by side" + text.split("The wirings, side by side")[1]
    made.append("## The wirings\n\n" + f"```text\n{wirings.rstrip()}\n```")
    made.append(TOCS)
    return "\n\n".join(made) + "\n"


GUIDES = """```{toctree}
:hidden:
:caption: Check your kernel
:glob:

guides/*
```"""
TOCS = """```{toctree}
:hidden:
:caption: refdiff

Start here <readme>
commands
tests
The bundled model <card>
```

```{toctree}
:hidden:
:caption: Notebooks
:glob:

notebooks/*
```

GUIDES

```{toctree}
:hidden:
:caption: Interface

INTERFACE
```""".replace("GUIDES", GUIDES).replace("INTERFACE", "\n".join(f"interface/{name}" for name in INTERFACE))


def tests_page() -> str:
    """The source of every test that the map names."""
    made = ["# The tests of the map", "Each in full, under the file that it stands in, in `tests/`."]
    found = [t for entry in ENTRY.finditer(layers.__doc__ or "") for t in tests_in(entry["tests"])]
    files: dict[str, list[str]] = {}
    for test in dict.fromkeys(found):
        files.setdefault(test.partition("::")[0], []).append(test)
    for file, tests in files.items():
        path = (ROOT / "tests" / f"{file}.py").resolve()
        source = path.read_text(encoding="utf-8")
        defined = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
        made.append(f"## {path.relative_to(ROOT / 'tests').as_posix()}")
        for test in tests:
            node = defined[test.partition("::")[2]]
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            code = "\n".join(source.splitlines()[first - 1 : node.end_lineno])
            made.append(f"({anchor(test)})=\n\n### {node.name}\n\n```python\n{code}\n```")
    return "\n\n".join(made) + "\n"


# --- the interface


def interface_pages() -> dict[str, str]:
    """The pages of all public names, in reStructuredText, by the module's name."""
    seen: set[int] = set()
    return {page: _interface_page(page, others, seen) for page, others in INTERFACE.items()}


def _interface_page(page: str, others: tuple[str, ...], seen: set[int]) -> str:
    made = [_title(f"``{page}``", "=")]
    if page == "refdiff.layers":
        made.append("The equations: pure functions on arrays of any array-API namespace. :doc:`The map </index>` has "
                    "each with its number in the paper, and the tests that hold it.")  # fmt: skip
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
        return f".. autoclass:: {name}\n   :members:\n   :inherited-members: {', '.join(BUILTIN)}\n{bases}"
    if callable(thing) and not isinstance(thing, type):
        return f".. autofunction:: {name}\n"
    return f".. autodata:: {name}\n   :no-value:\n"


def _title(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"


# --- the command line


def commands_page() -> str:
    """What `--help` says, of refdiff and of each of its commands."""
    os.environ["COLUMNS"] = "80"
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action.choices, dict))
    made = ["# The command line", f"```text\n{parser.format_help().rstrip()}\n```"]
    for name, command in commands.choices.items():
        made.append(f"## refdiff {name}\n\n```text\n{command.format_help().rstrip()}\n```")
    return "\n\n".join(made) + "\n"
