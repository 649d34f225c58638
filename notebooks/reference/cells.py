"""Prepares a notebook for the pages: folds code that only imports, asserts, prints or draws; describes pictures."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

DRAWS = re.compile(r"(sketches|viz)\.")
"""What a drawing expression begins with."""
WORDS = 30
"""Words of a picture that its description names."""


def prepare(text: str) -> str:
    """Return a notebook (JSON) with the tags and options that MyST-NB reads."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        if is_plumbing("".join(cell["source"])):
            cell["metadata"]["tags"] = ["hide-input"]
        if said := description(cell["outputs"]):
            cell["metadata"]["mystnb"] = {"image": {"alt": said}}
    return json.dumps(notebook, ensure_ascii=False)


def is_plumbing(code: str) -> bool:
    """Whether code computes nothing that a reader has to follow: it only imports, prints and draws, or it asserts."""
    body = ast.parse(re.sub(r"^%.*", "", code, flags=re.MULTILINE)).body
    if any(isinstance(node, ast.Assert) for node in body):
        return not any(isinstance(node, ast.FunctionDef) for node in body)
    return all(map(_only_shows, body))


def _only_shows(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = ast.unparse(node.value.func)
    return called == "print" or DRAWS.match(called) is not None


def description(outputs: list[dict[str, Any]]) -> str:
    """Return the words of the pictures in a cell's outputs, each once; empty where there is no picture."""
    axes = [one for output in outputs for one in output.get("metadata", {}).get("drawn", {}).get("axes", [])]
    words = list(dict.fromkeys(" ".join(word.split()) for one in axes for word in one["words"]))
    more = ", …" if len(words) > WORDS else ""
    return f"A picture with the words: {', '.join(words[:WORDS])}{more}" if words else ""
