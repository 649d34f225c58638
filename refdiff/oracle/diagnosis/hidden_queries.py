"""Queries that the gradient of keys or values seems not to have been summed over."""

from __future__ import annotations

from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import Budget
from refdiff.oracle.budget.statistics import over, root_mean_square
from refdiff.oracle.diagnosis.hidden_keys import ABOUT_AS_GOOD, MOST, SAMPLE, edge_sets, intervals
from refdiff.oracle.diagnosis.places import right_rows
from refdiff.oracle.diagnosis.region_format import NAMES, boxes, mask_words
from refdiff.oracle.diagnosis.variants import LOOSE
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.outputs import output
from refdiff.oracle.inputs.sequences import select
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.rounding import round_to
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_mask import attention_mask
from refdiff.oracle.truth.backward import backward

Numpy = np.ndarray[Any, Any]
OF_KEYS = ("dk", "dv")
"""Gradients whose rows are sums over queries."""


def hidden_queries(known: Budget, name: str, actual: Numpy, dout: Any) -> tuple[str, ...]:
    """Say which queries a gradient of dense keys or values lacks, if these explain its error.

    Equation:
        dk_s = Σ_t dk_{s,t}, where dk_{s,t} is that of the output of query t alone; of all intervals of queries, and of
        the first or last queries of tiles, those are left out that leave the least error in a dozen of the wrong rows
    """
    inputs = as_float64(known.spec, known.inputs)
    if name not in OF_KEYS or kind_of(inputs) != "dense" or (T := inputs["q"].shape[2]) < 2:
        return ()
    b = known.tensors[name]
    wrong = ~right_rows(actual, b)
    if not np.any(actual[wrong]):  # nothing is wrong, or all that is wrong is zero, which says nothing of queries
        return ()
    places = np.argwhere(wrong)
    chosen = places[np.unique(np.linspace(0, len(places) - 1, SAMPLE).astype(int))]
    step = 1 if T <= MOST else 2 ** int(np.ceil(np.log2(T / MOST)))
    terms = _terms(known, inputs, name[1:], dout, chosen, step)
    n = len(terms)
    sets = intervals(n)
    up_to = np.concatenate([np.zeros_like(terms[:1]), np.cumsum(terms, axis=0)])
    lost = [up_to[stop] - up_to[start] for start, stop in sets]
    words = [_words(start * step, min(stop * step, T), T) for start, stop in sets]
    if step == 1:
        edges = edge_sets(T)
        lost += [terms[some].sum(axis=0) for _, some in edges]
        words += [f"the {which.format('query')} was" for which, _ in edges]
    at = tuple(chosen.T)
    size = b.rows[at]
    left = up_to[-1] - actual[at]  # what is missing
    off = over(root_mean_square(np.stack(lost) - left), size)  # (sets, rows)
    total, before = root_mean_square(off), float(root_mean_square(over(root_mean_square(left), size)[None])[0])
    likely = int(np.flatnonzero(total <= max(1.0, ABOUT_AS_GOOD * float(total.min())))[0])
    if total[likely] * THRESHOLDS.as_good > before or off[likely].max() > LOOSE.row:
        return ()
    every = np.ones_like(wrong)
    place = mask_words(boxes(wrong, every), every, [NAMES[a] for a in b.axes.split()], "every head")
    return (f"it is as if {words[likely]} not seen in {place or f'{wrong.sum()} of {wrong.size} rows'}",)


def _terms(known: Budget, inputs: dict[str, Numpy], name: str, dout: Any, chosen: Numpy, step: int) -> Numpy:
    """What each stretch of `step` queries adds to the chosen rows of the gradient of k or v: (T / step, rows, d)."""
    T, S = inputs["q"].shape[2], inputs["k"].shape[2]
    alone = known.spec.replace(causal="none", window=None, padded_queries="computed")
    every = {
        "q_positions": np.arange(S - T, S)[None],
        "k_positions": np.arange(S)[None],
        **inputs,
        "mask": attention_mask(known.spec, inputs),
    }
    g = round_to(output(dout, "dout").astype(np.float64), known.recipe.storage)
    found = []
    for start in range(0, T, step):
        queries = slice(start, start + step)
        part = select(every, slice(None), queries, slice(None))
        found.append(backward(alone, part, g[:, :, queries], ops_for())[name][tuple(chosen.T)])
    return np.stack(found)


def _words(start: int, stop: int, T: int) -> str:
    if stop - start == 1:
        return f"query {start} was"
    return f"queries from {start} on were" if stop == T else f"queries {start} to {stop - 1} were"
