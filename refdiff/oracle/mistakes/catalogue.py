"""What a mistake is, how it is laid over a namespace of layers, and how it is planted into the layers themselves."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refdiff import layers
from refdiff.backends import Ops

Layer = Callable[..., Any]

UNILM = "https://github.com/microsoft/unilm"
HF = "https://github.com/huggingface/transformers/blob/main/src/transformers/models/diffllama/modeling_diffllama.py"
HF_FIRST = "https://github.com/huggingface/transformers/pull/34083"
V2 = "https://huggingface.co/blog/microsoft/diff-attn-v2"
EDIFICE = "https://hexdocs.pm/edifice/Edifice.Attention.DiffTransformer.html"
MOTIF = "https://github.com/ppaleja/llama.cpp/blob/2d0dab543f92e5cc8a1a7ff53ad58021ef79249e/src/models/motif.cpp"


class Call:
    """The call of a layer: its arguments by name, and what the right layer makes of them, or of others in their place.

    Used as:
        `call(lambda_=-call.lambda_)`
    """

    def __init__(self, right: Layer, layer: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._right, self._signature = right, _signature(layer)
        self.given: dict[str, Any] = self._signature.bind(*args, **options).arguments
        """The arguments without those that are left at their defaults."""

    def __getattr__(self, name: str) -> Any:
        if name not in self._signature.parameters:
            raise AttributeError(f"the layer has no argument {name!r}")
        return self.given.get(name, self._signature.parameters[name].default)

    def __call__(self, **changed: Any) -> Any:
        bound = self._signature.bind(**self.given | changed)
        return self._right(*bound.args, **bound.kwargs)

    def parts(self, **functions: Layer) -> Ops:
        """The layers that a composed layer calls, with some of them replaced."""
        return Ops(**{name: getattr(self.ops, name) for name in layers.__all__} | functions)


@functools.cache
def _signature(layer: str) -> inspect.Signature:
    return inspect.signature(getattr(layers, layer))


@dataclass(frozen=True)
class Mistake:
    """One wrong layer: which it stands for, the choice that it gets wrong, and where that happened.

    `wrong` computes it from a call. `also` are layers of other wirings in which the same lines make the same mistake.
    """

    name: str
    what: str
    layer: str
    axis: str
    wrong: Callable[[Call], Any]
    row: str = ""
    link: str = ""
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def of(self, right: Layer, layer: str = "") -> Layer:
        """The wrong layer, made from the right one, which is `self.layer` or another; it has its signature."""

        @functools.wraps(right)
        def mistaken(*args: Any, **options: Any) -> Any:
            return self.wrong(Call(right, layer or self.layer, args, options))

        return mistaken


def wrap(mistake: Mistake) -> Callable[[str, Layer], Layer]:
    """For `refdiff.backends.overlay`."""
    return lambda name, layer: mistake.of(layer, name) if name in (mistake.layer, *mistake.also) else layer


def plant(mistake: Mistake) -> None:
    """Put the mistake into the layers, for the rest of this process: everywhere the right function is known by name."""
    right = getattr(importlib.import_module("refdiff.layers"), mistake.layer)
    replace(right, mistake.of(right))


def replace(right: Layer, wrong: Layer) -> None:
    """Put one function in the place of another, everywhere in refdiff that a module or a module's dict names it."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "refdiff":
            continue
        for table in [vars(module), *(value for value in vars(module).values() if isinstance(value, dict))]:
            table.update({known_as: wrong for known_as, value in table.items() if value is right})
