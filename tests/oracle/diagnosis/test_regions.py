"""Mistakes in one place are described by it: which keys, tiles, heads and tokens, in outputs and in gradients."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Case, Ranking, cases, diagnose
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.diagnosis.ranking import NONE_FITS, UNIQUE
from tests.oracle.diagnosis.outputs import natural, rounded

SPEC = small_spec("hf_diffllama")
T = 96


@lru_cache(maxsize=4)
def case(dtype: str, queries: int = T, causal: str = "bottom_right") -> Case:
    return natural(SPEC.replace(causal=causal), Structure(1, queries, T), dtype)


def asked(case: Case, at: Any, seen: bool) -> Ranking:
    """Diagnose a kernel that sees other keys (h, T, S) in a place than the spec says."""
    t, s = np.arange(case.structure.queries)[:, None], np.arange(T)[None]
    see = np.broadcast_to(s <= t + T - len(t) if case.spec.causal != "none" else s >= 0, (6, len(t), T)).copy()
    see[at] = seen
    wrong = rounded(case.spec.replace(causal="none"), {**case.inputs, "mask": see[None]}, case.dtype)["out"]
    return diagnose(wrong, case.spec, case.inputs, recipe=case.dtype, max_deviations=1)


EDGES = np.arange(31, T - 1, 32)
QUERY, KEY = np.arange(T)[:, None], np.arange(T)[None]
SAME_TILE = np.broadcast_to(KEY // 16 == QUERY // 16, (6, T, T))


@pytest.mark.parametrize(
    ("at", "seen", "causal", "said"),
    [
        (np.s_[..., 64:], False, "none", "keys from 64 on not seen, in every head"),
        (np.s_[2, 64:, 32:48], False, "bottom_right", "keys 32 to 47 not seen, in tokens 64 to 95 of head 2"),
        ((3, 5, 0), False, "bottom_right", "key 0 not seen, in token 5 of head 3"),
        (np.s_[..., 41:53], False, "none", "keys 41 to 52 not seen, in every head"),
        ((4, 50, 50), False, "bottom_right", "key 50 not seen, in token 50 of head 4"),
        (np.s_[:, EDGES, EDGES + 1], True, "bottom_right", "the key after a query's own seen, in tokens"),
        (np.s_[..., 0:T:32], False, "none", "the first key of each tile of 32 not seen, in every head"),
        (np.s_[..., 16:T:16], False, "none", "the first key of each tile of 16 after the first not seen, in"),
        (np.s_[1, :, 31:T:32], False, "none", "the last key of each tile of 32 not seen, in head 1"),
        (SAME_TILE, True, "bottom_right", "every key of the tile of 16 that has a query's own seen, in"),
    ],
)
def test_lost_keys_are_said(at: Any, seen: bool, causal: str, said: str) -> None:
    found = asked(case("float16", T, causal), at, seen)
    assert found.status == UNIQUE, found
    assert said in found.findings[0].what.lower(), found


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"gate": "sigmoid"}, {"sinks": True}, {"norm_over": "all_heads"}])
def test_lost_keys_are_said_whatever_follows(changes: dict[str, Any]) -> None:
    one = natural(SPEC.replace(causal="none", **changes), Structure(1, T, T), "float32")
    found = asked(one, np.s_[..., 64:], False)
    assert "Keys from 64 on not seen, in every head" in found.findings[0].what, found


@pytest.mark.parametrize(
    ("name", "at", "said"),
    [
        ("dq", (0, 3, slice(32, 64)), "dq is wrong only in tokens 32 to 63 of head 3"),
        ("dk", (0, 1, slice(64, T)), "dk is wrong only in keys 64 to 95 of head 1"),
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
