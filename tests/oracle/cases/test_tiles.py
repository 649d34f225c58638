"""More keys than a tile has: what a kernel of tiles gets wrong is found by the profile `tiles`."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from refdiff.oracle import Budget, Case, Mistake, budget, cases
from refdiff.oracle.cases.fixed import small_spec
from refdiff.oracle.inputs import kind_of
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes.catalogue import Kernel
from refdiff.oracle.mistakes.in_tiles import TILE_DEVIATIONS
from refdiff.oracle.mistakes.kernel import output
from refdiff.oracle.rounding import round_to
from refdiff.oracle.truth.attention_operands import use_explicit_mask

MISTAKES = (
    "last_partial_tile_dropped", "first_tile_alone", "a_key_lost_at_each_border", "a_key_twice_at_each_border",
    "tile_that_begins_with_the_own_key_skipped", "tile_that_begins_hidden_skipped", "mask_of_the_first_tile_again",
    "bias_of_the_first_tile_again",
)  # fmt: skip


@cache
def known(dtype: str) -> list[tuple[Case, Budget]]:
    """The dense cases of the profile, and what a right kernel may be off by."""
    found = [c for c in cases("tiles", spec=small_spec("ms_v1"), dtype=dtype) if kind_of(c.inputs) == "dense"]
    return [(c, budget(c.spec, c.inputs, dtype)) for c in found]


def edited(kernel: Kernel, tile: int, mistake: str) -> Kernel:
    """The kernel with other keys seen or counted."""
    spec, x = use_explicit_mask(kernel.spec, kernel.inputs)
    visible, S = np.array(x["mask"]), x["k"].shape[2]
    s = np.arange(S)
    later, starts = s >= tile, s // tile * tile
    if mistake == "first_tile_alone":
        visible &= ~later
    elif mistake == "last_partial_tile_dropped":
        visible &= s < max(tile, S // tile * tile)
    elif mistake == "a_key_lost_at_each_border":
        visible &= ~(later & (s == starts))
    elif mistake == "a_key_twice_at_each_border":
        x["bias"] = x.get("bias", np.zeros((1, 1, 1, S))) + np.where((s + 1) % tile + (s + 1 == S) > 0, 0.0, np.log(2))
    elif mistake == "tile_that_begins_hidden_skipped":
        visible &= ~later | visible[..., starts]
    elif mistake == "tile_that_begins_with_the_own_key_skipped":
        is_last = visible & (np.cumsum(visible[..., ::-1], axis=-1)[..., ::-1] == 1)
        visible &= ~(later & is_last[..., starts])
    elif mistake == "mask_of_the_first_tile_again":
        visible = visible[..., s % tile]
    elif "bias" in x:
        x["bias"] = x["bias"][..., s % tile]
    return Kernel(spec, {**x, "mask": visible})


def is_found(mistake: str | Mistake, tile: int, dtype: str) -> bool:
    """Whether some case fails."""

    def wrong(case: Case, allowed: Budget) -> Any:
        kernel = Kernel(case.spec, as_float64(case.spec, allowed.inputs))
        found = mistake.apply(kernel) if isinstance(mistake, Mistake) else edited(kernel, tile, mistake)
        return round_to(np.asarray(output(found)), dtype)

    return any(allowed.judge(wrong(case, allowed)).status == "fail" for case, allowed in known(dtype))


@pytest.mark.parametrize("tile", [32, 64, 128])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_other_keys_are_found(mistake: str, tile: int) -> None:
    assert all(is_found(mistake, tile, dtype) for dtype in ("float32", "bfloat16"))


@pytest.mark.parametrize("mistake", [m for m in TILE_DEVIATIONS if "rescaled" in m.name], ids=str)
def test_sums_that_are_not_rescaled_are_found(mistake: Mistake) -> None:
    assert is_found(mistake, 0, "float32")
