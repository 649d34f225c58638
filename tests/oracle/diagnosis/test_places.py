"""Where an output is wrong, in words: mistakes planted in places, and those of the catalogue, which are global."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Budget, Case, budget, cases, deviations
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.diagnosis.places import ErrorPlaces, locate_errors
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.rounding import round_to
from tests.oracle.diagnosis.outputs import kernel, natural, output_of

T = 70
ALL, REST = slice(None), "; everything else is within budget"
OF_PLACES = {"keys_tiled", "no_padding_mask", "extra_window"}
"""Deviations that change some rows only: those of some heads, of a padded sequence, those that see much."""


@lru_cache(maxsize=4)
def right(preset: str, dtype: str) -> tuple[np.ndarray, Budget]:
    """What a right kernel gives in an order that no budget is made of, with 70 tokens, and the budget."""
    case = natural(small_spec(preset), Structure(2, T, T), dtype)
    return output_of(case), budget(case.spec, case.inputs, dtype)


def planted(at: Any, value: Any, preset: str = "hf_diffllama", dtype: str = "bfloat16") -> ErrorPlaces:
    out, known = right(preset, dtype)
    wrong = out.copy()
    wrong[at] = value(wrong[at]) if callable(value) else value
    return locate_errors(round_to(wrong, dtype), known)


def noise(x: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).normal(size=x.shape)


def half_as_large_again(x: np.ndarray) -> np.ndarray:
    return 1.5 * x


@pytest.mark.parametrize("value", [noise, half_as_large_again])
@pytest.mark.parametrize(
    ("at", "words"),
    [
        ((1, 3, slice(32, 64)), "tokens 32 to 63 of head 3 of sequence 1"),
        ((1, 3, [*range(32, 40), *range(41, 64)]), "most tokens from 32 to 63 of head 3 of sequence 1"),
        ((0, 3, [t for t in range(45) if t % 12 < 9]), "most tokens from 0 to 44 of head 3 of sequence 0"),
        ((0, 3, [0, 32]), "tokens 0 and 32 of head 3 of sequence 0"),  # without 64 they are no blocks' first rows
        ((ALL, ALL, np.arange(T) % 16 >= 12), "tokens i with i mod 16 from 12 to 15"),
        ((ALL, ALL, slice(64, T)), "tokens 64 to 69"),
        ((ALL, ALL, slice(31, T, 32)), "tokens i with i mod 32 = 31"),
        ((1,), "sequence 1"),
        ((ALL, [1, 3, 5]), "heads 1, 3 and 5"),
    ],
)
def test_a_place_is_named(at: Any, words: str, value: Callable[[np.ndarray], np.ndarray]) -> None:
    found = planted(at, value, dtype="float16")
    assert not found.not_finite
    factor = ": it is 1.5 times the truth there" if value is half_as_large_again else ""
    assert found.lines == (f"it is wrong only in {words}{REST}{factor}",)


def test_zeros_look_like_memory_never_written() -> None:
    place, zeros = planted((1, 3, slice(32, 64)), 0.0).lines
    assert place.startswith("it is wrong only in tokens 32 to 63 of head 3 of sequence 1")
    assert zeros.startswith("it is exactly zero there, where the truth is not: it looks like memory never written to")
    (zeros,) = planted((), 0.0).lines
    assert "exactly zero everywhere" in zeros


def test_nan_and_infinity() -> None:
    found = planted((0, 1, slice(5, 9)), np.nan)
    assert found.not_finite
    assert found.lines == (
        "it is NaN in tokens 5 to 8 of head 1 of sequence 0, where the truth is finite",
        REST.removeprefix("; "),
    )
    assert planted((0, 1, 5, 3), np.inf).lines[0].startswith("it is infinite in token 5 of head 1 of sequence 0")
    line = planted((0, 1, 5, 3), np.inf, dtype="float16").lines[0]
    assert line.endswith("where the truth is finite: it looks like more than float16 holds")


def _said_of(case: Case) -> dict[str, str]:
    """The places that are said of every deviation from the spec, and of outputs that no deviation gives."""
    known = budget(case.spec, case.inputs, case.dtype)
    y = known.expected["out"]
    outs = {d.name: kernel(case, [d], n) for n, d in enumerate(deviations(case.spec, kind_of(case.inputs)))}
    rng = np.random.default_rng(0)
    outs |= {"noise": rng.normal(size=y.shape), "twice": 2 * y, "slightly": y * rng.normal(1, 0.02, y.shape)}
    outs |= {"heads turned": np.roll(y, 1, axis=1), "columns turned": y[..., ::-1]}
    said = {}
    for name, out in outs.items():
        if out is not None and out.shape == y.shape and known.judge({"out": out}).status == "fail":
            said[name] = " ".join(line for line in locate_errors(out, known).lines if "wrong only" in line)
    assert len(said) > 30
    return {name: line for name, line in said.items() if line}


@pytest.mark.parametrize("profile", ["discriminating", "natural"])
def test_a_mistake_that_is_everywhere_has_no_place(profile: str) -> None:
    spec = small_spec("hf_diffllama")
    for case in cases(profile, 5, spec=spec, dtype="bfloat16")[:2]:
        assert set(_said_of(case)) <= OF_PLACES
