"""Tiles that hold another tile's numbers, and noise, which is never taken for one."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle.diagnosis.test_places import planted, right

TILE = (0, 1, slice(32, 64))


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ((0, 1, slice(0, 32)), "tokens 0 to 31"),
        ((0, 1, slice(38, 70)), "tokens 38 to 69"),
        ((0, 2, slice(32, 64)), "head 2"),
        ((1, 1, slice(32, 64)), "sequence 1"),
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_tile_that_holds_another_one(of: tuple[int, int, slice], words: str, dtype: str) -> None:
    out, _ = right("hf_diffllama", dtype)
    (said,) = planted(TILE, out[of], dtype=dtype).lines  # one statement, and no guess from the tile's shape beside it
    assert said == (
        "it is wrong only in tokens 32 to 63 of head 1 of sequence 0; everything else is within budget: "
        f"it holds what belongs in {words}, as after a wrong offset"
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_no_other_tile(dtype: str, seed: int) -> None:
    """Nor is what is near another tile, or half of it."""
    out, _ = right("hf_diffllama", dtype)
    rng, other = np.random.default_rng(seed), out[0, 2, 32:64]
    size = np.sqrt(np.mean(other**2))
    for wrong in (rng.normal(0, size, other.shape), other + rng.normal(0, 0.1 * size, other.shape), other / 2):
        assert "belongs in" not in " ".join(planted(TILE, wrong, dtype=dtype).lines)
    half = out[0, 1, 32:64].copy()
    half[:16] = other[:16] + size
    row = rng.normal(0, size, other.shape[1:])
    for damaged in (planted(TILE, half, dtype=dtype), planted((0, 1, 40), row, dtype=dtype)):
        assert "belongs in" not in " ".join(damaged.lines)
