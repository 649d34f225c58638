"""Models in other processes: one whose weights are those of a file goes there as the file's path.

So each worker maps the file itself, and a model of gigabytes is sent in a few thousand bytes.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np

from refdiff.arrays import to_numpy
from refdiff.backends import Ops
from refdiff.model.config import DiffLlamaConfig
from refdiff.model.weights import flatten, load, nest


class Pickled:
    """The part of a model that `pickle` and `copy` ask; `_init_options` and `_loaded` are set where a model is made.

    _init_options: the choices of `__init__` that the result does not show: kernels, threads, and its own ops.
    _loaded: the `weights` argument and the arrays of `from_pretrained`, or None.
    """

    config: DiffLlamaConfig
    params: dict[str, Any]
    dtype: str
    xp: Any
    device: Any
    ops: Ops
    generation_config: dict[str, Any]
    source: str | None
    _init_options: dict[str, Any]
    _loaded: tuple[str, dict[str, Any]] | None

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Give what `restore` needs: the path where the weights are still those of the file, else the weights.

        Raises:
            TypeError: `ops` were replaced by functions of this process.
        """
        if self.ops is not self._init_options["ops"]:
            raise TypeError(
                "this model has ops of its own, and they do not pickle: send it without, and put them into its `ops` "
                "where it arrives"
            )
        choices = {
            "dtype": self.dtype,
            "device": self.device,
            "kernels": self._init_options["kernels"],
            "threads": self._init_options["threads"],
            "generation_config": self.generation_config,
        }
        source = None if self.source is None else str(Path(self.source).absolute())
        if self._loaded is not None and self._is_as_in_file(self._loaded[1]):
            weights: Any = self._loaded[0]
        else:
            weights = nest({name: to_numpy(a) for name, a in flatten(self.params).items()})
        return restore, (type(self), self.config, source, weights, self.xp.__name__, choices)

    def __copy__(self) -> Self:
        """Share everything, `ops` of its own too."""
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        return new

    def _is_as_in_file(self, loaded: dict[str, Any]) -> bool:
        """Whether the weights are the very arrays that were loaded, and nobody can have written to them."""
        now = flatten(self.params)
        return now.keys() == loaded.keys() and all(
            a is loaded[name] and isinstance(a, np.ndarray) and not a.flags.writeable for name, a in now.items()
        )


def restore(
    cls: Any, config: DiffLlamaConfig, source: str | None, weights: Any, backend: str, choices: dict[str, Any]
) -> Any:
    """Make a model again, of `weights`, or of the file in `source` if that is a word: how they are held.

    Raises:
        CheckpointError: the folder is not there, or holds another model.
    """
    params = weights
    if isinstance(weights, str):
        params = load(str(source), config, cls.__name__, dtype=choices["dtype"], stored=weights == "stored")
    model = cls(config, params, backend=importlib.import_module(backend), **choices)
    model.source = source
    if isinstance(weights, str):
        model._loaded = weights, flatten(model.params)
    return model
