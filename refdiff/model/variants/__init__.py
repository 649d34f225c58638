"""The attention variants, one file each; `refdiff.layers` compares them in a table.

A file states what its variant computes between RoPE and `o_proj`, the derivative, its parameters and first values, what
it needs of the config, and its conversions. Whatever depends on the variant reads `VARIANTS`: model, training, files,
fast decoders, `refdiff convert`, pictures, and the tests.
"""

from typing import Any

from refdiff.model.variants import hf, paper, plain, v2
from refdiff.model.variants.variant import LAMBDA_VECTORS, Conversion, Parameter, Variant

__all__ = ["LAMBDA_VECTORS", "VARIANTS", "Conversion", "Parameter", "Variant", "current_name"]

VARIANTS: dict[str, Variant] = {"hf": hf.VARIANT, "paper": paper.VARIANT, "v2": v2.VARIANT, "plain": plain.VARIANT}
"""By `config.variant`. transformers refuses the model types of `paper` and `v2`."""


def current_name(name: Any) -> Any:
    """Return "plain" for "none", its older name, and any other value as it is."""
    return "plain" if name == "none" else name
