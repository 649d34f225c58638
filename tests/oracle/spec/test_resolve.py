"""A preset's name in the place of a spec: wherever one is taken, with the dimensions of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle.judge import judge_file
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.spec.resolve import resolve_spec, small_spec
from tests.layers.inputs import says
from tests.oracle.example_inputs import draw, small

NAMED = Spec.preset("attention", query_heads=12, key_heads=3, head_dim=6)
X = draw(NAMED, dtype=np.float32)
LAYER = draw(NAMED, layer=True, dtype=np.float32)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str) -> None:
    """Only the layer and the window are not shown by arrays: they are the preset's."""
    spec = small(preset, layer=0) if preset != "motif3" else small(preset, window=129)
    assert resolve_spec(preset, draw(spec)) == spec
    assert resolve_spec(preset) == small_spec(preset)


def test_a_spec_stays_what_it_is() -> None:
    spec = small("hf_diffllama")
    assert resolve_spec(spec) is spec
    assert resolve_spec(spec, draw(spec)) is spec


def test_every_function_takes_a_name() -> None:
    out = np.asarray(oracle.truth(NAMED, X).out, dtype=np.float32)
    dout = np.ones_like(out)
    assert np.array_equal(np.asarray(oracle.truth("attention", X).out, dtype=np.float32), out)
    assert oracle.budget("attention", X, "float32").spec == NAMED
    verdict = oracle.check(out, "attention", X, recipe="float32")
    assert verdict
    assert verdict.notes[-1] == (
        "spec 'attention' is Spec.preset('attention', query_heads=12, key_heads=3, head_dim=6, layer=0), by the shapes "
        "of the inputs"
    )
    given = []

    def kernel(spec: Spec, inputs: Any, dout: Any = None) -> Any:
        given.append(spec)
        grads = {} if dout is None else oracle.truth(spec, inputs, dout=dout).grads
        return {"out": out, **{f"d{name}": g.astype(np.float32) for name, g in grads.items()}}

    oracle.assert_close(kernel, "attention", X, recipe="float32", dout=dout)
    with pytest.raises(AssertionError, match=r"(?s)^fail.*diagnosis: unique: scores_not_scaled"):
        wrong = oracle.truth(NAMED.replace(scale=1.0), X).out
        oracle.assert_close(wrong, "attention", X, recipe="float32")
    assert oracle.diagnose(kernel, "attention", [X, X], recipe="float32").status == "no deviation"
    assert given
    assert set(given) == {NAMED}
    assert oracle.blind_spots("attention", X, "float32") == oracle.blind_spots(NAMED, X, "float32")
    assert oracle.deviations("attention") == oracle.deviations(small_spec("attention"))
    assert oracle.trace("attention", X).about["spec"] == NAMED.to_dict()
    assert oracle.trace("attention", **X).about["spec"] == NAMED.to_dict()
    structure = oracle.strategies.Structure(1, 3, 5)
    drawn = oracle.strategies.draw("attention", structure, "natural", 0)
    assert drawn["q"].shape == (1, 12, 3, 16)


FIX = "; give Spec.preset('attention', query_heads=H, key_heads=K, head_dim=d)"
CALLS: list[Callable[[str, Any], Any]] = [
    lambda spec, inputs: oracle.truth(spec, inputs),
    lambda spec, inputs: oracle.check(np.zeros(1), spec, inputs, recipe="float32"),
    lambda spec, inputs: oracle.diagnose(np.zeros(1), spec, inputs, recipe="float32"),
    lambda spec, inputs: oracle.trace(spec, inputs),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"q": X["q"]}, f"spec is 'attention': the inputs lack k (B, K, S, d){FIX}"),
        ({**X, "q": X["q"][0]}, f"spec is 'attention': q has shape (12, 5, 6), but must be (B, H, T, d){FIX}"),
        (
            {name: np.swapaxes(x, 1, 2) for name, x in X.items()},
            "spec is 'attention': query_heads is 5 and key_heads 7, but each key head serves the same number of query "
            "heads: query_heads must be a multiple of key_heads (query_heads=5, key_heads=7, head_dim=6 by the inputs' "
            f"shapes, heads before tokens){FIX}",
        ),
        (LAYER, f"spec is 'attention': the arrays of this layer do not say how wide a head is: give head_dim{FIX}"),
    ],
)
def test_dimensions_that_no_array_shows(call: Callable[[str, Any], Any], inputs: Any, message: str) -> None:
    with says(ValueError, message):
        call("attention", inputs)


@pytest.mark.parametrize("call", CALLS)
def test_a_name_that_is_none(call: Callable[[str, Any], Any]) -> None:
    with pytest.raises(ValueError, match="no preset is called 'atention', did you mean 'attention'"):
        call("atention", X)


@pytest.mark.parametrize("call", CALLS[:3])
def test_inputs_that_are_no_mapping(call: Callable[[str, Any], Any]) -> None:
    with pytest.raises(TypeError, match="inputs are of type int, but must be a mapping"):
        call("attention", 3)


def test_a_judged_file(tmp_path: Path) -> None:
    path = tmp_path / "kernel.py"
    path.write_text("def kernel(inputs):\n    return NotImplemented\n")
    assert judge_file(path, "attention", recipe="float32", profiles=["natural"]).spec == small_spec("attention")


def test_lists_of_numbers_have_dimensions_too() -> None:
    assert resolve_spec("attention", {name: x.tolist() for name, x in X.items()}) == NAMED


def test_strategies_of_a_name() -> None:
    assert "'attention'" in repr(oracle.strategies.cases("attention"))
    with pytest.raises(ValueError, match="no preset is called 'atention'"):
        oracle.strategies.cases("atention")
