"""Is your kernel right, where is it wrong, and what is the mistake called?

    from refdiff import oracle

    spec = oracle.Spec.preset("hf_diffllama", query_heads=8, key_heads=4, head_dim=64)
    right = oracle.truth(spec, inputs)   # out, lse1, lse2, lambda_full in float64; with dout= all gradients

    ref = oracle.trace(model, ids)       # every intermediate, from a model or a spec
    print(oracle.first_divergence("mine.safetensors", ref))   # the first that is not what its own inputs make it

`refdiff.oracle.inputs` says what the input dictionary holds.
"""

from refdiff.oracle import golden
from refdiff.oracle.divergence import Divergence, first_divergence
from refdiff.oracle.spec import Spec
from refdiff.oracle.tracing import Trace, hooks, read_trace, trace
from refdiff.oracle.truth import Result, truth

__all__ = [
    "Divergence",
    "Result",
    "Spec",
    "Trace",
    "first_divergence",
    "golden",
    "hooks",
    "read_trace",
    "trace",
    "truth",
]
