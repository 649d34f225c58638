"""Mistakes in derivatives."""

from __future__ import annotations

import numpy as np
import pytest

from refdiff.oracle.cases.fixed import cases, small_spec
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.mistakes.catalogue import Mistake
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES, GENERAL_BACKWARD_MISTAKES
from refdiff.oracle.mistakes.kernel import ops_with
from refdiff.oracle.spec.presets import PRESETS
from refdiff.oracle.truth.backward import backward

EACH = pytest.mark.parametrize(
    ("preset", "mistake"),
    [(p, m) for p in PRESETS for m in (GENERAL_BACKWARD_MISTAKES if small_spec(p).is_plain else BACKWARD_MISTAKES)],
    ids=str,
)
OF_LAMBDA = {"lambda_full", "lambda_logits", "lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"}
OF_WHAT_LAMBDA_IS_MADE_OF = {
    "lambda_gradient_without_exponentials",
    "lambda_vector_gradients_swapped",
    "no_sigmoid_derivative",
    "sigmoid_derivative_without_one_minus_lambda",
    "sigmoid_derivative_without_lambda",
}
CHANGED = {
    "gradient_without_causal_mask": {"q", "k", "v", *OF_LAMBDA},
    "gradient_without_mask": {"q", "k", "v", *OF_LAMBDA},
    "lse_used_without_mask": {"q", "k", "v"},
    "lse_of_first_map": {"q", "k", "v"},
    "lse_in_base_2": {"q", "k", "v"},
    "lse_not_in_base_2": {"q", "k", "v"},
    "log2e_in_query_gradient": {"q"},
    **dict.fromkeys(("lambda_detached", "lambda_gradient_without_sign"), OF_LAMBDA),
    **{m.name: {"v"} for m in BACKWARD_MISTAKES if m.name.startswith("value_gradient_")},
    "gradient_of_one_query_head": {"k", "v"},
    "second_exponential_without_sign": {"lambda_q2", "lambda_k2"},
    **{m.name: OF_LAMBDA - {"lambda_full"} for m in BACKWARD_MISTAKES if m.name in OF_WHAT_LAMBDA_IS_MADE_OF},
    "activation_for_derivative": {"gate_logits"},
    "rms_detached": {"q", "k", "v", *OF_LAMBDA},
}
"""Of which inputs the gradient is wrong, where it is not of q and k."""


def acts_in(preset: str, mistake: Mistake) -> bool:
    assert mistake.layer.endswith("_vjp")
    spec = small_spec(preset)
    shared = {
        "gradient_without_causal_mask": spec.causal != "none",
        "lse_used_without_mask": spec.causal != "none",
        "gradient_of_one_query_head": spec.query_heads != spec.key_heads,
    }
    by_layer = {
        "activation_vjp": spec.gate != "none",
        "rope_vjp": spec.rope != "none",
        "rms_norm_vjp": spec.norm != "none",
        "diff_lambda_vjp": spec.lambda_form == "exp",
        "diff_lambda_v2_vjp": spec.lambda_form == "sigmoid",
    }
    return shared.get(mistake.name, by_layer.get(mistake.layer, True))


@EACH
def test_acts_in_the_backward_pass_of_a_spec(preset: str, mistake: Mistake) -> None:
    """On the gradients that it says, and on no others."""
    padded = mistake.name == "gradient_without_mask"
    case = cases("discriminating", 5, spec=small_spec(preset))[0 if padded else 1]
    inputs, dout = as_float64(case.spec, case.inputs), case.dout.astype(np.float64)
    right, wrong = (backward(case.spec, inputs, dout, ops_with(some)) for some in ((), (mistake,)))
    off = {n: np.abs(wrong[n] - y).max() / np.abs(y).max() for n, y in right.items()}
    expected = CHANGED.get(mistake.name, {"q", "k"}) & set(right) if acts_in(preset, mistake) else set()
    if mistake.name == "map_gradients_swapped" and preset in ("diff_v2", "motif3"):
        expected = {"q"}  # both maps have their keys in common, and the sum of their gradients
    assert {n for n, x in off.items() if x > 0} == expected
    assert all(off[n] > 0.01 for n in expected)
