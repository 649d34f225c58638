"""The flow of the points that a run shows: a point moves those that are computed from it, and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refdiff.layers import softmax
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.trace.known_points import Flow
from refdiff.oracle.trace.trace import ModelRun, SpecRun
from tests.model.models import VARIANT_NAMES, ids, small_model
from tests.oracle.example_inputs import draw, small
from tests.tolerances import FLOAT64, close


def record_run(run: Callable[..., Any], put: dict[str, Any]) -> dict[str, Any]:
    """What is computed at each point of a run that goes on with `put`."""
    points: dict[str, Any] = {}

    def visit(path: str, value: Any, **_: Any) -> Any:
        points[path] = np.array(value)
        return np.array(put.get(path, value))

    run(visit, maps=True)
    return points


def record(model: Any, put: dict[str, Any]) -> dict[str, Any]:
    return record_run(ModelRun(model, {"input_ids": ids(0, 2, 5)}), put)


def flows_as_said(record: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Each point moves those that are computed from it, and no other."""
    right = record({})
    flow = Flow(right)
    children = {path: {p for p in right if path in flow.parents(p)} for path in right}
    for path, value in right.items():
        moved = record({**right, path: value * 1.5 + 0.25})
        assert {p for p in right if not np.array_equal(moved[p], right[p], equal_nan=True)} == children[path], path


@pytest.mark.parametrize("variant", VARIANT_NAMES)
def test_the_flow_is_that_of_a_run(variant: str) -> None:
    model = small_model(variant=variant, num_hidden_layers=2)
    flows_as_said(lambda put: record(model, put))


@pytest.mark.parametrize("name", PRESETS)
def test_the_flow_of_the_attention_alone(name: str) -> None:
    run = SpecRun(small(name), draw(small(name)))
    flows_as_said(lambda put: record_run(run, put))


def test_layers_that_a_run_lacks_cost_nothing() -> None:
    flow = Flow(["layers.2.mlp.act_fn", "layers.999999999", "layers." + "9" * 400])
    assert flow.parents("layers.999999999") == ("layers.2.mlp.act_fn",)
    assert flow.parents("layers." + "9" * 400) == ()


def test_values_by_hand() -> None:
    model = small_model()
    points = record(model, {})
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
