"""Where the arrays of a test live: every layer gives the same values on each of these places, and stays there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import array_api_strict
import numpy as np
import pytest

import tests.layers
from refdiff import arrays
from tests.cuda.there import cuda
from tests.tolerances import FLOAT32, FLOAT64, close


@dataclass(frozen=True)
class Place:
    """A namespace, one of its devices, and whether arrays may be written to."""

    name: str
    xp: Any
    device: Any = None
    read_only: bool = False
    reached: list[str] = field(default_factory=list, compare=False, repr=False)
    """The names of the layers that were called here, for the test that runs to look at and to clear."""

    def __str__(self) -> str:
        return self.name

    @property
    def choice(self) -> dict[str, Any]:
        """What a model is told so that it lives here."""
        return {"backend": self.xp, "device": self.device}

    def put(self, x: Any) -> Any:
        """Bring NumPy arrays here, also inside of dicts, and dtypes and `numpy` itself; the rest is left as it is."""
        if isinstance(x, Mapping):
            return {name: self.put(value) for name, value in x.items()}
        if x is np:
            return self.xp
        if isinstance(x, np.dtype) or (isinstance(x, type) and issubclass(x, np.generic)):
            return getattr(self.xp, np.dtype(x).name)
        if not isinstance(x, np.ndarray | np.generic):
            return x
        if self.read_only:
            x = np.array(x)
            x.flags.writeable = False
            return x
        return x if self.xp is np else self.xp.asarray(np.array(x), device=self.device)

    def holds(self, x: Any) -> bool:
        """Say whether the array `x` is of this namespace and on this device."""
        if arrays.namespace(x) is not self.xp:
            return False
        return self.device is None or arrays.device(x) == self.device


# On any device but the first, array-api-strict refuses to mix in NumPy arrays and arrays made without `device=`.
STRICT = Place("array-api-strict on its second device", array_api_strict, array_api_strict.Device("device1"))
NUMPY = Place("numpy", arrays.backend("numpy"))
READ_ONLY = Place("read-only numpy", arrays.backend("numpy"), read_only=True)


def devices() -> list[Place]:
    """List the places that are not NumPy's; CuPy's is among them where a small computation on it works."""
    cupy = cuda()
    return [STRICT] if cupy is None else [STRICT, Place("cupy", arrays.backend("cupy"), cupy.cuda.Device(0))]


def places() -> list[Place]:
    """List the places of this machine."""
    return [NUMPY, READ_ONLY, *devices()]


@dataclass(frozen=True)
class Case:
    """One call of a layer, given with NumPy arrays in float64."""

    name: str
    layer: Callable[..., Any]
    args: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    tolerance: float = FLOAT64
    tolerance32: float = FLOAT32

    def __str__(self) -> str:
        return self.name

    def check(self, place: Place) -> None:
        """Fail unless the layer gives the same values at `place` as on NumPy, stays there, and writes to no input."""
        place.reached.append(self.layer.__name__)
        expected = leaves(self._call(NUMPY, np.float64)[0])
        for dtype, tolerance in ((np.float64, self.tolerance), (np.float32, self.tolerance32)):
            result, inputs = self._call(place, dtype)
            for one, there in zip(leaves(result), expected, strict=True):
                assert place.holds(one), f"the result left {place.name}"
                wanted = dtype if there.dtype.kind == "f" else there.dtype
                here = arrays.to_numpy(one)
                assert here.dtype == wanted, f"{here.dtype} out for {np.dtype(dtype)} in"
                if here.dtype.kind == "f":
                    here = here.astype(np.float64)
                close(here, there, tolerance, empty=there.size == 0)
            for before, after in inputs:
                assert np.array_equal(before, arrays.to_numpy(after), equal_nan=before.dtype.kind == "f"), "wrote to it"

    def check_mixed(self) -> None:
        """Fail unless one array of another library among the others is refused, and how to mend it said."""
        for i, stranger in enumerate(self.args):
            others = [x for j, x in enumerate(self.args) if j != i and isinstance(x, np.ndarray)]
            if isinstance(stranger, np.ndarray) and others:
                with pytest.raises(TypeError, match=r"^need arrays of one library, .*: convert them to one first$"):
                    self.layer(*(STRICT.put(x) if j == i else x for j, x in enumerate(self.args)), **self.options)

    def _call(self, place: Place, dtype: type) -> tuple[Any, list[tuple[np.ndarray, Any]]]:
        """Call the layer at `place`; return its result, and each input before and after."""
        given = {str(i): _cast(x, dtype) for i, x in enumerate(self.args)} | _cast(self.options, dtype)
        put = place.put(_cast(given, dtype))
        positional = [put[str(i)] for i in range(len(self.args))]
        result = self.layer(*positional, **{name: put[name] for name in self.options})
        pairs = zip(leaves(given), leaves(put), strict=True)
        return result, [(before, after) for before, after in pairs if isinstance(before, np.ndarray)]


def _cast(x: Any, dtype: type) -> Any:
    """Copy the arrays in `x`, those of float64 rounded to `dtype`; a dtype given as an argument becomes `dtype`."""
    if isinstance(x, Mapping):
        return {name: _cast(value, dtype) for name, value in x.items()}
    if x is np.float64:
        return dtype
    return x.astype(dtype if x.dtype == np.float64 else x.dtype) if isinstance(x, np.ndarray) else x


def leaves(x: Any) -> list[Any]:
    """List what stands in nested dicts and tuples, in order."""
    if isinstance(x, Mapping):
        return [leaf for value in x.values() for leaf in leaves(value)]
    if isinstance(x, tuple):
        return [leaf for value in x for leaf in leaves(value)]
    return [x]


def files_of_tests() -> list[ModuleType]:
    """Import every file of tests beside this one."""
    names = [m.name for m in pkgutil.iter_modules(tests.layers.__path__) if m.name.startswith("test_")]
    return [importlib.import_module(f"tests.layers.{name}") for name in names]


def every_case() -> list[Case]:
    """List the cases of every file of tests beside this one."""
    return [case for file in files_of_tests() for case in getattr(file, "CASES", [])]
