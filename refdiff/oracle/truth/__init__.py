"""The truth in float64: output, log-sum-exps, λ and all gradients, from the inputs as they are stored."""

from refdiff.oracle.truth.truth import Result as Result
from refdiff.oracle.truth.truth import truth as truth
