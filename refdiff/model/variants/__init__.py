"""The attention variants, one file each; `refdiff.layers` compares them in a table.

A file states what its variant computes between RoPE and `o_proj`, the derivative, its parameters and first values, what
it needs of the config, and its conversions. Whatever depends on the variant reads `VARIANTS`: model, training, files,
fast decoders, `refdiff convert`, pictures, and the tests.
"""

from typing import Any

from refdiff.model.variants import hf, paper, plain, v2
from refdiff.model.variants.variant import LAMBDA_VECTORS, Conversion, Parameter, Variant

__all__ = ["LAMBDA_VECTORS", "VARIANTS", "Conversion", "Parameter", "Variant", "conversions", "current_name", "refusal"]

VARIANTS: dict[str, Variant] = {"hf": hf.VARIANT, "paper": paper.VARIANT, "v2": v2.VARIANT, "plain": plain.VARIANT}
"""By `config.variant`. transformers refuses the model types of `paper` and `v2`."""


def conversions(name: str) -> dict[str, Conversion]:
    """Return the exact conversions of a variant to others, from its own file and from theirs."""
    others = {other: v.conversions_from[name] for other, v in VARIANTS.items() if name in v.conversions_from}
    return {**others, **VARIANTS[name].conversions}


def refusal(old: str, new: str) -> str | None:
    """Return why there is no exact conversion of `old` to `new`, from the file of either; None if neither has one."""
    return VARIANTS[old].refused.get(new) or VARIANTS[new].refused_from.get(old)


def current_name(name: Any) -> Any:
    """Return "plain" for "none", its older name, and any other value as it is."""
    return "plain" if name == "none" else name
