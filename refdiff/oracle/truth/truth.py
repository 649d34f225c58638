"""The truth: output, log-sum-exps, λ and gradients, computed in float64 from the inputs as they are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from refdiff.backends import Ops, ops_for
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.resolve import resolve_spec
from refdiff.oracle.inputs.sequences import Inputs, Numpy, sequences
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.printing import array_summary
from refdiff.oracle.spec import Spec
from refdiff.oracle.truth.attention_operands import (
    attention_mask,
    attention_operands,
    compute_lambda,
    log_sum_exp,
    scores,
    truth_ops,
)
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.truth.forward import attend_by_layer, differences, forward, operand_tiles, out_shape, project

FIELDS = ("out", "lse", "lse1", "lse2", "lambda_full", "diff")


@dataclass(frozen=True)
class Result:
    """The result of `truth`, in float64; what was not requested is None.

    out: (B, h, T, e); of a layer (B, T, D).
    lse1, lse2: (B, h, T), the log-sum-exp of each map's scores to the base `spec.lse_base`. For a query that sees no
        key it is −∞, or the sink. Plain attention has lse instead.
    lambda_full: () or (B, h, T).
    diff: (B, h, T, e), the heads before the norm.
    grads: the gradients by the names of the inputs, each with its input's shape; also `lambda_full`.
    """

    out: Numpy | None = None
    lse: Numpy | None = None
    lse1: Numpy | None = None
    lse2: Numpy | None = None
    lambda_full: Numpy | None = None
    diff: Numpy | None = None
    grads: dict[str, Numpy] = field(default_factory=dict)

    def __repr__(self) -> str:
        found = {name: x for name in FIELDS if (x := getattr(self, name)) is not None}
        grads = f"; grads: {array_summary(self.grads)}" if self.grads else ""
        return f"Result({array_summary(found)}{grads})"


def truth(
    spec: Spec | str,
    inputs: Mapping[str, Any],
    *,
    dout: Any = None,
    want: Sequence[str] | None = None,
    ops: Ops | None = None,
) -> Result:
    """Compute the outputs and gradients of `spec` in float64 from the inputs as they are stored.

    The result holds NumPy arrays.

    Args:
        spec: a `Spec`, or a preset's name: layer 0 of that preset, with dimensions read from the inputs.
        dout: the gradient of `out`, with its shape; with it the result has `grads`.
        want: names among `out`, `lse1`, `lse2`, `lambda_full` and `diff`; for plain attention `out`, `lse` and `diff`.
            None is all but `diff`.
        ops: the layers, or an overlay of them (`refdiff.backends.overlay`).

    Raises:
        ValueError: the inputs do not fit `spec` (see `refdiff.oracle.inputs`), or `want` has an unknown name.
        TypeError: an input is not an array, `spec` is neither a Spec nor a name, or `inputs` is not a mapping.
    """
    spec = resolve_spec(spec, inputs)
    exact = as_float64(spec, inputs)
    usual = ("out", *spec.lse_names, *(() if spec.is_plain else ("lambda_full",)))
    want = usual if want is None else want
    if unknown := [name for name in want if name not in (*usual, "diff")]:
        raise ValueError(f"want has {unknown}, but may have {', '.join((*usual, 'diff'))}")
    attend = None if ops else partial(attend_by_layer, ops=ops_for())
    ops = truth_ops(ops)
    out = forward(spec, exact, ops, attend) if "out" in want else None
    inner = _intermediates(spec, project(spec, exact, ops), want, ops)
    grads = {} if dout is None else backward(spec, exact, read_output(dout, "dout").astype(np.float64), ops)
    return Result(out=out, grads=grads, **inner)


def _intermediates(spec: Spec, core: Inputs, want: Sequence[str], ops: Ops) -> dict[str, Any]:
    """Return those of the log-sum-exps, λ and the heads before the norm that are wanted."""
    B, h, T, e = out_shape(spec, core)
    found: dict[str, Any] = {}
    sums = any(name in want for name in spec.lse_names)
    if sums:
        found |= {name: np.full((B, h, T), -math.inf) for name in spec.lse_names}
    if "diff" in want:
        found["diff"] = np.full((B, h, T, e), math.nan if spec.masked_rows == "nan" else 0.0)
    if "lambda_full" in want:
        lambda_ = compute_lambda(spec, core, ops)
        found["lambda_full"] = lambda_ if lambda_.ndim == 0 else np.broadcast_to(lambda_[..., 0], (B, h, T)).copy()
    for part in sequences(core):
        if not sums and "diff" not in found:
            break
        if part.is_empty and not spec.sinks:  # a sink is a key of its own
            continue
        s = attention_operands(spec, part.inputs, ops)
        if "diff" in found:
            found["diff"][part.index] = differences(spec, s, ops)
        if sums:
            base = math.log(2) if spec.lse_base == "2" else 1.0
            some = np.any(attention_mask(spec, part.inputs), axis=-1) | spec.sinks
            for number, name in enumerate(spec.lse_names, start=1):
                tile_sums = [log_sum_exp(scores(tile, number)) for tile in operand_tiles(s)]
                found[name][part.index] = np.where(some, np.concatenate(tile_sums, axis=2) / base, -math.inf)
    return {name: x for name, x in found.items() if name in want}
