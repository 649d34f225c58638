"""Is the code in the pages code that could run? It is read, not run: names must exist, arguments and flags be known.

Python must parse; what it imports from refdiff, and what it then takes from there by a dot, must be there; a call of a
function of refdiff must give arguments that it takes. A line `refdiff …` of a shell must be one that the command line
accepts. JSON must parse. What the notebooks run is checked by running it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from refdiff.cli.parser import build_parser

BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w+)\n(?P<code>.*?)^ *```", re.MULTILINE | re.DOTALL)


def wrong_in(folder: Path) -> list[str]:
    """Say what is wrong with the code of a folder of Markdown files."""
    return [
        f"{path.relative_to(folder)}: {why}"
        for path in sorted(folder.rglob("*.md"))
        for language, code in blocks(path.read_text(encoding="utf-8"))
        for why in wrong_with(language, code)
    ]


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of each fenced block."""
    for match in BLOCK.finditer(text):
        yield match["language"], re.sub(rf"^{match['indent']}", "", match["code"], flags=re.MULTILINE)


def wrong_with(language: str, code: str) -> list[str]:
    """Say what is wrong with one block."""
    if language == "json":
        return [] if _parses(json.loads, code) else [f"this is no JSON: {code[:60]!r}"]
    if language in ("sh", "bash", "shell"):
        return [why for line in code.replace("\\\n", " ").splitlines() if (why := _wrong_command(line))]
    if language not in ("python", "py"):
        return []
    if not _parses(ast.parse, code):
        return [f"this does not parse as Python: {code[:80]!r}"]
    return list(_wrong_names(ast.parse(code)))


def _parses(parse: Any, code: str) -> bool:
    try:
        parse(code)
    except (ValueError, SyntaxError):
        return False
    return True


def _wrong_command(line: str) -> str | None:
    """Why the command line would not take this line, or None; lines of other programs are not looked at."""
    words = shlex.split(re.sub(r"\$\w+", "1", line), comments=True)  # a variable of the shell
    while words and re.fullmatch(r"\w+=.*|python|-m", words[0]):
        words = words[1:]
    if not words or words[0] != "refdiff" or "--help" in words or "--version" in words:
        return None
    words = words[1 : next((i for i, word in enumerate(words) if word in ("|", ">", "&&", "2>", "<")), None)]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            build_parser().parse_args(words)
    except SystemExit:
        return f"`{line.strip()}`: {said.getvalue().strip()}"
    return None


def _wrong_names(tree: ast.Module) -> Iterator[str]:
    known: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "refdiff":
                    module = importlib.import_module(alias.name)
                    known[alias.asname or "refdiff"] = module if alias.asname else importlib.import_module("refdiff")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "refdiff":
            home = importlib.import_module(node.module or "")
            for alias in node.names:
                found = _take(home, alias.name)
                if found is None:
                    yield f"{node.module} has no {alias.name}"
                known[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _named(node.value, known) is not None and _named(node, known) is None:
            yield f"{ast.unparse(node.value)} has no {node.attr}"
        elif isinstance(node, ast.Call) and callable(function := _named(node.func, known)):
            yield from _wrong_arguments(node, function)


def _take(home: Any, name: str) -> Any:
    with contextlib.suppress(ImportError):
        return getattr(home, name, None) or importlib.import_module(f"{home.__name__}.{name}")
    return None


def _named(node: ast.expr, known: dict[str, Any]) -> Any:
    """What a dotted name of refdiff stands for; None for anything else."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        home = _named(node.value, known)
        if isinstance(home, ModuleType):
            return _take(home, node.attr)
        return getattr(home, node.attr, None) if inspect.isclass(home) else None
    return None


def _wrong_arguments(call: ast.Call, function: Any) -> Iterator[str]:
    try:
        parameters = inspect.signature(function).parameters
    except (ValueError, TypeError):
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for keyword in call.keywords:
        if keyword.arg is not None and keyword.arg not in parameters:
            yield f"{ast.unparse(call.func)} has no argument {keyword.arg}"
