"""The report: where the mistake may be, and JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refdiff.oracle import Divergence, first_divergence, trace
from refdiff.oracle.divergence import Stage
from tests.model.models import ids, small_model

REF = trace(small_model(), ids(0, 2, 5))
AT = "model.layers.1.self_attn."


def wrong(**points: np.ndarray) -> Divergence:
    return first_divergence({**REF, **{AT + name: x for name, x in points.items()}, "surplus.x": np.ones(3)}, REF)


def test_clean() -> None:
    lines = str(first_divergence(REF, REF)).splitlines()
    assert lines[0].startswith(f"{len(REF)} of ")
    assert "nothing diverges" in lines
    assert sum(line.startswith("  equal ") for line in lines) == len(REF)


def test_json() -> None:
    found = wrong(diff=np.full_like(REF[AT + "diff"], np.nan))
    assert isinstance(found.first, Stage)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["diverges"] is True
    assert data["path"] == AT + "diff"
    assert data["mode"] == "local"
    assert data["precision"] == "float64"
    assert data["unknown"] == ["surplus.x"]
    stage = next(s for s in data["stages"] if s["path"] == AT + "diff")
    assert stage["status"] == "differs"
    assert stage["ratio"] is None
    assert [s["path"] for s in data["stages"] if s["status"] == "missing"] != []
    clean = first_divergence(REF, REF).to_dict()
    assert (clean["diverges"], clean["path"], clean["what"]) == (False, None, "")


def hint(wiring: str, wrong: str, *recorded: str) -> str:
    """Where the report says that the mistake may be, of a run in which `recorded` of layer 1 are there."""
    of = small_model(wiring=wiring)
    ref = trace(of, ids(0, 2, 5), maps=True)
    before = {"model.rotary_emb.cos", "model.rotary_emb.sin", "model.layers.1.input_layernorm"}
    mine = {path: ref[path] for path in ref if path in before | {AT + name for name in recorded}}
    mine[AT + wrong] = ref[AT + wrong] * 1.1
    found = first_divergence(mine, ref)
    assert found.path == AT + wrong
    said = " ".join(str(found).partition("\n\n  ")[0].split())
    return said.partition("the mistake may be there: ")[2]


MAPS = ("q_rope", "k_rope", "v_proj", "probs1", "probs2", "diff")
ALL = ("q_rope", "k_rope", "values", "lambda_full", "scores1", "probs1", "attn1", "scores2", "probs2", "attn2")
CORE = "q_rope, k_rope, lambda_init, lambda_full, scores1, probs1, attn1, scores2, probs2, attn2, diff"


@pytest.mark.parametrize(
    ("wiring", "wrong", "recorded", "expected"),
    [
        ("hf", "diff", MAPS, "values, lambda_init, lambda_full, attn1, attn2"),
        ("v2", "diff", MAPS, "lambda_proj, lambda_full, attn1, attn2"),
        ("none", "scaled", ("v_proj", "probs"), "attn"),
        ("hf", "probs2", ("q_proj", "k_proj"), "q_rope, k_rope, scores2"),
        ("hf", "scaled", ("groupnorm",), "lambda_init"),
        ("hf", "groupnorm", ("q_proj", "k_proj", "v_proj"), f"values, {CORE}"),
        ("v2", "scaled", ("q_proj", "k_proj", "v_proj", "lambda_proj"), CORE.replace("lambda_init, ", "")),
        ("hf", "diff", ALL, ""),
    ],
)
def test_the_mistake_may_be_where_the_point_comes_from(
    wiring: str, wrong: str, recorded: tuple[str, ...], expected: str
) -> None:
    assert hint(wiring, wrong, *recorded) == expected
