"""Is your kernel right, where is it wrong, and what is the mistake called?

    from refdiff import oracle

    spec = oracle.Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=64)
    right = oracle.truth(spec, inputs)   # out, lse1, lse2, lambda_full in float64; with dout= all gradients

`refdiff.oracle.inputs` says what the input dictionary holds.
"""

from refdiff.oracle.spec import Spec
from refdiff.oracle.truth import Result, truth

__all__ = ["Result", "Spec", "truth"]
