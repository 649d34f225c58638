"""The mistakes that people make with differential attention, each written once as a wrong layer.

`CATALOGUE` has one function for every single mistake that the choices of the equations span: which heads are a pair,
how queries share keys, how values are joined, RoPE's kind, size, base and offset, the scale of scores, λ_init, λ, the
scale and norm after attention, the order of steps, masks, and v2 written as v1. Rows F1 to F9 are right for one
published wiring and wrong for another; B1 to B23 are wrong everywhere. A row's link is where somebody made the mistake.

`wrap(mistake)` is for `refdiff.backends.overlay`: a model with the mistake in it. `plant(mistake)` puts it into the
layers themselves; `python -m tests.mistakes` does that with each in turn, and says which property test noticed.

They stand among the tests, and not in the package, as long as nothing in the package names a mistake to its user.
They import nothing but the layers' names and `refdiff.arrays`.
"""

from tests.mistakes.catalogue import Mistake, plant, wrap
from tests.mistakes.in_attention import IN_ATTENTION
from tests.mistakes.in_heads import IN_HEADS
from tests.mistakes.in_lambda import IN_LAMBDA
from tests.mistakes.in_norm import IN_NORM
from tests.mistakes.in_rope import IN_ROPE

CATALOGUE: tuple[Mistake, ...] = (*IN_HEADS, *IN_ROPE, *IN_ATTENTION, *IN_LAMBDA, *IN_NORM)

__all__ = ["CATALOGUE", "Mistake", "plant", "wrap"]
