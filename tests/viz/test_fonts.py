"""Letters that no font has become code points, and those of another script bring its font."""

from __future__ import annotations

import warnings

from refdiff.viz.appearance import name_ticks, new_axes
from refdiff.viz.fonts import in_fonts

from .conftest import render


def test_what_matplotlibs_own_font_has_stays() -> None:
    families, labels = in_fonts(["·king", "é", "↵⇥", "A₁ − λ"])
    assert len(families) == 1
    assert labels == ["·king", "é", "↵⇥", "A₁ − λ"]


def test_what_no_font_has_is_spelled() -> None:
    families, labels = in_fonts(["a\U000e0fff", "\U0001f9ea日"], others=[])
    assert len(families) == 1
    assert labels == ["a\\U000e0fff", "\\U0001f9ea\\u65e5"]


def test_no_letter_is_missing_when_it_is_drawn() -> None:
    axes = new_axes(None)
    name_ticks(axes, ["日本", "\U000e0fff", "😀"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        render(axes.figure)
