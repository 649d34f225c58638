"""Record attention maps, λ and hidden states of one call by wrapping the layers that compute them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from refdiff.arrays import Array, device, namespace
from refdiff.backends import Ops, overlay
from refdiff.layers.diff_heads_paper import interleave_heads
from refdiff.model.outputs import ModelOutput
from refdiff.model.variants import VARIANTS


class Recorder:
    """The results of the layers of one call.

    Args:
        p: the weights of the base model.
        attentions: keep the results of `attention_weights`, `diff_lambda` and `diff_lambda_v2`.
        hidden_states: the indices to keep, or True for all, of what enters each layer's first norm, with the result of
            the final norm as the last.
    """

    def __init__(self, p: dict[str, Any], *, attentions: bool, hidden_states: bool | Sequence[int]) -> None:
        self._attentions, self._hidden_states = attentions, bool(hidden_states)
        self._first_norms = [layer["input_layernorm"]["weight"] for layer in p["layers"]]
        self._final_norm = p["norm"]["weight"]
        self._maps: list[Array] = []
        self._lambdas: list[Array] = []
        self._states: list[Array | None] = []
        count = len(self._first_norms) + 1
        indices = range(count) if isinstance(hidden_states, bool) else hidden_states
        self._kept = {i % count for i in indices if -count <= i < count}

    def wrap(self, ops: Ops) -> Ops:
        """Return `ops` with the layers wrapped whose results are kept."""
        return overlay(ops, self._wrapped)

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if self._attentions and name == "attention_weights":
            return _appending(self._maps, function)
        if self._attentions and name in ("diff_lambda", "diff_lambda_v2"):
            return _appending(self._lambdas, function)
        return self._norm(function) if self._hidden_states and name == "rms_norm" else function

    def _norm(self, rms_norm: Callable[..., Array]) -> Callable[..., Array]:
        def wrapped(x: Array, weight: Array | None, eps: float) -> Array:
            y = rms_norm(x, weight, eps)
            if any(weight is first for first in self._first_norms):
                self._keep(x)
            if weight is self._final_norm:
                self._keep(y)
            return y

        return wrapped

    def _keep(self, state: Array) -> None:
        self._states.append(state if len(self._states) in self._kept else None)

    def add_to(self, out: ModelOutput, variant: str) -> None:
        """Set the recorded fields of `out`."""
        if self._hidden_states:
            out.hidden_states = tuple(self._states)
        if not self._attentions:
            return
        pairing = VARIANTS[variant].pairing
        self._check_maps(*((1, 0) if pairing is None else (2, 1)))
        if pairing is None:
            out.attentions = out.differential_attentions = tuple(self._maps)
            zero = namespace(self._maps[0]).zeros((), dtype=self._maps[0].dtype, device=device(self._maps[0]))
            out.lambdas = (zero,) * len(self._maps)
            return
        pairs = list(zip(self._maps[0::2], self._maps[1::2], strict=True))  # diff_attention computes A₁, then A₂
        if pairing == "halves":
            out.attentions = tuple(namespace(a1).concat([a1, a2], axis=1) for a1, a2 in pairs)
        else:
            out.attentions = tuple(interleave_heads(a1, a2) for a1, a2 in pairs)
        out.differential_attentions = tuple(a1 - λ * a2 for (a1, a2), λ in zip(pairs, self._lambdas, strict=True))
        out.lambdas = tuple(self._lambdas)

    def _check_maps(self, maps: int, lambdas: int) -> None:
        """Raise ValueError if the calls of the layers gave other numbers of maps or λ than these for each."""
        got, number = (len(self._maps), len(self._lambdas)), len(self._first_norms)
        if got != (maps * number, lambdas * number):
            raise ValueError(
                f"output_attentions: got {got[0]} maps and {got[1]} λ from {number} layers, expected {maps * number} "
                f"and {lambdas * number}; in your replacement of a layer call attention_weights, and the function that "
                "computes λ, from the `ops` that it is given, or leave output_attentions out"
            )


def _appending(results: list[Array], function: Callable[..., Array]) -> Callable[..., Array]:
    def wrapped(*args: Any, **kwargs: Any) -> Array:
        results.append(function(*args, **kwargs))
        return results[-1]

    return wrapped
