"""The share of attention that groups of keys get, as numbers and as a bar chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refdiff.arrays import floats
from refdiff.viz.appearance import INK, SERIES, legend, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Keys = slice | Sequence[int]


def attention_to(weights: Any, spans: Mapping[str, Keys], queries: Keys | int = -1) -> dict[str, float]:
    """Return the share of attention of each group of keys, averaged over queries and leading axes.

    Args:
        weights: attention maps, (…, T, S).
        spans: name of a group → its keys.
        queries: the queries to average over (default: the last).

    Returns:
        Name → share from 0 to 1, with "the rest" for keys in no group.

    Equation:
        share of a group = Σ_{s∈group} |A_ts| / Σ_s |A_ts|. Rows of A₁ sum to 1. Rows of A₁ − λ A₂ sum to 1 − λ and have
        both signs, so absolute values and the division make the two comparable.

    Raises:
        ValueError: two groups share a key, or a row of `weights` is all zeros.
        IndexError: a key or query does not exist.
    """
    A = np.abs(floats(weights))
    A = A[..., [queries] if isinstance(queries, int) else queries, :]
    total = A.sum(axis=-1, keepdims=True)
    if not (total > 0).all():
        raise ValueError("weights: got a row of zeros; leave out queries that may attend to no key")
    share = (A / total).reshape(-1, A.shape[-1]).mean(axis=0)
    members = {
        name: np.arange(len(share))[keys if isinstance(keys, slice) else list(keys)] for name, keys in spans.items()
    }
    grouped = np.concatenate([np.unique(keys) for keys in members.values()] or [np.array([], dtype=int)])
    if len(set(grouped)) < len(grouped):
        raise ValueError(f"spans: got groups that share a key, of {', '.join(spans)}, expected each key in one group")
    shares = {name: float(share[np.unique(keys)].sum()) for name, keys in members.items()}
    if len(grouped) < len(share):
        shares["the rest"] = float(np.delete(share, grouped).sum())
    return shares


def plot_attention_to(
    shares: Mapping[str, Mapping[str, float]],
    *,
    axes: Axes | None = None,
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> Axes:
    """Draw the shares of groups of keys as bars, side by side for several models or maps.

    `shares` maps a label to a result of `attention_to`. `errors` has the same keys and half the length of error bars.

    Raises:
        ValueError: the labels have different groups.
    """
    groups = {tuple(groups) for groups in shares.values()}
    if len(groups) != 1:
        raise ValueError(f"shares: got the groups {sorted(groups)}, expected the same for all")
    (names,) = groups
    axes = new_axes(axes)
    width = 0.8 / len(shares)
    for i, (label, share) in enumerate(shares.items()):
        at = np.arange(len(names)) + (i - (len(shares) - 1) / 2) * width
        bars = axes.bar(
            at, [share[name] for name in names], width * 0.92, color=SERIES[i % len(SERIES)], label=label,
            hatch=("", "//", "..", "xx")[i % 4], edgecolor="none",
            yerr=None if errors is None else [errors[label][name] for name in names], ecolor=INK, capsize=2,
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:.2f}", fontsize=8, color=INK, padding=1)
    axes.set_xticks(range(len(names)), labels=list(names))
    axes.set_ylabel("share of attention")
    axes.set_ylim(0, 1)
    legend(axes)
    return axes
