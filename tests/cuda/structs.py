"""Structs as a source declares them, to hold records of NumPy to."""

from __future__ import annotations

import re

import numpy as np

from refdiff.backends.cupy import device


def declared(file: str, name: str, **kinds: np.dtype[np.void]) -> np.dtype[np.void]:
    """Read a struct of a source: the record that C++ lays out alike. `kinds` are the structs that it has inside."""
    body = re.search(rf"struct {name} {{(.*?)\n}};", (device.SOURCES / file).read_text(), re.DOTALL)
    assert body is not None
    known = {"int64": np.int64, "const int64*": np.int64, "int": np.int32, "float": np.float32, **kinds}
    lines = re.findall(r"^\s+(const \w+\*|\w+) ([\w, ]+);", body[1], re.MULTILINE)
    fields = [(field.strip(), known[kind]) for kind, names in lines for field in names.split(",")]
    return np.dtype(fields, align=True)
