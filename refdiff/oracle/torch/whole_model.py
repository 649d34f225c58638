"""A whole model of transformers, layer by layer: the first point that is not what its own inputs make it."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.model import heads
from refdiff.oracle.diagnosis import Ranking, diagnose
from refdiff.oracle.divergence import Divergence, first_divergence
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.inputs.arrays import any_array
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.torch.attention_module import uncompiled
from refdiff.oracle.trace import hooks, trace

Numpy = np.ndarray[Any, Any]

MODELS = {"diffllama": "hf_diffllama", "llama": "attention"}
"""The preset of the attention in each model of transformers that is served, by its model_type."""
_INSIDE = re.compile(r"(?P<path>.*\blayers\.(?P<layer>\d+)\.self_attn)\.(?P<point>\w+)")
_BEFORE = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Points of an attention that are no part of what `diagnose` looks at: it starts from the projections."""


@dataclass(frozen=True)
class ModelReport:
    """Whether a model computes what it should: true where nothing diverges.

    divergence: of all points, with the first that is wrong. layer: where that is, or None. diagnosis: what the mistake
    is called, of a point between the projections of an attention.
    """

    divergence: Divergence
    layer: int | None = None
    diagnosis: Ranking | None = None

    def __bool__(self) -> bool:
        return not self.divergence

    def __str__(self) -> str:
        if self:
            return f"pass\n{self.divergence}"
        where = "" if self.layer is None else f"layer {self.layer}, "
        name = "" if self.diagnosis is None else f"diagnosis: {self.diagnosis}\n"
        return f"fail: {where}point {str(self.divergence.path).rpartition('.')[2]}\n{name}{self.divergence}"


def model(
    of: Any,
    prompt: Any,
    *,
    attn_implementation: str | None = None,
    attention_mask: Any = None,
    tokenizer: Any = None,
) -> ModelReport:
    """Run a DiffLlama or Llama of transformers and find the first layer and point that its own inputs do not give.

    The points are the outputs of all modules, and of each attention the rotated q and k and what each map gives, seen
    where the model calls its attention function. The reference has the model's weights, in float64.

    Args:
        of: the live model, on the CPU or a GPU.
        prompt: ids (T,) or (B, T), of any library; or a text, with `tokenizer`.
        attn_implementation: another one for this run, such as "sdpa" or what you have registered; None is the model's.
        attention_mask: (B, T), 0 for padding.

    Raises:
        ValueError: another model than DiffLlama or Llama, or a text without a tokenizer.
    """
    torch = importlib.import_module("torch")
    names = [f"Diff{c.__name__.removeprefix('Diff')}" for c in type(of).__mro__]  # a plain Llama is a variant of ours
    kind = next((k for name in names if (k := getattr(heads, name, None)) is not None), None)
    if kind is None or of.config.model_type not in MODELS:
        raise ValueError(f"the model is a {type(of).__name__}, expected a DiffLlama or Llama of transformers")
    if isinstance(prompt, str):
        if tokenizer is None:
            raise ValueError("prompt: got a text, expected ids; give the tokenizer beside it")
        prompt = tokenizer(prompt)["input_ids"]
    ids = np.atleast_2d(any_array(prompt, "prompt"))
    call = {"input_ids": ids} | ({} if attention_mask is None else {"attention_mask": any_array(attention_mask)})
    with tempfile.TemporaryDirectory() as folder:
        of.save_pretrained(folder)
        ours = kind.from_pretrained(folder, mmap=False)
    with (
        _implementation(of, attn_implementation) as used,
        uncompiled(used, of.device),
        hooks(of) as points,
        _attention_points(of) as inside,
        torch.no_grad(),
    ):
        of(**{name: torch.tensor(x).to(of.device) for name, x in call.items()}, use_cache=False)
    mine = {**points, **inside}
    found = first_divergence(mine, trace(ours, call))
    at = _INSIDE.fullmatch(found.path or "")
    if at is None or at["point"] in _BEFORE:
        layer = re.search(r"\blayers\.(\d+)", found.path or "")
        return ModelReport(found, int(layer[1]) if layer else None)
    return ModelReport(found, int(at["layer"]), _named(of, mine, at, call, found.precision, eager=used == "eager"))


