"""What the tests expect of each attention variant: one file each, apart from those of refdiff/model/variants."""

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
