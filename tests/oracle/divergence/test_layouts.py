"""Arrays that are equal all the same: in another base, with axes in another order."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refdiff.oracle import Spec, first_divergence, trace
from refdiff.oracle.divergence.layouts import arrange
from tests.model.models import ids, small_model
from tests.oracle.example_inputs import draw

REF = trace(small_model(), ids(0, 2, 5), maps=True)
AT = "model.layers.1.self_attn."


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
    x = REF[path].astype(np.float32)
    array, said = arrange(change(x), path, REF)
    assert said == how
    assert array.dtype == np.float64
    assert array.shape == REF[path].shape
    assert np.array_equal(array.astype(np.float32), x)


def test_shapes_that_are_none_of_it() -> None:
    for path, x in (("diff", np.ones((2, 5, 7))), ("q_rope", REF[LAYER_0 + "q_rope"].transpose(0, 2, 3, 1))):
        array, said = arrange(x, LAYER_0 + path, REF)
        assert array is None
        shape = REF[LAYER_0 + path].shape
        assert said == f"has shape {x.shape}, expected {shape} or tokens before heads"
