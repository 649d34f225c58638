"""What a page carries, read back by the rules of packed.py's docstring."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refdiff.model.variants import VARIANTS
from refdiff.viz import AttentionMaps
from refdiff.viz.page.packed import STEPS, packed
from tests.model.models import VARIANT_NAMES

from ..conftest import lambda_by_query


def read(text: str, like: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The triangles of a map as whole squares."""
    squares = np.zeros(like.shape)
    rows, columns = np.tril_indices(like.shape[2])
    numbers = np.frombuffer(base64.b64decode(text), dtype="<u2").reshape(*like.shape[:2], -1)
    squares[:, :, rows, columns] = numbers / 65535
    return squares


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_read_back_it_is_within_the_error_that_it_states(maps_in: Callable[[str], AttentionMaps], variant: str) -> None:
    maps = maps_in(variant)
    kept = packed(maps)
    first = read(kept["first"], maps.first)
    found = [np.abs(first - maps.first).max()]
    assert found[0] <= 0.5001 / STEPS
    if VARIANTS[variant].pairing is None:
        assert (kept["second"], kept["lambdas"], kept["starts"]) == (None, None, None)
    else:
        assert maps.second is not None
        second = read(kept["second"], maps.first)
        found.append(np.abs(second - maps.second).max())
        found.append(np.abs(first - lambda_by_query(maps) * second - maps.difference).max())
        np.testing.assert_array_equal(kept["lambdas"], maps.lambdas)  # type: ignore[arg-type]
    assert kept["error"] == pytest.approx(max(found), rel=1e-6)
    heads = 4 if VARIANTS[variant].pairing and variant != "v2" else 8  # after the pairs are subtracted
    assert (kept["layers"], kept["pairs"], len(kept["tokens"])) == (3, heads, 7)


def test_errors(maps: AttentionMaps) -> None:
    late = {name: getattr(maps, name)[:, :, 2:] for name in ("first", "second", "difference")}
    with pytest.raises(ValueError, match="5 queries and 7 keys"):
        packed(replace(maps, **late))
    for wrong in (np.nan, -0.1, 1.5):
        first = maps.first.copy()
        first[1, 2, 4, 3] = wrong
        with pytest.raises(ValueError, match="a weight that is not between 0 and 1"):
            packed(replace(maps, first=first))
    with pytest.raises(ValueError, match="A₁ − λ A₂ has numbers that are not finite"):
        packed(replace(maps, difference=np.full_like(maps.difference, np.nan)))
    first = maps.first.copy()
    first[0, 0, 1, 2] = 0.5
    with pytest.raises(ValueError, match="attends to a later key"):
        packed(replace(maps, first=first))
