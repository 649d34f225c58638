"""The catalogue as a whole: its names, axes and sources, how a mistake is planted, that property tests notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for, overlay
from refdiff.oracle.mistakes import CATALOGUE, ROWS, wrap
from refdiff.oracle.mistakes.catalogue import Mistake

ROOT = Path(__file__).parents[3]


def test_names_and_rows() -> None:
    names = [m.name for m in CATALOGUE]
    assert len(set(names)) == len(names) >= 40
    for m in CATALOGUE:
        assert m.what.endswith("."), m
        assert m.row or not m.link, f"{m}: a link, but to no row"
        assert {m.layer, *m.also} <= set(layers.__all__)


def test_a_mistake_is_laid_over_its_layers_alone() -> None:
    m = Mistake("halved", "Half of it.", "rms_norm", "norm kind", lambda call: call() / 2, also=("linear",))
    assert str(m) == "halved"
    ops = overlay(ops_for(), wrap(m))
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(ops.rms_norm(x, None, 0.1), layers.rms_norm(x, None, 0.1) / 2)
    assert np.array_equal(ops.linear(x, x), layers.linear(x, x) / 2)
    assert ops.softmax is layers.softmax


@pytest.mark.slow
def test_the_property_tests_notice_every_mistake(outside: dict[str, str]) -> None:
    """Without golden values and without transformers."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle.mistakes"],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CATALOGUE)} of {len(CATALOGUE)} noticed" in done.stdout
    print(done.stdout)


def test_all_rows_are_there_and_those_of_mistakes_are_made() -> None:
    assert set(ROWS) == {*(f"F{n}" for n in range(1, 14)), *(f"B{n}" for n in range(1, 24))}
    made = {m.row for m in CATALOGUE if m.row}
    assert made == {name for name, row in ROWS.items() if row.where == "mistake"}
    assert all(row.link.startswith("https://") for row in ROWS.values())
    assert {row.where for row in ROWS.values()} == {"mistake", "spec", "recipe", "refused"}
