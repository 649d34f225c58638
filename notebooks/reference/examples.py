"""Examples of the interface: code that is run when the pages are built, and shown with what it prints or draws.

Each file of the folder examples has imports and what they share at its top, and after each line `# %% names` an example
for these names. A name may have the module in front of it: `sampling.top_k`.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("examples")


@dataclass(frozen=True)
class Example:
    """Code that runs by itself, the public names that it is for, and the module whose page it is on."""

    page: str
    names: tuple[str, ...]
    code: str

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


def read(path: Path) -> list[Example]:
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
    every = (example for path in sorted(FOLDER.glob("*.py")) for example in read(path))
    return {f"{example.page}.{name}": example for example in every for name in example.names}
