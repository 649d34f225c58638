"""A figure of RoPE's wavelengths: the number of tokens in which each pair of dimensions rotates once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from refdiff import layers
from refdiff.viz.appearance import INK, MARKERS, SERIES, STYLES, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXAMPLES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 2048},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 2048,
        "short_factor": [1.0] * 32,
        "long_factor": [1.0 + 3.0 * i / 31 for i in range(32)],
        "factor": 4.0,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2048,
    },
    "proportional": {"rope_type": "proportional", "rope_theta": 10_000.0, "partial_rotary_factor": 0.75},
}
"""An example of each kind for heads of 64. Kinds that extend the context go from 2048 to 8192 positions."""


def plot_rope_wavelengths(
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    head_dim: int = 64,
    max_position_embeddings: int = 2048,
    length: int = 8192,
    axes: Axes | None = None,
) -> Axes:
    """Draw the wavelength 2π / θ_i in tokens over i, for each set of `rope_parameters`, or for an example of each kind.

    Args:
        parameters: label → `rope_parameters` (default: `EXAMPLES`).
        max_position_embeddings: where a line is drawn: pairs above it rotate less than once in such a text.
        length: of the text, on which the kinds dynamic and longrope depend.

    Pairs that do not rotate have no point.
    """
    chosen = EXAMPLES if parameters is None else parameters
    axes = new_axes(axes, 6.6, 4.2)
    for i, (name, rope_parameters) in enumerate(chosen.items()):
        frequencies, _ = layers.rope_frequencies(rope_parameters, head_dim, max_position_embeddings, length)
        unrotated = sum(f == 0 for f in frequencies)
        axes.plot(
            [2 * math.pi / f if f else math.nan for f in frequencies],
            color=SERIES[i % len(SERIES)],
            linestyle=STYLES[i % len(STYLES)] if i < len(SERIES) else STYLES[(i + 1) % len(STYLES)],
            marker=MARKERS[i % len(MARKERS)] if i >= len(SERIES) else "",
            markersize=3,
            linewidth=3.2 - 2.2 * i / max(len(chosen) - 1, 1),  # equal lines stay visible
            markevery=max(len(frequencies) // 8, 1),
            label=f"{name}, {unrotated} of {len(frequencies)} stand still" if unrotated else name,
        )
    axes.axhline(max_position_embeddings, color=INK, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"{max_position_embeddings} positions", (1, max_position_embeddings), xycoords=("axes fraction", "data"),
        color=INK, fontsize=8, ha="right", va="bottom",
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("pair of dimensions i")
    axes.set_ylabel("wavelength in tokens")
    legend(axes)
    return axes
