"""Trains the two small models of the article: differential and plain attention, with equal sizes, data and settings.

    python notebooks/reference/train_small_models.py fairy_en.txt runs     # the text: see the bundled model's card

A run that is in the folder of runs is not repeated. small_models/ gets both models, their weights in float16, and
about.json: how they were trained and what they reach, beside what the bundled model reaches on the same sequences.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import refdiff  # noqa: E402  (the one that stands above this folder)
from refdiff import cli  # noqa: E402
from refdiff.training import Corpus, Settings, checkpoint  # noqa: E402
from refdiff.training.evaluate import evaluate  # noqa: E402

VARIANT_NAMES = {"differential": "hf", "plain": "plain"}
OPTIONS = {
    "vocab-size": 2048, "hidden-size": 96, "layers": 3, "heads": 6, "kv-heads": 6, "head-dim": 16,
    "intermediate-size": 176, "optimizer": "muon", "schedule": "cosine", "learning-rate": 0.008, "warmup-steps": 100,
    "max-steps": 2000, "batch-size": 16, "context": 128, "accumulate": 1, "weight-decay": 0.1, "grad-clip": 1.0,
    "seed": 0, "threads": 1, "evaluate-every": 500, "save-every": 500, "sample-every": 0, "prompt": "Once upon a time",
}  # fmt: skip
"""As the bundled model's, on its card, but for sizes and length."""


def train(text: Path, runs: Path) -> None:
    """Train both, where a run is not there yet."""
    for name, variant in VARIANT_NAMES.items():
        if not (runs / name).exists():
            options = [
                word
                for option, value in {"variant": variant, **OPTIONS}.items()
                for word in (f"--{option}", str(value))
            ]
            if code := cli.main(["train", str(text), "-o", str(runs / name), *options]):
                raise SystemExit(code)


def keep(runs: Path, out: Path) -> dict[str, Any]:
    """Write the models and about.json to a folder, and return what is in about.json."""
    about: dict[str, Any] = {}
    for name in VARIANT_NAMES:
        folder, trained = checkpoint.latest(runs / name)
        settings, corpus = Settings(**trained["settings"]), Corpus(runs / name / "corpus")
        if trained["step"] != settings.max_steps:
            raise SystemExit(f"{runs / name} has made {trained['step']} of {settings.max_steps} steps: resume it first")
        refdiff.DiffLlamaForCausalLM.from_pretrained(folder, dtype="float16").save_pretrained(out / name)
        about |= {"steps": settings.max_steps, "context": settings.context}
        about["tokens"] = settings.max_steps * settings.batch_size * settings.accumulate * (settings.context - 1)
        weights = hashlib.sha256((out / name / "model.safetensors").read_bytes()).hexdigest()
        about[name] = {"weights": weights, **_reached(out / name, corpus, settings)}
    about["bundled"] = _reached("bundled", corpus, settings)
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _reached(folder: Path | str, corpus: Corpus, settings: Settings) -> dict[str, float]:
    """Count the parameters, and measure the loss on the whole validation part."""
    model = refdiff.DiffLlamaForCausalLM.from_pretrained(folder, dtype="float32")
    reached = evaluate(model, corpus, settings.context, settings.batch_size)
    return {"parameters": model.num_parameters(), **{key: round(value, 4) for key, value in reached.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    """Train both and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path, help="the text of the bundled model")
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "small_models", help="(default: small_models)")
    args = parser.parse_args(argv)
    train(args.text, args.runs)
    print(json.dumps(keep(args.runs, args.output), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
