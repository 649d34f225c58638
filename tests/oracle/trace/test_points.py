"""Which points there are, in which order, and that what is put in their place is gone on with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.layers import softmax
from refdiff.model.weights import flatten
from refdiff.oracle.trace.points import Points
from tests.model.models import ids, small_model
from tests.tolerances import FLOAT64, close

ATTENTION = (
    "q_proj", "k_proj", "v_proj", "values", "q_rope", "k_rope", "lambda_init", "lambda_full",
    "scores1", "lse1", "probs1", "attn1", "scores2", "lse2", "probs2", "attn2", "diff", "groupnorm", "scaled", "o_proj",
)  # fmt: skip
WITHOUT = {
    "hf": (),
    "paper": ("values",),
    "v2": ("values", "lambda_init", "groupnorm"),
    "none": ("values", "lambda_init", "lambda_full", "diff", "groupnorm"),
}


def record(
    model: Any, *args: Any, put: dict[str, Any] | None = None, whole: bool = False, **call: Any
) -> dict[str, Any]:
    points: dict[str, Any] = {}

    def visit(path: str, value: Any, **_: Any) -> Any:
        points[path] = value
        return (put or {}).get(path, value)

    model.ops = Points(flatten(model.params), visit, maps=True, whole=whole).over(ops_for())
    points["logits"] = model(*args, **call).logits
    return points


@pytest.mark.parametrize("wiring", WITHOUT)
def test_names_in_order(wiring: str) -> None:
    model = small_model(wiring=wiring)
    names = [name for name in record(model, ids(0, 2, 5)) if name != "logits"]
    expected = ["model.embed_tokens", "model.rotary_emb.cos", "model.rotary_emb.sin"]
    attention = [n for n in ATTENTION if n not in WITHOUT[wiring]]
    if wiring == "none":
        attention = [n.replace("1", "") for n in attention if not n.endswith("2")]
    if wiring == "v2":
        attention.insert(attention.index("lambda_full"), "lambda_proj")
    for i in range(3):
        at = f"model.layers.{i}."
        expected += [at + "input_layernorm", *(f"{at}self_attn.{n}" for n in attention)]
        expected += [at + "post_attention_layernorm.input", at + "post_attention_layernorm"]
        expected += [f"{at}mlp.{n}" for n in ("gate_proj", "act_fn", "up_proj", "down_proj")]
        expected += [at.rstrip(".")]
    assert names == [*expected, "model.norm", "lm_head"]


@pytest.mark.parametrize("wiring", WITHOUT)
def test_looking_changes_nothing(wiring: str) -> None:
    model, tokens = small_model(wiring=wiring, kernels="reference"), ids(0, 2, 5)
    right = model(tokens).logits
    for whole in (True, False):
        points = record(model, tokens, whole=whole)
        close(points["logits"], right, FLOAT64 * 10)
        close(points["lm_head"], right, FLOAT64 * 10)


def test_values_by_hand() -> None:
    model = small_model()
    points = record(model, ids(0, 2, 5))
    at = "model.layers.1.self_attn."
    q, k, v = points[at + "q_rope"], points[at + "k_rope"], points[at + "values"]
    scores = np.einsum("btd,bsd->bts", q[:, 5], k[:, 2]) / np.sqrt(6)  # pair 1: heads 1 and 1 + 4, keys 0 and 0 + 2
    close(points[at + "scores2"][:, 1], scores, FLOAT64)
    seen = np.tril(np.ones((5, 5), bool))
    close(np.exp(points[at + "lse2"][:, 1]), np.where(seen, np.exp(scores), 0).sum(-1), FLOAT64)
    close(points[at + "attn2"][:, 1], softmax(scores, seen) @ v[:, 0], FLOAT64)
    lambda_ = points[at + "lambda_full"]
    close(points[at + "diff"], points[at + "attn1"] - lambda_ * points[at + "attn2"], FLOAT64)
    close(points["model.layers.1"], points["model.layers.2.post_attention_layernorm.input"]
          - points["model.layers.2.self_attn.o_proj"], FLOAT64 * 10)  # fmt: skip


@pytest.mark.parametrize(
    "path",
    [f"model.layers.1.self_attn.{n}" for n in ATTENTION if n not in ("lse1", "lse2")]
    + [
        "model.embed_tokens",
        "model.layers.1",
        "model.layers.1.post_attention_layernorm.input",
        "model.norm",
        "lm_head",
    ],
)
def test_what_is_put_in_place_is_gone_on_with(path: str) -> None:
    model, tokens = small_model(), ids(0, 2, 5)
    before = record(model, tokens)
    put = np.asarray(before[path] * 1.5 + 0.25)
    after = record(model, tokens, put={path: put})
    names = list(before)
    for name in names[: names.index(path)]:
        assert np.array_equal(before[name], after[name])
    assert np.abs(after["logits"] - before["logits"]).max() > 1e-6


def test_the_residual_path_is_changed_too() -> None:
    """A layer's result goes into the norm of the next one and past it."""
    model, tokens = small_model(), ids(0, 2, 5)
    before = record(model, tokens)
    put = before["model.layers.0"] + 7.0
    after = record(model, tokens, put={"model.layers.0": put})
    at = "model.layers.1.post_attention_layernorm.input"
    close(after[at], put + after["model.layers.1.self_attn.o_proj"], FLOAT64 * 10)


def test_hidden_scores_doubts_and_terms() -> None:
    model = small_model()
    hidden: dict[str, Any] = {}
    doubts: dict[str, Any] = {}
    sums: dict[str, int] = {}

    def visit(
        path: str, value: Any, *, hidden: Any = None, doubt: Any = None, terms: int = 1, epsilon: Any = None,
        _kept: Any = hidden,
    ) -> Any:  # fmt: skip
        _kept[path] = hidden
        doubts[path] = doubt
        sums[path] = terms
        return value

    model.ops = Points(flatten(model.params), visit).over(ops_for())
    model(ids(0, 2, 5))
    scores = hidden["model.layers.0.self_attn.scores1"]
    assert np.array_equal(scores, np.broadcast_to(~np.tril(np.ones((5, 5), bool)), (2, 4, 5, 5)))
    assert [p for p, h in hidden.items() if h is not None and "scores" not in p] == []
    p = model.params["model"]["layers"][0]["self_attn"]
    terms = np.exp(p["lambda_q1"] @ p["lambda_k1"]) + np.exp(p["lambda_q2"] @ p["lambda_k2"]) + 0.2
    close(doubts["model.layers.0.self_attn.lambda_full"](0.5), terms / 2, FLOAT64)
    cos = doubts["model.rotary_emb.cos"](2.0**-24)
    assert cos.shape == (1, 1, 5, 3)
    assert cos[0, 0, 0].tolist() == [2.0**-24] * 3
    close(cos[0, 0, 4, 0], np.asarray(2.0**-24 * (1 + 4 * 4)), FLOAT64)
    assert np.array_equal(doubts["model.rotary_emb.sin"](2.0**-8), cos)
    of = {path.rpartition(".")[2]: n for path, n in sums.items() if n > 1}
    assert of == {
        "q_proj": 26, "k_proj": 26, "v_proj": 26, "scores1": 6, "scores2": 6, "attn1": 5, "attn2": 5, "o_proj": 48,
        "gate_proj": 26, "up_proj": 26, "down_proj": 37, "lm_head": 26,
    }  # fmt: skip
