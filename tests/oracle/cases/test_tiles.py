"""More keys than a tile has: what is planted in a tiled kernel is found by the profile `tiles`."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.oracle import Budget, Case, budget, cases
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.cases.values import tile_boundary_keys
from refdiff.oracle.inputs.sequences import sequences
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.truth.attention_mask import attention_mask
from refdiff.oracle.truth.attention_operands import attention_operands, scores
from tests.oracle.example_inputs import small
from tests.oracle.tiled_kernels import MISTAKES, tiled


@cache
def known(dtype: str) -> list[tuple[Case, Budget]]:
    """The cases of the profile, and what a right kernel may be off by."""
    return [(c, budget(c.spec, c.inputs, dtype)) for c in cases("tiles", spec=small_spec("ms_v1"), dtype=dtype)]


@pytest.mark.parametrize("tile", [16, 32, 64, 128])
def test_a_right_kernel_passes(tile: int) -> None:
    for case, allowed in known("float32"):
        assert allowed.judge(tiled(case.spec, case.inputs, tile=tile)).status == "pass", case


@pytest.mark.parametrize(
    "tile", [pytest.param(32, marks=pytest.mark.slow), 64, pytest.param(128, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_found(mistake: str, tile: int) -> None:
    assert found_by(mistake, tile, "float32")


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if "rescaled" in name])
def test_an_online_softmax_that_does_not_rescale_is_found_at_tiles_of_256(mistake: str) -> None:
    assert found_by(mistake, 256, "float32")


IN_16_BITS = [
    pytest.param(mistake, tile, dtype, marks=pytest.mark.nightly if (i + j) % 3 else pytest.mark.slow)
    for dtype in ("bfloat16", "float16")
    for i, mistake in enumerate(MISTAKES)
    for j, tile in enumerate((32, 64, 128))
]
"""One tile of each mistake among the slow tests, the others every night."""


@pytest.mark.parametrize(("mistake", "tile", "dtype"), IN_16_BITS)
def test_every_mistake_is_found_in_16_bits(mistake: str, tile: int, dtype: str) -> None:
    assert found_by(mistake, tile, dtype)


def found_by(mistake: str, tile: int, dtype: str) -> list[str]:
    """The cases that fail."""
    outs = ((c, allowed, tiled(c.spec, c.inputs, tile=tile, mistake=mistake)) for c, allowed in known(dtype))
    return [c.name for c, allowed, out in outs if allowed.judge(out).status == "fail"]


def test_numbers_of_keys() -> None:
    found = set()
    for case in cases("tiles", spec=small("hf_diffllama")):
        for part in sequences(case.inputs):
            mask = part.inputs.get("key_mask")
            found |= {part.inputs["k"].shape[2]} if mask is None else set(mask.sum(axis=1).tolist())
    assert {63, 64, 65, 127, 128, 129, 131, 257} <= found


@pytest.mark.parametrize("window", [None, 1, 64, 127, 130])
def test_a_window_begins_beside_a_border(window: int | None) -> None:
    spec, first = small("hf_diffllama", window=window), []
    for case in cases("tiles", spec=spec)[8:10]:
        assert ("mask" in case.inputs) == (window is None)
        see = attention_mask(case.spec, case.inputs)
        first.append(np.argmax(see[0, 0], axis=-1).tolist())
    assert first == [[61, 62, 63, 64, 65], [189, 190, 191, 192, 193]]


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
