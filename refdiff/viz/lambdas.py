"""A figure of λ by layer, with the λ_init of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff import layers
from refdiff.arrays import floats
from refdiff.model.outputs import ModelOutput
from refdiff.viz.appearance import BLUE, INK, legend, new_axes, use_integer_ticks
from refdiff.viz.maps import AttentionMaps

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_lambdas(lambdas: Any, *, axes: Axes | None = None, starts: bool = True) -> Axes:
    """Draw λ of every layer and, with `starts`, its λ_init.

    `lambdas` is an `AttentionMaps`, a model's output, or an array (L,). In v2 λ varies with the token, (L, …): then the
    mean is drawn, in a band from the smallest to the largest λ, without λ_init.

    Raises:
        ValueError: `lambdas` has no λ.
    """
    values = _numbers(lambdas)
    axes = new_axes(axes)
    at = np.arange(len(values))
    flat = values.reshape(len(values), -1)
    has_several = flat.shape[1] > 1
    if has_several:
        axes.fill_between(at, flat.min(axis=1), flat.max(axis=1), color=BLUE, alpha=0.25, linewidth=0, label="all λ")
    axes.plot(at, flat.mean(axis=1), color=BLUE, marker="o", markersize=4, label="mean λ" if has_several else "λ")
    if starts and not has_several:
        initial = [layers.lambda_init(int(layer)) for layer in at]
        axes.plot(at, initial, color=INK, linestyle="--", marker="_", label="λ_init, near which it began")
    axes.set_xlabel("layer")
    axes.set_ylabel("λ")
    use_integer_ticks(axes.xaxis)
    legend(axes)
    return axes


def _numbers(lambdas: Any) -> np.ndarray[Any, Any]:
    if isinstance(lambdas, AttentionMaps | ModelOutput):
        lambdas = lambdas.lambdas
    values = floats([] if lambdas is None else lambdas)
    if not values.size or values.ndim == 0:
        raise ValueError(
            "lambdas: got no λ, expected an array (layers,) or (layers, …), AttentionMaps, or an output with "
            "output_attentions=True; a Llama has no λ"
        )
    return values
