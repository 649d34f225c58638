"""The map in `refdiff.layers`: no equation without function and test, no layer without an equation."""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from refdiff import layers

pytestmark = pytest.mark.no_arrays

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
ENTRY = re.compile(
    r"^ {4}(?P<label>\S.{14}) (?P<equation>.+)\n"
    r" {8}by {10}(?P<functions>.+)\n"
    r" {8}tested by {3}(?P<tests>.+(?:\n {20}.+)*)",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Entry:
    """One equation: which it is, the names of its functions, and of its tests."""

    label: str
    functions: tuple[str, ...]
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.label}: {', '.join(self.functions)}"


def read(text: str) -> list[Entry]:
    def names(match: re.Match[str], group: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in re.sub(r"\s+", " ", match[group]).split(","))

    return [Entry(m["label"].strip(), names(m, "functions"), names(m, "tests")) for m in ENTRY.finditer(text)]


TEXT = layers.__doc__ or ""
ENTRIES = read(TEXT)


def test_every_entry_was_read() -> None:
    assert len(ENTRIES) == TEXT.count("        by  ") == TEXT.count("        tested by  ") > 20


def test_every_equation_of_the_papers_is_there_in_order() -> None:
    """By its number, or where it stands: of the first paper, of V2, and of what they build on."""
    paper = (*(f"eq. {n}" for n in range(1, 10)), "section 2.1", "section 2.1", "section 2.2", "section 2.2")
    v2, below = ("DiffAttnV2", "λ", "Context", "Construction"), ("RoPE", "embedding", "masks", "loss")
    labels = [e.label for e in ENTRIES]
    assert sorted(labels[: len(paper)]) == sorted(paper)
    assert [label for label in labels if label.startswith("eq. ")] == [f"eq. {n}" for n in range(1, 10)]
    assert labels[len(paper) :] == ["appendix G", *v2, *below], "a new row's label goes into v2 or below, here"


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_its_functions_exist(entry: Entry) -> None:
    for name in entry.functions:
        module, _, function = f"refdiff.{name}".rpartition(".") if "." in name else ("refdiff.layers", "", name)
        assert callable(getattr(importlib.import_module(module), function))


@functools.cache
def functions_of(file: str) -> dict[str, ast.FunctionDef]:
    """The test functions of a file, by name."""
    path = (TESTS if "/" in file else TESTS / "layers") / f"{file}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def is_drawn(test: ast.FunctionDef) -> bool:
    """Whether Hypothesis draws what the test is given."""
    return any(isinstance(d, ast.Call) and getattr(d.func, "id", "") == "given" for d in test.decorator_list)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_its_tests_exist(entry: Entry) -> None:
    assert len(set(entry.tests)) == len(entry.tests)
    for name in entry.tests:
        file, _, function = name.partition("::")
        assert function.startswith("test_")
        assert function in functions_of(file), f"{file} has no {function}"


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_an_equation_has_a_property(entry: Entry) -> None:
    tests = [functions_of(file)[function] for file, _, function in (name.partition("::") for name in entry.tests)]
    assert any(map(is_drawn, tests)) or entry.label == "appendix G"  # measured at initialization, not at random


@pytest.mark.parametrize("name", sorted(layers.__all__))
def test_every_layer_has_an_equation(name: str) -> None:
    # a derivative stands under its function
    function = name.removesuffix("_vjp")
    assert any(function in entry.functions for entry in ENTRIES), f"{function} is in no entry of the map"


def test_every_file_of_layers_has_a_public_one() -> None:
    """And what has an equation in its docstring is public: others help those that are."""
    for file in pkgutil.iter_modules(layers.__path__):
        module = importlib.import_module(f"refdiff.layers.{file.name}")
        own = {n: f for n, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__ and callable(f)}
        assert own.keys() & set(layers.__all__), f"{file.name} gives nothing to refdiff.layers"
        of_its_own = {n for n, f in own.items() if "Equation:" in (f.__doc__ or "")}
        assert of_its_own <= set(layers.__all__), f"{file.name}: {of_its_own - set(layers.__all__)}"


def test_a_hole_in_the_map_is_seen() -> None:
    without_test = re.sub(r"\n {8}tested by {3}test_rms_norm::test_precision", "", TEXT)
    assert len(read(without_test)) == len(ENTRIES) - 1
