"""Each attention variant is complete: a missing piece is named with its variant and its file."""

import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import refdiff.model.variants as package
from refdiff.backends import ops_for
from refdiff.model.diffllama import Context
from refdiff.model.diffllama_vjp import attention
from refdiff.model.variants import VARIANTS, Variant
from refdiff.model.weights import flatten, initialize, nest
from tests.model.variants import TESTED, TRAINABLE
from tests.model.weights.files import tiny_config

PIECES = ("LAYERS", "INTERLEAVED", "VALUE_SIZE", "QUERIES", "SHAPES", "FIRST_VALUES", "heads")


def test_every_variant_has_all_its_pieces() -> None:
    modules = {
        info.name: importlib.import_module(f"{package.__name__}.{info.name}")
        for info in pkgutil.iter_modules(package.__path__)
    }
    missing = [
        f"{name}: is not in VARIANTS; add it in refdiff/model/variants/__init__.py"
        for name, module in modules.items()
        if isinstance(getattr(module, "VARIANT", None), Variant) and name not in VARIANTS
    ]
    for name, variant in VARIANTS.items():
        file, tests = f"refdiff/model/variants/{name}.py", f"tests/model/variants/{name}.py"
        if variant.heads_with_back is None:
            missing.append(f"{name}: has no derivative; write heads_with_back in {file}")
        if name not in TESTED:
            missing.append(f"{name}: the tests expect nothing of it; write {tests}")
        else:
            module = importlib.import_module(f"tests.model.variants.{name}")
            missing += [f"{name}: {piece} is missing in {tests}" for piece in PIECES if not hasattr(module, piece)]
            stated, tested = set(variant.parameters(tiny_config(variant=name))), set(getattr(module, "SHAPES", ()))
            missing += [f"{name}: {own} is not in `parameters` in {file}" for own in tested - stated]
            missing += [f"{name}: {own} is not in SHAPES in {tests}" for own in stated - tested]
            started = set(getattr(module, "FIRST_VALUES", ()))
            missing += [f"{name}: {own} is not in FIRST_VALUES in {tests}" for own in stated - started]
    guide = Path("notebooks/reference/guides/variants.md")
    rows = guide.read_text(encoding="utf-8")
    missing += [f"{name}: has no row in {guide.as_posix()}" for name in VARIANTS if f"| `{name}` |" not in rows]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("variant", TRAINABLE)
def test_every_parameter_has_a_gradient(variant: str) -> None:
    config = tiny_config(variant=variant)
    p = nest(flatten(initialize(config, "DiffLlamaModel", dtype="float64")))["layers"][0]["self_attn"]
    cos, sin = np.cos(angles := np.arange(3.0).reshape(1, 1, 3, 1)), np.sin(angles)
    ctx = Context(config, ops_for(), cos, sin)
    y, back = attention(p, np.ones((1, 3, config.hidden_size)), 0, ctx)
    own = set(flatten(back(np.ones_like(y))[1])) - {f"{name}_proj.weight" for name in "qkvo"}
    stated, file = set(VARIANTS[variant].parameters(config)), f"refdiff/model/variants/{variant}.py"
    assert not stated - own, f"{variant}: heads_with_back in {file} returns no gradient of {', '.join(stated - own)}"
    assert not own - stated, f"{variant}: heads_with_back in {file} returns more: {', '.join(own - stated)}"
