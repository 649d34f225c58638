"""Inputs on which a mistake shows: fixed lists by profile, and the same drawn by Hypothesis.

from refdiff import oracle

for case in oracle.cases("identify", spec=spec, dtype="bfloat16"):
    mine = kernel(**case.inputs)
    case.blind_to   # the mistakes that this case would not show

@given(oracle.strategies.cases(spec, "serving"))   # needs Hypothesis, which nothing else here does
def test_kernel(case): ...
"""

from refdiff.oracle.strategies.drawn import cases, specs, structures
from refdiff.oracle.strategies.fixed import PROFILES, Case
from refdiff.oracle.strategies.layouts import LAYOUTS, relaid
from refdiff.oracle.strategies.structure import Structure
from refdiff.oracle.strategies.values import draw

__all__ = ["LAYOUTS", "PROFILES", "Case", "Structure", "cases", "draw", "relaid", "specs", "structures"]
