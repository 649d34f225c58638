"""Measures the bundled model and a plain-attention baseline, for the notebooks; keeps it in data/baseline.json.

    refdiff train fairy_en.txt -o baseline --variant plain …   # the whole command is on the bundled model's card
    python notebooks/experiments/baseline.py baseline

The baseline's weights are rounded to float16 as the bundled ones are. The bundled run's validation losses are those on
its card.

Kept of each model, on sequences of the validation part of the text, all of one length:

    validation     [step, nats a token] during training
    reached        on the whole validation part: nats a token, bits per byte
    first          by layer: of what a query gives to keys, in absolute values, the share that the first token gets,
                   mean over heads and queries. Of the differential model the three maps A₁, A₂ and A₁ − λ A₂.
    largest        of the scores QKᵀ/√d that causality leaves, and of the residual stream after each layer: the largest
                   |x|, the 10th, 100th and 1000th largest, and the median
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE.parent))

import refdiff
from refdiff import oracle
from refdiff.training import Corpus, Settings, checkpoint
from refdiff.training.evaluate import evaluate

ROWS, RANKS = 8, (1, 10, 100, 1000)


def card_losses() -> list[list[float]]:
    """The bundled run's validation losses, as its card has them."""
    card = (Path(refdiff.__file__).parent / "bundled" / "README.md").read_text(encoding="utf-8")
    return [[int(step), float(loss)] for step, loss in re.findall(r"^\| (\d+) \| [\d.]+ \| ([\d.]+) \|", card, re.M)]


def measure(model: Any, corpus: Corpus, settings: Settings) -> dict[str, Any]:
    """What is kept of a model, without its training."""
    context = settings.context
    rows = np.arange(0, corpus.rows("validation", context), max(corpus.rows("validation", context) // ROWS, 1))[:ROWS]
    ids, _ = corpus.batch("validation", rows, context)
    causal = np.tri(context, dtype=bool)
    first: dict[str, list[float]] = {}
    scores, states = [], []
    for row in ids:  # alone, without the borders of documents: one text of `context` tokens
        points = oracle.trace(model, row[None], maps=True).points
        for layer in range(model.config.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            states.append(np.abs(points[prefix]).ravel())
            at = {name.rpartition(".")[2]: x for name, x in points.items() if name.startswith(f"{prefix}.self_attn.")}
            scores += [np.abs(at[name][..., causal]).ravel() for name in at if name.startswith("scores")]
            maps = {"A": at["probs"]} if "probs" in at else {"A₁": at["probs1"], "A₂": at["probs2"]}
            if "A₁" in maps:
                maps["A₁ − λ A₂"] = maps["A₁"] - at["lambda_full"] * maps["A₂"]
            for name, weights in maps.items():
                share = np.abs(weights)[..., 0] / np.abs(weights).sum(axis=-1)
                first.setdefault(f"{name} {layer}", []).append(float(share.mean()))
    names = dict.fromkeys(name.rpartition(" ")[0] for name in first)
    layers = range(model.config.num_hidden_layers)
    return {
        "parameters": model.num_parameters(),
        "reached": evaluate(model, corpus, context, settings.batch_size),
        "first": {name: [round(float(np.mean(first[f"{name} {i}"])), 5) for i in layers] for name in names},
        "largest": {name: _largest(np.concatenate(x)) for name, x in (("scores", scores), ("states", states))},
    }


def _largest(x: np.ndarray[Any, Any]) -> dict[str, float]:
    ordered = np.sort(x)[::-1]
    kept = {f"top {rank}": ordered[rank - 1] for rank in RANKS} | {"median": np.median(x)}
    return {name: round(float(value), 3) for name, value in kept.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure both, and write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("baseline", type=Path, help="the folder of the finished run with --variant plain")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "data" / "baseline.json")
    args = parser.parse_args(argv)
    folder, about = checkpoint.latest(args.baseline)
    settings, corpus = Settings(**about["settings"]), Corpus(args.baseline / "corpus")
    if about["step"] != settings.max_steps:
        raise SystemExit(f"{args.baseline} has made {about['step']} of {settings.max_steps} steps: go on with --resume")
    with tempfile.TemporaryDirectory() as rounded:
        refdiff.DiffLlamaForCausalLM.from_pretrained(folder, dtype="float16").save_pretrained(rounded)
        baseline = refdiff.DiffLlamaForCausalLM.from_pretrained(rounded, dtype="float32")
    bundled = refdiff.DiffLlamaForCausalLM.from_pretrained("bundled", dtype="float32")
    losses = [[r["step"], round(r["validation"], 4)] for r in checkpoint.read_log(args.baseline) if "validation" in r]
    kept = {
        "tokens": settings.max_steps * settings.batch_size * settings.accumulate * (settings.context - 1),
        "differential": {"validation": card_losses(), **measure(bundled, corpus, settings)},
        "plain": {"validation": losses, **measure(baseline, corpus, settings)},
    }
    args.output.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(kept, indent=1, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
