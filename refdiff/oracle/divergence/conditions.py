"""What two recordings were made of: other tokens, another type or another model explain a divergence by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refdiff.oracle.trace.trace import Trace


def differences(mine: Trace, ref: Trace) -> tuple[str, ...]:
    """Sentences, the gravest first; none where a recording does not say what it was made of.

    Raises:
        ValueError: the two are of different numbers of tokens, so that no point of one is comparable with the other's.
    """
    return (*_inputs(mine.inputs, ref.inputs), *_about(mine.about, ref.about))


def _inputs(mine: Mapping[str, Any], ref: Mapping[str, Any]) -> list[str]:
    found = []
    for name in (n for n in ref if n in mine):
        x, y = (np.asarray(inputs[name]) for inputs in (mine, ref))
        what = "tokens" if name == "input_ids" else name
        if x.shape != y.shape:
            said = f"the two runs have {what} of different shapes, {x.shape} and {y.shape}{_first(name, x, y)}"
            if name == "input_ids" and x.size != y.size:
                raise ValueError(f"{said}; record the same text in both")
            found.append(said)
        elif not np.array_equal(x.astype(np.float64), y.astype(np.float64), equal_nan=True):
            found.append(f"the two runs have different {what}{_first(name, x, y)}")
    return found


def _first(name: str, x: Any, y: Any) -> str:
    """Where along the text the tokens part."""
    if name != "input_ids" or x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        return ""
    n = min(x.shape[1], y.shape[1])
    unlike = (x[:, :n] != y[:, :n]).any(0)
    at = int(np.argmax(unlike)) if unlike.any() else n
    return f" from position {at}" if x.shape == y.shape else f", and different ones from position {at}"


def _about(mine: Mapping[str, Any], ref: Mapping[str, Any]) -> list[str]:
    found = []
    for part, what in (("config", "models"), ("spec", "specs")):
        if part in mine and part in ref and (other := _fields(mine[part], ref[part])):
            found.append(f"recorded of {what} of different {other}")
    if "dtype" in mine and "dtype" in ref and mine["dtype"] != ref["dtype"]:
        found.append(
            f"recorded in {mine['dtype']}, the reference in {ref['dtype']}: weights that one of them has rounded are "
            "other weights"
        )
    places = mine.get("model"), ref.get("model")
    if not found and None not in places and places[0] != places[1]:
        found.append(f"recorded of the model {places[0]}, the reference of {places[1]}")
    return found


def _fields(mine: Mapping[str, Any], ref: Mapping[str, Any]) -> str:
    """The fields in which two differ, with both values."""
    names = [name for name in sorted({*mine, *ref}) if mine.get(name) != ref.get(name)]
    return ", ".join(f"{name} ({mine.get(name)} and {ref.get(name)})" for name in names[:4]) + (
        f", … ({len(names)})" if len(names) > 4 else ""
    )
