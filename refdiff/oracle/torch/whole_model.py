"""Check a whole model of transformers: find the first intermediate that is wrong, given its own inputs."""

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
from refdiff.oracle.trace import hooks, trace

Numpy = np.ndarray[Any, Any]

MODELS = {"diffllama": "hf_diffllama", "llama": "attention"}
"""The supported models of transformers: model_type → preset of their attention."""
_ATTENTION_POINT = re.compile(r"(?P<path>.*\blayers\.(?P<layer>\d+)\.self_attn)\.(?P<point>\w+)")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
"""Points that `diagnose` does not cover: it starts from the outputs of the projections and ends before o_proj."""


@dataclass(frozen=True)
class ModelReport:
    """The result of `model`; true if nothing diverges.

    divergence: the comparison of all points, with the first wrong one. layer: the layer of that point, if it is in one.
    diagnosis: the name of the mistake, if that point is between the projections of an attention.
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
) -> ModelReport:
    """Run a DiffLlama or Llama of transformers and find the first intermediate that is wrong, given its own inputs.

    The compared points are the outputs of all modules and, for each attention, the rotated q and k and the output of
    each map, recorded where the model calls its attention function. The reference has the same weights, in float64.

    Args:
        of: the live model, on the CPU or a GPU.
        prompt: ids (T,) or (B, T), of any library.
        attn_implementation: an implementation for this run, such as "sdpa" or a registered one; None is the model's.
        attention_mask: (B, T), 0 at padding.

    Raises:
        ValueError: the model is no DiffLlama or Llama.
    """
    torch = importlib.import_module("torch")
    # refdiff loads a Llama by the DiffLlama class of the same kind, as a variant
    names = [f"Diff{c.__name__.removeprefix('Diff')}" for c in type(of).__mro__]
    kind = next((k for name in names if (k := getattr(heads, name, None)) is not None), None)
    if kind is None or of.config.model_type not in MODELS:
        raise ValueError(f"the model is a {type(of).__name__}, expected a DiffLlama or Llama of transformers")
    ids = np.atleast_2d(any_array(prompt, "prompt"))
    call = {"input_ids": ids} | ({} if attention_mask is None else {"attention_mask": any_array(attention_mask)})
    with tempfile.TemporaryDirectory() as folder:
        of.save_pretrained(folder)
        ours = kind.from_pretrained(folder, mmap=False)
    with (
        _use_implementation(of, attn_implementation) as used,
        hooks(of) as points,
        _record_attention(of) as inside,
        torch.no_grad(),
    ):
        of(**{name: torch.tensor(x).to(of.device) for name, x in call.items()}, use_cache=False)
    mine = {**points, **inside}
    found = first_divergence(mine, trace(ours, call))
    at = _ATTENTION_POINT.fullmatch(found.path or "")
    if at is None or at["point"] in _PROJECTIONS:
        layer = re.search(r"\blayers\.(\d+)", found.path or "")
        return ModelReport(found, int(layer[1]) if layer else None)
    diagnosis = _diagnose_attention(of, mine, at, call, found.precision, eager=used == "eager")
    return ModelReport(found, int(at["layer"]), diagnosis)


@contextmanager
def _use_implementation(of: Any, name: str | None) -> Iterator[str]:
    """Set a model's attention implementation within a context, and yield the name of the one in use."""
    before = of.config._attn_implementation
    if name is not None:
        of.set_attn_implementation(name)
    try:
        yield of.config._attn_implementation
    finally:
        if name is not None:
            of.set_attn_implementation(before)


@contextmanager
def _record_attention(of: Any) -> Iterator[dict[str, Numpy]]:
    """Record the inputs and outputs of a model's attention function; DiffLlama calls it once for each half of V."""
    functions = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
    get_interface = functions.get_interface
    paths = {id(part): name for name, part in of.named_modules()}
    points: dict[str, Numpy] = {}
    halves: dict[str, Any] = {}

    def recorder(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(part: Any, q: Any, k: Any, *args: Any, **kwargs: Any) -> Any:
            out = function(part, q, k, *args, **kwargs)
            path = paths[id(part)]
            if path in halves:
                both = importlib.import_module("torch").cat([halves.pop(path), out[0]], dim=-1).transpose(1, 2)
                for n, attn in enumerate(both.chunk(2, dim=1), start=1):
                    points[f"{path}.attn{n}"] = any_array(attn).copy()
                return out
            points.update({f"{path}.q_rope": any_array(q).copy(), f"{path}.k_rope": any_array(k).copy()})
            if hasattr(part, VECTORS[0]):
                halves[path] = out[0]
            else:
                points[f"{path}.attn"] = any_array(out[0].transpose(1, 2)).copy()
            return out

        return call

    functions.get_interface = lambda *args, **kwargs: recorder(get_interface(*args, **kwargs))
    try:
        yield points
    finally:
        del functions.get_interface


def _diagnose_attention(
    of: Any, points: Mapping[str, Numpy], at: re.Match[str], call: Mapping[str, Numpy], precision: str, *, eager: bool
) -> Ranking | None:
    """Diagnose one attention, from the outputs of its projections to the input of o_proj."""
    path, config = at["path"], of.config
    part, preset = of.get_submodule(path), MODELS[config.model_type]
    vectors = VECTORS if hasattr(part, VECTORS[0]) else ()
    H, K, d = config.num_attention_heads, config.num_key_value_heads, part.head_dim
    rope = dict(config.rope_parameters)
    plain = rope.get("rope_type", "default") == "default" and rope.get("partial_rotary_factor", 1) == 1
    if not plain and at["point"] in ("q_rope", "k_rope"):
        return None  # the spec has no such RoPE; otherwise the rotated q and k are the inputs
    spec = Spec.preset(
        preset, query_heads=H, key_heads=K, head_dim=d, layer=int(at["layer"]), norm_eps=config.rms_norm_eps,
        rope="halves" if plain else "none", rope_theta=rope.get("rope_theta", 10_000.0), padded_queries="any",
    )  # fmt: skip

    def split_heads(name: str, count: int) -> Numpy:
        x = points[f"{path}.{name}"]
        return np.ascontiguousarray(np.swapaxes(x.reshape(*x.shape[:2], count, -1), 1, 2))

    names = {"q": ("q_proj", H), "k": ("k_proj", K), "v": ("v_proj", K)}
    inputs = {name: split_heads(*where) for name, where in names.items()}
    if not plain:
        inputs |= {name: points[f"{path}.{name}_rope"] for name in "qk"}
    inputs |= {name: any_array(getattr(part, name)).copy() for name in vectors}
    if "attention_mask" in call:
        inputs["key_mask"] = call["attention_mask"] != 0
    storage = "float32" if precision == "float64" else precision
    recipe = Recipe.of({"storage": storage, "qk": storage if eager else "float32"})
    return diagnose(split_heads("scaled", spec.heads), spec, inputs, recipe=recipe)