@contextmanager
def _implementation(of: Any, name: str | None) -> Iterator[str]:
    """Have a model run with another attention implementation for a while; the name of the one that it runs with."""
    before = of.config._attn_implementation
    if name is not None:
        of.set_attn_implementation(name)
    try:
        yield of.config._attn_implementation
    finally:
        if name is not None:
            of.set_attn_implementation(before)


@contextmanager
def _attention_points(of: Any) -> Iterator[dict[str, Numpy]]:
    """Record what a model's attention function is given and gives: DiffLlama calls it for each half of the values."""
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    get_interface = functions.get_interface
    paths = {id(part): name for name, part in of.named_modules()}
    points: dict[str, Numpy] = {}
    halves: dict[str, Any] = {}

    def seen(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(part: Any, q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
            out = function(part, q, k, *args, **kwargs)
            path = paths[id(part)]
            if path in halves:
                both = importlib.import_module("torch").cat([halves.pop(path), out[0]], dim=-1).transpose(1, 2)
                for n, of_map in enumerate(both.chunk(2, dim=1), start=1):
                    points[f"{path}.attn{n}"] = any_array(of_map).copy()
                return out
            points.update({f"{path}.q_rope": any_array(q).copy(), f"{path}.k_rope": any_array(k).copy()})
            if hasattr(part, VECTORS[0]):
                halves[path] = out[0]
            else:
                points[f"{path}.attn"] = any_array(out[0].transpose(1, 2)).copy()
            return out

        return call

    functions.get_interface = lambda *args, **kwargs: seen(get_interface(*args, **kwargs))
    try:
        yield points
    finally:
        del functions.get_interface


def _named(
    of: Any, points: Mapping[str, Numpy], at: re.Match[str], call: Mapping[str, Numpy], precision: str, *, eager: bool
) -> Ranking | None:
    """What the mistake of one attention is called, from its projections to what o_proj is given."""
    path, config = at["path"], of.config
    part, preset = of.get_submodule(path), MODELS[config.model_type]
    vectors = VECTORS if hasattr(part, VECTORS[0]) else ()
    H, K, d = config.num_attention_heads, config.num_key_value_heads, part.head_dim
    rope = dict(config.rope_parameters)
    plain = rope.get("rope_type", "default") == "default" and rope.get("partial_rotary_factor", 1) == 1
    if not plain and at["point"] in ("q_rope", "k_rope"):
        return None
    spec = Spec.preset(
        preset, query_heads=H, key_heads=K, head_dim=d, layer=int(at["layer"]), norm_eps=config.rms_norm_eps,
        rope="halves" if plain else "none", rope_theta=rope.get("rope_theta", 10_000.0), padded_queries="any",
    )  # fmt: skip

    def by_head(name: str, count: int) -> Numpy:
        x = points[f"{path}.{name}"]
        return np.ascontiguousarray(np.swapaxes(x.reshape(*x.shape[:2], count, -1), 1, 2))

    names = {"q": ("q_proj", H), "k": ("k_proj", K), "v": ("v_proj", K)}
    inputs = {name: by_head(*where) for name, where in names.items()}
    if not plain:
        inputs |= {name: points[f"{path}.{name}_rope"] for name in "qk"}
    inputs |= {name: any_array(getattr(part, name)).copy() for name in vectors}
    if "attention_mask" in call:
        inputs["key_mask"] = call["attention_mask"] != 0
    storage = "float32" if precision == "float64" else precision
    recipe = Recipe.of({"storage": storage, "qk": storage if eager else "float32"})
    return diagnose(by_head("scaled", spec.heads), spec, inputs, recipe=recipe)
