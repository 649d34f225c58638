"""Trains plain attention and both differential variants at equal size on one text, for chapter 05.

    python notebooks/experiments/variants.py fairy_en.txt runs --jobs 2       # the text: see the bundled model's card

Five runs of each of `none` (plain), `hf` (v1) and `v2`: same text, same sequences in the same order for each seed, same
number of parameters up to 0.3 % (v2 has twice the query heads, so its MLP is narrower), same steps and settings. The
learning rate is the best of three for plain attention. As v1 was not stable with it, there are controls with one change
each: three runs of v1 with a third of the rate, and five of v1 without the norm behind the difference (`hf-no-norm`),
of v1 with Muon (`hf-muon`) and of plain attention with Muon (`none-muon`).

Each run is a process and a file in the folder of runs; a run that has its file is not repeated. What the notebook draws
goes to data/variants.json.

Kept of each run:

    loss, gradient   of every step: nats per token; gradient norm before clipping
    validation       [step, nats per token] on 128 sequences of the validation part, the last one on all of it
    lambda           by moment and layer: λ, in v2 the mean over pairs and queries
    own, others      by moment and layer: correlation of the scores of A₁ and A₂ of one pair, and of different pairs, as
                     chapter 03 computes it, on eight sequences of the validation part; a plain model's pairs are its
                     heads i and i + H/2, which is how `hf` pairs them
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE.parent))

import refdiff
from refdiff import viz
from refdiff.backends import overlay
from refdiff.files import read_json, write_json
from refdiff.generation.tokenizer import Tokenizer
from refdiff.training import Corpus, Settings, Trainer


class Kind(NamedTuple):
    """A model and how it is trained; without `norm`, that behind the difference is left out, and its factor stays."""

    variant: str
    optimizer: str = "adamw"
    norm: bool = True


KINDS = {
    "none": Kind("plain"), "hf": Kind("hf"), "v2": Kind("v2"),
    "hf-no-norm": Kind("hf", norm=False), "hf-muon": Kind("hf", "muon"), "none-muon": Kind("plain", "muon"),
}  # fmt: skip
MAIN, CONTROLS = list(KINDS)[:3], list(KINDS)[3:]
RUNS = [(6e-3, kind, seed) for seed in range(5) for kind in MAIN] + [(2e-3, "hf", seed) for seed in range(3)]
RUNS += [(6e-3, kind, seed) for seed in range(5) for kind in CONTROLS]
"""Learning rate, kind and seed of every run."""
WIDTH, LAYERS, HEADS, VOCABULARY = 64, 4, 4, 512
SETTINGS = Settings(
    max_steps=400, batch_size=8, context=128, optimizer="adamw", warmup_steps=50, weight_decay=0.1, grad_clip=1.0,
    evaluate_every=50, save_every=0, sample_every=0, prompt="Once upon a time",
)  # fmt: skip
MOMENTS = (0, 10, 20, 40, 60, 80, 100, 125, 150, 200, 250, 300, 350, 400)
"""Steps after which the maps are looked at."""
OBSERVED, FIRST_QUERY = 8, 32
"""Sequences on which they are, and the query from which correlations count, as in chapter 03."""
EXAMPLE, SHOWN = (2e-3, "hf", 0), (1, 0)
"""The run, and its layer and pair, whose maps on this text are kept at every moment."""
OPENING = "Once upon a time there lived a king who had three sons, and the youngest was"


def config(variant: str) -> refdiff.DiffLlamaConfig:
    """The model of a variant. v2's MLP gives up what its second queries and its λ projection take."""
    extra = round((WIDTH * WIDTH + WIDTH * HEADS) / (3 * WIDTH)) if variant == "v2" else 0
    return refdiff.DiffLlamaConfig(
        variant=variant, vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH - extra,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=WIDTH // HEADS,
        max_position_embeddings=SETTINGS.context, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip


def without_norm(name: str, function: Any) -> Any:
    """Let the norm that has no weight, which is v1's behind the difference, pass on its input and its gradient."""
    if name == "rms_norm":
        return lambda x, weight, eps: x if weight is None else function(x, weight, eps)
    if name == "rms_norm_vjp":
        return lambda g, x, weight, eps: (g, None) if weight is None else function(g, x, weight, eps)
    return function


def pairs_of_maps(model: Any, tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[Any, Any, Any]:
    """A₁ and A₂ (layers, pairs, T, T) of one sequence, and λ by layer (None in a plain model)."""
    maps = viz.attention_maps(model, [int(i) for i in ids], tokenizer)
    if maps.second is None:
        half = maps.first.shape[1] // 2
        return maps.first[:, :half], maps.first[:, half:], None
    return maps.first, maps.second, maps.lambdas.reshape(len(maps.lambdas), -1).mean(axis=1)


def correlation(a: Any, b: Any) -> Any:
    """Mean over queries of the correlation of two maps' scores over the keys that a query sees."""
    seen = np.tri(a.shape[-1], dtype=bool)[FIRST_QUERY:]
    x, y = (np.log(np.where(seen, np.maximum(m[..., FIRST_QUERY:, :], 1e-30), 1)) for m in (a, b))
    x, y = (np.where(seen, z - z.sum(axis=-1, keepdims=True) / seen.sum(axis=-1, keepdims=True), 0) for z in (x, y))
    return ((x * y).sum(axis=-1) / np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))).mean(axis=-1)


