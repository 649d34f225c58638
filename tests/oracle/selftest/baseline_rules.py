"""The rules that others use, on the same runs: one tolerance for a whole tensor.

flash 2x       FlashAttention's tests: max |out − ref| ≤ 2 max |eager − ref| + 2 max |ref + 0.3 − 0.3 − ref|
flex mean      PyTorch's tests of flex-attention: mean |golden − out| ≤ f mean |golden − eager|, f = 1.1, in float32 10
assert_close   the defaults of torch.testing.assert_close: |out − golden| ≤ atol + rtol |golden|, by the type
allclose 1e-2  what many write: the same with 1e-2 for both

`eager` is the recipe's storage type, op by op with every result stored; `ref` the truth in the storage type. Gradients
and log-sum-exps, which are float32, are judged by the same lines; of several tensors each has to be accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refdiff.oracle.rounding import round_to

Numpy = np.ndarray[Any, Any]
DEFAULTS = {"float32": (1e-5, 1.3e-6), "bfloat16": (1e-5, 1.6e-2), "float16": (1e-5, 1e-3)}
"""(atol, rtol) of torch.testing.assert_close."""


@dataclass(frozen=True)
class Given:
    """What a rule sees beside a tensor: the truth in float64, an eager run in the storage type, and that type."""

    golden: Numpy
    eager: Numpy
    storage: str

    @property
    def reference(self) -> Numpy:
        """The truth in the storage type."""
        return round_to(self.golden, self.storage)


def flash(out: Numpy, given: Given) -> bool:
    """FlashAttention's rule."""
    ref = given.reference
    moved = round_to(round_to(ref + 0.3, given.storage) - 0.3, given.storage)
    allowed = 2 * _largest(given.eager - ref) + 2 * _largest(moved - ref)
    return _largest(out - ref) <= allowed


def flex(out: Numpy, given: Given) -> bool:
    """The rule of PyTorch's tests of flex-attention."""
    factor = 10.0 if given.storage == "float32" else 1.1
    return float(np.mean(np.abs(given.golden - out))) <= factor * float(np.mean(np.abs(given.golden - given.eager)))


def assert_close(out: Numpy, given: Given) -> bool:
    """torch.testing.assert_close with the tolerances of the type."""
    atol, rtol = DEFAULTS[given.storage]
    return bool(np.all(np.abs(out - given.reference) <= atol + rtol * np.abs(given.reference)))


def allclose(out: Numpy, given: Given) -> bool:
    """1e-2 for everything."""
    return bool(np.all(np.abs(out - given.reference) <= 1e-2 + 1e-2 * np.abs(given.reference)))


def _largest(x: Numpy) -> float:
    return float(np.max(np.abs(x), initial=0.0))


BASELINE_RULES: dict[str, Callable[[Numpy, Given], bool]] = {
    "flash 2x": flash,
    "flex mean": flex,
    "assert_close": assert_close,
    "allclose 1e-2": allclose,
}
"""Whether each accepts a tensor."""


def accepts(rule: str, found: dict[str, Numpy], given: dict[str, Given]) -> bool:
    """Whether a rule accepts all tensors."""
    with np.errstate(invalid="ignore", over="ignore"):
        return all(BASELINE_RULES[rule](np.asarray(x, dtype=np.float64), given[name]) for name, x in found.items())
