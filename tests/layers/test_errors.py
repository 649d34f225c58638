"""What each layer and derivative says of arguments that do not fit: what they are, and what they must be."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from refdiff import layers
from refdiff.layers import (
    activation,
    attention_weights,
    causal_mask,
    cross_entropy,
    diff_attention,
    diff_heads_hf,
    diff_heads_paper,
    diff_heads_v2,
    diff_lambda,
    diff_lambda_v2,
    embedding,
    linear,
    packed_mask,
    padding_mask,
    plain_heads,
    plain_heads_vjp,
    rms_norm,
    rope,
    rope_cos_sin,
    softmax,
    swiglu,
    value_pairs_hf,
)
from refdiff.layers.activation import NAMES as ACTIVATIONS
from tests.layers.inputs import says

Row = tuple[str, Callable[..., Any], list[tuple[Any, ...]]]
"""The message, with places for what is given; the call with it; what is given, call by call."""


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape)


def each(*given: Any) -> list[tuple[Any, ...]]:
    """One argument a call."""
    return [(x,) for x in given]


LAMBDA = np.array(0.7)
FITS = {"q1": (2, 6, 5, 11), "k1": (2, 3, 7, 11), "q2": (2, 6, 5, 11), "k2": (2, 3, 7, 11), "v": (2, 3, 7, 13)}
MAPS = [np.zeros(shape) for shape in FITS.values()]
V = MAPS[-1]
Q, KEYS, PAIRS = zeros(2, 12, 5, 3), zeros(2, 4, 7, 3), zeros(2, 2, 7, 6)
PLAIN = zeros(2, 6, 5, 3), zeros(2, 2, 7, 3), zeros(2, 2, 7, 4)
MLP = [{"weight": zeros(7, 5)}, {"weight": zeros(7, 5)}, {"weight": zeros(5, 7)}]
IDS = "expected 0 to 6; use the tokenizer of this checkpoint"
NAMES = ", ".join(ACTIVATIONS)
UNPAIRED = each((2, 3, 5, 3), (4, 5, 3), (4, 5), (1, 2, 4, 5, 3))
UNSEEN = each((5,), (7, 7), (4, 5, 7), (3, 1, 5, 7), (1, 2, 6, 5, 7), (5, 0))
APART = [
    ((2, 6, 5, 11), (2, 3, 7, 13)), ((2, 6, 5, 11), (3, 3, 7, 11)), ((2, 6, 5, 11), (2, 4, 7, 11)),
    ((2, 6, 5, 11), (2, 0, 7, 11)), ((2, 3, 5, 11), (2, 6, 7, 11)), ((6, 5, 11), (6, 7, 11)),
    ((2, 6, 5, 11, 1), (2, 3, 7, 11, 1)), ((2, 6, 5, 11), (3, 7, 11)), ((6, 5, 11), (2, 3, 7, 11)),
]  # fmt: skip
UNLIKE = [
    ("q2", (2, 6, 4, 11)), ("q2", (2, 3, 5, 11)), ("k2", (2, 3, 6, 11)), ("k2", (2, 6, 7, 11)), ("v", (2, 3, 6, 13)),
    ("v", (2, 6, 7, 13)), ("v", (3, 7, 13)), ("v", (1, 3, 7, 13)),
]  # fmt: skip
TURNS = [
    ((2, 3, 5, 14), (2, 1, 5, 7), (2, 1, 5, 6)), ((2, 5, 14), (2, 1, 5, 7), (2, 1, 5, 7)),
    ((2, 3, 5, 13), (2, 1, 5, 7), (2, 1, 5, 7)), ((2, 3, 5, 14), (2, 1, 1, 7), (2, 1, 1, 7)),
    ((2, 3, 5, 14), (2, 1, 4, 7), (2, 1, 4, 7)), ((2, 3, 5, 14), (2, 3, 5, 7), (2, 3, 5, 7)),
    ((2, 3, 5, 14), (3, 1, 5, 7), (3, 1, 5, 7)), ((2, 3, 5, 14), (1, 5, 7), (1, 5, 7)),
    ((2, 3, 5, 14), (5, 7), (5, 7)), ((3, 14), (2, 7), (2, 7)),
]  # fmt: skip
ALIKE = (
    "diff_attention: q1, q2, k1, k2, v: got shapes {0}, {2}, {1}, {3}, {4}, expected q2 like q1, k2 like k1, and the "
    "B, K, S of v like those of k1"
)
ROWS: list[Row] = [
    (f"activation: name: got {{!r}}, expected one of {NAMES}",
     lambda name: activation(zeros(3), name), each("Silu", "xielu", "")),
    ("activation: weight: got no weight, expected shape (1,) with {!r}", lambda name: activation(zeros(3), name),
     each("prelu")),
    ("activation: weight: got shape {}, expected shape (1,) with 'prelu'",
     lambda shape: swiglu(zeros(3, 5), *MLP, {"weight": np.zeros(shape)}, act="prelu"), each((7,), ())),
    ("activation: weight: got shape (1,), expected no weight with {!r}",
     lambda name: activation(zeros(3), name, zeros(1)), each("silu")),
    (f"activation: name: got {{!r}}, expected one of {NAMES}",
     lambda name: swiglu(zeros(3, 5), *MLP, act=name), each("no")),
    ("swiglu: gate_proj, up_proj: got weights of shapes (7, 5) and {}, expected one shape (F, D)",
     lambda up: swiglu(zeros(3, 5), MLP[0], {"weight": np.zeros(up)}, MLP[2]), each((1, 5), (6, 5), (7, 4))),
    ("linear: x, weight: got shapes {} and (7, 5), expected (..., I) and (O, I)",
     lambda x: swiglu(np.zeros(x), *MLP), each((3, 4))),
    ("linear: x, weight: got shapes {} and {}, expected (..., I) and (O, I)",
     lambda x, weight: linear(np.zeros(x), np.zeros(weight)),
     [((2, 7), (7, 5)), ((2, 5), (5,)), ((2, 5), (5, 5, 5)), ((), (7, 5)), ((2, 1), (7, 5))]),
    ("linear: bias: got shape {}, expected (7,) for weight (7, 5)",
     lambda bias: linear(zeros(2, 5), zeros(7, 5), np.zeros(bias)), each((5,), (1,), (), (1, 7))),
    ("embedding: weight: got shape {}, expected (V, D)",
     lambda weight: embedding(np.array([0]), np.zeros(weight)), each((7,), (7, 5, 1))),
    ("cross_entropy: logits, targets: got shapes {} and {}, expected (..., V) and (...)",
     lambda logits, targets: cross_entropy(np.zeros(logits), np.zeros(targets, np.int64)),
     [((2, 3, 7), (2, 4)), ((2, 3, 7), (2, 3, 1)), ((3, 7), ()), ((7,), (1,))]),
    ("rms_norm: weight: got shape {}, expected (7,) for x (2, 3, 7)",
     lambda weight: rms_norm(zeros(2, 3, 7), np.ones(weight), 1e-5), each((5,), (1,), (), (2, 7))),
    ("rms_norm: eps: got {}, expected 0 or more", lambda eps: rms_norm(zeros(7), None, eps), each(-1e-9, math.nan)),
    ("rms_norm: weight: got shape {}, expected (6,) for x (2, 6, 5, 6)",
     lambda weight: diff_heads_paper(Q, KEYS, PAIRS, LAMBDA, np.ones(weight), 0.2), each((3,))),
    ("rope_cos_sin: positions: got shape {}, expected (B, T)",
     lambda shape: rope_cos_sin(np.zeros(shape, np.int64), [1.0], 1.0, np.float64), each((5,), (2, 1, 5), ())),
    ("rope: x, cos, sin: got shapes {}, {}, {}, expected (B, H, T, d) and twice (B or 1, 1, T, n) with 2n ≤ d",
     lambda x, cos, sin: rope(np.zeros(x), np.zeros(cos), np.zeros(sin)), TURNS),
    ("softmax: mask: got shape {}, expected one that broadcasts to (5, 7)",
     lambda mask: softmax(zeros(5, 7), np.ones(mask, bool)),
     each((5,), (7, 7), (2, 5, 7), (1, 5, 7), (1, 7, 1), (1, 1, 1), (5, 0))),
    ("causal_mask: keys: got {1}, expected at least {0}, the number of queries",
     lambda T, S: causal_mask(T, S, xp=np), [(5, 3)]),
    ("causal_mask: keys: got {1}, expected at least {0}, the number of queries",
     lambda T, S: attention_weights(zeros(2, 6, T, 11), zeros(2, 3, S, 11)), [(7, 5)]),
    ("padding_mask: attention_mask: got shape {}, expected (B, S)",
     lambda mask: padding_mask(np.ones(mask)), each((3,), (2, 1, 3))),
    ("packed_mask: position_ids: got shape {}, expected (B, T)",
     lambda positions: packed_mask(np.ones(positions, np.int64)), each((3,), (2, 1, 3))),
    ("diff_lambda: the four vectors: got shapes [{}, {}, {}, {}], expected (d,) of each",
     lambda *shapes: diff_lambda(*map(np.zeros, shapes), 0.2),
     [((2, 3),) * 4] + [((7,),) * i + (x,) + ((7,),) * (3 - i) for i in range(4) for x in ((5,), (1, 7), ())]),
    ("diff_lambda_v2: x: got shape {}, expected (B, T, D)",
     lambda x: diff_lambda_v2(np.ones(x), zeros(3, 7)), each((5, 7), (7,), (1, 2, 5, 7))),
    *((f"{name}: q, k: got shapes {{}} and {{}}, expected (B, H, T, d) and (B, K, S, d) with H a multiple of K",
       call, APART)
      for name, call in (
        ("attention_weights", lambda q, k: attention_weights(np.zeros(q), np.zeros(k))),
        ("diff_attention", lambda q, k: diff_attention(*map(np.zeros, (q, k, q, k)), V, LAMBDA)),
      )),
    *((f"attention_weights: {what}: got shape {{}}, expected one that broadcasts to (2, 6, 5, 7)", call, UNSEEN)
      for what, call in (
        ("mask", lambda mask: attention_weights(*MAPS[:2], np.ones(mask, bool))),
        ("mask", lambda mask: diff_attention(*MAPS, LAMBDA, np.ones(mask, bool))),
        ("bias", lambda bias: attention_weights(*MAPS[:2], None, np.zeros(bias))),
        ("bias", lambda bias: diff_attention(*MAPS, LAMBDA, None, np.zeros(bias))),
      )),
    (ALIKE, lambda *shapes: diff_attention(*map(np.zeros, shapes), LAMBDA),
     [tuple((FITS | {name: shape}).values()) for name, shape in UNLIKE]),
    (ALIKE, lambda *shapes: diff_heads_hf(Q, KEYS, np.zeros(shapes[4]), LAMBDA, 0.2, 1e-5),  # values not joined
     [((2, 6, 5, 3), (2, 2, 7, 3), (2, 6, 5, 3), (2, 2, 7, 3), (2, 4, 7, 3))]),
    ("diff_attention: lambda_: got shape {}, expected one that broadcasts to (2, 6, 5, 1)",
     lambda lambda_: diff_attention(*MAPS, np.zeros(lambda_)),
     each((5,), (6,), (5, 7), (3, 6, 5, 1), (1, 1, 2, 6, 5, 1), (2, 5, 5, 1))),
    ("diff_attention: lambda_: got {}, expected an array; one number is an array of shape ()",
     lambda lambda_: diff_attention(*MAPS, lambda_), each(0.7)),
    *((f"{name}: got shape {{}}, expected (B, heads, T, d) with an even number of heads", call, UNPAIRED)
      for name, call in (
        ("value_pairs_hf: v", lambda v: value_pairs_hf(np.zeros(v))),
        ("diff_heads_hf: q", lambda q: diff_heads_hf(np.zeros(q), KEYS, PAIRS, LAMBDA, 0.2, 1e-5)),
        ("diff_heads_hf: k", lambda k: diff_heads_hf(Q, np.zeros(k), PAIRS, LAMBDA, 0.2, 1e-5)),
        ("diff_heads_paper: q", lambda q: diff_heads_paper(np.zeros(q), KEYS, PAIRS, LAMBDA, zeros(6), 0.2)),
        ("diff_heads_paper: k", lambda k: diff_heads_paper(Q, np.zeros(k), PAIRS, LAMBDA, zeros(6), 0.2)),
      )),
    ("diff_heads_v2: q, k: got shapes {} and {}, expected (B, 2h, T, d) and (B, K, S, d) with h a multiple of K: "
     "the two queries of a pair read the same key",
     lambda q, k: diff_heads_v2(np.zeros(q), np.zeros(k), np.zeros(k), LAMBDA),
     [((2, 6, 5, 3), (2, 2, 7, 3)), ((2, 3, 5, 3), (2, 1, 7, 3)), ((2, 4, 5, 3), (2, 0, 7, 3)),
      ((4, 5, 3), (2, 2, 7, 3)), ((2, 4, 5, 3), (2, 7, 3))]),
    ("diff_heads_v2: v: got shape {}, expected (B, K, S, e) with the B, K, S of k (2, 2, 7, 3)",
     lambda v: diff_heads_v2(zeros(2, 8, 5, 3), PLAIN[1], np.zeros(v), LAMBDA),
     each((2, 2, 6, 3), (2, 3, 7, 3), (1, 2, 7, 3), (2, 7, 3))),
    ("plain_heads: v: got shape {}, expected (B, K, S, e) with the B, K, S of k (2, 2, 7, 3)",
     lambda v: plain_heads(*PLAIN[:2], np.zeros(v)), each((2, 2, 6, 4), (2, 3, 7, 4), (1, 2, 7, 4), (2, 7, 4))),
    ("plain_heads_vjp: g: got shape {}, expected (2, 5, 24), like the result",
     lambda g: plain_heads_vjp(np.zeros(g), *PLAIN), each((2, 5, 23), (2, 6, 24), (10, 24))),
]  # fmt: skip
OUTSIDE: list[Row] = [
    (f"embedding: ids: got {{1}}, {IDS}", lambda ids, _: embedding(np.array(ids), zeros(7, 5)),
     [([[0, -1], [6, 5]], -1), ([[0, 7]], 7), ([[-2, 9]], -2), ([8, 9], 9)]),
    ("cross_entropy: targets: got {1}, expected 0 to 6, or -100 to leave a token out",
     lambda targets, _: cross_entropy(zeros(2, 7), np.array(targets)),
     [([0, 7], 7), ([-1, 6], -1), ([-100, -2], -2), ([-5, 99], -5)]),
]  # fmt: skip


CALLS = [
    pytest.param(error, message.format(*given), call, given, id=message.format(*given)[:90])
    for error, rows in ((ValueError, ROWS), (IndexError, OUTSIDE))
    for message, call, calls in rows
    for given in calls
]


def layer_of(call: Callable[..., Any]) -> str:
    """The layer that a call of the table names."""
    return next(name for name in call.__code__.co_names if name in layers.__all__)


DERIVED = [case for case in CALLS if f"{layer_of(case.values[2])}_vjp" in layers.__all__]


@pytest.mark.parametrize(("error", "message", "call", "given"), CALLS)
def test_inputs_that_do_not_fit_are_refused(
    error: type[Exception], message: str, call: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    with says(error, message):
        call(*given)


@pytest.mark.no_arrays
def test_docstrings_of_layers_that_refuse_inputs_have_raises() -> None:
    """Of a layer; that a derivative refuses the same stands once, in `refdiff.layers`."""
    refusing = {layer_of(case.values[2]).removesuffix("_vjp") for case in CALLS}
    assert not {name for name in refusing if "Raises:\n" not in (getattr(layers, name).__doc__ or "")}


def refused_by_derivative(
    source: Any, error: type[Exception], message: str, call: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    """Call the derivative in `source` in place of the layer: it refuses the same, in its own name or that of a part."""
    name = layer_of(call)
    g = zeros(2, 5, 36) if name == "diff_heads_paper" else zeros()  # its norm's weight is checked after g
    with pytest.MonkeyPatch.context() as patch, pytest.raises(error) as raised:
        patch.setitem(globals(), name, partial(getattr(source, f"{name}_vjp"), g))
        call(*given)
    assert str(raised.value).replace("_vjp:", ":", 1) == message


@pytest.mark.parametrize(("error", "message", "call", "given"), DERIVED)
def test_a_derivative_refuses_what_its_layer_refuses(
    error: type[Exception], message: str, call: Callable[..., Any], given: tuple[Any, ...]
) -> None:
    refused_by_derivative(layers, error, message, call, given)


@pytest.mark.no_arrays
def test_every_derivative_is_in_the_table() -> None:
    derived = {f"{layer_of(case.values[2])}_vjp" for case in DERIVED}
    assert derived == {name for name in layers.__all__ if name.endswith("_vjp")}
