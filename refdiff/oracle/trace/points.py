"""Visit the points of a run (`point_names`) while it is computed.

Every model calls its layers through a namespace `ops`. `Points` wraps each of its functions, so that a `Visit` sees the
result and may replace it.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from refdiff import layers
from refdiff.arrays import Array, namespace, to_numpy
from refdiff.backends import Ops, overlay
from refdiff.layers.diff_attention import attention_scores, split_maps
from refdiff.layers.plain_heads import concat_heads
from refdiff.oracle.rounding import U32
from refdiff.oracle.trace.point_names import path_prefix
from refdiff.oracle.truth.attention_operands import log_sum_exp

LSE_UNITS = {"e": 1.0, "2": math.log(2), "10": math.log(10)}
"""The natural logarithm of each base that a log-sum-exp may have."""

_LAYER = re.compile(r"(.*\blayers)\.(\d+)\.(input_layernorm|post_attention_layernorm)")


class Visit(Protocol):
    """A function of a point's path and value that returns the value with which the run continues.

    hidden: masked entries. doubt: a function from the unit roundoff to the error of a correct evaluation in addition to
    the rounding of the value. terms: the number of products that each number is a sum of.
    """

    def __call__(
        self, path: str, value: Array, *, hidden: NDArray[np.bool_] | None = None,
        doubt: Callable[[float], Any] | None = None, terms: int = 0,
    ) -> Array: ...  # fmt: skip


def _visit_result(point: str) -> Callable[..., Array]:
    """Return a method of `Points` that visits a function's result as a point of the attention."""

    def show(self: Points, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Array:
        return self._visit(self._prefix + point, function(*args, **kwargs))

    return show


class Points:
    """Wrap the functions of `ops`, so that each passes its result to `visit` under the path of its point.

    Args:
        weights: all weight arrays by name; they identify which layer calls a function.
        maps: visit probs1 and probs2 too.
        whole: compute the difference of the maps by the function of `ops`, and the points inside it separately;
            otherwise compute it from the values that `visit` returned for those points.
        plain: plain attention, with λ = 0: only its one map is visited, under the names of a plain Llama.
        lse_base: the base of log-sum-exps, a key of `LSE_UNITS`.
    """

    def __init__(
        self, weights: Mapping[str, Array], visit: Visit, *, maps: bool = False, whole: bool = True,
        plain: bool = False, lse_base: str = "e",
    ) -> None:  # fmt: skip
        self._lse_unit = LSE_UNITS[lse_base]
        self._names = {id(array): name.removesuffix(".weight") for name, array in weights.items()}
        self._visitor, self._maps, self._whole, self._plain = visit, maps, whole, plain
        self._visits = Counter[str]()
        self._layers = len({m[2] for name in self._names.values() if (m := _LAYER.fullmatch(name))})
        self._base = path_prefix(weights)
        self._prefix = self._gate = ""
        self._rotated = 0
        self._lambda_inits: dict[str, float] = {}

    def wrap(self, ops: Ops) -> Ops:
        """Return `ops` with the functions wrapped that have a method here, of their name with an underscore."""

        def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
            own = getattr(self, f"_{name}", None)
            return function if own is None else functools.partial(own, function)

        return overlay(ops, wrapped)

    def _visit(self, path: str, value: Array, **about: Any) -> Array:
        """Visit a value. Further visits of a path, as with packed sequences run one by one, get a number."""
        n = self._visits[path]
        self._visits[path] += 1
        return self._visitor(f"{path}[{n}]" if n else path, value, **about)

    def _embedding(self, function: Callable[..., Any], ids: Array, weight: Array) -> Array:
        return self._visit(self._names.get(id(weight), "embed_tokens"), function(ids, weight))

    def _rope_cos_sin(
        self, function: Callable[..., Any], positions: Array, frequencies: Any, scale: float, dtype: Any
    ) -> tuple[Array, Array]:
        cos, sin = function(positions, frequencies, scale, dtype)
        if not self._layers:  # a spec has angles for queries and others for keys: q_rope and k_rope show them
            return cos, sin
        angles = np.abs(to_numpy(positions)[:, None, :, None] * np.asarray(frequencies))

        def doubt(unit: float) -> Any:
            # angles are computed in float32 or float64, whatever the type of the run
            return scale * min(unit, U32) * (1 + 4 * angles)

        at = f"{self._base}rotary_emb."
        return self._visit(at + "cos", cos, doubt=doubt), self._visit(at + "sin", sin, doubt=doubt)

    def _linear(self, function: Callable[..., Any], x: Array, weight: Array, bias: Array | None = None) -> Array:
        path = self._names.get(id(weight))
        if path is None:
            return function(x, weight, bias)
        head, dot, last = path.rpartition(".")
        if last == "embed_tokens":
            path = "lm_head"  # tied
        if last == "q_proj":
            self._prefix, self._rotated = head + dot, 0
        return self._visit(path, function(x, weight, bias), terms=x.shape[-1])

    def _rms_norm(self, function: Callable[..., Any], x: Array, weight: Array | None, eps: float) -> Array:
        path = self._names.get(id(weight), "")
        layer = _LAYER.fullmatch(path)
        if layer is None and path != f"{self._base}norm":
            return self._visit(self._prefix + "groupnorm", function(x, weight, eps))
        if layer is None:
            self._visit_residual(f"{self._base}layers.{self._layers - 1}", x)
        elif layer[3] == "post_attention_layernorm":
            self._visit_residual(f"{path}.input", x)
        elif int(layer[2]) > 0:
            self._visit_residual(f"{layer[1]}.{int(layer[2]) - 1}", x)
        return self._visit(path, function(x, weight, eps))

    def _visit_residual(self, path: str, x: Array) -> None:
        """Visit a sum on the residual path, which no function of `ops` computes."""
        value = self._visit(path, x)
        if value is not x:
            x[...] = value  # in place, since the residual path continues with the same array

    def _swiglu(self, function: Callable[..., Any], x: Array, gate_proj: Any, *args: Any, **kwargs: Any) -> Array:
        self._gate = self._names.get(id(gate_proj["weight"]), "").replace("gate_proj", "act_fn")
        try:
            return function(x, gate_proj, *args, **kwargs)
        finally:
            self._gate = ""

    def _activation(self, function: Callable[..., Any], x: Array, *args: Any, **kwargs: Any) -> Array:
        result = function(x, *args, **kwargs)
        return self._visit(self._gate, result) if self._gate else result

    def _rope(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Array:
        self._rotated += 1
        return self._visit(self._prefix + ("q_rope" if self._rotated % 2 else "k_rope"), function(*args, **kwargs))

    def _lambda_init(self, function: Callable[..., Any], layer: int) -> float:
        path = self._prefix + "lambda_init"
        if path not in self._lambda_inits:  # called twice: for λ, and for the scale after the norm
            self._lambda_inits[path] = float(self._visit(path, np.asarray(float(function(layer)))))
        return self._lambda_inits[path]

    def _diff_attention(
        self, function: Callable[..., Any], q1: Array, k1: Array, q2: Array, k2: Array, v: Array, lambda_: Array,
        mask: Array | None = None, bias: Array | None = None, *, causal: bool = True, **parts: Any,
    ) -> Array:  # fmt: skip
        masks, biases = split_maps(mask, q1.shape[1]), split_maps(bias, q1.shape[1])
        if self._plain:
            attn = self._map("", q1, k1, v, masks[0], biases[0], causal)
            if not self._whole:
                return attn
            return function(q1, k1, q2, k2, v, lambda_, mask, bias, causal=causal, **parts)
        attn1 = self._map("1", q1, k1, v, masks[0], biases[0], causal)
        attn2 = self._map("2", q2, k2, v, masks[1], biases[1], causal)
        if self._whole:
            diff = function(q1, k1, q2, k2, v, lambda_, mask, bias, causal=causal, **parts)
        else:
            diff = attn1 - lambda_ * attn2
        return self._visit(self._prefix + "diff", diff)

    def _plain_heads(
        self, function: Callable[..., Any], q: Array, k: Array, v: Array, mask: Array | None = None,
        bias: Array | None = None, *, causal: bool = True, **parts: Any,
    ) -> Array:  # fmt: skip
        attn = self._map("", q, k, v, mask, bias, causal)
        result = function(q, k, v, mask, bias, causal=causal, **parts) if self._whole else concat_heads(attn)
        return self._visit(self._prefix + "scaled", result)

    def _map(
        self, number: str, q: Array, k: Array, v: Array, mask: Array | None, bias: Array | None, causal: bool
    ) -> Array:
        """Visit the points of one map, and return its product with V."""
        xp = namespace(q, k, v)
        scores, see = attention_scores(q, k, mask, bias, causal=causal)
        hidden = None if see is None else ~np.broadcast_to(to_numpy(see), scores.shape)
        scores = self._visit(f"{self._prefix}scores{number}", scores, hidden=hidden, terms=q.shape[-1])
        seen = to_numpy(scores) if hidden is None else np.where(hidden, -math.inf, to_numpy(scores))
        self._visit(f"{self._prefix}lse{number}", log_sum_exp(seen) / self._lse_unit)
        probs = layers.softmax(scores, see)
        if self._maps:
            probs = self._visit(f"{self._prefix}probs{number}", probs, terms=probs.shape[-1])
        (B, H, T, S), (K, e) = probs.shape, (v.shape[1], v.shape[3])
        attn = xp.reshape(probs, (B, K, H // K, T, S)) @ v[:, :, None, :, :]
        return self._visit(f"{self._prefix}attn{number}", xp.reshape(attn, (B, H, T, e)), terms=S)

    def _diff_lambda(
        self, function: Callable[..., Any], q1: Array, k1: Array, q2: Array, k2: Array, start: float
    ) -> Array:
        def doubt(unit: float) -> Any:
            zero = 0 * q1  # it replaces either exponential by e^0 = 1
            first, second = 1 + function(q1, k1, zero, k2, 0.0), 1 - function(zero, k1, q2, k2, 0.0)
            return unit * (abs(first) + abs(second) + abs(start))

        return self._visit(self._prefix + "lambda_full", function(q1, k1, q2, k2, start), doubt=doubt)

    _value_pairs_hf = _visit_result("values")
    _diff_lambda_v2 = _visit_result("lambda_full")
    _diff_heads_hf = _diff_heads_paper = _diff_heads_v2 = _scale_heads = _visit_result("scaled")
