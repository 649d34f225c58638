"""The catalogue as a whole: its names, axes and sources, how a mistake is planted, that property tests notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.backends import ops_for, overlay
from refdiff.oracle import Spec
from refdiff.oracle.mistakes import CATALOGUE, ROWS, wrap
from refdiff.oracle.mistakes.catalogue import Mistake, mistake, with_parts

ROOT = Path(__file__).parents[3]
# of what a difference of attention maps is made of; "window": no wiring here has one. The order of signals and noises
# where several signals share a noise (row F9) is none of these: no layer here has that ratio. It is a field of `Spec`
# (`ratio`, with `pairing`), and its deviation is `signals_and_noises_in_the_other_order`.
AXES = {
    "pair", "gqa", "vlay", "k1/k2 crossed", "concat", "path", "V2-vs-V1",
    "rope kind", "rope dim", "rope base", "rope offset", "rope scale",
    "scale", "lse base", "order", "clamp", "renorm", "mask", "mask align", "mask off by one", "window", "backward",
    "linit base", "linit const", "lam form", "lam rounding", "cache", "convert",
    "norm kind", "norm extent", "affine", "eps", "post scale",
}  # fmt: skip


def test_names_axes_and_rows() -> None:
    names = [m.name for m in CATALOGUE]
    assert len(set(names)) == len(names) >= 40
    assert {m.axis for m in CATALOGUE} == AXES
    for m in CATALOGUE:
        assert m.what.endswith("."), m
        assert m.row or not m.link, f"{m}: a link, but to no row"
        assert {m.layer, *m.also} <= set(layers.__all__)


def test_a_mistake_is_laid_over_its_layers_alone() -> None:
    noted: list[Mistake] = []

    @mistake(noted, "rms_norm", "norm kind", also=("linear",))
    def halved(right: Any, *args: Any, **options: Any) -> Any:
        """Half of
        it."""
        return right(*args, **options) / 2

    (m,) = noted
    assert (m.name, m.what, str(m)) == ("halved", "Half of it.", "halved")
    ops = overlay(ops_for(), wrap(m))
    x = np.arange(6.0).reshape(2, 3)
    assert np.array_equal(ops.rms_norm(x, None, 0.1), layers.rms_norm(x, None, 0.1) / 2)
    assert np.array_equal(ops.linear(x, x), layers.linear(x, x) / 2)
    assert ops.softmax is layers.softmax


def test_a_part_of_a_composed_layer_is_replaced() -> None:
    x, p = np.arange(6.0).reshape(2, 3), {"weight": np.eye(3)}
    doubled = with_parts({"act": "relu"}, activation=lambda z, name: 2 * layers.activation(z, name))
    assert np.array_equal(layers.swiglu(x, p, p, p, **doubled), 2 * layers.swiglu(x, p, p, p, act="relu"))
    again = with_parts(doubled, linear=lambda z, weight: z)
    assert np.array_equal(layers.swiglu(x, p, p, p, **again), 2 * x * x)


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


@pytest.mark.parametrize(
    ("row", "preset", "dims", "says"),
    [
        (
            "B2",
            "diff_v2",
            {"query_heads": 6, "key_heads": 2},
            "pairs would straddle groups",
        ),  # h = 3 outputs, 2 key heads
        ("B22", "hf_diffllama", {"query_heads": 6, "key_heads": 3}, "it must be even"),
    ],
)
def test_what_no_kernel_can_compute_is_refused(row: str, preset: str, dims: dict[str, int], says: str) -> None:
    assert ROWS[row].where == "refused"
    with pytest.raises(ValueError, match=says):
        Spec.preset(preset, head_dim=4, **dims)
