"""The pages that no file has: the front page, the map of equations, its tests, and the command line."""

from __future__ import annotations

import ast
import importlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from equations import to_markdown
from interface import INTERFACE, public_names

from refdiff import layers
from refdiff.cli.parser import build_parser

ROOT = Path(__file__).resolve().parents[2]
ENTRY = re.compile(
    r"^ {4}(?P<label>\S.{14}) (?P<equation>.+)\n {8}by {10}(?P<functions>.+)\n"
    r" {8}tested by {3}(?P<tests>.+(?:\n {20}.+)*)",
    re.MULTILINE,
)


def sections(text: str) -> Iterator[tuple[str, str]]:
    """(heading, body) of the parts of the map."""
    body = text.split("Attention variants; ")[0]
    for part in re.split(r"^(?=\S)", body, flags=re.MULTILINE):
        heading, _, rest = part.partition("\n")
        if ENTRY.search(rest):
            yield heading, rest


def tests_in(names: str) -> list[str]:
    """The tests of an entry, each file::name with its file's path in tests."""
    return [test if "/" in test else f"layers/{test}" for test in re.sub(r"\s+", " ", names).split(", ")]


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


def front_page(readme: str, names: Iterable[str]) -> str:
    """Build the first page from the README, ways into the site before the set-up, and from `names` the menu."""
    story, heading, rest = readme.partition("## Set up\n")
    return f"{story}{FIND}{heading}{rest}\n{_menu(list(names))}"


FIND = """## Find your way

- <a href="live/index.html">The Differential Transformer, live</a>: an article whose figures compute as you drag,
  with the bundled model in the page.
- <a href="try/index.html">Try it</a>: Python and refdiff in the page. Change the model, do an exercise, mend five
  kernels.
- [The map of equations](equations.md): each equation of the papers, the function that computes it, and its tests.
- <a href="explore.html">Explore attention</a>: where the bundled model looks, layer by layer and pair by pair.
- [The interface](interface/refdiff.rst) and [the command line](commands.md).

"""
GUIDES = {"guides": "notebooks/reference/guides", "kernels": "refdiff/oracle/guides"}
"""Folders of the site with guides, and where their files are."""
MENU = {
    "Use": (
        "guides/usage", "guides/transformers", "guides/variants", "notebooks/guide_pairs", "notebooks/guide_long",
        "notebooks/guide_checkpoint", "guides/performance", "guides/clusters", "guides/cuda",
    ),
    "Check a kernel": (
        "guides/five_minutes", "guides/kernels", "notebooks/guide_check_", "kernels/", "guides/implementations",
        "guides/real_bugs",
    ),
    "Contribute": ("notebooks/guide_array", "guides/testing"),
}  # fmt: skip
"""Parts of the menu, each with the beginnings of its pages' names in order; other notebooks are under Learn."""
GLOSSARY = "guides/glossary"
LOOK_UP = ("equations", "commands", "tests", "card")
"""The pages to look something up in."""


def _menu(names: list[str]) -> str:
    known = [name.rpartition(".")[0] for name in names]
    parts = {part: [n for begin in begins for n in known if n.startswith(begin)] for part, begins in MENU.items()}
    placed = {GLOSSARY, *(name for pages in parts.values() for name in pages)}
    if unordered := {name for name in known if name.split("/")[0] in GUIDES} - placed:
        raise ValueError(f"{', '.join(sorted(unordered))} have no place in the menu: add them to MENU")
    menu = {
        "Learn": [*(name for name in known if name.startswith("notebooks/") and name not in placed), GLOSSARY],
        **parts,
        "Look up": list(LOOK_UP),
        "Interface": [f"interface/{name}" for name in INTERFACE],
    }
    trees = ["\n".join(["```{toctree}", ":hidden:", f":caption: {c}", "", *pages, "```"]) for c, pages in menu.items()]
    return "\n\n".join(trees) + "\n"


def equations_page() -> str:
    """Build the map of equations: each with the functions that compute it and the tests that check it."""
    text = layers.__doc__ or ""
    axes = " ".join(text.split("\n\n")[1].split())
    made = [
        "# The map of equations",
        "Each equation of the papers, the function that computes it, and the tests that compare the two. A function "
        "leads to its page and its source, where its derivative, `f_vjp` of an `f`, stands under it; a test leads to "
        "its own.",
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
                f"  computed by {links}\n\n  tested by {tests}"
            )
    variants = "Attention variants; " + text.split("Attention variants; ")[1]
    made.append("## The attention variants\n\n" + f"```text\n{variants.rstrip()}\n```")
    return "\n\n".join(made) + "\n"


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


def commands_page() -> str:
    """What `--help` says, of refdiff and of each of its commands."""
    os.environ["COLUMNS"] = "80"
    parser = build_parser()
    made = ["# The command line", f"```text\n{parser.format_help().rstrip()}\n```"]
    for name, command in parser.commands().items():
        made.append(f"## refdiff {name}\n\n```text\n{command.format_help().rstrip()}\n```")
    return "\n\n".join(made) + "\n"
