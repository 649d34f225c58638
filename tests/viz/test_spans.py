"""Shares of attention, by hand and as properties; the bars that show them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.viz import attention_to, plot_attention_to
from tests.layers.places import STRICT

ROW = np.array([[0.0, 0.0, 0.0, 0.0, 0.0], [0.1, -0.2, 0.3, 0.4, -1.0]])


def test_by_hand() -> None:
    shares = attention_to(ROW, {"answer": [2, 3], "noise": slice(0, 2)})
    assert shares == pytest.approx({"answer": 0.35, "noise": 0.15, "the rest": 0.5}, rel=1e-14)
    assert attention_to(ROW, {"all": slice(None)}) == {"all": 1.0}
    assert attention_to(ROW, {"last": [-1, 4]}) == {"last": 0.5, "the rest": 0.5}  # one key, named twice


def test_of_a_device_and_of_lists() -> None:
    shares = attention_to(ROW, {"answer": [2, 3]})
    assert attention_to(STRICT.put(ROW), {"answer": [2, 3]}) == attention_to(ROW.tolist(), {"answer": [2, 3]}) == shares


@given(st.integers(0, 2**32 - 1), st.integers(2, 9), st.floats(0.1, 9.0))
def test_shares_sum_to_one_whatever_the_sign_and_size(seed: int, keys: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(3, 2, keys))
    spans = {"first": [0], "others": slice(1, keys - 1)}
    shares = attention_to(weights, spans)
    assert sum(shares.values()) == pytest.approx(1, rel=1e-12)
    assert attention_to(-size * weights, spans) == pytest.approx(shares, rel=1e-12)


def test_errors() -> None:
    with pytest.raises(ValueError, match="spans: got groups that share a key, of a, b"):
        attention_to(ROW, {"a": [0, 1], "b": [1]})
    with pytest.raises(ValueError, match="weights: got a row of zeros"):
        attention_to(ROW, {"a": [0]}, queries=0)
    with pytest.raises(IndexError):
        attention_to(ROW, {"a": [5]})
    with pytest.raises(ValueError, match="shares: got the groups"):
        plot_attention_to({"x": {"a": 0.1}, "y": {"b": 0.1}})


def test_bars() -> None:
    shares = {"plain": {"answer": 0.2, "noise": 0.8}, "differential": {"answer": 0.7, "noise": 0.3}}
    axes = plot_attention_to(shares, errors={label: {"answer": 0.05, "noise": 0.1} for label in shares})
    bars = [container for container in axes.containers if hasattr(container, "patches")]
    assert [[bar.get_height() for bar in group] for group in bars] == [[0.2, 0.8], [0.7, 0.3]]
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in group] for group in bars]
    np.testing.assert_allclose(centres, [[-0.2, 0.8], [0.2, 1.2]], atol=1e-12)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["answer", "noise"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["plain", "differential"]
    (sticks,) = bars[0].errorbar.lines[2]
    np.testing.assert_allclose([s[:, 1] for s in sticks.get_segments()], [[0.15, 0.25], [0.7, 0.9]])
    assert [text.get_text() for text in axes.texts] == ["0.20", "0.80", "0.70", "0.30"]
