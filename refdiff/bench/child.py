"""The process of one side: `python -m refdiff.bench.child SETTINGS` answers lines of JSON until its input ends.

A line in is `{"do": "decode", "size": 128, …}`; the line out is the answer, or `{"error": …, "kind": …}`.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
from typing import IO, Any

from refdiff.bench.side import Settings, Side

SIDES = {
    "refdiff": ("refdiff_side", "RefdiffSide"),
    "stored": ("refdiff_side", "StoredSide"),
    "transformers": ("transformers_side", "TransformersSide"),
    "numpy": ("numpy_side", "NumpySide"),
    "onnxruntime": ("onnxruntime_side", "OnnxRuntimeSide"),
    "ceilings": ("ceilings", "CeilingSide"),
}
"""Name → module and class."""


def make_side(name: str, settings: Settings) -> Side:
    """Make a side by its name; only its own module is imported."""
    module, cls = SIDES[name]
    side: Side = getattr(importlib.import_module(f"refdiff.bench.{module}"), cls)(settings)
    return side


def answer(side: Side, line: str) -> str:
    """Answer one line."""
    try:
        result = side.answer(**json.loads(line))
    except Exception as error:  # whatever it is, the parent must hear of it
        result = {"error": " ".join(str(error).split()), "kind": type(error).__name__}
    return json.dumps(result)


def main(arguments: list[str]) -> None:
    """Answer until the input ends; if it ends in the middle of some work, the parent is gone, and so is this."""
    given = json.loads(arguments[0])
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    threading.Thread(target=_listen, args=(sys.stdin, lines), daemon=True).start()
    side = make_side(given.pop("side"), Settings(**given))
    while True:
        answers.write(answer(side, lines.get()) + "\n")
        answers.flush()


def _listen(source: IO[Any], lines: queue.SimpleQueue[str]) -> None:
    for line in source:
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
