"""Relations that must hold between two runs of one kernel, without the truth: bit for bit or within rounding error.

A kernel is `kernel(spec, inputs, dout=None)` and returns its output, or a mapping with `out`, or `NotImplemented` for
inputs that it does not support.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from refdiff.backends import ops_for
from refdiff.oracle.budget.budget import Budget, budget
from refdiff.oracle.budget.statistics import LIMITS, root_mean_square, safe_ratio
from refdiff.oracle.cases.structure import relaid, strided_view
from refdiff.oracle.inputs import shapes
from refdiff.oracle.inputs.outputs import KernelError, read_output, require_out
from refdiff.oracle.inputs.sequences import Inputs, Numpy
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec
from refdiff.oracle.thresholds import THRESHOLDS
from refdiff.oracle.truth.attention_operands import compute_lambda, head_indices, lambda_init
from refdiff.oracle.truth.forward import out_shape
from refdiff.oracle.verdict.verdict import FAIL, Verdict

Kernel = Callable[..., Any]


class DeclinedError(Exception):
    """The kernel does not support these inputs, or the relation does not apply to this spec."""


def run(kernel: Kernel, spec: Spec, inputs: Inputs, *, copy: bool = True) -> Numpy:
    """Call a kernel on copies of its inputs, or on themselves, and return its output in float64.

    Raises:
        DeclinedError: the kernel returned `NotImplemented`, or a mapping without `out`.
        KernelError: the kernel returned something that is no output.
    """
    found = kernel(spec, {name: np.array(x) for name, x in inputs.items()} if copy else inputs)
    if found is NotImplemented:
        raise DeclinedError("the kernel returned NotImplemented")
    if isinstance(found, Mapping) and "out" not in found:
        raise DeclinedError(f"the kernel returned {', '.join(map(str, found)) or 'nothing'}, but no 'out' to compare")
    try:
        return require_out(found, "the relation").astype(np.float64)
    except (TypeError, ValueError) as error:
        raise KernelError(f"what the kernel returned cannot be compared: {error}") from error


def same_twice(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """The same inputs give the same bits."""
    return _compare_bits(run(kernel, spec, inputs), run(kernel, spec, inputs), "run again")


def same_gradients_twice(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """The same inputs give the same bits of every gradient."""
    dout = _draw_dout(spec, inputs)
    first, second = (kernel(spec, {name: np.array(x) for name, x in inputs.items()}, dout.copy()) for _ in range(2))
    names = [name for name in first if name.startswith("d")] if isinstance(first, Mapping) else []
    _require(bool(names), "gradients")
    for name in names:
        one, two = (read_output(found[name], name).astype(np.float64) for found in (first, second))
        if wrong := _compare_bits(one, two, f"{name} again"):
            return wrong
    return ""


def strides_do_not_matter(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Inputs with other strides, such as tokens before heads, give the same output as contiguous ones."""
    right = run(kernel, spec, inputs)
    for layout in ("tokens before heads", "padded width", "width first"):
        if wrong := _compare_rows(run(kernel, spec, relaid(inputs, layout), copy=False), right, spec, inputs, recipe):
            return f"{layout}: {wrong}"
    return ""


