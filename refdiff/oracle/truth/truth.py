"""The right answer: output, both log-sum-exps, λ and gradients, in float64 from the quantised inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refdiff.arrays import Array, device, from_numpy, namespace
from refdiff.backends import Ops, ops_for
from refdiff.oracle.inputs.outputs import read_output
from refdiff.oracle.inputs.sequences import Inputs, sequences
from refdiff.oracle.inputs.validation import as_float64
from refdiff.oracle.printing import array_summary
from refdiff.oracle.spec import Spec
from refdiff.oracle.spec.resolve import resolve_spec
from refdiff.oracle.truth.attention_operands import (
    attention_mask,
    attention_operands,
    compute_lambda,
    log_sum_exp,
    scores,
)
from refdiff.oracle.truth.backward import backward
from refdiff.oracle.truth.forward import differences, forward, operand_tiles, out_shape, project, tile_attention

Numpy = np.ndarray[Any, Any]
FIELDS = ("out", "lse", "lse1", "lse2", "lambda_full", "diff")


@dataclass(frozen=True)
class Result:
    """What `truth` computed, all float64; None where it was not wanted.

    out (B, h, T, e), of a layer (B, T, D). lse1, lse2 (B, h, T): log Σ exp of each map's scores, to the base of the
    spec, in a row that sees nothing the sink or −∞; lse that of plain attention, in their place. lambda_full () or
    (B, h, T). diff (B, h, T, e): the heads before the norm. grads: for each input that has one, by its name, an array
    of its shape; and `lambda_full`.
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

    def like(self, x: Array) -> Result:
        """Return the same as arrays of the library of `x`, on its device: of torch, JAX, CuPy, any array-API library.

        JAX has float64 only with `jax_enable_x64`, and warns of it otherwise.
        """
        xp, where = namespace(x), device(x)

        def moved(y: Numpy | None) -> Any:
            return None if y is None else from_numpy(y, xp, where)

        made = {name: moved(getattr(self, name)) for name in FIELDS}
        return Result(**made, grads={name: moved(g) for name, g in self.grads.items()})


def truth(
    spec: Spec | str,
    inputs: Mapping[str, Any],
    *,
    dout: Any = None,
    want: Sequence[str] | None = None,
    ops: Ops | None = None,
) -> Result:
    """Compute the right answer in float64, from the numbers that the inputs hold in their storage dtype.

    It comes back as NumPy arrays; `truth(...).like(x)` are arrays of the library of `x`.

    Args:
        spec: a `Spec`, or a preset's name, whose dimensions are then those of the inputs, and whose layer is 0.
        dout: a gradient of the shape of `out`; with it the result has `grads`.
        want: of `out`, `lse1`, `lse2`, `lambda_full`, `diff`, or of plain attention `out`, `lse`; None is all but diff.
        ops: the layers, or what is laid over them (`refdiff.backends.overlay`).

    Raises:
        ValueError: inputs that do not fit `spec` (see `refdiff.oracle.inputs`), or a want that is none.
        TypeError: an input that is no array, `spec` no Spec or name, `inputs` no mapping.
    """
    spec = resolve_spec(spec, inputs)
    exact = as_float64(spec, inputs)
    usual = ("out", *spec.lse_names, *(() if spec.is_plain else ("lambda_full",)))
    want = usual if want is None else want
    if unknown := [name for name in want if name not in (*usual, "diff")]:
        raise ValueError(f"want has {unknown}, but may have {', '.join((*usual, 'diff'))}")
    ops = ops or tile_attention(ops_for())
    out = forward(spec, exact, ops) if "out" in want else None
    inner = _intermediates(spec, project(spec, exact, ops), want, ops)
    grads = {} if dout is None else backward(spec, exact, read_output(dout, "dout").astype(np.float64), ops)
    return Result(out=out, grads=grads, **inner)


def _intermediates(spec: Spec, core: Inputs, want: Sequence[str], ops: Ops) -> dict[str, Any]:
    """What stands between input and output."""
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
                of_tiles = [log_sum_exp(scores(tile, number)) for tile in operand_tiles(s)]
                found[name][part.index] = np.where(some, np.concatenate(of_tiles, axis=2) / base, -math.inf)
    return {name: x for name, x in found.items() if name in want}
