"""The report: where the mistake may be, and JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refdiff.oracle import Divergence, Spec, first_divergence, trace
from refdiff.oracle.divergence import Stage
from tests.model.models import ids, small_model
from tests.oracle.example_inputs import draw

REF = trace(small_model(), ids(0, 2, 5))
AT = "model.layers.1.self_attn."


def wrong(**points: np.ndarray) -> Divergence:
    return first_divergence({**REF, **{AT + name: x for name, x in points.items()}, "surplus.x": np.ones(3)}, REF)


def test_json() -> None:
    found = wrong(diff=np.full_like(REF[AT + "diff"], np.nan))
    assert isinstance(found.first, Stage)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["diverges"] is True
    assert data["path"] == AT + "diff"
    assert data["precision"] == "float64"
    assert data["unknown"] == ["surplus.x"]
    stage = next(s for s in data["stages"] if s["path"] == AT + "diff")
    assert stage["status"] == "differs"
    assert stage["ratio"] is None
    assert [s["path"] for s in data["stages"] if s["status"] == "missing"] != []
    clean = first_divergence(REF, REF).to_dict()
    assert (clean["diverges"], clean["path"], clean["what"]) == (False, None, "")


def hint(variant: str, wrong: str, *recorded: str) -> str:
    """Where the report says that the mistake may be, of a run in which `recorded` of layer 1 are there."""
    of = small_model(variant=variant)
    ref = trace(of, ids(0, 2, 5), maps=True)
    before = {"model.rotary_emb.cos", "model.rotary_emb.sin", "model.layers.1.input_layernorm"}
    mine = {path: ref[path] for path in ref if path in before | {AT + name for name in recorded}}
    mine[AT + wrong] = ref[AT + wrong] * 1.1
    found = first_divergence(mine, ref)
    assert found.path == AT + wrong
    said = " ".join(str(found).partition("\n\n  ")[0].split())
    return said.partition("the mistake may be there: ")[2]


NAMES = ("q_rope", "k_rope", "v_proj", "probs1", "probs2", "diff")
MISSING = "q_proj, k_proj, values, lambda_init, lambda_full, scores1, lse1, attn1, scores2, lse2, attn2"


@pytest.mark.parametrize(
    ("variant", "wrong", "recorded", "expected"),
    [
        ("hf", "diff", NAMES, MISSING),
        ("none", "scaled", ("q_proj", "k_proj", "v_proj", "q_rope", "k_rope", "probs"), "scores, lse, attn"),
        ("hf", "q_rope", ("q_proj", "k_proj", "v_proj", "values"), ""),
    ],
)
def test_the_mistake_may_be_where_the_point_comes_from(
    variant: str, wrong: str, recorded: tuple[str, ...], expected: str
) -> None:
    assert hint(variant, wrong, *recorded) == expected


def test_nan_has_no_size() -> None:
    diff = REF[AT + "diff"].copy()
    diff[1, 2, 3, 4] = np.nan
    found = wrong(diff=diff)
    assert (found.first.row, found.first.what[:24]) == ((1, 2, 3), "nan where it should be -")
    assert "\n  worst row (1, 2, 3)\n" in str(found)


def test_another_shape_is_no_mistake_of_points_before() -> None:
    said = str(first_divergence({"lm_head": REF["lm_head"][:, -1:]}, REF))
    assert "has shape (2, 1, 53), expected (2, 5, 53)\n" in said
    assert "may be there" not in said


def test_angles_of_keys_are_not_those_of_queries() -> None:
    """With keys' positions one too high, the rotated keys are the first wrong point, whatever else is there."""
    spec = Spec.preset("hf_diffllama", query_heads=4, key_heads=2, head_dim=6)
    inputs = draw(spec, 1, dtype=np.float32, T=5)
    ref, moved = trace(spec, inputs), np.arange(1, inputs["k"].shape[2] + 1)[None]
    wrong = {path: x.astype(np.float32) for path, x in trace(spec, {**inputs, "k_positions": moved}).items()}
    for mine in (wrong, {path: wrong[path] for path in ("q_rope", "k_rope", "out")}):
        found = first_divergence(mine, ref)
        assert found.path == "k_rope"
        assert next(s.status for s in found.stages if s.path == "q_rope") == "equal"