def dout_strides_do_not_matter(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """A gradient of the output with other strides gives the same gradients as a contiguous one."""
    drawn = _draw_dout(spec, inputs)
    ones = np.ones_like(drawn)
    broadcast = np.lib.stride_tricks.as_strided(ones, ones.shape, (0,) * ones.ndim)
    views = (
        (drawn, {name: strided_view(drawn, name) for name in ("tokens before heads", "width first")}),
        (ones, {"strides of 0, as of out.sum()": broadcast}),
    )
    for dout, same in views:
        allowed = budget(spec, inputs, recipe, dout=dout)
        for layout, strided in same.items():
            verdict = _judge_gradients(kernel, spec, inputs, strided, allowed)
            # gradients that are wrong with any strides fail in other tests
            if verdict.status == FAIL and _judge_gradients(kernel, spec, inputs, dout, allowed).status != FAIL:
                return f"dout with {layout}: {verdict}"
    return ""


def _judge_gradients(kernel: Kernel, spec: Spec, inputs: Inputs, dout: Numpy, allowed: Budget) -> Verdict:
    found = kernel(spec, {name: np.array(x) for name, x in inputs.items()}, dout)
    grads = {name: x for name, x in found.items() if name.startswith("d")} if isinstance(found, Mapping) else {}
    _require(bool(grads), "gradients")
    try:
        return allowed.judge(grads)
    except (TypeError, ValueError) as error:
        raise KernelError(f"what the kernel returned cannot be compared: {error}") from error


def past_unmoved(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Keys and values of the last token do not change a bit of earlier rows."""
    S = inputs["k"].shape[2]
    _require(spec.causal == "bottom_right" and S > 1 and inputs["q"].shape[2] > 1, "a causal spec and two tokens")
    changed = {**inputs, "k": inputs["k"].copy(), "v": inputs["v"].copy()}
    changed["k"][:, :, -1] *= -2
    changed["v"][:, :, -1] *= -2
    first, second = run(kernel, spec, inputs), run(kernel, spec, changed)
    return _compare_bits(first[:, :, :-1], second[:, :, :-1], "with another last token, earlier rows")


def decode_as_prefill(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """The last query alone gives the same output row as in the whole sequence."""
    _require(spec.causal != "top_left" and "q_positions" not in inputs, "the last query to see the last key")
    one = {**inputs, "q": inputs["q"][:, :, -1:]}
    if "lambda_logits" in inputs:
        one["lambda_logits"] = inputs["lambda_logits"][:, -1:]
    if "gate_logits" in inputs:
        one["gate_logits"] = inputs["gate_logits"][:, :, -1:]
    _require(spec.causal == "bottom_right" or spec.window is None, "rows that do not depend on the number of queries")
    return _compare_rows(run(kernel, spec, one), run(kernel, spec, inputs)[:, :, -1:], spec, one, recipe)


def batch_as_single(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """A sequence alone gives the same output as in a batch."""
    B = inputs["q"].shape[0]
    _require(B > 1, "a batch")
    by_batch = ("q", "k", "v", "key_mask", "lambda_logits", "gate_logits", "q_positions", "k_positions")
    one = {n: x[-1:] if n in by_batch and x.shape[0] == B else x for n, x in inputs.items()}
    return _compare_rows(run(kernel, spec, one), run(kernel, spec, inputs)[-1:], spec, one, recipe)


def packed_as_separate(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Packed sequences give the same output as one by one."""
    plain = set(inputs) <= set(shapes(spec, inputs))
    _require(plain and inputs["q"].shape[0] > 1, "a batch without masks and positions")
    B, _, T, _ = inputs["q"].shape
    S = inputs["k"].shape[2]
    packed = dict(inputs)
    for name in {"q", "k", "v", "gate_logits"} & set(inputs):
        packed[name] = np.concatenate(list(inputs[name]), axis=1)[None]
    if "lambda_logits" in inputs:
        packed["lambda_logits"] = np.concatenate(list(inputs["lambda_logits"]), axis=0)[None]
    packed |= {"cu_seqlens_q": np.arange(B + 1) * T, "cu_seqlens_k": np.arange(B + 1) * S}
    together = run(kernel, spec, packed)
    apart = np.concatenate(list(run(kernel, spec, inputs)), axis=1)[None]
    return _compare_rows(together, apart, spec, packed, recipe)


def groups_as_copies(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Keys and values copied for every query head give the same output as shared ones."""
    n = spec.query_heads // spec.key_heads
    _require(n > 1 and spec.gqa == "pair_then_group" and spec.group_order == "blocks", "grouped queries")
    _require((spec.keys == "own" or spec.is_plain) and spec.ratio == 1, "a key for each map")

    def copies(x: Numpy, interleaved: bool) -> Numpy:
        if not interleaved:
            return np.repeat(x, n, axis=1)
        B, K, *rest = x.shape
        return np.repeat(x.reshape(B, K // 2, 2, *rest), n, axis=1).reshape(B, K * n, *rest)

    pairs = spec.pairing == "interleaved" and not spec.is_plain
    wide = spec.values in ("wide", "single")
    many = {
        **inputs,
        "k": copies(inputs["k"], pairs),
        "v": copies(inputs["v"], not wide and spec.values == "interleaved"),
    }
    whole = spec.replace(key_heads=spec.query_heads)
    return _compare_rows(run(kernel, whole, many), run(kernel, spec, inputs), spec, inputs, recipe)


def values_scaled(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Values four times as large give the same output, if they are so large that ε has no effect in the norm."""
    _require(spec.norm != "none", "a norm")
    enlarged = _enlarge_values(spec, inputs, recipe)
    first, second = run(kernel, spec, enlarged), run(kernel, spec, {**enlarged, "v": enlarged["v"] * 4})
    return _compare_rows(first, second, spec, enlarged, recipe)


def ones_for_values(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Values that are all 1 give rows of equal numbers, up to the norm's weight."""
    _require(spec.causal != "top_left" and "mask" not in inputs and "key_mask" not in inputs, "rows that see a key")
    ones = {**inputs, "v": np.ones_like(inputs["v"])}
    _require(spec.norm != "layer" and spec.gate == "none", "no mean taken away, and no gate")
    if "norm_weight" in inputs:
        ones["norm_weight"] = np.ones_like(inputs["norm_weight"])
    if "norm_bias" in inputs:
        ones["norm_bias"] = np.zeros_like(inputs["norm_bias"])
    exact = {name: x.astype(np.float64) for name, x in inputs.items()}
    rest = 1 - np.asarray(compute_lambda(spec, exact, ops_for()))
    _require(bool(np.all(np.abs(rest) > THRESHOLDS.relation_lambda)), "λ that is not 1")
    out = run(kernel, spec, ones)
    return _compare_rows(out, np.broadcast_to(np.mean(out, axis=-1, keepdims=True), out.shape), spec, ones, recipe)


def maps_swapped(kernel: Kernel, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Swapped maps with 1/λ for λ negate the output, if ε has no effect: A₂ − A₁/λ = −(A₁ − λ A₂)/λ."""
    _require(spec.ratio == 1 and spec.keys == "own" and spec.gqa == "pair_then_group", "a query and a key for each map")
    _require(spec.norm != "none", "a norm")
    _require(spec.lambda_form == "exp" and spec.out_scale != "1 - lambda", "λ of v1")
    _require(not spec.norm_bias and not spec.lambda_per_head, "no bias after the norm, and one λ")
    inputs, w = _enlarge_values(spec, inputs, recipe), head_indices(spec)
    exact = {name: np.asarray(x, dtype=np.float64) for name, x in inputs.items()}
    lambda_, start = float(compute_lambda(spec, exact, ops_for())), lambda_init(spec, ops_for())
    _require(lambda_ > THRESHOLDS.relation_lambda, "a positive λ")
    swapped = dict(inputs)
    for name, first, second in (("q", w.q1, w.q2), ("k", w.k1, w.k2)):
        swapped[name] = inputs[name].copy()
        swapped[name][:, first], swapped[name][:, second] = inputs[name][:, second], inputs[name][:, first]
    # λ = e₁ − e₂ + λ_init with e₁ = exp(q·k), where q and k have one nonzero number each: λ is 1/λ up to rounding error
    e2 = max(0.0, start - 1 / lambda_) + 0.5
    for name, e in (("1", 1 / lambda_ - start + e2), ("2", e2)):
        vector = np.zeros(spec.head_dim)
        vector[0] = 1.0
        swapped[f"lambda_q{name}"] = vector.astype(np.float32)
        swapped[f"lambda_k{name}"] = (vector * math.log(e)).astype(np.float32)
    return _compare_rows(-run(kernel, spec, swapped), run(kernel, spec, inputs), spec, inputs, recipe)


RELATIONS: tuple[Callable[[Kernel, Spec, Inputs, Recipe], str], ...] = (
    same_twice,
    same_gradients_twice,
    strides_do_not_matter,
    dout_strides_do_not_matter,
    past_unmoved,
    decode_as_prefill,
    batch_as_single,
    packed_as_separate,
    groups_as_copies,
    values_scaled,
    ones_for_values,
    maps_swapped,
)
"""Each returns "" if it holds, else the difference; its docstring is the first part of a failed test's message."""


def _draw_dout(spec: Spec, inputs: Inputs) -> Numpy:
    return np.random.default_rng(977).normal(size=out_shape(spec, inputs)).astype(inputs["q"].dtype)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise DeclinedError(f"the relation needs {what}")


def _enlarge_values(spec: Spec, inputs: Inputs, recipe: Recipe) -> Inputs:
    """Return the inputs with v times a power of two, so large that ε, which may be compiled in, has no effect.

    Values 4 times as large, sums of some dozen of them, and their squares if the norm is in float16, do not overflow.
    """
    top = 2.0**18 if recipe.storage != "float16" else 2.0**4 if recipe.norm == "float16" else 2.0**8
    _require(spec.norm_eps <= THRESHOLDS.relation_epsilon * recipe.u * top**2, "an ε without effect on large values")
    v = inputs["v"]
    largest = float(np.max(np.abs(v.astype(np.float64)), initial=0.0))
    _require(largest > 0, "values")
    return {**inputs, "v": v * np.asarray(2.0 ** math.floor(math.log2(top / largest)), dtype=v.dtype)}


def _compare_bits(first: Numpy, second: Numpy, what: str) -> str:
    if np.array_equal(first, second, equal_nan=True):
        return ""
    different = np.argwhere((first != second) & ~(np.isnan(first) & np.isnan(second)))
    at = tuple(int(i) for i in different[0])
    return f"{what}: {len(different)} numbers differ, first at {at}: {first[at]:.9g} and {second[at]:.9g}"


def _compare_rows(first: Numpy, second: Numpy, spec: Spec, inputs: Inputs, recipe: Recipe) -> str:
    """Compare two outputs by rows; each may have the rounding error of the budget.

    Two members suffice for the budget: over 10,208 rows of pairs of held-out orders the largest difference was 0.34 of
    the allowed one, and 0.30 with six members (seven presets, float32, bfloat16 and float16,
    tests.oracle.example_inputs with seeds 0 to 2).
    """
    if first.shape != second.shape:
        return f"shapes {first.shape} and {second.shape} differ"
    rows = budget(spec, inputs, recipe, members=2).rows["out"]
    ratio = safe_ratio(root_mean_square(first - second), 2 * LIMITS.row * rows)
    if ratio.size == 0 or np.max(ratio) <= 1:
        return ""
    at = tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))
    return f"row (b, head, t) = {at} differs by {np.max(ratio):.3g} times what two correct runs may"
