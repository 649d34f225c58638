"""What a kernel hands back: arrays of floating-point numbers by their names, or the output alone; or the kernel."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from refdiff.oracle.inputs.arrays import any_array, is_float
from refdiff.oracle.rounding import round_to
from refdiff.oracle.rounding.recipe import Recipe
from refdiff.oracle.spec import Spec

NO_RETURN = "the kernel returned None; is `return` missing?"


def read_output(x: Any, name: str = "out") -> NDArray[Any]:
    """Return what a kernel computed as a NumPy array, in its own type; of (out, None), the first.

    Raises:
        ValueError: it is complex, boolean or of whole numbers.
        TypeError: it is no array, or several: a tuple or list that holds some, not numbers.
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
            f"{name}: got dtype {array.dtype}, expected float64, float32, float16, bfloat16 or another float"
            f"{_dtype_hint(array.dtype)}"
        )
    return array


def drop_nones(x: Any) -> Any:
    """The output of (out, None, …), which is what attention modules of transformers return; anything else as it is."""
    pair = isinstance(x, tuple) and len(x) > 1 and x[0] is not None
    return x[0] if pair and all(rest is None for rest in x[1:]) else x


def _is_array(x: Any) -> bool:
    """Whether an entry is an array, or a list in which there is one; a number of NumPy is none."""
    if isinstance(x, tuple | list):
        return any(map(_is_array, x))
    return len(getattr(x, "shape", ())) > 0 or (hasattr(x, "__dlpack__") and not hasattr(x, "shape"))


def require_out(found: Any, wanted_by: str) -> NDArray[Any]:
    """Return `out` of what a kernel gave back, an array or a mapping, in its own type.

    Raises:
        ValueError: a mapping without it; as `read_output`.
        TypeError: it is no array.
    """
    if isinstance(found, Mapping) and "out" not in found:
        names = ", ".join(map(str, found)) or "nothing"
        raise ValueError(f"the outputs lack 'out', which {wanted_by} is about: they hold {names}; give out too")
    return read_output(found["out"] if isinstance(found, Mapping) else found)


def dtype_warnings(found: Mapping[str, Any], recipe: Recipe) -> tuple[str, ...]:
    """Say which outputs came in another type than the recipe stores; nothing of those whose numbers that type holds.

    NumPy has no bfloat16: float32 with numbers of bfloat16 is the kernel's own output.
    """
    said = []
    for name, x in found.items():
        try:
            array = read_output(x, name)
        except (TypeError, ValueError):
            continue  # whoever judges it says what it is
        kind, storage = str(array.dtype), recipe.storage
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = array.astype(np.float64)
            held = kind == "float32" and np.array_equal(round_to(numbers, storage), numbers, equal_nan=True)
        if kind != storage and not held:
            said.append(
                f"{name} came in {kind}, and the recipe {recipe.name!r} stores {storage}: cast it to the type of the "
                "inputs, or name the recipe of what the kernel does"
            )
    return tuple(said)


def collect_outputs(actual: Any, spec: Spec, inputs: Mapping[str, Any], dout: Any = None) -> Any:
    """Return what a kernel computed: `actual` itself, or where that is a function what it gives for these inputs.

    The function is `kernel(spec, inputs)` or `kernel(inputs)`, or either with `dout=None`, as the conformance suite
    calls it. Arrays of NumPy go to it as copies of the same layout.

    Raises:
        ValueError: it returned None or NotImplemented, or changed what it was given.
        TypeError: it takes something else.
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


def takes_dout(kernel: Callable[..., Any]) -> bool:
    """Whether a kernel gives gradients too."""
    return "dout" in parameter_names(kernel)


def adapt_kernel(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel that takes (spec, inputs) or (inputs), with dout=None or without, as one of all three.

    Raises:
        TypeError: it takes something else.
    """
    alone, with_dout = takes_inputs_alone(kernel), takes_dout(kernel)

    def call(spec: Spec, inputs: Mapping[str, Any], dout: Any = None) -> Any:
        return kernel(*((inputs,) if alone else (spec, inputs)), **({"dout": dout} if with_dout else {}))

    return call


def _signature(kernel: Callable[..., Any]) -> inspect.Signature | None:
    """None where it is compiled and does not tell."""
    try:
        return inspect.signature(kernel)
    except (TypeError, ValueError):
        return None


def parameter_names(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of what a function takes; none where it is compiled and does not tell."""
    signature = _signature(function)
    return () if signature is None else tuple(signature.parameters)


def takes_inputs_alone(kernel: Callable[..., Any]) -> bool:
    """Whether a kernel has its spec compiled in.

    Raises:
        TypeError: it takes something else than (spec, inputs) or (inputs).
    """
    signature = _signature(kernel)
    if signature is None:
        return False
    more = {"dout": None} if takes_dout(kernel) else {}
    one, two = (_accepts(signature, given, more) for given in ((None,), (None, None)))
    if not one and not two:
        name = getattr(kernel, "__name__", "the kernel")
        by_name = "; call one of arrays by name in such a function, as kernel(**inputs)"
        raise TypeError(
            f"{name}{signature} must take (spec, inputs) or (inputs), and may have dout=None beside for gradients"
            f"{by_name if 'q' in signature.parameters else ''}"
        )
    kinds = {p.kind for p in signature.parameters.values()}
    return one and not (
        two and (inspect.Parameter.VAR_POSITIONAL in kinds or next(iter(signature.parameters)) == "spec")
    )


def _accepts(signature: inspect.Signature, given: tuple[Any, ...], more: Mapping[str, Any]) -> bool:
    try:
        signature.bind(*given, **more)
    except TypeError:
        return False
    return True


def _dtype_hint(dtype: np.dtype[Any]) -> str:
    """What such a type often means."""
    if dtype.kind == "c":
        return ": attention is real; if its imaginary part is 0, give the real part"
    if dtype.kind == "b":
        return ": is it a comparison, and not what was compared?"
    if dtype.kind in "iu" and dtype.itemsize == 2:
        return ": if these are the bits of bfloat16, .view(ml_dtypes.bfloat16) makes them numbers"
    return ": whole numbers have lost what is to be judged"
