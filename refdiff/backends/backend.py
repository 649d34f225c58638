"""`Ops`, the namespace of layer functions, `overlay`, which wraps them, and the base of all backends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

from refdiff import layers

Function = Callable[..., Any]


class Ops(SimpleNamespace):
    """A read-only namespace with the public functions of `refdiff.layers`, or with replacements of them."""

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(
            f"ops.{name} cannot be assigned; make a new namespace: overlay(ops, lambda name, function: ...)"
        )


def overlay(ops: Ops, wrap: Callable[[str, Function], Function]) -> Ops:
    """Return a new namespace in which each function is what `wrap(name, function)` returns for it.

    A wrapper passes on all arguments: a composed layer is called with `ops=`, the namespace of its parts. `ops` itself
    is not changed.
    """
    return Ops(**{name: wrap(name, function) for name, function in vars(ops).items()})


def ops_for(kernels: Any = None) -> Ops:
    """Return the layer functions, replaced by the attributes of `kernels` that have their names.

    Where a kernel returns `NotImplemented`, its layer runs.
    """
    if kernels is None:
        return Ops(**{name: getattr(layers, name) for name in layers.__all__})
    own = Ops()

    def dispatched(name: str) -> Function:
        layer, kernel = getattr(layers, name), getattr(kernels, name, None)
        if name in layers.COMPOSED:
            return _composed(own, name, layer, kernel)
        return layer if kernel is None else _leaf(layer, kernel)

    vars(own).update({name: dispatched(name) for name in layers.__all__})
    return own


def _leaf(layer: Function, kernel: Function) -> Function:
    def function(*args: Any, **kwargs: Any) -> Any:
        result = kernel(*args, **kwargs)
        return layer(*args, **kwargs) if result is NotImplemented else result

    return function


def _composed(own: Ops, name: str, layer: Function, kernel: Function | None) -> Function:
    """Call the kernel while `ops` has the backend's own function for every part of the layer, and else the layer."""
    parts = _parts(name)

    def function(*args: Any, ops: Any = own, **kwargs: Any) -> Any:
        if kernel is not None and (ops is own or all(getattr(ops, part) is getattr(own, part) for part in parts)):
            result = kernel(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return layer(*args, **kwargs, ops=ops)

    return function


def _parts(name: str) -> set[str]:
    """Return all layers that a layer calls, directly and through others."""
    direct = layers.COMPOSED.get(name, ())
    return set(direct).union(*(_parts(part) for part in direct))


class Backend:
    """The layer functions of a model, and whole functions that replace the model's own.

    This class has the layers alone; those of NumPy and CuPy have kernels.

    Attributes:
        ops: the layer functions.
        kernels: an object with an attribute for each layer that has a kernel, or None.
        chunk_size: how many tokens of a prompt, over the whole batch, go through the model at once.
    """

    chunk_size = 1024

    def __init__(self, kernels: Any = None) -> None:
        self.kernels = kernels
        self.ops = ops_for(kernels)

    def is_own(self, ops: Ops) -> bool:
        """Return whether `ops` is the backend's own namespace, in which nothing is wrapped or replaced."""
        return ops is self.ops

    def select(self, name: str, ops: Ops) -> Function | None:
        """Return the backend's whole function of that name, if it has one and `ops` is its own namespace; else None.

        Such functions are `fast_diffllama` (p, x, ctx, last), `cross_entropy_and_vjp` (g, logits, targets), and
        `saving_ops` (), which returns the layer functions for one forward and backward pass.
        """
        return getattr(self, name, None) if self.is_own(ops) else None

    def inference_scope(self, p: Any = None, input_ids: Any = None) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager for one pass through a model.

        Args:
            p, input_ids: weights of the base model and ids of a call, by which a backend may choose its threads.
        """
        return contextlib.nullcontext()

    def repeated_scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context manager for many passes of the same shapes, as in training."""
        return contextlib.nullcontext()

    def split_batch(self, batch: int, tokens: int) -> list[slice]:
        """Return the parts of a batch that one training step takes one by one, or several at a time."""
        return [slice(0, batch)]

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> None:
        """Call `work(item)` for every item, in any order."""
        for item in items:
            work(item)

    def map_in_order(self, work: Callable[[Any], Any], items: Sequence[Any], take: Callable[[Any], Any]) -> None:
        """Call `work(item)` for every item, and `take(result)` one at a time in the order of the items."""
        for item in items:
            take(work(item))

    def decode_step(self, model: Any) -> Any:
        """Return a function that computes one more token of each sequence (on CUDA), or None."""
        return None

    def sampler(self, model: Any, options: Any, processors: Any) -> Any:
        """Return a function that chooses tokens on the device (on CUDA), or None."""
        return None
