"""λ by layer: where training took it, and near what it began."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff import layers
from refdiff.arrays import floats
from refdiff.model.outputs import ModelOutput
from refdiff.viz.appearance import BLUE, INK, legend, new_axes, whole_numbers
from refdiff.viz.maps import AttentionMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_lambdas(lambdas: Any, *, axes: Axes | None = None, starts: bool = True) -> Axes:
    """Draw λ of every layer, and with `starts` the λ_init of its depth.

    `lambdas` is an `AttentionMaps`, a model's output, or numbers: (L,), or for v2, where every token has its own,
    (L, …): then a line of means in a band from the smallest to the largest, and no λ_init.

    Raises:
        ValueError: there is no λ.
    """
    values = _numbers(lambdas)
    axes = new_axes(axes)
    at = np.arange(len(values))
    flat = values.reshape(len(values), -1)
    many = flat.shape[1] > 1
    if many:
        axes.fill_between(at, flat.min(axis=1), flat.max(axis=1), color=BLUE, alpha=0.25, linewidth=0, label="all λ")
    axes.plot(at, flat.mean(axis=1), color=BLUE, marker="o", markersize=4, label="mean λ" if many else "λ")
    if starts and not many:
        begun = [layers.lambda_init(int(layer)) for layer in at]
        axes.plot(at, begun, color=INK, linestyle="--", marker="_", label="λ_init, near which it began")
    axes.set_xlabel("layer")
    axes.set_ylabel("λ")
    whole_numbers(axes.xaxis)
    legend(axes)
    return axes


def _numbers(lambdas: Any) -> np.ndarray[Any, Any]:
    if isinstance(lambdas, AttentionMaps | ModelOutput):
        lambdas = lambdas.lambdas
    values = floats([] if lambdas is None else lambdas)
    if not values.size or values.ndim == 0:
        raise ValueError(
            "there is no λ: a Llama has none, an output has them with output_attentions=True, and an array must be "
            "(layers,) or (layers, …)"
        )
    return values
