"""The mistakes that people make with differential attention, each written once as a wrong layer.

`CATALOGUE` has one entry for every single mistake that the choices of the equations span: which heads are a pair,
how queries share keys, how values are joined, RoPE's kind, size, base and offset, the scale of scores, λ_init, λ, the
scale and norm after attention, the order of steps, masks, v2 written as v1, and derivatives beside a right forward.
Rows F1 to F13 are right for one published wiring and wrong for another; B1 to B23 are wrong everywhere. A row's link is
where somebody made the mistake.

`wrap(mistake)` is for `refdiff.backends.overlay`: a model with the mistake in it. `plant(mistake)` puts it into the
layers themselves; `python -m tests.oracle.mistakes` does that with each in turn, and says which property test noticed.
`ROWS` says of every row where it stands: as a mistake here, as a field of `Spec`, in a `Recipe`, or refused.

They import nothing but the layers' names and `refdiff.arrays`.
"""

from refdiff.oracle.mistakes.catalogue import ROWS, Mistake, Row, plant, wrap
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

__all__ = ["CATALOGUE", "ROWS", "Mistake", "Row", "plant", "wrap"]
