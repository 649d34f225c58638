"""A log as it is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff.viz import plot_training

from .conftest import render

RECORDS: list[dict[str, Any]] = [
    {"step": 1, "loss": 5.0, "lambdas": [0.2, 0.35]},
    {"step": 2, "loss": 4.0, "lambdas": [0.21, 0.34], "validation": 4.5},
    {"step": 3, "loss": 3.5, "lambdas": [0.25, 0.3], "validation": 4.25},
]


def test_loss_and_lambda() -> None:
    figure = plot_training(RECORDS)
    losses, lambdas = figure.axes
    training, validation = losses.lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 5], [2, 4], [3, 3.5]])
    np.testing.assert_array_equal(validation.get_xydata(), [[2, 4.5], [3, 4.25]])
    assert [list(line.get_ydata()) for line in lambdas.lines] == [[0.2, 0.21, 0.25], [0.35, 0.34, 0.3]]
    assert [text.get_text() for text in lambdas.texts] == ["0", "1"]
    render(figure)


def test_from_a_folder_with_a_line_cut_off(tmp_path: Path) -> None:
    text = "\n".join(map(json.dumps, RECORDS))
    (tmp_path / "log.jsonl").write_text(text + '\n{"step": 4, "lo', encoding="utf-8")
    for log in (tmp_path, tmp_path / "log.jsonl"):
        assert list(plot_training(log).axes[0].lines[0].get_xdata()) == [1, 2, 3]


def test_errors() -> None:
    with pytest.raises(ValueError, match="log: got no steps"):
        plot_training([])
