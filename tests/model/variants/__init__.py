"""What the tests expect of each attention variant, stated from the layers alone: one file each.

LAYERS: the layers that it calls beside projections and RoPE, once in each layer of the model.
INTERLEAVED: whether RoPE rotates neighbors. VALUE_SIZE: the size of a value head in units of d. QUERIES: query heads
    for each of `num_attention_heads`.
SHAPES: its own parameters and their axes, in order: d (`head_dim`), 2d, H (`num_attention_heads`), H/2, K
    (`num_key_value_heads`), D (`hidden_size`); () is one number.
FIRST_VALUES: the mean and the deviation from which each is drawn; a field of the config or a number.
heads: (p, x, q, k, v, λ_init of the layer, ε) -> the heads, from rotated queries and keys.
"""

import importlib
import importlib.util
from types import ModuleType

from refdiff.model.variants import VARIANTS


def expected(variant: str) -> ModuleType:
    """The file beside this one about a variant."""
    return importlib.import_module(f"tests.model.variants.{variant}")


TESTED = tuple(name for name in VARIANTS if importlib.util.find_spec(f"tests.model.variants.{name}"))
TRAINABLE = tuple(name for name in TESTED if VARIANTS[name].heads_with_back)
LAYERS = {name: expected(name).LAYERS for name in TESTED}
"""What a variant calls beside projections and RoPE, once in each layer of the model."""
