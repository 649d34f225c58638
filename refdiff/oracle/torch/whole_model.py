"""Check a whole model of transformers: find the first intermediate that is wrong, given its own inputs."""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.model import heads
from refdiff.oracle.divergence import Divergence, first_divergence
from refdiff.oracle.inputs import VECTORS
from refdiff.oracle.inputs.arrays import any_array
from refdiff.oracle.trace import hooks, trace

Numpy = np.ndarray[Any, Any]

MODELS = ("diffllama", "llama")
"""The supported models of transformers, by their model_type."""


@dataclass(frozen=True)
class ModelReport:
    """The result of `model`; true if nothing diverges.

    divergence: the comparison of all points, with the first wrong one. layer: the layer of that point, if it is in one.
    """

    divergence: Divergence
    layer: int | None = None

    def __bool__(self) -> bool:
        return not self.divergence

    def __str__(self) -> str:
        if self:
            return f"pass\n{self.divergence}"
        where = "" if self.layer is None else f"layer {self.layer}, "
        return f"fail: {where}point {str(self.divergence.path).rpartition('.')[2]}\n{self.divergence}"


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
        _use_implementation(of, attn_implementation),
        hooks(of) as points,
        _record_attention(of) as inside,
        torch.no_grad(),
    ):
        of(**{name: torch.tensor(x).to(of.device) for name, x in call.items()}, use_cache=False)
    mine = {**points, **inside}
    found = first_divergence(mine, trace(ours, call))
    layer = re.search(r"\blayers\.(\d+)", found.path or "")
    return ModelReport(found, int(layer[1]) if layer else None)


@contextmanager
def _use_implementation(of: Any, name: str | None) -> Iterator[None]:
    """Set a model's attention implementation within a context; None keeps its own."""
    before = of.config._attn_implementation
    of.set_attn_implementation(name or before)
    try:
        yield
    finally:
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
