"""Call kernels and convert their outputs: the output alone, or floating-point arrays by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.inputs.arrays import any_array, is_float
from refdiff.oracle.inputs.signature import adapt_kernel, drop_nones
from refdiff.oracle.spec import Spec


class KernelError(Exception):
    """A call failed: the kernel raised, changed its inputs or returned no output; the message says which."""


NO_RETURN = "the kernel returned None; is `return` missing?"


def read_output(x: Any, name: str = "out") -> NDArray[Any]:
    """Return an output of a kernel as a NumPy array of its own dtype; of (out, None), `out`.

    Raises:
        ValueError: it is complex, boolean or of integers.
        TypeError: it is not an array, or a tuple or list of arrays.
    """
    x = drop_nones(x)
    if isinstance(x, tuple | list) and (count := sum(map(_is_array, x))):
        several = f"{count} arrays" if count > 1 else "1 array"
        give = ["the array alone"] if len(x) == 1 or name != "out" else []
        give += ['a mapping, {"out": …, "dq": …}'] if name == "out" else []
        raise TypeError(f"{name} is a {type(x).__name__} of {several}: give {', or '.join(give)}")
    array = any_array(x, name)
    if not is_float(array.dtype):
        raise ValueError(
            f"{name}: got dtype {array.dtype}, expected float64, float32, float16, bfloat16 or another float; bits of "
            "bfloat16 become numbers by .view(ml_dtypes.bfloat16)"
        )
    return array


def to_float64(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array` in float64. A signaling NaN, which unwritten memory may hold, is cast without a warning."""
    with np.errstate(invalid="ignore"):
        return array.astype(np.float64)


def _is_array(x: Any) -> bool:
    """Whether `x` is an array, or a tuple or list that contains one. A NumPy scalar is not an array."""
    if isinstance(x, tuple | list):
        return any(map(_is_array, x))
    return len(getattr(x, "shape", ())) > 0 or (hasattr(x, "__dlpack__") and not hasattr(x, "shape"))


def collect_outputs(actual: Any, spec: Spec, inputs: Mapping[str, Any], dout: Any = None) -> Any:
    """Return the outputs of a kernel: `actual` itself or, if that is a function, what it returns for these inputs.

    The function is `kernel(spec, inputs)` or `kernel(inputs)`, or either with `dout=None`, as in the conformance
    suite. It gets copies of NumPy arrays, with the same memory layout.

    Raises:
        ValueError: it returned None or NotImplemented, or modified its inputs.
        TypeError: it takes other arguments.
    """
    if not callable(actual) or hasattr(actual, "shape"):
        return actual
    given = {name: x.copy(order="K") if isinstance(x, np.ndarray) else x for name, x in inputs.items()}
    found = adapt_kernel(actual)(spec, given, dout)
    if found is None:
        raise ValueError(NO_RETURN)
    for name, x in inputs.items():
        if isinstance(x, np.ndarray) and given[name].tobytes() != x.tobytes():
            raise ValueError(f"the kernel has changed its input {name}: it must leave inputs as they are")
    if found is NotImplemented:
        serves = getattr(actual, "serves", "")
        hint = f"; it serves {serves}" if serves else ""
        raise ValueError(f"the kernel returned NotImplemented: it does not serve these inputs{hint}")
    return found