def observe(model: Any, tokenizer: Tokenizer, sequences: Any) -> dict[str, Any]:
    """What is kept of a moment."""
    found, lambdas = [], []
    for ids in sequences:
        first, second, lambda_ = pairs_of_maps(model, tokenizer, ids)
        pairs = range(first.shape[1])
        found.append([[correlation(first[:, i], second[:, j]) for j in pairs] for i in pairs])
        lambdas.append(lambda_)
    by_pairs, same = np.mean(found, axis=0), np.eye(len(found[0]), dtype=bool)
    first, second, _ = pairs_of_maps(model, tokenizer, tokenizer.encode(OPENING))
    return {
        "own": by_pairs[same].mean(axis=0).round(3).tolist(),
        "others": by_pairs[~same].mean(axis=0).round(3).tolist(),
        "lambda": [] if lambdas[0] is None else np.mean(lambdas, axis=0).round(4).tolist(),
        "maps": (1000 * np.stack([first, second])).round().astype(int).tolist(),
    }


def name_of(rate: float, kind: str, seed: int) -> str:
    """The name of a run's file."""
    return f"{kind}-rate{rate}-seed{seed}.json"


def run(runs: str, rate: float, kind: str, seed: int) -> str:
    """Train one model and write its file; returns its name."""
    target, started = Path(runs) / name_of(rate, kind, seed), time.monotonic()
    folder = target.with_suffix("")
    if target.exists():
        return target.name
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir()
    corpus = Corpus(Path(runs) / "corpus")
    tokenizer = Tokenizer.from_pretrained(corpus.folder)
    of = KINDS[kind]
    settings = replace(SETTINGS, learning_rate=rate, seed=seed, optimizer=of.optimizer)
    trainer = Trainer.start(folder, config(of.variant), corpus, settings, threads=1)
    if not of.norm:
        trainer.model.ops = overlay(trainer.model.ops, without_norm)
    available = corpus.rows("validation", SETTINGS.context)
    sequences, _ = corpus.batch("validation", np.arange(OBSERVED) * (available // OBSERVED), SETTINGS.context)
    records: list[dict[str, Any]] = []
    moments = {0: observe(trainer.model, tokenizer, sequences)}

    def report(record: dict[str, Any]) -> None:
        records.append(record)
        if record["step"] in MOMENTS:
            moments[record["step"]] = observe(trainer.model, tokenizer, sequences)

    trainer.run(report)
    result = {
        "rate": rate, "kind": kind, "seed": seed, "parameters": trainer.model.num_parameters(),
        "loss": [round(r["loss"], 3) for r in records],
        "gradient": [float(f"{r['gradient']:.3g}") for r in records],
        "validation": [[r["step"], round(r["validation"], 4)] for r in records if "validation" in r],
        "bits_per_byte": round(records[-1]["bits_per_byte"], 4),
        **{name: [moments[step][name] for step in sorted(moments)] for name in ("lambda", "own", "others", "maps")},
        "seconds": round(time.monotonic() - started),
    }  # fmt: skip
    write_json(target, result)
    shutil.rmtree(folder)
    return target.name


def unigram_loss(corpus: Corpus) -> float:
    """Nats per token of the validation part for a model that knows how frequent each token is, and nothing else."""
    trained, seen = (np.bincount(corpus.tokens[part], minlength=VOCABULARY) for part in ("train", "validation"))
    there = seen > 0
    return float(-(seen[there] * np.log(trained[there] / trained.sum())).sum() / seen.sum())


def collect(runs: Path) -> dict[str, Any]:
    """What data/variants.json has of the runs: of the maps those of one pair of the first differential run."""
    found = [read_json(runs / name_of(*which)) for which in RUNS]
    corpus = Corpus(runs / "corpus")
    tokenizer = Tokenizer.from_pretrained(corpus.folder)
    tokens = [tokenizer.decode([i]) for i in tokenizer.encode(OPENING)]
    example = read_json(runs / name_of(*EXAMPLE))
    layer, pair = SHOWN
    maps = np.array(example["maps"])[:, :, layer, pair]  # (moments, A₁ and A₂, T, T), 1 is 1000
    kept = {"permille": maps[:, :, np.tri(len(tokens), dtype=bool)].tolist()}
    kept |= {name: [at[layer] for at in example[of]] for name, of in (("lambda", "lambda"), ("correlation", "own"))}
    return {
        "settings": asdict(SETTINGS),
        "model": {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "vocabulary": VOCABULARY},
        "text": {"bytes": corpus.source["bytes"], **{f"{p} tokens": len(corpus.tokens[p]) for p in corpus.tokens}},
        "unigram_loss": round(unigram_loss(corpus), 4),
        "moments": list(MOMENTS),
        "example": {"tokens": tokens, "layer": layer, "pair": pair, **kept},
        "runs": [{name: value for name, value in r.items() if name != "maps"} for r in found],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Train what has no file yet, and write the file of the notebook."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("text", type=Path, help="UTF-8 text; a line <|endoftext|> separates documents")
    parser.add_argument("runs", type=Path, help="folder of the runs; what is in it is not trained again")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "data" / "variants.json")
    parser.add_argument("--jobs", type=int, default=1, help="models trained at a time, each on one core (default: 1)")
    args = parser.parse_args(argv)
    if not (args.runs / "corpus").exists():
        Corpus.from_text(args.text, args.runs / "corpus", vocab_size=VOCABULARY)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(run, str(args.runs), *which) for which in RUNS]):
            print(future.result(), flush=True)
    args.output.write_text(json.dumps(collect(args.runs), ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
