"""The published forks (F) and bugs (B), and the mistakes that replace a layer by a wrong one."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refdiff import layers
from refdiff.arrays import Array, namespace
from refdiff.backends import Ops

Layer = Callable[..., Any]

UNILM = "https://github.com/microsoft/unilm"
HF = "https://github.com/huggingface/transformers/blob/main/src/transformers/models/diffllama/modeling_diffllama.py"
HF_FIRST = "https://github.com/huggingface/transformers/pull/34083"
V2 = "https://huggingface.co/blog/microsoft/diff-attn-v2"
EDIFICE = "https://hexdocs.pm/edifice/Edifice.Attention.DiffTransformer.html"
MOTIF = "https://github.com/ppaleja/llama.cpp/blob/2d0dab543f92e5cc8a1a7ff53ad58021ef79249e/src/models/motif.cpp"
_VLLM = "https://github.com/vllm-project/vllm"
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
_FLASH = f"{UNILM}/blob/master/Diff-Transformer/multihead_flashdiff_1.py"


@dataclass(frozen=True)
class Row:
    """A published choice that is correct for one source and wrong for another (F), or a mistake (B).

    what: the choice or the mistake.
    where: how the oracle covers it. "mistake": in `CATALOGUE`. "spec": a field of `Spec`. "recipe": only rounding
        differs. "refused": `Spec` or the validation of the inputs raises.
    link: who made it.
    """

    what: str
    where: str
    link: str


ROWS: dict[str, Row] = {
    "F1": Row("heads are paired 2i, 2i + 1, or i, i + H/2", "mistake", _FLASH),
    "F2": Row("RoPE rotates neighbors, or halves", "mistake", MOTIF),
    "F3": Row("λ_init counts layers from 0, from 1, or from −1", "mistake", f"{_VLLM}/pull/27396"),
    "F4": Row("the norm after attention has a weight or not; its ε", "mistake", f"{UNILM}/pull/1646"),
    "F5": Row("keys are paired and then grouped, or repeated and then paired", "mistake", _FLASH),
    "F6": Row("values are heads of 2d, or joined from heads j, j + K/2, or from 2j, 2j + 1", "mistake", HF),
    "F7": Row("λ's exponentials are rounded before they are subtracted, or after", "mistake", f"{_VLLM}/pull/44963"),
    "F8": Row(
        "weights are subtracted, or outputs: the same function, but two meanings of dropout",
        "recipe",
        "https://github.com/huggingface/transformers/pull/46738",
    ),
    "F9": Row("several signal heads per noise head, in groups or all signals first", "spec", f"{_VLLM}/pull/27396"),
    "F10": Row("RoPE rotates the first dimensions of a head, or the last, or all", "spec", f"{_LLAMA_CPP}/pull/26298"),
    "F11": Row(
        "yarn's frequencies, or default ones; its factor on cos and sin, or on the scores",
        "spec",
        f"{_LLAMA_CPP}/pull/26298",
    ),
    "F12": Row(
        "queries and keys are normed, before RoPE or after it, or not",
        "spec",
        "https://github.com/huggingface/pytorch-image-models/blob/main/timm/layers/diff_attention.py",
    ),
    "F13": Row("heads are multiplied by a gate or not; its activation", "spec", f"{_LLAMA_CPP}/pull/26298"),
    "B1": Row("v2 subtracts halves, across groups", "mistake", V2),
    "B2": Row("v2 with pairs that straddle groups", "refused", V2),
    "B3": Row("v2 with v1's λ or norm", "mistake", f"{UNILM}/pull/1736"),
    "B4": Row("λ without exponentials", "mistake", "https://github.com/Jaykef/ai-algorithms/issues/1"),
    "B5": Row("heads and their size both halved", "refused", "https://github.com/karpathy/nanoGPT/issues/567"),
    "B6": Row("RoPE's table made for heads of twice the size", "mistake", HF_FIRST),
    "B7": Row("one norm over all heads", "mistake", HF_FIRST),
    "B8": Row("the norm on queries and keys", "mistake", MOTIF),
    "B9": Row(
        "LayerNorm in place of RMSNorm",
        "mistake",
        "https://huggingface.co/spaces/hudsongouge/DAT-Byte-Demo/blob/main/inference/optimized_diffattn.py",
    ),
    "B10": Row("λ_init the same in every layer; with 1 the output is zero", "mistake", MOTIF),
    "B11": Row("λ computed and not used", "mistake", MOTIF),
    "B12": Row("one path without the difference", "mistake", HF_FIRST),
    "B13": Row("subtracted before the softmax", "mistake", f"{UNILM}/issues/1637"),
    "B14": Row(
        "another scale of the scores",
        "mistake",
        "https://github.com/aykutcayir34/DifferentialTransformer/issues/1",
    ),
    "B15": Row("as many heads as in a plain Transformer, not half as many", "refused", f"{UNILM}/issues/1663"),
    "B16": Row("o_proj of another size", "refused", f"{UNILM}/pull/1636"),
    "B17": Row(
        "negative weights clipped, rows normalized to sum to one",
        "mistake",
        "https://github.com/ohdearquant/lattice/pull/5",
    ),
    "B18": Row("with a cache, the causal mask or the positions start at 0 again", "mistake", f"{UNILM}/issues/1661"),
    "B19": Row("a window off by one", "mistake", f"{_VLLM}/issues/3385"),
    "B20": Row("a cache that mixes the two branches of keys", "mistake", f"{_VLLM}/pull/20702"),
    "B21": Row(
        "a second map with zero weights taken as no second map",
        "mistake",
        "https://github.com/axolotl-ai-cloud/axolotl/pull/2197",
    ),
    "B22": Row("an odd number of key heads", "refused", HF),
    "B23": Row("backward without the causal mask", "mistake", "https://github.com/triton-lang/triton/issues/7216"),
}


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

    def parts(self, **functions: Layer) -> Ops:
        """Return the layers that a composite layer calls, with some of them replaced."""
        return Ops(**{name: getattr(self.ops, name) for name in layers.__all__} | functions)


def normed(x: Array, eps: float, axis: Any = -1) -> Array:
    """Return x divided by its root mean square, without a layer of this package."""
    xp = namespace(x)
    return x / xp.sqrt(xp.mean(x * x, axis=axis, keepdims=True) + eps)


@functools.cache
def _signature(layer: str) -> inspect.Signature:
    return inspect.signature(getattr(layers, layer))


@dataclass(frozen=True)
class Mistake:
    """A wrong layer.

    name, what: its name, and a sentence that describes it.
    layer, also: the layer that it replaces, and the layers of other attention variants in which it is the same mistake.
    axis: the choice that it gets wrong.
    wrong: computes the wrong result from a call.
    row, source: its row in `ROWS`, and a link of its own where it happened.
    """

    name: str
    what: str
    layer: str
    axis: str
    wrong: Callable[[Call], Any]
    row: str = ""
    source: str | None = None
    also: tuple[str, ...] = ()

    @property
    def link(self) -> str:
        """The link to where it happened: its own source, or that of its row."""
        return self.source if self.source is not None else ROWS[self.row].link if self.row else ""

    def __str__(self) -> str:
        return self.name

    def of(self, right: Layer, layer: str = "") -> Layer:
        """Return the wrong layer for a correct one, which is `self.layer` unless `layer` names another."""

        @functools.wraps(right)
        def mistaken(*args: Any, **options: Any) -> Any:
            return self.wrong(Call(right, layer or self.layer, args, options))

        return mistaken


def wrap(mistake: Mistake) -> Callable[[str, Layer], Layer]:
    """Return the wrapper for `refdiff.backends.overlay` that puts a mistake into its layers."""
    return lambda name, layer: mistake.of(layer, name) if name in (mistake.layer, *mistake.also) else layer


def plant(mistake: Mistake) -> None:
    """Replace the correct layer everywhere in refdiff, for the rest of this process."""
    right = getattr(importlib.import_module("refdiff.layers"), mistake.layer)
    replace(right, mistake.of(right))


def replace(right: Layer, wrong: Layer) -> None:
    """Replace a function in all modules of refdiff and in the dicts of these modules."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "refdiff":
            continue
        for table in [vars(module), *(value for value in vars(module).values() if isinstance(value, dict))]:
            table.update({known_as: wrong for known_as, value in table.items() if value is right})
