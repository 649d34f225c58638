"""The report: where the mistake may be, JSON, and arrays that are equal in another layout or base."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from refdiff.oracle import Divergence, Spec, first_divergence, trace
from refdiff.oracle.divergence import Stage
from refdiff.oracle.divergence.layouts import arrange
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


# Arrays that are equal all the same: in another base, with axes in another order

WITH_MAPS = trace(small_model(), ids(0, 2, 5), maps=True)


@pytest.mark.parametrize("base", [2, 10])
def test_another_base_diverges_from_nothing(base: int) -> None:
    mine = {path: (x / math.log(base) if "lse" in path else x).astype(np.float32) for path, x in WITH_MAPS.items()}
    found = first_divergence(mine, WITH_MAPS)
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


LAYER_0, SWAPPED = "model.layers.0.self_attn.", "has tokens before heads"


@pytest.mark.parametrize(
    ("path", "change", "how"),
    [
        (LAYER_0 + "diff", lambda x: x, ""),
        (LAYER_0 + "diff", lambda x: x.transpose(0, 2, 1, 3), SWAPPED),
        (LAYER_0 + "diff", lambda x: x.transpose(0, 2, 1, 3).reshape(10, 48), SWAPPED),
        (LAYER_0 + "scaled", lambda x: x.reshape(2, 5, 4, 12), ""),
        (LAYER_0 + "lse1", lambda x: x.transpose(0, 2, 1)[..., None], SWAPPED),
        (LAYER_0 + "lambda_full", lambda x: x.reshape(1, 1), ""),
        ("model.rotary_emb.cos", lambda x: np.concatenate([x, x], -1)[0], ""),
        ("model.rotary_emb.cos", lambda x: np.concatenate([x, x]), ""),
        ("model.rotary_emb.cos", lambda x: np.concatenate([x, x])[:, 0], ""),
    ],
)
def test_arranged(path: str, change: object, how: str) -> None:
    x = WITH_MAPS[path].astype(np.float32)
    array, said = arrange(change(x), path, WITH_MAPS)
    assert said == how
    assert array.dtype == np.float64
    assert array.shape == WITH_MAPS[path].shape
    assert np.array_equal(array.astype(np.float32), x)


def test_shapes_that_are_none_of_it() -> None:
    for path, x in (("diff", np.ones((2, 5, 7))), ("q_rope", WITH_MAPS[LAYER_0 + "q_rope"].transpose(0, 2, 3, 1))):
        array, said = arrange(x, LAYER_0 + path, WITH_MAPS)
        assert array is None
        shape = WITH_MAPS[LAYER_0 + path].shape
        assert said == f"has shape {x.shape}, expected {shape} or tokens before heads"
