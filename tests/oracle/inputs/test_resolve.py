"""A preset's name in the place of a spec: wherever one is taken, with the dimensions of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refdiff import oracle
from refdiff.oracle.inputs.resolve import infer_dimensions, resolve_spec, small_spec
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.submission import judge_file
from tests.layers.inputs import says
from tests.oracle.example_inputs import draw, small

NAMES = ("query_heads", "key_heads", "head_dim")
NAMED = Spec.preset("attention", query_heads=12, key_heads=3, head_dim=6)
X = draw(NAMED, dtype=np.float32)
LAYER = draw(NAMED, layer=True, dtype=np.float32)


@pytest.mark.parametrize("layer", [False, True], ids=["core", "layer"])
@pytest.mark.parametrize("v_head_dim", [None, 7])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str, v_head_dim: int | None, layer: bool) -> None:
    """Only the layer and the window are not shown by arrays, and of a layer without vectors of λ no width of a head."""
    spec = small(preset, v_head_dim=v_head_dim)
    inputs = draw(spec, layer=layer)
    given = {"head_dim": 6} if layer and "lambda_q1" not in inputs else {}
    read = infer_dimensions({**PRESETS[preset], **given}, inputs)
    of_values = {} if v_head_dim is None else {"v_head_dim": 7}
    assert {**given, **read} == {name: getattr(spec, name) for name in NAMES} | of_values
    if not given:
        window = PRESETS[preset].get("window")
        assert resolve_spec(preset, inputs) == spec.replace(layer=0, window=window)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"q": np.ones(3)}, "q: got shape (3,), expected (B, H, T, d)"),
        ({"q": np.ones((1, 2, 3, 4))}, "the inputs lack k (B, K, S, d)"),
        ({"q": np.ones((1, 2, 3, 4)), "k_pages": np.ones(3)}, "k_pages: got shape (3,), expected (P, K, p, d)"),
        ({"x": np.ones(3)}, "the inputs lack q_proj.weight (rows, D)"),
        ({"x": 0, "q_proj.weight": np.ones((9, 2)), "k_proj.weight": np.ones((4, 2)), "lambda_q1": np.ones(4)},
         "q_proj.weight has 9 rows, which is not a multiple of the head width 4"),
        (LAYER, "the arrays of this layer do not say how wide a head is: give head_dim"),
    ],
)  # fmt: skip
def test_arrays_that_say_too_little(inputs: dict[str, Any], message: str) -> None:
    with says(ValueError, message):
        infer_dimensions({}, inputs)


@pytest.mark.parametrize(
    ("more", "message"),
    [({}, r"^the inputs lack lambda_q1 \(d\)$"), ({"lambda_Q1": 0}, "^'lambda_Q1' is no input of this spec")],
)
def test_a_missing_vector_of_lambda_is_named(more: dict[str, int], message: str) -> None:
    """The other three say how wide a head is."""
    inputs = {**more, **oracle.cases("discriminating", seed=1, spec="hf_diffllama")[3].inputs}
    del inputs["lambda_q1"]
    with pytest.raises(ValueError, match=message):
        oracle.truth("hf_diffllama", inputs)


def test_every_function_takes_a_name(tmp_path: Path) -> None:
    out = np.asarray(oracle.truth(NAMED, X).out, dtype=np.float32)
    dout = np.ones_like(out)
    assert np.array_equal(np.asarray(oracle.truth("attention", X).out, dtype=np.float32), out)
    assert oracle.budget("attention", X, "float32").spec == NAMED
    assert oracle.check(out, "attention", X, recipe="float32").notes[-1] == (
        "spec 'attention' is Spec.preset('attention', query_heads=12, key_heads=3, head_dim=6, layer=0), by the shapes "
        "of the inputs"
    )
    given = []

    def kernel(spec: Spec, inputs: Any, dout: Any = None) -> Any:
        given.append(spec)
        grads = {} if dout is None else oracle.truth(spec, inputs, dout=dout).grads
        return {"out": out, **{f"d{name}": g.astype(np.float32) for name, g in grads.items()}}

    oracle.assert_close(kernel, "attention", X, recipe="float32", dout=dout)
    assert oracle.diagnose(kernel, "attention", X, recipe="float32").status == "no deviation"
    assert set(given) == {NAMED}
    assert oracle.deviations("attention") == oracle.deviations(small_spec("attention"))
    assert oracle.trace("attention", X).about["spec"] == NAMED.to_dict()
    path = tmp_path / "kernel.py"
    path.write_text("def kernel(inputs):\n    return NotImplemented\n")
    assert judge_file(path, "attention", recipe="float32", profiles=["natural"]).spec == small_spec("attention")


def test_specs_that_no_call_takes() -> None:
    turned = {name: np.swapaxes(x, 1, 2) for name, x in X.items()}
    for name, inputs, message in (
        ("attention", {"q": X["q"]}, r"^spec is 'attention': the inputs lack k \(B, K, S, d\); give Spec.preset\('att"),
        (
            "attention",
            turned,
            r"query_heads is 5 and key_heads 7, but .*\(query_heads=5, key_heads=7, head_dim=6 by the ",
        ),
        ("atention", X, "no preset is called 'atention', did you mean 'attention'"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve_spec(name, inputs)


@pytest.mark.parametrize(
    "call",
    [
        lambda spec, inputs: oracle.truth(spec, inputs),
        lambda spec, inputs: oracle.check(np.zeros(1), spec, inputs, recipe="float32"),
        lambda spec, inputs: oracle.diagnose(np.zeros(1), spec, inputs, recipe="float32"),
    ],
)
def test_arguments_of_another_kind_or_in_another_order(call: Callable[[Any, Any], Any]) -> None:
    for spec, inputs, message in (
        (X["q"], X, "spec: got type ndarray, expected a Spec or a preset's name; outputs come"),
        (NAMED, 3, "inputs: got type int, expected a mapping from names to arrays"),
        (
            NAMED,
            oracle.cases("natural", spec=NAMED)[0],
            r"got type Case, expected .*: pass case\.inputs, and dout=case",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call(spec, inputs)


def test_a_text_changes_fields_of_a_preset() -> None:
    text = "hf_diffllama,window=7,layer=3"
    assert resolve_spec("hf_diffllama, window=7,layer=3") == small_spec("hf_diffllama").replace(window=7, layer=3)
    case = oracle.cases("discriminating", spec=text)[0]
    assert case.spec.window == 7
    out = oracle.truth(case.spec, case.inputs).out.astype(np.float32)
    verdict = oracle.check(out, text, case.inputs, recipe="float32,lam=float32")
    assert verdict, verdict
    assert f"spec '{text}' has query_heads=12" in " ".join(str(verdict).split())
    assert not oracle.check(out, "hf_diffllama,layer=3", case.inputs, recipe="float32")
    with pytest.raises(ValueError, match="'windo' is no field of a Spec, did you mean 'window'"):
        oracle.check(out, "hf_diffllama,windo=7", case.inputs, recipe="float32")
