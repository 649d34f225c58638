"""Check a kernel of differential attention; find where it is wrong and what the mistake is called.

    from refdiff import oracle

    spec = oracle.Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=64)
    right = oracle.truth(spec, inputs)   # out, lse1, lse2, lambda_full in float64; with dout= all gradients

    oracle.diagnose(mine, spec, inputs, recipe="bfloat16")   # the mistake's name, the wrong rows, known cases of it
    oracle.cases("discriminating", spec=spec)  # inputs that reveal mistakes; `case.blind_to` lists those they cannot

    ref = oracle.trace(model, ids)       # every intermediate, from a model or a spec
    print(oracle.first_divergence("mine.safetensors", ref))   # the first point that is wrong, given its own inputs

`refdiff.oracle.inputs` documents the input dictionary.
"""

from refdiff.oracle import golden, torch
from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.cases.fixed import Case, cases
from refdiff.oracle.diagnosis import Ranking, diagnose
from refdiff.oracle.divergence import Divergence, first_divergence
from refdiff.oracle.from_c import from_c
from refdiff.oracle.mistakes import Mistake
from refdiff.oracle.mistakes.listed import blind_spots, deviations
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.trace import Trace, hooks, read_trace, trace
from refdiff.oracle.truth import Result, truth
from refdiff.oracle.verdict.check import assert_close, check
from refdiff.oracle.verdict.verdict import Verdict

__all__ = [
    "Budget",
    "Case",
    "Divergence",
    "Mistake",
    "Ranking",
    "Recipe",
    "Result",
    "Spec",
    "Trace",
    "Verdict",
    "assert_close",
    "blind_spots",
    "budget",
    "cases",
    "check",
    "deviations",
    "diagnose",
    "first_divergence",
    "from_c",
    "golden",
    "hooks",
    "read_trace",
    "torch",
    "trace",
    "truth",
]
