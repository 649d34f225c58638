"""Structures that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from refdiff.oracle.cases.structure import Structure


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": -1}, "lengths must be 0 or more"),
        ({"packed": ((1, -2),)}, "lengths must be 0 or more"),
        ({"pages": ((1, 2),), "page": 0}, "a page holds 1 key or more"),
        ({"padding": "both"}, "padding: got 'both', expected one of 'none', 'left', 'right'"),
        ({"packed": (), "pages": ()}, "give one of them"),
        ({"hidden": 4, "pages": ((1, 2),)}, "hidden must be None"),
        ({"window": -1}, "lengths must be 0 or more"),
        ({"window": 3, "packed": ((1, 2),)}, "for dense q, k and v alone"),
        ({"bias": True, "pages": ((1, 2),)}, "for dense q, k and v alone"),
        ({"hole": 3, "hidden": 4}, "for dense q, k and v alone"),
    ],
)
def test_impossible(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Structure(**fields)
