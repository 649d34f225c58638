"""Links to published choices (F) and bugs (B), and the class of mistakes: wrong layers, edits of spec or inputs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refdiff import layers
from refdiff.arrays import Array, namespace
from refdiff.oracle.inputs import VECTORS, is_layer, options, shapes
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import EXTRA_OPS

Layer = Callable[..., Any]

_UNILM = "https://github.com/microsoft/unilm"
_HF = "https://github.com/huggingface/transformers"
_MOTIF = "https://github.com/ppaleja/llama.cpp/blob/2d0dab543f92e5cc8a1a7ff53ad58021ef79249e/src/models/motif.cpp"
_V2 = "https://huggingface.co/blog/microsoft/diff-attn-v2"
_VLLM = "https://github.com/vllm-project/vllm"
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
_FLASH = f"{_UNILM}/blob/master/Diff-Transformer/multihead_flashdiff_1.py"
LINKS: dict[str, str] = {
    "F1": _FLASH,  # heads are paired 2i, 2i + 1, or i, i + H/2
    "F2": _MOTIF,  # RoPE rotates neighbors, or halves
    "F3": f"{_VLLM}/pull/27396",  # λ_init counts layers from 0, from 1, or from −1
    "F4": f"{_UNILM}/pull/1646",  # the norm after attention has a weight or not; its ε
    "F5": _FLASH,  # keys are paired and then grouped, or repeated and then paired
    # values are heads of 2d, or joined from heads j, j + K/2, or from 2j, 2j + 1
    "F6": f"{_HF}/blob/main/src/transformers/models/diffllama/modeling_diffllama.py",
    "F9": f"{_VLLM}/pull/27396",  # several signal heads per noise head, in groups or all signals first
    "F10": f"{_LLAMA_CPP}/pull/26298",  # RoPE rotates the first dimensions of a head, or the last, or all
    # yarn's frequencies, or default ones; its factor on cos and sin, or on the scores
    "F11": f"{_LLAMA_CPP}/pull/26298",
    # queries and keys are normed, before RoPE or after it, or not
    "F12": "https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/diff_attention.py",
    "F13": f"{_LLAMA_CPP}/pull/26298",  # heads are multiplied by a gate or not; its activation
    "B1": _V2,  # v2 subtracts halves, across groups
    "B3": f"{_UNILM}/pull/1736",  # v2 with v1's λ or norm
    "B4": "https://github.com/Jaykef/ai-algorithms/issues/1",  # λ without exponentials
    "B6": f"{_HF}/pull/34083",  # RoPE's table made for heads of twice the size
    "B7": f"{_HF}/pull/34083",  # one norm over all heads
    "B8": _MOTIF,  # the norm on queries and keys
    # LayerNorm in place of RMSNorm
    "B9": "https://huggingface.co/spaces/hudsongouge/DAT-Byte-Demo/blob/main/inference/optimized_diffattn.py",
    "B10": _MOTIF,  # λ_init the same in every layer; with 1 the output is zero
    "B11": _MOTIF,  # λ computed and not used
    "B13": f"{_UNILM}/issues/1637",  # subtracted before the softmax
    "B14": "https://github.com/aykutcayir34/DifferentialTransformer/issues/1",  # another scale of the scores
    "B17": "https://github.com/ohdearquant/lattice/pull/5",  # negative weights clipped, rows normalized to sum to one
    "B18": f"{_UNILM}/issues/1661",  # with a cache, the causal mask or the positions start at 0 again
    "B19": f"{_VLLM}/issues/3385",  # a window off by one
    "B23": "https://github.com/triton-lang/triton/issues/7216",  # backward without the causal mask
}
"""Where each published choice (F, correct for one source and wrong for another) and mistake (B) happened."""


class Call:
    """The call of a layer. Its attributes are the arguments; calling it calls the correct layer, with some changed.

    Used as:
        `call(lambda_=-call.lambda_)`
    """

    def __init__(self, right: Layer, layer: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._right, self._signature = right, _signature(layer)
        self.given: dict[str, Any] = self._signature.bind(*args, **options).arguments
        """The arguments that were passed, without defaults."""

    def __getattr__(self, name: str) -> Any:
        if name not in self._signature.parameters:
            raise AttributeError(f"the layer has no argument {name!r}")
        return self.given.get(name, self._signature.parameters[name].default)

    def __call__(self, **changed: Any) -> Any:
        bound = self._signature.bind(**self.given | changed)
        return self._right(*bound.args, **bound.kwargs)


def read_as_tokens_first(x: Array) -> Array:
    """Read the memory of (B, m, n, …) as (B, n, m, …)."""
    xp, (B, m, n, *rest) = namespace(x), x.shape
    return xp.permute_dims(xp.reshape(x, (B, n, m, *rest)), (0, 2, 1, *range(3, x.ndim)))


@functools.cache
def _signature(layer: str) -> inspect.Signature:
    return inspect.signature(getattr(layers, layer, None) or EXTRA_OPS[layer])


@dataclass(frozen=True)
class Kernel:
    """What a kernel computes: a spec, float64 inputs, and mistakes wrapped around the layers.

    finish: functions that change a tensor in the end, given its name and the exact or rounded tensor.
    queries: the queries that are left of a larger case; None for all.
    """

    spec: Spec
    inputs: Inputs
    mistakes: tuple[Mistake, ...] = ()
    finish: tuple[Callable[[str, Numpy], Numpy], ...] = ()
    queries: Numpy | None = None


@dataclass(frozen=True)
class Mistake:
    """A named mistake: exactly one of `wrong`, `fields` and `arrays`.

    name, what: its name, and a sentence that describes it.
    layer: the layer that it replaces, or the name of one of `EXTRA_OPS`; "" if it replaces none.
    axis: the choice that it gets wrong. Two mistakes of one axis are not combined.
    wrong: computes the wrong result from a call.
    condition: of `wrong`, says which specs can have it; None for all.
    row: its row in `LINKS`.
    fields, arrays: return the fields of the spec that change, or the inputs as they are misread; None if a kernel
        cannot have this mistake.
    aliases: the names of other mistakes that compute the same function.
    """

    name: str
    what: str
    layer: str
    axis: str
    wrong: Callable[[Call], Any] | None = None
    row: str = ""
    condition: Callable[[Spec], Any] | None = None
    fields: Callable[[Spec], dict[str, Any] | None] | None = None
    arrays: Callable[[Spec, Inputs], Inputs | None] | None = None
    aliases: tuple[str, ...] = ()

    @property
    def link(self) -> str:
        """The link to where it happened."""
        return LINKS[self.row] if self.row else ""

    def __str__(self) -> str:
        return self.name

    def of(self, right: Layer) -> Layer:
        """Return the wrong layer for the correct one."""
        wrong = self.wrong
        if wrong is None:
            raise ValueError(f"{self.name}: got a mistake that replaces no layer, expected one with `wrong`")

        @functools.wraps(right)
        def mistaken(*args: Any, **options: Any) -> Any:
            return wrong(Call(right, self.layer, args, options))

        return mistaken

    def apply(self, kernel: Kernel) -> Kernel | None:
        """Return the kernel with this mistake; None if it cannot have it."""
        spec, inputs = kernel.spec, kernel.inputs
        if self.wrong is not None:
            fits = self.condition is None or self.condition(spec)
            return replace(kernel, mistakes=(*kernel.mistakes, self)) if fits else None
        if self.arrays is not None:
            misread = self.arrays(spec, inputs)
            return None if misread is None else replace(kernel, inputs=misread)
        changes = self.fields(spec) if self.fields else None
        if not changes:
            return None
        if "values" in changes and spec.v_head_dim is not None:  # the output keeps its heads
            changes = {**changes, "v_head_dim": spec.out_dim // (1 if changes["values"] in ("wide", "single") else 2)}
        try:
            changed = spec.replace(**changes)
        except ValueError:
            return None
        recast = _reinterpret(spec, changed, inputs)
        return None if recast is None or changed == spec else replace(kernel, spec=changed, inputs=recast)


def in_attention(name: str, what: str, axis: str, wrong: Callable[[Call], Any], row: str = "", **only: Any) -> Mistake:
    """Return a mistake in `diff_attention`; `only` may have a `condition`."""
    return Mistake(name, what, "diff_attention", axis, wrong, row, **only)


def misread(name: str, what: str, axis: str, row: str = "", **edit: Any) -> Mistake:
    """Return a mistake that edits the spec or the inputs, not a layer, by `fields` or `arrays`."""
    return Mistake(name, what, "", axis, row=row, **edit)


def _reinterpret(spec: Spec, changed: Spec, inputs: Inputs) -> Inputs | None:
    """Return the same memory in the shapes of the changed spec; None if it does not fit."""
    if (changed.heads, changed.out_dim) != (spec.heads, spec.out_dim):
        return None
    if changed.value_heads * changed.value_dim != spec.value_heads * spec.value_dim:
        return None
    made = dict(inputs)
    if not is_layer(inputs):
        for name in ("v", "v_pages"):
            if name in made:
                made[name] = _regroup_values(made[name], changed.value_heads, changed.value_dim)
    for names, before, after in (
        (VECTORS, spec.lambda_per_head, changed.lambda_per_head),
        (("norm_weight", "norm_bias"), spec.norm_per_head, changed.norm_per_head),
    ):
        if before and not after:  # every head uses the weights of the first
            made |= {name: made[name][0] for name in names if name in made}
    wanted = shapes(changed, made)
    made = {name: x for name, x in made.items() if name in wanted or name in options(made)}
    return made if set(wanted) <= set(made) else None


def _regroup_values(v: Numpy, heads: int, width: int) -> Numpy:
    """Regroup the numbers of each token, (B, V, S, w), into other heads: (B, heads, S, width)."""
    B, _, S, _ = v.shape
    return np.moveaxis(np.moveaxis(v, 1, 2).reshape(B, S, heads, width), 2, 1)


def wrap(mistake: Mistake) -> Callable[[str, Layer], Layer]:
    """Return the wrapper for `refdiff.backends.overlay` that puts a mistake into its layers."""
    return lambda name, layer: mistake.of(layer) if name == mistake.layer else layer
