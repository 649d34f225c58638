"""What a kernel hands back: arrays of floating-point numbers by their names, or the output alone; or the kernel."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.any_array import any_array, is_float
from refdiff.oracle.spec import Spec


def output(x: Any, name: str = "out") -> NDArray[Any]:
    """Return what a kernel computed as a NumPy array, in its own type.

    Raises:
        ValueError: it is complex, boolean or of whole numbers.
        TypeError: it is no array, or several: a tuple or list that holds some, not numbers.
    """
    if isinstance(x, tuple | list) and (count := sum(map(_is_array, x))):
        several = f"{count} arrays" if count > 1 else "1 array"
        give = ["the array alone"] if len(x) == 1 or name != "out" else []
        give += ['a mapping, {"out": …, "lse1": …}'] if name == "out" else []
        raise TypeError(f"{name} is a {type(x).__name__} of {several}: give {', or '.join(give)}")
    array = any_array(x, name)
    if not is_float(array.dtype):
        raise ValueError(
            f"{name} has dtype {array.dtype}, but must be float64, float32, float16, bfloat16 or another float"
            f"{_hint(array.dtype)}"
        )
    return array


def _is_array(x: Any) -> bool:
    """Whether an entry is an array, or a list in which there is one; a number of NumPy is none."""
    if isinstance(x, tuple | list):
        return any(map(_is_array, x))
    return len(getattr(x, "shape", ())) > 0 or (hasattr(x, "__dlpack__") and not hasattr(x, "shape"))


def output_alone(found: Any, wanted_by: str) -> NDArray[Any]:
    """Return `out` of what a kernel gave back, an array or a mapping, in its own type.

    Raises:
        ValueError: a mapping without it; as `output`.
        TypeError: it is no array.
    """
    if isinstance(found, Mapping) and "out" not in found:
        names = ", ".join(map(str, found)) or "nothing"
        raise ValueError(f"the outputs lack 'out', which {wanted_by} is about: they hold {names}; give out too")
    return output(found["out"] if isinstance(found, Mapping) else found)


def outputs_of(actual: Any, spec: Spec, inputs: Mapping[str, Any], dout: Any = None) -> Any:
    """Return what a kernel computed: `actual` itself, or where that is a function what it gives for these inputs.

    The function is `kernel(spec, inputs)`, or `kernel(spec, inputs, dout=None)`, as the conformance suite calls it. The
    inputs go to it as they are.

    Raises:
        ValueError: it returned NotImplemented.
    """
    if not callable(actual) or hasattr(actual, "shape"):
        return actual
    more = {"dout": dout} if "dout" in inspect.signature(actual).parameters else {}
    found = actual(spec, inputs, **more)
    if found is NotImplemented:
        raise ValueError("the kernel returned NotImplemented: it does not serve these inputs")
    return found


def _hint(dtype: np.dtype[Any]) -> str:
    """What such a type often means."""
    if dtype.kind == "c":
        return ": attention is real; if its imaginary part is 0, give the real part"
    if dtype.kind == "b":
        return ": is it a comparison, and not what was compared?"
    if dtype.kind in "iu" and dtype.itemsize == 2:
        return ": if these are the bits of bfloat16, .view(ml_dtypes.bfloat16) makes them numbers"
    return ": whole numbers have lost what is to be judged"
