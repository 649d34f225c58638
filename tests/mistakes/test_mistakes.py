"""Every mistake of the catalogue: it is one, it can be laid over a model, and the property tests notice it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.arrays import to_numpy
from refdiff.backends import overlay
from tests.layers.vjps import draw
from tests.mistakes import CATALOGUE, Mistake, wrap
from tests.model.models import ids, small_model

ROOT = Path(__file__).parents[2]
# of what a difference of attention maps is made of; "window": no wiring here has one
AXES = {
    "pair", "gqa", "vlay", "k1/k2 crossed", "concat", "path", "V2-vs-V1",
    "rope kind", "rope dim", "rope base", "rope offset", "rope scale",
    "scale", "lse base", "order", "clamp", "renorm", "mask", "mask align", "mask off by one", "window", "backward",
    "linit base", "linit const", "lam form",
    "norm kind", "norm extent", "affine", "eps", "post scale",
}  # fmt: skip
EACH = pytest.mark.parametrize("mistake", CATALOGUE, ids=str)


def calls(layer: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Some calls of a layer, with numbers in which its mistakes can be seen."""
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    by_hand = {
        "lambda_init": [((n,), {}) for n in range(3)],
        "rope_frequencies": [((yarn, 16, 256), {})],
        "rope_cos_sin": [((np.arange(3, 8)[None], [1.0, 0.1], 1.2, np.float64), {})],
    }
    if layer in by_hand:
        return by_hand[layer]
    drawn = [draw(name, seed) for name in [layer.removesuffix("_vjp")] for seed in range(40)]
    if layer.endswith("_vjp"):
        function = getattr(layers, layer.removesuffix("_vjp"))
        drawn = [((np.ones(np.shape(function(*a, **o))), *a), o) for a, o in drawn]
    if layer == "diff_heads_paper":  # with the ε that is given to them, and with the default
        drawn += [(args[:6], options) for args, options in drawn]
    return drawn


def flat(result: Any) -> np.ndarray:
    parts = result if isinstance(result, tuple | list) else [result]
    return np.concatenate([np.ravel(to_numpy(np.asarray(p))) for p in parts])


def test_names_axes_and_rows() -> None:
    names = [m.name for m in CATALOGUE]
    assert len(set(names)) == len(names) >= 40
    assert {m.axis for m in CATALOGUE} == AXES
    for m in CATALOGUE:
        assert m.what.endswith("."), m
        assert m.row or not m.link, f"{m}: a link, but to no row"
        assert m.layer in layers.__all__


@EACH
def test_is_another_function_of_the_same_shape(mistake: Mistake) -> None:
    right, apart = getattr(layers, mistake.layer), 0.0
    wrong = mistake.of(right)
    for args, options in calls(mistake.layer):
        expected, actual = flat(right(*args, **options)), flat(wrong(*args, **options))
        assert actual.shape == expected.shape
        assert np.isfinite(actual).all()
        apart = max(apart, float(np.abs(actual - expected).max(initial=0) / (1e-9 + np.abs(expected).max(initial=0))))
    assert apart > 1e-4


# what a forward pass without cache and padding, of the default rope_type, does not show
HIDDEN = {
    *("positions_from_one", "positions_from_zero_in_every_call", "scale_of_the_rotation_left_out"),
    *("rope_type_left_out", "triangle_at_the_top_left", "no_padding_mask", "gradient_without_the_causal_mask"),
    *("powers_of_two", "a_row_that_sees_nothing_is_uniform"),  # softmax is called inside of a layer, not by the model
}


@EACH
def test_a_model_can_be_mistaken(mistake: Mistake) -> None:
    wiring = {"diff_heads_paper": "paper", "diff_heads_v2": "v2", "diff_lambda_v2": "v2"}.get(mistake.layer, "hf")
    model, tokens = small_model(wiring=wiring, kernels="reference"), ids(3, 2, 5)
    expected = model(tokens).logits
    model.ops = overlay(model.ops, wrap(mistake))
    logits = model(tokens).logits
    assert logits.shape == expected.shape
    assert np.isfinite(logits).all()
    apart = np.abs(logits - expected).max() / np.abs(expected).max()
    assert (apart > 1e-9) != (mistake.name in HIDDEN), apart


@pytest.mark.slow
def test_the_property_tests_notice_every_mistake(outside: dict[str, str]) -> None:
    """Without golden values and without transformers."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.mistakes"],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(CATALOGUE)} of {len(CATALOGUE)} noticed" in done.stdout
    print(done.stdout)
