"""What a wrong array is all the same: a factor, an order of heads, of axes, with both maps in one."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from refdiff.oracle import Spec, first_divergence, trace
from refdiff.oracle.divergence.expected import Expected
from refdiff.oracle.divergence.explain import explanation
from refdiff.oracle.divergence.layouts import arrange
from tests.model.models import ids, small_model
from tests.oracle.example_inputs import draw

# as many keys as queries, so that an order of heads is an order of scores
REF = trace(small_model(num_key_value_heads=8), ids(0, 2, 5), maps=True)
AT = "model.layers.1.self_attn."
EXPECTED = {path: Expected(x, "float64", 2.0**-40) for path, x in REF.items()}


def said(name: str, mine: np.ndarray) -> str:
    return explanation(AT + name, mine, EXPECTED, REF)


def of(name: str) -> np.ndarray:
    return REF[AT + name]


def split_heads(x: np.ndarray, heads: int) -> np.ndarray:
    """(B, T, h e) → (B, h, T, e)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


ORDERS = [(name, "(1, 0, 3, 2)") for name in ("scores1", "lse1", "diff", "groupnorm")]
ORDERS += [(name, "(5, 4, 7, 6)") for name in ("attn2", "probs2")]


@pytest.mark.subjects
@pytest.mark.parametrize(
    ("name", "change", "up_to"),
    [
        ("scores1", lambda x: math.sqrt(6) * x, "the factor 2.4495"),
        ("scores1", lambda x: -x, "the factor -1"),
        *((name, lambda x: x[:, [1, 0, 3, 2]], f"an order of heads: {order}") for name, order in ORDERS),
        ("scores1", lambda x: of("scores2"), "a swap of the maps: it is scores2"),
        ("attn2", lambda x: of("attn1"), "a swap of the maps: it is attn1"),
        ("scores1", lambda x: np.concatenate([x, of("scores2")], 1)[:, 0::2], "an order of heads: (0, 2, 4, 6)"),
        ("scores2", lambda x: x[:, [0, 0, 2, 3]], "repeated heads: (4, 4, 6, 7)"),
        ("q_proj", lambda x: split_heads(x, 8)[:, [1, 0, 2, 3, 4, 5, 7, 6]].swapaxes(1, 2).reshape(2, 5, 48),
         "an order of heads: (1, 0, 2, 3, 4, 5, 7, 6)"),
        ("values", lambda x: np.concatenate([split_heads(of("v_proj"), 8)[:, i::2] for i in (0, 1)], -1),
         "an order of heads: (0, 2, 4, 6, 1, 3, 5, 7)"),
        ("scaled", lambda x: split_heads(x, 4).reshape(2, 5, 48),
         "a transpose: its numbers lie as (B, H, T, e), not (B, T, H, e)"),
        ("scores1", lambda x: x.swapaxes(2, 3), "a transpose: its numbers lie as (B, H, S, T), not (B, H, T, S)"),
    ],
)  # fmt: skip
def test_an_array_that_is_equal_up_to_a_change_is_explained(
    name: str, change: Callable[[np.ndarray], np.ndarray], up_to: str
) -> None:
    assert said(name, change(of(name))) == f"equal up to {up_to}"


def test_a_factor_explains_most_of_an_error() -> None:
    """An error at random, a little larger than allowed, is a little smaller beside some factor."""
    y = of("o_proj")
    noise = np.random.default_rng(0).normal(size=y.shape)
    noise += 0.3 * y / y.std() - (noise * y).sum(-1, keepdims=True) / (y * y).sum(-1, keepdims=True) * y
    noise /= np.sqrt((noise**2).mean(-1, keepdims=True))
    allowed = {AT + "o_proj": Expected(y, "float64", np.full(y.shape[:-1], 1e-3), slope=1.0)}
    for error, says in ((4.08e-3 * noise, ""), (0.1 * y, "equal up to the factor 1.1")):
        assert explanation(AT + "o_proj", y + error, allowed, REF) == says


@pytest.mark.parametrize("base", [2, 10])
def test_another_base_diverges_from_nothing(base: int) -> None:
    mine = {path: (x / math.log(base) if "lse" in path else x).astype(np.float32) for path, x in REF.items()}
    found = first_divergence(mine, REF)
    assert not found
    (stage,) = (s for s in found.stages if s.path == AT + "lse1")
    assert (stage.status, stage.what) == ("equal", f"to the base {base}, not e")


def test_the_base_of_the_spec() -> None:
    spec = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=6, lse_base="2")
    ref = trace(spec, draw(spec, 1, dtype=np.float32, T=3))
    assert not first_divergence(ref, ref)
    natural = {name: ref[name] * math.log(2) for name in ("lse1", "lse2")}
    stages = {s.path: s for s in first_divergence(natural, ref).stages}
    assert stages["lse1"].what == "to the base e, not 2"


@pytest.mark.parametrize("name", ["scores1", "lse1", "q_proj", "values", "o_proj", "lambda_full"])
def test_noise_and_zeros_have_no_explanation(name: str) -> None:
    g = np.random.default_rng(3)
    assert said(name, g.normal(size=of(name).shape)) == ""
    assert said(name, np.zeros(of(name).shape)) == ""


MODEL = trace(small_model(), ids(0, 2, 5), maps=True)
LAYER_0 = "model.layers.0.self_attn."


@pytest.mark.parametrize(
    ("path", "change", "how"),
    [
        (LAYER_0 + "diff", lambda x: x, ""),
        (LAYER_0 + "diff", lambda x: x.transpose(0, 2, 1, 3), "BTHe"),
        (LAYER_0 + "scaled", lambda x: x.reshape(2, 5, 4, 12).transpose(0, 2, 1, 3), "BHTe"),
        (LAYER_0 + "q_rope", lambda x: x.transpose(2, 0, 3, 1), "TBdH"),
        (LAYER_0 + "lse1", lambda x: x.transpose(0, 2, 1)[..., None], "BTH"),
        (LAYER_0 + "lambda_full", lambda x: x.reshape(1, 1), ""),
        ("model.rotary_emb.cos", lambda x: np.concatenate([x, x], -1)[0], "Tn"),
        ("model.rotary_emb.cos", lambda x: np.concatenate([x, x]), ""),
        ("model.rotary_emb.cos", lambda x: np.concatenate([x, x])[:, 0], "Tn"),
    ],
)
def test_arranged(path: str, change: object, how: str) -> None:
    x = MODEL[path].astype(np.float32)
    array, said = arrange(change(x), path, MODEL)
    assert said == how
    assert array.dtype == np.float64
    assert array.shape == MODEL[path].shape
    assert np.array_equal(array.astype(np.float32), x)


def test_shapes_that_are_none_of_it() -> None:
    array, said = arrange(np.ones((2, 5, 7)), LAYER_0 + "diff", MODEL)
    assert array is None
    assert said == "has shape (2, 5, 7), expected (2, 4, 5, 12) or another order of its axes"
