"""Wavelengths as they are drawn are 2π / θ."""

from __future__ import annotations

import math

import numpy as np

from refdiff import layers
from refdiff.layers.rope_frequencies import ROPE_TYPES
from refdiff.viz import plot_rope_wavelengths
from refdiff.viz.rope import EXAMPLES


def test_every_kind_has_an_example_and_a_line() -> None:
    assert set(EXAMPLES) == set(ROPE_TYPES)
    axes = plot_rope_wavelengths()
    lines = {line.get_label().split(",")[0]: line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == list(EXAMPLES)
    for name, line in lines.items():
        theta, _ = layers.rope_frequencies(EXAMPLES[name], 64, 2048, 8192)
        expected = [2 * math.pi / f if f else math.nan for f in theta]
        np.testing.assert_array_equal(line.get_ydata(), expected)
    assert axes.get_yscale() == "log"
    assert len({(line.get_color(), line.get_linestyle(), line.get_marker()) for line in lines.values()}) == 7


def test_pairs_that_stand_still_are_counted_and_not_drawn() -> None:
    line = plot_rope_wavelengths({"p": EXAMPLES["proportional"]}).lines[0]
    assert line.get_label() == "p, 8 of 32 stand still"
    assert np.isnan(line.get_ydata()).sum() == 8
