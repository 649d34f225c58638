"""Where the arrays of a test live: every layer gives the same values on each of these places, and stays there."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import array_api_strict
import numpy as np

import tests.layers
from refdiff import arrays
from tests.cuda.there import cuda


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
