"""The report: 80 columns, and JSON."""

from __future__ import annotations

import json

import numpy as np

from refdiff.oracle.divergence import Divergence, Stage, first_divergence
from refdiff.oracle.tracing import trace
from tests.model.models import ids, small_model

REF = trace(small_model(), ids(0, 2, 5))
AT = "model.layers.1.self_attn."


def wrong(**points: np.ndarray) -> Divergence:
    return first_divergence({**REF, **{AT + name: x for name, x in points.items()}, "surplus.x": np.ones(3)}, REF)


def test_80_columns() -> None:
    mine = {path: x for path, x in REF.items() if "lambda" not in path}
    mine[AT + "groupnorm"] = mine[AT + "groupnorm"].swapaxes(1, 2)
    mine |= {f"a.rather.long.name.of.something.that.is.no.point.{i}": np.ones(3) for i in range(20)}
    mine[AT + "scores1"] = mine[AT + "scores1"] * np.sqrt(6)
    text = str(first_divergence(mine, REF))
    assert max(map(len, text.splitlines())) <= 80


def test_clean() -> None:
    lines = str(first_divergence(REF, REF)).splitlines()
    assert lines[0].startswith(f"{len(REF)} of ")
    assert "nothing diverges" in lines
    assert sum(line.startswith("  equal ") for line in lines) == len(REF)


def test_what_diverges() -> None:
    text = str(wrong(diff=REF[AT + "diff"] + 1))
    said = " ".join(text.split())
    assert f"first divergence: {AT}diff off by 1 where it should be " in said
    assert "times what rounding explains" in said
    assert f"right up to {AT}attn2" in said
    assert "DIFFERS" in said
    assert said.endswith("no point of the reference: surplus.x")


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
