"""What a mistake is, how it is laid over a namespace of layers, and how it is planted into the layers themselves."""

from __future__ import annotations

import functools
import importlib
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


@dataclass(frozen=True)
class Mistake:
    """One wrong layer: which it stands for, the choice that it gets wrong, and where that happened.

    `also` are layers of other wirings in which the same lines make the same mistake.
    """

    name: str
    what: str
    layer: str
    axis: str
    row: str
    link: str
    call: Callable[..., Any]
    also: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def of(self, right: Layer) -> Layer:
        """The wrong layer, made from the right one; it has its signature."""

        @functools.wraps(right)
        def wrong(*args: Any, **options: Any) -> Any:
            return self.call(right, *args, **options)

        return wrong


def mistake(
    into: list[Mistake], layer: str, axis: str, row: str = "", link: str = "", also: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Note a function as a mistake in `layer`: it gets the right layer, then the arguments of a call."""

    def note(call: Callable[..., Any]) -> Callable[..., Any]:
        what = " ".join((call.__doc__ or "").split())
        into.append(Mistake(call.__name__, what, layer, axis, row, link, call, also))
        return call

    return note


def wrap(mistake: Mistake) -> Callable[[str, Layer], Layer]:
    """For `refdiff.backends.overlay`."""
    return lambda name, layer: mistake.of(layer) if name in (mistake.layer, *mistake.also) else layer


def with_parts(options: dict[str, Any], **functions: Layer) -> dict[str, Any]:
    """Return the options of a composed layer's call, with some of the layers that it calls replaced."""
    ops = options.get("ops", layers)
    return options | {"ops": Ops(**{name: getattr(ops, name) for name in layers.__all__} | functions)}


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
