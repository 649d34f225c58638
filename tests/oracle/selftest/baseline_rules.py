"""The rules that others use, on the same runs: one verdict for a whole tensor.

Gradients and log-sum-exps, which are float32, are judged by the same lines; of several tensors each has to be accepted.
What a project lets its user set is at its default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from refdiff.oracle.rounding import round_to

Numpy = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Given:
    """What a rule sees beside a tensor: the truth in float64, an eager run in the storage type, and that type."""

    golden: Numpy
    eager: Numpy
    storage: str

    @cached_property
    def reference(self) -> Numpy:
        """The truth in the storage type."""
        return round_to(self.golden, self.storage)


@dataclass(frozen=True)
class Rule:
    """Whether it accepts a tensor, what it accepts in words, and where it is published: a name and a link."""

    accepts: Callable[[Numpy, Given], bool]
    words: str
    source: str
    link: str


def _flash(out: Numpy, given: Given) -> bool:
    ref = given.reference
    moved = round_to(round_to(ref + 0.3, given.storage) - 0.3, given.storage)
    allowed = 2 * _largest(given.eager - ref) + 2 * _largest(moved - ref)
    return _largest(out - ref) <= allowed


def _flex(out: Numpy, given: Given) -> bool:
    factor = 10.0 if given.storage == "float32" else 1.1
    return float(np.mean(np.abs(given.golden - out))) <= factor * float(np.mean(np.abs(given.golden - given.eager)))


def _close(**tolerances: float | tuple[float, float]) -> Callable[[Numpy, Given], bool]:
    """|out − ref| ≤ atol + rtol |ref|, with (atol, rtol) by the type, or one number for both."""

    def accepts(out: Numpy, given: Given) -> bool:
        by_type = tolerances[given.storage]
        atol, rtol = by_type if isinstance(by_type, tuple) else (by_type, by_type)
        return bool(np.all(np.abs(out - given.reference) <= atol + rtol * np.abs(given.reference)))

    return accepts


def _either(out: Numpy, given: Given, *, atol: float, rtol: float) -> bool:
    error, ref = np.abs(out - given.reference), np.abs(given.reference)
    return bool(np.isfinite(out).all() and np.all((error <= atol) | (error <= rtol * (ref + 1e-8))))


def _nmse(out: Numpy, given: Given, *, most: float) -> bool:
    error = out - given.reference
    return bool(np.isfinite(out).all() and np.vdot(error, error) <= most * np.vdot(out, out))


def _pcc(out: Numpy, given: Given, *, least: float) -> bool:
    out, ref = (np.where(np.isfinite(x), x, 0.0).ravel() for x in (out, given.reference))
    if out.any() != ref.any():
        return False
    if np.array_equal(out, ref):
        return True
    out, ref = out - out.mean(), ref - ref.mean()
    return not out @ ref < least * np.sqrt((out @ out) * (ref @ ref))  # undefined of a constant tensor: accepted


def _largest(x: Numpy) -> float:
    return float(np.max(np.abs(x), initial=0.0))


_GITHUB = "https://github.com/"
BASELINE_RULES: dict[str, Rule] = {
    "flash 2x": Rule(
        _flash,
        "max abs(out − ref) ≤ 2 max abs(eager − ref) + 2 max abs(ref + 0.3 − 0.3 − ref)",
        "FlashAttention",
        f"{_GITHUB}Dao-AILab/flash-attention/blob/main/flash_attn/cute/testing.py",
    ),
    "flex mean": Rule(
        _flex,
        "mean abs(golden − out) ≤ f mean abs(golden − eager); f is 1.1, in float32 10",
        "PyTorch's tests of flex-attention",
        f"{_GITHUB}pytorch/pytorch/blob/main/test/inductor/test_flex_attention.py",
    ),
    "assert_close": Rule(
        _close(float32=(1e-5, 1.3e-6), bfloat16=(1e-5, 1.6e-2), float16=(1e-5, 1e-3)),
        "abs(out − ref) ≤ 1e-5 + rtol abs(ref); rtol is 1.3e-6 in float32, 1.6e-2 in bfloat16, 1e-3 in float16",
        "torch.testing.assert_close",
        "https://docs.pytorch.org/docs/stable/testing.html",
    ),
    "allclose 1e-2": Rule(
        _close(float32=1e-2, bfloat16=1e-2, float16=1e-2),
        "abs(out − ref) ≤ 1e-2 + 1e-2 abs(ref)",
        "FlashInfer's tests",
        f"{_GITHUB}flashinfer-ai/flashinfer/blob/main/tests/attention/test_batch_attention.py",
    ),
    "flashinfer": Rule(
        partial(_either, atol=1e-2, rtol=1e-2),
        "for each number, abs(out − ref) ≤ 1e-2 or abs(out − ref) ≤ 1e-2 (abs(ref) + 1e-8)",
        "flashinfer-bench",
        f"{_GITHUB}flashinfer-ai/flashinfer-bench/blob/main/flashinfer_bench/bench/utils.py",
    ),
    "kernelbench": Rule(
        _close(float32=1e-4, bfloat16=1e-2, float16=1e-2),
        "abs(out − ref) ≤ t + t abs(ref); t is 1e-4 in float32, 1e-2 in 16 bits",
        "KernelBench",
        f"{_GITHUB}ScalingIntelligence/KernelBench/blob/main/src/kernelbench/eval.py",
    ),
    "gpucheck": Rule(
        _close(float32=1e-4, bfloat16=5e-2, float16=1e-2),
        "abs(out − ref) ≤ t + t abs(ref); t is 1e-4 in float32, 5e-2 in bfloat16, 1e-2 in float16",
        "gpucheck",
        f"{_GITHUB}Akasxh/gpucheck/blob/main/src/gpucheck/assertions/tolerances.py",
    ),
    "gpuemu": Rule(
        _close(float32=(1e-5, 0.0), bfloat16=(1e-3, 0.0), float16=(1e-3, 0.0)),
        "abs(out − ref) ≤ 1e-5 in float32, 1e-3 in 16 bits",
        "gpuemu",
        f"{_GITHUB}Skelf-Research/gpuemu/blob/main/crates/gpuemu-common/src/config.rs",
    ),
    "nmse 5e-4": Rule(
        partial(_nmse, most=5e-4),
        "Σ (out − ref)² ≤ 5e-4 Σ out²",
        "llama.cpp, FLASH_ATTN_EXT",
        f"{_GITHUB}ggml-org/llama.cpp/blob/master/tests/test-backend-ops.cpp",
    ),
    "pcc 0.999": Rule(
        partial(_pcc, least=0.999),
        "Pearson's correlation of out and ref ≥ 0.999, with NaN and ±∞ taken for 0; "
        "its tests of attention ask 0.91 to 0.9999, by the type",
        "tt-metal, comp_pcc",
        f"{_GITHUB}tenstorrent/tt-metal/blob/main/models/common/utility_functions.py",
    ),
}
"""By name: `eager` is the storage type, op by op with every result stored; `ref` the truth in the storage type."""


def accepts(rule: str, found: dict[str, Numpy], given: dict[str, Given]) -> bool:
    """Whether a rule accepts all tensors."""
    judge = BASELINE_RULES[rule].accepts
    with np.errstate(invalid="ignore", over="ignore"):
        return all(judge(np.asarray(x, dtype=np.float64), given[name]) for name, x in found.items())
