"""Queries that are aimed at keys: the largest score comes where it is meant to."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle.cases.fixed import Case, cases, small_spec
from refdiff.oracle.cases.structure import Structure
from refdiff.oracle.cases.tile_boundaries import aim_at_tiles, tile_boundary_keys
from refdiff.oracle.cases.values import draw
from refdiff.oracle.inputs.sequences import sequences
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.truth.attention_operands import attention_operands, scores


def largest_in(case: Case, tile: int) -> list[tuple[int, int, int]]:
    """Of each row of map 1 and each of map 2: the tile of its largest score, and the first and last that it sees."""
    found = []
    for part in sequences(as_float64(case.spec, case.inputs)):
        s = attention_operands(case.spec, part.inputs, ops_for())
        for number in (1, 2):
            for z in scores(s, number).reshape(-1, part.inputs["k"].shape[2]):
                seen = np.flatnonzero(~np.isneginf(z)) // tile
                found.append((int(np.argmax(z)) // tile, int(seen[0]), int(seen[-1])))
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_the_largest_score_is_in_an_early_tile_of_some_rows_and_in_a_late_one_of_others(name: str) -> None:
    rows = [row for case in cases("tiles", spec=small_spec(name)) for row in largest_in(case, 64) if row[1] < row[2]]
    early, late = (sum(row[0] == row[n] for row in rows) for n in (1, 2))
    assert min(early, late) > 0.15 * len(rows)


def test_keys_that_are_looked_at() -> None:
    see = np.arange(130) >= 5
    assert tile_boundary_keys(see).tolist() == [5, 63, 64, 127, 128, 129]
    assert tile_boundary_keys(np.zeros(3, dtype=bool)).tolist() == []


@pytest.mark.parametrize("name", PRESETS)
def test_a_query_has_most_of_its_weight_on_one_key(name: str) -> None:
    spec, largest, at_a_border = small_spec(name).replace(window=None), [], []
    for case in cases("tiles", spec=spec)[2:4]:
        s = attention_operands(spec, as_float64(spec, case.inputs), ops_for())
        for z in (scores(s, 1), scores(s, 2)):
            weights = np.exp(z - z.max(axis=-1, keepdims=True))
            largest += (weights.max(axis=-1) / weights.sum(axis=-1)).ravel().tolist()
            beside = tile_boundary_keys(np.ones(z.shape[-1], dtype=bool))
            at_a_border += np.isin(np.argmax(z, axis=-1), beside).ravel().tolist()
    assert np.median(largest) > 0.3
    assert max(largest) > 0.999
    assert np.mean(at_a_border) > 0.6  # a longer key may be ahead of a short one


def test_only_queries_are_changed_and_only_their_noise_is_read() -> None:
    spec = small_spec("hf_diffllama")
    inputs = as_float64(spec, draw(spec, Structure(1, 2, 70), "discriminating", 0))
    before = {name: x.copy() for name, x in inputs.items()}
    aimed = aim_at_tiles(spec, inputs)
    assert all(np.array_equal(x, before[name]) for name, x in inputs.items())
    assert aimed.shape == inputs["q"].shape
    nothing = as_float64(spec, draw(spec, Structure(1, 2, 0), "discriminating", 0))
    assert np.array_equal(aim_at_tiles(spec, nothing), nothing["q"])
