"""The derivatives of what the four wirings do differently; `WIRINGS_VJP` has a row for each row of `WIRINGS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from refdiff.arrays import Array
from refdiff.backends import Ops
from refdiff.layers.plain_heads import concat_heads
from refdiff.model.weights.names import LAMBDA_VECTORS
from refdiff.model.wirings import WIRINGS, Heads

Grads = dict[str, Any]
AttendBack = Callable[[Array], tuple[Array, Array, Array, Array | None, Grads]]
"""From the gradient of what `attend` gave to those of q, k, v, λ, and by name of parameters."""


class Kept:
    """A layer that keeps its results on the way forward, and gives them again, in order, on the way back.

    A layer's vjp takes the layers inside of it as arguments; given `again` for one of them, it is handed what that one
    computed on the way forward in place of computing it a second time.
    """

    def __init__(self, layer: Callable[..., Array]) -> None:
        self._layer = layer
        self._results: list[Array] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        result = self._layer(*args, **kwargs)
        self._results.append(result)
        return result

    def again(self, *args: Any, **kwargs: Any) -> Array:
        """Return the first result that has not been given again."""
        return self._results.pop(0)


class KeptAttention(Kept):
    """`diff_attention`; where the backend saves the log-sum-exps of its rows, the way back begins from them."""

    def __init__(self, ops: Ops) -> None:
        super().__init__(ops.diff_attention)
        self._ops = ops
        self._saved: list[Array | None] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        saving = getattr(self._ops, "diff_attention_with_lse", None)
        done: Any = NotImplemented if saving is None else saving(*args, **kwargs)
        if done is NotImplemented:
            self._saved.append(None)
            return super().__call__(*args, **kwargs)
        result, lse = done
        self._results.append(result)
        self._saved.append(lse)
        return result

    @property
    def back(self) -> dict[str, Callable[..., Any]]:
        """What the vjp of a layer around it takes."""
        return {"diff_attention": self.again, "diff_attention_vjp": self.vjp}

    def vjp(self, *args: Any, **kwargs: Any) -> Any:
        """`diff_attention_vjp`, in the order of the way forward."""
        lse = self._saved.pop(0)
        if lse is None:
            return self._ops.diff_attention_vjp(*args, **kwargs)
        return self._ops.diff_attention_vjp_from_lse(*args, lse=lse, **kwargs)


@dataclass(frozen=True)
class WiringVjp:
    """The parts of the way back through `self_attention` that depend on the wiring.

    values (ops, g (B, heads, T, width of a head), k) -> (B, T, width).
    lambda_ (ops, g or None, p, x, layer) -> the gradients of x (None where λ does not depend on it) and of parameters.
    attend (ops, heads, p, layer, eps) -> what `Wiring.attend` gives, and the way back.
    """

    values: Callable[[Ops, Array, Array], Array]
    lambda_: Callable[[Ops, Array | None, dict[str, Any], Array, int], tuple[Array | None, Grads]]
    attend: Callable[[Ops, Heads, dict[str, Any], int, float], tuple[Array, AttendBack]]


def _v1_lambda(ops: Ops, g: Array | None, p: dict[str, Any], x: Array, layer: int) -> tuple[None, Grads]:
    vectors = [p[name] for name in LAMBDA_VECTORS]
    return None, dict(zip(LAMBDA_VECTORS, ops.diff_lambda_vjp(g, *vectors, ops.lambda_init(layer)), strict=True))


def _v2_lambda(ops: Ops, g: Array | None, p: dict[str, Any], x: Array, layer: int) -> tuple[Array, Grads]:
    dx, weight = ops.diff_lambda_v2_vjp(g, x, **p["lambda_proj"])
    return dx, {"lambda_proj": {"weight": weight}}


def _attend_hf(ops: Ops, a: Heads, p: dict[str, Any], layer: int, eps: float) -> tuple[Array, AttendBack]:
    pairs = KeptAttention(ops)

    def back(g: Array) -> tuple[Array, Array, Array, Array, Grads]:
        given = (a.q, a.k, a.v, a.lambda_, ops.lambda_init(layer), eps)
        dq, dk, dv, dlambda = ops.diff_heads_hf_vjp(g, *given, **a.see, **pairs.back)
        return dq, dk, dv, dlambda, {}

    return WIRINGS["hf"].attend(ops, a, p, layer, eps, diff_attention=pairs), back


def _attend_paper(ops: Ops, a: Heads, p: dict[str, Any], layer: int, eps: float) -> tuple[Array, AttendBack]:
    pairs = KeptAttention(ops)

    def back(g: Array) -> tuple[Array, Array, Array, Array, Grads]:
        given = (a.q, a.k, a.v, a.lambda_, p["subln"]["weight"], ops.lambda_init(layer))
        dq, dk, dv, dlambda, weight = ops.diff_heads_paper_vjp(g, *given, **a.see, **pairs.back)
        return dq, dk, dv, dlambda, {"subln": {"weight": weight}}

    return WIRINGS["paper"].attend(ops, a, p, layer, eps, diff_attention=pairs), back


def _attend_v2(ops: Ops, a: Heads, p: dict[str, Any], layer: int, eps: float) -> tuple[Array, AttendBack]:
    pairs = KeptAttention(ops)

    def back(g: Array) -> tuple[Array, Array, Array, Array, Grads]:
        return *ops.diff_heads_v2_vjp(g, a.q, a.k, a.v, a.lambda_, **a.see, diff_attention_vjp=pairs.vjp), {}

    return WIRINGS["v2"].attend(ops, a, p, layer, eps, diff_attention=pairs), back


def _attend_plain(ops: Ops, a: Heads, p: dict[str, Any], layer: int, eps: float) -> tuple[Array, AttendBack]:
    def back(g: Array) -> tuple[Array, Array, Array, None, Grads]:
        return *ops.plain_heads_vjp(g, a.q, a.k, a.v, **a.see), None, {}

    return WIRINGS["none"].attend(ops, a, p, layer, eps), back


WIRINGS_VJP = {
    "hf": WiringVjp(
        # the heads of v have the shape of those of k
        values=lambda ops, g, k: concat_heads(ops.value_pairs_hf_vjp(g, k)[0]),
        lambda_=_v1_lambda,
        attend=_attend_hf,
    ),
    "paper": WiringVjp(values=lambda ops, g, k: concat_heads(g), lambda_=_v1_lambda, attend=_attend_paper),
    "v2": WiringVjp(values=lambda ops, g, k: concat_heads(g), lambda_=_v2_lambda, attend=_attend_v2),
    "none": WiringVjp(
        values=lambda ops, g, k: concat_heads(g),
        lambda_=lambda ops, g, p, x, layer: (None, {}),
        attend=_attend_plain,
    ),
}
"""From `config.wiring` to the way back."""
