"""What the stored runs of both experiments of chapter 05 came to: by kind, and the main measures at a glance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DATA = Path(__file__).parents[1] / "data"
KINDS = {"plain": "none", "v1": "hf", "v2": "v2"}
TEXT_KINDS = {
    "plain": ("none", 6e-3), "v1": ("hf", 6e-3), "v2": ("v2", 6e-3), "v1, slow": ("hf", 2e-3),
    "v1, no norm": ("hf-no-norm", 6e-3), "v1, Muon": ("hf-muon", 6e-3), "plain, Muon": ("none-muon", 6e-3),
}  # fmt: skip
"""Name of a kind of text model → what its runs are called, and their learning rate."""

Runs = dict[str, list[dict[str, Any]]]


def load() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what data/retrieval.json and data/variants.json hold."""
    retrieval, variants = (
        json.loads((DATA / f"{name}.json").read_text(encoding="utf-8")) for name in ("retrieval", "variants")
    )
    return retrieval, variants


def retrieval_runs(stored: Mapping[str, Any], part: str = "runs") -> Runs:
    """Return the runs of the first experiment by kind, or its "controls"; each run gets its `learned_at`."""
    every = max(stored["experiment"]["steps"] // 100, 1)  # of the losses that are kept
    for run in stored[part]:
        below = np.flatnonzero(np.array(run["losses"]) < 0.2)
        run["learned_at"] = int(below[0]) * every if len(below) else None
    return {kind: [run for run in stored[part] if run["wiring"] == name] for kind, name in KINDS.items()}


def text_runs(stored: Mapping[str, Any]) -> Runs:
    """Return the runs of the second experiment by name, in the order of their seeds."""
    return {
        name: sorted((r for r in stored["runs"] if (r["kind"], r["rate"]) == which), key=lambda r: r["seed"])
        for name, which in TEXT_KINDS.items()
    }


def summary(runs: Runs, text: Runs) -> dict[str, dict[str, list[float]]]:
    """Return measure → kind → one number for each seed; an arrow points to the better side."""

    found = {kind: [run["measured"]["64"]["accuracy"] for run in mine] for kind, mine in runs.items()}
    names = {f"{kind}, AdamW": kind for kind in KINDS} | {f"{kind}, Muon": f"{kind}, Muon" for kind in ("plain", "v1")}
    losses = {shown: [run["validation"][-1][1] for run in text[name]] for shown, name in names.items()}
    return {"values found in 64 tokens →": found, "loss on text ←": losses}
