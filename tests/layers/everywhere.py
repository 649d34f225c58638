"""Every test of a layer on every place: it is written in NumPy, and what it calls is computed where it is told.

A test says `close(rms_norm(x, w, 1e-5), …)` with NumPy's arrays. The layers that its file names are replaced, as it
runs, by functions that bring what they are given to a place, call the layer there, see that the result stayed there
and bring it back. What layers call inside is not touched: it is as for a user of that library.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import is_hypothesis_test, settings

from refdiff import arrays, layers
from tests.layers.places import NUMPY, Place, leaves

Layer = Callable[..., Any]


@contextmanager
def computing(place: Place, *files: ModuleType) -> Iterator[None]:
    """Have the layers that these files of tests name computed at `place`."""
    public = [getattr(layers, name) for name in layers.__all__]  # or a mistake planted in the place of one
    with pytest.MonkeyPatch.context() as patch:
        for file in files:
            for name, value in list(vars(file).items()):
                if value is layers:
                    there = {n: _at(place, getattr(layers, n)) for n in layers.__all__}
                    patch.setattr(file, name, SimpleNamespace(**vars(layers) | there))
                elif inspect.isfunction(value) and (value in public or value.__module__.startswith("refdiff.layers.")):
                    patch.setattr(file, name, _at(place, value))
        yield


def _at(place: Place, layer: Layer) -> Layer:
    """The layer for NumPy's arrays, computed at `place`."""

    @functools.wraps(layer)
    def computed(*args: Any, **options: Any) -> Any:
        if not any(isinstance(x, np.ndarray | np.generic) or x is np for x in leaves((args, options))):
            return layer(*args, **options)  # numbers alone; or called by another layer, and there already
        place.reached.append(layer.__name__)
        if options.get("xp") is np and place.device is not None:
            options["device"] = place.device  # there are no arrays to show it
        result = layer(*map(place.put, args), **place.put(options))
        for x in leaves(result):
            assert x is None or place.holds(x), f"the result of {layer.__name__} left {place.name}"
        return _back(result)

    return computed


def _back(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _back(value) for name, value in x.items()}
    if isinstance(x, tuple):
        return tuple(map(_back, x))
    return None if x is None else arrays.to_numpy(x)


def needs_no_place(file: ModuleType, test: Layer) -> bool:
    """Whether a test, or all of its file, is marked `no_arrays`."""
    marks = [getattr(file, "pytestmark", None), *getattr(test, "pytestmark", [])]
    return any(mark is not None and mark.name == "no_arrays" for mark in marks)


def check(test: pytest.FixtureRequest, place: Place) -> Iterator[None]:
    """Around one test: fail unless a layer was given arrays, or the test says that none is, by its mark `no_arrays`."""
    place.reached.clear()
    failed = test.session.testsfailed
    with pytest.MonkeyPatch.context() as patch:
        if place is not NUMPY and is_hypothesis_test(test.function):
            # a third of the examples, set as Hypothesis's own plugin does: the function is the same on all places
            name = "_hypothesis_internal_use_settings"
            here: settings = getattr(test.function, name)
            patch.setattr(test.function, name, settings(here, max_examples=max(1, here.max_examples // 3)))
        yield
    if test.session.testsfailed > failed:
        return  # it says what is wrong, and may have ended before any layer
    if not test.node.get_closest_marker("no_arrays"):
        assert place.reached, (
            "gave arrays to no layer by a name in its file, so it is not on every place: name one, or mark it no_arrays"
        )
    elif place.reached:
        pytest.fail(f"gives arrays to {place.reached[0]}, so it is to run on every place: drop its mark no_arrays")
