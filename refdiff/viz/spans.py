"""Attention to chosen tokens against noise: how much goes where, as numbers and as bars."""

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
    """Compute the share of attention that groups of keys get, the mean over queries and over all leading axes.

    Equation:
        share of a group = Σ_{s∈group} |A_ts| / Σ_s |A_ts|. The rows of A₁ sum to 1 and those of A₁ − λ A₂ to 1 − λ
        with both signs in them; taken by size, and of their own sum, the two can be compared.

    Shapes:
        weights (…, T, S); spans: name → keys; queries: which of T, by default the last -> name → share from 0 to 1,
        and "the rest" where the groups leave keys over

    Raises:
        ValueError: two groups share a key, or a row of `weights` is all zeros.
        IndexError: a key or query that is not there.
    """
    A = np.abs(floats(weights))
    A = A[..., [queries] if isinstance(queries, int) else queries, :]
    total = A.sum(axis=-1, keepdims=True)
    if not (total > 0).all():
        raise ValueError("a row of the weights is all zeros: leave out queries that see nothing")
    share = (A / total).reshape(-1, A.shape[-1]).mean(axis=0)
    members = {
        name: np.arange(len(share))[keys if isinstance(keys, slice) else list(keys)] for name, keys in spans.items()
    }
    taken = np.concatenate([np.unique(keys) for keys in members.values()] or [np.array([], dtype=int)])
    if len(set(taken)) < len(taken):
        raise ValueError(f"two of the groups {', '.join(spans)} share a key, which would be counted twice")
    shares = {name: float(share[np.unique(keys)].sum()) for name, keys in members.items()}
    if len(taken) < len(share):
        shares["the rest"] = float(np.delete(share, taken).sum())
    return shares


def plot_attention_to(
    shares: Mapping[str, Mapping[str, float]],
    *,
    axes: Axes | None = None,
    errors: Mapping[str, Mapping[str, float]] | None = None,
) -> Axes:
    """Draw what groups of keys get, in bars beside each other for each model or map.

    `shares`: model or map → what `attention_to` gives for it; `errors`: the same with half the length of an error bar.

    Raises:
        ValueError: they do not have the same groups.
    """
    groups = {tuple(groups) for groups in shares.values()}
    if len(groups) != 1:
        raise ValueError(f"the shares are of different groups: {sorted(groups)}")
    (names,) = groups
    axes = new_axes(axes)
    width = 0.8 / len(shares)
    for i, (label, of) in enumerate(shares.items()):
        at = np.arange(len(names)) + (i - (len(shares) - 1) / 2) * width
        bars = axes.bar(
            at, [of[name] for name in names], width * 0.92, color=SERIES[i % len(SERIES)], label=label,
            hatch=("", "//", "..", "xx")[i % 4], edgecolor="none",
            yerr=None if errors is None else [errors[label][name] for name in names], ecolor=INK, capsize=2,
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:.2f}", fontsize=8, color=INK, padding=1)
    axes.set_xticks(range(len(names)), labels=list(names))
    axes.set_ylabel("share of attention")
    axes.set_ylim(0, 1)
    legend(axes)
    return axes
