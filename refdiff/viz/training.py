"""A figure of a training run: the loss and λ of each layer over the steps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from refdiff.training.checkpoint import read_log
from refdiff.viz.appearance import BLUE, INK, ORANGE, depth_colors, legend, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_training(log: str | os.PathLike[str] | Iterable[Mapping[str, Any]], *, figure: Figure | None = None) -> Figure:
    """Draw training and validation loss and, if the log has it, λ of each layer beside them.

    `log` is the folder of a `refdiff train` run, its log.jsonl, or the records of such a log.

    Raises:
        ValueError: the log has no step.
    """
    records = read_log(log) if isinstance(log, str | os.PathLike) else list(log)
    if not records:
        raise ValueError("log: got no steps, expected one or more")
    with_lambdas = [record for record in records if record.get("lambdas")]
    figure = new_figure(11 if with_lambdas else 6, 3.8, figure)
    panels = figure.subplots(1, 2 if with_lambdas else 1, squeeze=False)[0]
    axes = style_axes(panels[0])
    axes.plot(
        [r["step"] for r in records],
        [r["loss"] for r in records],
        color=BLUE,
        alpha=0.75,
        linewidth=1,
        label="training",
    )
    validated = [r for r in records if "validation" in r]
    if validated:
        axes.plot(
            [r["step"] for r in validated], [r["validation"] for r in validated],
            color=ORANGE, marker="o", markersize=3, linestyle="--", label="validation",
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    legend(axes)
    if with_lambdas:
        _draw_lambdas(style_axes(panels[1]), with_lambdas)
    return figure


def _draw_lambdas(axes: Any, records: list[Mapping[str, Any]]) -> None:
    """Draw a line for each layer, with its number at the end."""
    steps = [r["step"] for r in records]
    count = len(records[0]["lambdas"])
    for layer, color in enumerate(depth_colors(count)):
        values = [r["lambdas"][layer] for r in records]
        axes.plot(steps, values, color=color, linewidth=1.2, label=f"layer {layer}")
        axes.annotate(
            f"{layer}", (steps[-1], values[-1]), xytext=(4, 0), textcoords="offset points", color=color, fontsize=8,
            va="center",
        )  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel("λ by layer")
    axes.set_title("each line is a layer, its number at the end", fontsize=9, color=INK)
