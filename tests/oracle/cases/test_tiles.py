"""More keys than a tile has: what is planted in a tiled kernel is found by the profile `tiles`."""

from __future__ import annotations

from functools import cache

import pytest

from refdiff.oracle import Budget, Case, budget, cases
from refdiff.oracle.cases.fixed import small_spec
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
