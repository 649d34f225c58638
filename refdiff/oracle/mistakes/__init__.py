"""Mistakes that people make with differential attention, each as a wrong layer.

`CATALOGUE` has one entry for each mistake: in the pairing of heads, the grouping of keys, the layout of values, RoPE,
the scale of the scores, λ_init, λ, the norm and scale after attention, the order of steps, masks, the differences of v1
and v2, and derivatives of a correct forward pass. `LINKS` says where they happened: F1 to F13 are correct for one
published attention variant and wrong for another; B1 to B23 are wrong everywhere.

`wrap(mistake)` wraps a layer of `refdiff.backends.overlay`, for a model with the mistake. `plant(mistake)` replaces the
layer everywhere in refdiff. `python -m tests.oracle.mistakes` does so with each mistake and reports which property
tests notice it.
"""

from refdiff.oracle.mistakes.catalogue import LINKS, Mistake, plant, wrap
from refdiff.oracle.mistakes.in_attention import ATTENTION_MISTAKES
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.in_heads import HEAD_MISTAKES
from refdiff.oracle.mistakes.in_layers import LAMBDA_MISTAKES, NORM_MISTAKES, ROPE_MISTAKES

CATALOGUE: tuple[Mistake, ...] = (
    *HEAD_MISTAKES,
    *ROPE_MISTAKES,
    *ATTENTION_MISTAKES,
    *LAMBDA_MISTAKES,
    *NORM_MISTAKES,
    *BACKWARD_MISTAKES,
)

__all__ = ["CATALOGUE", "LINKS", "Mistake", "plant", "wrap"]
