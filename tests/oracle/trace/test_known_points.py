"""Which points a run shows, in which order; their flow: a point moves those that are computed from it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.backends import ops_for
from refdiff.layers import softmax
from refdiff.model.variants import PAIRING
from refdiff.model.weights import flatten
from refdiff.oracle import trace
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.trace.known_points import OUT, POINTS, Flow
from refdiff.oracle.trace.points import Points
from refdiff.oracle.trace.trace import SpecRun
from tests.model.models import WIRINGS, ids, small_model
from tests.oracle.example_inputs import draw, small
from tests.tolerances import FLOAT64, close

LETTERS = {"B": 2, "T": 5, "S": 5, "H": 8, "K": 4, "h": 4, "d": 6, "e": 12, "D": 26, "F": 37, "V": 53}


def record(model: Any, put: dict[str, Any] | None = None, *, whole: bool = False) -> dict[str, Any]:
    """What is computed at each point, where the run goes on with `put`; the logits that come of it last."""
    points: dict[str, Any] = {}

    def visit(path: str, value: Any, **_: Any) -> Any:
        points[path] = np.array(value)
        return np.array((put or {}).get(path, value))

    model.ops = Points(flatten(model.params), visit, maps=True, whole=whole).over(ops_for())
    return points | {"logits": model(ids(0, 2, 5)).logits}


def flows_as_said(record: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Each point moves those that are computed from it, and no other."""
    right = record({})
    flow = Flow(right)
    children = {path: {p for p in right if path in flow.parents(p)} for path in right}
    for path, value in right.items():
        moved = record({**right, path: value * 1.5 + 0.25})
        assert {p for p in right if not np.array_equal(moved[p], right[p], equal_nan=True)} == children[path], path


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_flow_is_that_of_a_run(wiring: str) -> None:
    model = small_model(wiring=wiring, num_hidden_layers=2)
    flows_as_said(lambda put: {path: x for path, x in record(model, put).items() if path != "logits"})


@pytest.mark.parametrize("name", PRESETS)
def test_the_flow_of_the_attention_alone(name: str) -> None:
    run = SpecRun(small(name), draw(small(name)))

    def record(put: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def visit(path: str, value: Any, **_: Any) -> Any:
            found[path] = np.array(value)
            return np.array(put.get(path, value))

        run(visit, maps=True)
        return found

    flows_as_said(record)


def test_of_sequences_one_by_one() -> None:
    names = ["rotary_emb.cos", "rotary_emb.cos[1]", "rotary_emb.cos[2]", "rotary_emb.cos[3]", "q_rope", "k_rope"]
    names += ["lambda_full", "diff", "scaled", "q_rope[1]", "k_rope[1]", "diff[1]", "scaled[1]", "out"]
    flow = Flow(names)
    assert flow.parents("q_rope") == ("rotary_emb.cos",)
    assert flow.parents("k_rope[1]") == ("rotary_emb.cos[3]",)
    assert set(flow.parents("diff[1]")) == {"lambda_full", "q_rope[1]", "k_rope[1]"}
    assert set(flow.parents("out")) == {"scaled", "scaled[1]"}
    assert flow.parents("nothing.of.the.kind") == ()


def test_few_points_of_many_layers() -> None:
    """What is not there is gone through once, and not along every way through it."""
    flow = Flow(["model.layers.0", "model.layers.60.self_attn.q_rope", "lm_head"])
    assert flow.parents("lm_head") == ("model.layers.60.self_attn.q_rope", "model.layers.0")


@pytest.mark.parametrize("wiring", WIRINGS)
def test_every_point_is_in_the_list_with_its_shape(wiring: str) -> None:
    shapes = {point.path: point.shape for point in POINTS}
    model = small_model(wiring=wiring)
    size = LETTERS | ({"H": 16, "h": 8, "e": 6} if wiring == "v2" else {} if PAIRING[wiring] else {"h": 8, "e": 6})
    for path, value in trace(model, ids(0, 2, 5), maps=True).items():
        key = re.sub(r"layers\.\d+", "layers.N", path.removeprefix("model."))
        said = shapes.get(key, shapes.get(key + "1"))
        if key.endswith("lambda_full") and wiring == "v2":
            said = "(B, h, T, 1)"
        if "rotary" in key:
            said = "(1, 1, T, d/2)"
        assert value.shape == tuple(_length(axis, size) for axis in said.strip("()").split(", ") if axis), path
    assert OUT.path not in shapes


def _length(axis: str, size: dict[str, int]) -> int:
    """K/2, 2d, H d and numbers."""
    found = 1
    for part in re.findall(r"/?\w+", axis):
        digits, letter = re.fullmatch(r"/?(\d*)(\w?)", part).groups()
        n = int(digits or 1) * size.get(letter, 1)
        found = found // n if part[0] == "/" else found * n
    return found


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


@pytest.mark.parametrize("wiring", WITHOUT)
def test_names_in_order(wiring: str) -> None:
    model = small_model(wiring=wiring)
    names = [name for name in record(model) if name != "logits"]
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
    model = small_model(wiring=wiring, kernels="reference")
    right = model(ids(0, 2, 5)).logits
    for whole in (True, False):
        points = record(model, whole=whole)
        close(points["logits"], right, FLOAT64 * 10)
        close(points["lm_head"], right, FLOAT64 * 10)


def test_values_by_hand() -> None:
    model = small_model()
    points = record(model)
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
