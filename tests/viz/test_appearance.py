"""Colors are read on both kinds of page and with any kind of color vision; zero stands in the middle."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest

from refdiff.viz.appearance import (
    BLUE,
    INK,
    ORANGE,
    SERIES,
    name_ticks,
    new_axes,
    signed_colors,
    signed_range,
)

from .conftest import render

PAGES = ("#ffffff", "#0d1117")
# Machado, Oliveira and Fernandes 2009, severity 1: what people without one of the three cones see, in linear RGB
VISION = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "any": np.eye(3),
}


def linear(color: Any) -> np.ndarray[Any, Any]:
    from matplotlib.colors import to_rgb

    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(a: Any, b: Any) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted(float(linear(x) @ [0.2126, 0.7152, 0.0722]) for x in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """CIE L*a*b* of linear sRGB."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = np.cbrt(xyz / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("page", PAGES)
def test_text_and_lines_stand_out_on_both_pages(page: str) -> None:
    assert contrast(INK, page) >= 4.0
    for color in SERIES:
        assert contrast(color, page) >= 3.0


@pytest.mark.parametrize("vision", VISION)
def test_colors_differ_for_every_kind_of_color_vision(vision: str) -> None:
    seen = {color: lab(np.array(VISION[vision]) @ linear(color)) for color in SERIES}
    assert np.linalg.norm(seen[BLUE] - seen[ORANGE]) > 40
    assert min(np.linalg.norm(seen[a] - seen[b]) for a, b in itertools.combinations(SERIES, 2)) > 10


def test_zero_has_no_color_and_the_signs_are_alike() -> None:
    from matplotlib.colors import to_rgb

    colors, norm = signed_colors(), signed_range(np.array([-0.2, 0.5]), limit=0.5)
    assert colors(norm(0.0))[3] == 0
    assert colors(norm(0.5)) == (*to_rgb(BLUE), 1)
    assert colors(norm(-0.5)) == (*to_rgb(ORANGE), 1)
    np.testing.assert_allclose(colors(norm(0.125))[3], 0.5, atol=0.01)  # the root of a quarter
    np.testing.assert_allclose(colors(norm(-0.125))[3], 0.5, atol=0.01)


def test_errors() -> None:
    with pytest.raises(ValueError, match="not finite"):
        signed_range(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="limit: got 0, expected above 0"):
        signed_range(np.ones(2), limit=0)


def test_ticks_are_tokens_while_they_fit_and_then_numbers() -> None:
    axes = new_axes(None)
    name_ticks(axes, ["$a$", "\\frac{", "b"])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["$a$", "\\frac{", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$a$", "\\frac{", "b"]
    render(axes.figure)  # mathematics would fail here
    assert axes.get_yticklabels()[0].get_fontsize() == 8
    name_ticks(axes, ["t"] * 65)
    assert axes.get_yticklabels()[0].get_fontsize() == 4
    axes = new_axes(None)
    axes.set_xlim(0, 99)
    name_ticks(axes, ["t"] * 100, "x")
    render(axes.figure)
    assert all(label.get_text().isdigit() for label in axes.get_xticklabels())


# Letters that no font has become code points, and those of another script bring its font.


def test_no_letter_is_missing_when_it_is_drawn() -> None:
    axes = new_axes(None)
    name_ticks(axes, ["日本", "\U000e0fff", "😀"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(axes.figure)
