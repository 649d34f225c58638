"""More keys than a tile has: what is planted in a tiled kernel is found by the profile `tiles`, and by no other."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.cases.fixed import PROFILES, Case, cases, small_spec
from refdiff.oracle.inputs.sequences import sequences
from refdiff.oracle.truth.attention_mask import attention_mask
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


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("tile", [32, 64, 128])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_found_in_16_bits(mistake: str, tile: int, dtype: str) -> None:
    assert found_by(mistake, tile, dtype)


def found_by(mistake: str, tile: int, dtype: str) -> list[str]:
    """The cases that fail."""
    outs = ((c, allowed, tiled(c.spec, c.inputs, tile=tile, mistake=mistake)) for c, allowed in known(dtype))
    return [c.name for c, allowed, out in outs if allowed.judge(out).status == "fail"]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_other_profile_shows_it(mistake: str) -> None:
    for profile in PROFILES:
        for case in cases(profile, spec=small_spec("ms_v1")) if profile not in ("tiles", "modules") else []:
            right, wrong = (tiled(case.spec, case.inputs, tile=32, mistake=m) for m in ("", mistake))
            assert np.array_equal(right, wrong, equal_nan=True), case


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
