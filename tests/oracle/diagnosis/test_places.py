"""Where an output or a gradient is wrong, in words: places, and keys that are not seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Budget, Case, Ranking, budget, cases, deviations, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.diagnosis.places import ErrorPlaces, locate_errors
from refdiff.oracle.diagnosis.ranking import NONE_FITS, UNIQUE
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.rounding import round_to
from tests.oracle.diagnosis.outputs import kernel, natural, output_of, rounded

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


# Mistakes in one place are described by it: which keys, tiles, heads and tokens, in outputs and in gradients

SPEC = small_spec("hf_diffllama")
N = 96


@lru_cache(maxsize=4)
def case(dtype: str, queries: int = N, causal: str = "bottom_right") -> Case:
    return natural(SPEC.replace(causal=causal), Structure(1, queries, N), dtype)


def asked(case: Case, at: Any, seen: bool) -> Ranking:
    """Diagnose a kernel that sees other keys (h, N, S) in a place than the spec says."""
    t, s = np.arange(case.inputs["q"].shape[2])[:, None], np.arange(N)[None]
    see = np.broadcast_to(s <= t + N - len(t) if case.spec.causal != "none" else s >= 0, (6, len(t), N)).copy()
    see[at] = seen
    wrong = rounded(case.spec.replace(causal="none"), {**case.inputs, "mask": see[None]}, case.dtype)["out"]
    return diagnose(wrong, case.spec, case.inputs, recipe=case.dtype, max_deviations=1)


EDGES = np.arange(31, N - 1, 32)
QUERY, KEY = np.arange(N)[:, None], np.arange(N)[None]
SAME_TILE = np.broadcast_to(KEY // 16 == QUERY // 16, (6, N, N))


@pytest.mark.parametrize(
    ("at", "seen", "causal", "said"),
    [
        (np.s_[..., 64:], False, "none", "keys from 64 on not seen, in every head"),
        (np.s_[2, 64:, 32:48], False, "bottom_right", "keys 32 to 47 not seen, in tokens 64 to 95 of head 2"),
        ((3, 5, 0), False, "bottom_right", "key 0 not seen, in token 5 of head 3"),
        (np.s_[..., 41:53], False, "none", "keys 41 to 52 not seen, in every head"),
        ((4, 50, 50), False, "bottom_right", "key 50 not seen, in token 50 of head 4"),
        (np.s_[:, EDGES, EDGES + 1], True, "bottom_right", "the key after a query's own seen, in tokens"),
        (np.s_[..., 0:N:32], False, "none", "the first key of each tile of 32 not seen, in every head"),
        (np.s_[..., 16:N:16], False, "none", "the first key of each tile of 16 after the first not seen, in"),
        (np.s_[1, :, 31:N:32], False, "none", "the last key of each tile of 32 not seen, in head 1"),
        (SAME_TILE, True, "bottom_right", "every key of the tile of 16 that has a query's own seen, in"),
    ],
)
def test_lost_keys_are_said(at: Any, seen: bool, causal: str, said: str) -> None:
    found = asked(case("float16", N, causal), at, seen)
    assert found.status == UNIQUE, found
    assert said in found.findings[0].what.lower(), found


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"gate": "sigmoid"}, {"sinks": True}, {"norm_over": "all_heads"}])
def test_lost_keys_are_said_whatever_follows(changes: dict[str, Any]) -> None:
    one = natural(SPEC.replace(causal="none", **changes), Structure(1, N, N), "float32")
    found = asked(one, np.s_[..., 64:], False)
    assert "Keys from 64 on not seen, in every head" in found.findings[0].what, found


@pytest.mark.parametrize(
    ("name", "at", "said"),
    [
        ("dq", (0, 3, slice(32, 64)), "dq is wrong only in tokens 32 to 63 of head 3"),
        ("dk", (0, 1, slice(64, N)), "dk is wrong only in keys 64 to 95 of head 1"),
        ("dv", (0, slice(None), slice(0, 16)), "dv is wrong only in keys 0 to 15"),
    ],
)
def test_gradients_are_wrong_in_a_place(name: str, at: tuple[int | slice, ...], said: str) -> None:
    one = case("bfloat16")
    found = rounded(one.spec, one.inputs, "bfloat16", dout=one.dout)
    found[name][at] = 0
    answer = diagnose(found, one.spec, one.inputs, recipe="bfloat16", dout=one.dout)
    assert answer.status == NONE_FITS
    assert answer.where[0].startswith(said), answer
    assert "exactly zero there" in answer.where[1]


@pytest.mark.parametrize(
    ("place", "name", "said"),
    [
        (0, "dk", "dk is wrong only in keys 13 and 14"),
        (4, "dk_pages", "dk_pages is exactly zero in slots 2 to 4, where the truth is not"),
        (1, "dx", "dx is wrong only in tokens 12 to 14"),
    ],
)
def test_gradients_of_packed_and_paged_inputs_and_of_a_layer(place: int, name: str, said: str) -> None:
    """The last three rows of each are zero, of packed keys two of them in a row that counts."""
    one = cases("layout", 5, spec=SPEC, dtype="float32")[place]
    found = rounded(one.spec, one.inputs, dout=one.dout)
    found[name][..., -3:, :] = 0
    given = {"out": found["out"], name: found[name]}
    answer = diagnose(given, one.spec, one.inputs, recipe="float32", dout=one.dout)
    assert answer.where[0].startswith(said), answer
