"""Mistakes that people make with differential attention, each as a wrong layer.

`CATALOGUE` has those that no field of a `Spec` can state: in the pairing of heads, the layout of values, λ, the norm,
the order of steps, masks, and derivatives of a correct forward pass. `in_spec` has those that are fields, `in_inputs`
those that misread an input. `LINKS` says where they happened: F means that a choice is correct for one published
attention variant and wrong for another, B that it is wrong everywhere.

`wrap(mistake)` wraps a layer of `refdiff.backends.overlay`, for a model with the mistake.
"""

from refdiff.oracle.mistakes.catalogue import LINKS, Mistake, wrap
from refdiff.oracle.mistakes.in_backward import BACKWARD_MISTAKES
from refdiff.oracle.mistakes.in_layers import ATTENTION_MISTAKES, HEAD_MISTAKES, LAYER_MISTAKES

CATALOGUE: tuple[Mistake, ...] = (*HEAD_MISTAKES, *LAYER_MISTAKES, *ATTENTION_MISTAKES, *BACKWARD_MISTAKES)

__all__ = ["CATALOGUE", "LINKS", "Mistake", "wrap"]
